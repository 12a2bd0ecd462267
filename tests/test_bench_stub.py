"""The stub LM of the benches does what its options say, and counts what came."""

from __future__ import annotations

import doctest
import http.client
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import bench.sheet
import bench.stub
import pytest
from bench.stub import GARBAGE, Outage, StubProcess, Weather

from ratchet.testing.lm_server import reply


def body(case: int) -> dict[str, object]:
    """A chat request about one case."""
    system = "Your output fields are:\n1. `label` (Literal['amber', 'birch', 'coral']):\nAll interactions"
    return {
        "model": "stub",
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": f"case #{case}"}],
    }


def ask(base: str, case: int, *, timeout: float = 10.0) -> tuple[int, str, http.client.HTTPMessage]:
    """Status, text and headers of the answer to ``body(case)``."""
    address = urlsplit(base)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=timeout)
    try:
        connection.request("POST", f"{address.path}/chat/completions", json.dumps(body(case)))
        answer = connection.getresponse()
        data = json.loads(answer.read())
    finally:
        connection.close()
    text = data["choices"][0]["message"]["content"] if answer.status == 200 else ""
    return answer.status, text, answer.headers


def test_it_answers_by_the_rule_and_counts_each_name_apart() -> None:
    with StubProcess() as stub:
        for case in (1, 2, 2):
            status, text, _ = ask(stub.base("one"), case)
            assert (status, text) == (200, reply(body(case)))
        ask(stub.base("two"), 1)
        assert stub.stats("one")["requests"] == 3
        assert (stub.stats("one")["unique"], stub.stats("one")["repeated"]) == (2, 1)
        assert sorted(stub.log().values()) == [2, 2]
        assert json.loads(stub.sample()) == body(1)
        stub.reset()
        assert stub.stats()["requests"] == stub.stats("one")["requests"] == 0


def test_a_retry_gets_past_a_429_and_never_past_garbage() -> None:
    weather = Weather(rate_429=0.3, rate_500=0.2, rate_garbage=0.5, retry_after=0.7)
    texts: dict[int, set[str]] = {}
    seen: Counter[int] = Counter()
    with StubProcess(weather) as stub:
        for case in (*range(10), *range(10)):
            status = 0
            while status != 200:
                status, text, headers = ask(stub.base(), case)
                seen[status] += 1
                assert headers["Retry-After"] == ("0.7" if status == 429 else None)
            texts.setdefault(case, set()).add(text)
        assert stub.stats()["outcomes"] == {str(status): count for status, count in seen.items()}
        assert stub.stats()["answered"] == 20
        assert stub.stats()["repeated"] == 10
    assert set(seen) == {200, 429, 500}
    assert all(len(answers) == 1 for answers in texts.values())
    assert 0 < sum({GARBAGE} == answers for answers in texts.values()) < 10


def test_those_who_find_no_slot_wait_in_line() -> None:
    with StubProcess(Weather(latency=0.05, jitter=0.3, slots=2)) as stub, ThreadPoolExecutor(6) as pool:
        began = time.monotonic()
        list(pool.map(lambda case: ask(stub.base(), case), range(6)))
        wall = time.monotonic() - began
        found = stub.stats()
    assert found["most_at_once"] == 2
    assert 6 * 0.05 * 0.7 <= found["busy_seconds"] <= 2 * wall


def test_a_hung_request_is_over_when_its_client_leaves() -> None:
    with StubProcess(Weather(rate_timeout=1.0)) as stub:
        with pytest.raises(TimeoutError):
            ask(stub.base(), 1, timeout=0.2)
        while stub.stats()["under_way"]:
            time.sleep(0.01)
        assert stub.stats()["outcomes"] == {"left": 1}
        assert not stub.log()


@pytest.mark.parametrize("refuse", [False, True])
def test_nobody_is_there_in_an_outage(refuse: bool) -> None:
    with StubProcess(Weather(outages=(Outage(start=0.0, seconds=1.0, refuse=refuse),))) as stub:
        if refuse:
            assert ask(stub.base(), 1)[0] == 503
        else:
            with pytest.raises(ConnectionError):
                ask(stub.base(), 1)
        time.sleep(1.1)
        assert ask(stub.base(), 1)[0] == 200


def test_options_survive_the_command_line() -> None:
    weather = Weather(slots=3, retry_after=None, hopeless=True, outages=(Outage.parse("1,2"), Outage.parse("3,4,503")))
    assert weather.arguments() == [
        *("--latency=0.0", "--jitter=0.0", "--slots=3", "--rate-429=0.0", "--rate-500=0.0", "--rate-timeout=0.0"),
        *("--rate-garbage=0.0", "--retry-after=-1", "--outage=1,2,drop", "--outage=3,4,503", "--hopeless", "--seed=0"),
    ]


@pytest.mark.parametrize("module", [bench.stub, bench.sheet])
def test_the_examples_in_the_docs_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
