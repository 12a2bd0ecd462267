"""An agent that speaks A2A, behind a real server of the protocol's own SDK: what is read, and whose fault what is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dspy
import pytest

from ratchet.programs.agent_spec import parse
from ratchet.programs.remote import RemoteAgent
from ratchet.testing.a2a import Served, served
from ratchet.testing.lm_server import MAGIC


@pytest.fixture
def agent() -> Iterator[Served]:
    with served() as found:
        yield found


def called(agent: Served, text: str, **more: Any) -> Any:
    return RemoteAgent(parse(agent.spec(**more), source="here"))(text=text).label


def test_messages_tasks_and_data_are_read(agent: Served) -> None:
    assert called(agent, f"#2 {MAGIC}", components={"system": MAGIC}) == "coral"
    assert called(agent, "a task #1", components={"system": MAGIC}) == "birch"
    assert called(agent, "#1", components={"system": MAGIC}, outputs={"label": "/data/label"}) == "birch"


def test_an_agent_that_fails_at_a_task_or_writes_too_much_fails_its_run(agent: Served) -> None:
    with pytest.raises(dspy.LMInvalidRequestError, match="failed: not for me"):
        called(agent, "fail #1")
    with pytest.raises(dspy.LMInvalidRequestError, match="more than 2000 bytes"):
        called(agent, "long #1", max_reply_bytes=2000)


def test_an_agent_that_is_slow_broken_or_away_is_the_worlds_fault(agent: Served) -> None:
    with pytest.raises(dspy.LMTimeoutError, match=r"no answer in 0\.2 s"):
        called(agent, "slow", timeout_seconds=0.2)
    with pytest.raises(dspy.LMServerError):
        called(agent, "crash")
    with pytest.raises(dspy.LMTransportError):
        called(agent, "#1", url="http://127.0.0.1:9")
    with pytest.raises(dspy.LMError, match="check its url"):
        called(agent, "#1", url=f"{agent.url}/nowhere")


def test_a_card_that_sends_to_another_host_is_not_followed() -> None:
    with served("http://127.0.0.2:9") as agent:
        with pytest.raises(dspy.LMError, match="another host"):
            called(agent, "#1")
        assert agent.sorter.asked == []
