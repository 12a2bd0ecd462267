"""What a request may take: so many a minute, so deep, so long."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from ratchet.core.errors import TooMany
from ratchet.service import problems
from ratchet.service.patience import DEEPEST, Patience
from ratchet.service.rates import Rates
from ratchet.testing.service import House, actor


def test_a_key_that_asks_too_often_is_told_when_to_come_back(house: House) -> None:
    _, text = house.desk.keys.create(actor(), name="slow", tenant="default", role="viewer", requests_per_minute=3)
    headers = {"X-API-Key": text}
    for remaining in (2, 1, 0):
        answer = house.client.get("/api/v1/targets", headers=headers)
        assert answer.status_code == 200
        assert (answer.headers["ratelimit-limit"], answer.headers["ratelimit-remaining"]) == ("3", str(remaining))
    refused = house.client.get("/api/v1/targets", headers=headers)
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert refused.headers["ratelimit-remaining"] == "0"
    assert house.ask("GET", "/api/v1/targets").headers["ratelimit-limit"] == "6000"


@given(st.integers(1, 200), st.lists(st.floats(0, 30), max_size=300))
def test_in_no_minute_more_is_granted_than_a_full_bucket_and_what_flows_in(rate: int, pauses: list[float]) -> None:
    now = 0.0
    rates = Rates(clock=lambda: now)
    granted: list[float] = []
    for pause in pauses:
        now += pause
        try:
            rates.take("key", rate)
        except TooMany as refused:
            assert granted
            wait = refused.values["retry_after"]
            assert isinstance(wait, int)
            assert wait >= 1
        else:
            granted.append(now)
    for start in granted:
        assert sum(start <= at < start + 60 for at in granted) <= 2 * rate


def deep(n: int) -> bytes:
    return b'{"target": {"spec": {"program": ' + b'{"a":' * n + b"1" + b"}" * n + b"}}}"


@pytest.mark.parametrize("n", [DEEPEST, 500, 5000, 100_000])
def test_a_body_that_is_too_deep_is_refused(house: House, n: int) -> None:
    headers = {"Content-Type": "application/json"}
    answer = house.ask("POST", "/api/v1/optimize", content=deep(n), headers=headers)
    assert answer.status_code == 400, answer.text
    assert "64 lists and objects" in answer.json()["detail"]
    shallow = house.ask("POST", "/api/v1/optimize", content=deep(DEEPEST - 4), headers=headers)
    assert shallow.status_code == 422


@pytest.mark.parametrize("n", [100, 900, 3000, 100_000])
def test_a_row_that_is_too_deep_is_refused_too(house: House, n: int) -> None:
    row = b'{"text": ' + b"[" * n + b"]" * n + b', "label": "a"}\n'
    answer = house.upload(content=row * 2)
    assert answer.status_code in (201, 422), answer.text
    if answer.status_code == 201:
        assert house.ask("GET", "/api/v1/datasets/mails").status_code == 200


def app_with(seconds: float) -> Any:
    app = FastAPI()

    @app.post("/slow")
    def slow(seconds: float) -> str:
        time.sleep(seconds)
        return "done"

    @app.post("/read")
    async def read(body: dict[str, int]) -> int:
        return len(body)

    problems.install(app)
    return Patience(app, seconds=seconds)


async def ask(app: Any, path: str, content: Any = b"{}") -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, content=content, headers={"Content-Type": "application/json"})


async def test_who_waits_too_long_for_an_answer_is_told_so() -> None:
    app = app_with(0.05)
    answer = await ask(app, "/slow?seconds=1.5")
    assert answer.status_code == 503
    assert "no answer within 0.05 s" in answer.json()["detail"]
    assert (await ask(app, "/slow?seconds=0")).json() == "done"


async def test_a_body_that_comes_too_slowly_is_refused() -> None:
    async def drip() -> Any:
        yield b"{"
        await asyncio.sleep(0.5)
        yield json.dumps({"a": 1})[1:].encode()

    answer = await ask(app_with(0.1), "/read", drip())
    assert answer.status_code == 408, answer.text
    assert answer.json()["title"] == "Took too long to arrive"
    assert (await ask(app_with(5.0), "/read", drip())).json() == 1
