"""A small remote agent for tests: it labels a case, and does so better when a text it is given says the word.

    with AgentServer() as agent:
        agent.spec()   # what to write into agent.json

It listens as ``ratchet.testing.lm_server`` does, with the same faults on demand, and answers to any JSON that has
``inputs`` and ``components`` in it, or to a chat request. The right label is told where a component contains ``MAGIC``,
and for a share ``BASE`` of the cases else.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from ratchet.testing.lm_server import BASE, LABELS, MAGIC, StubServer, completion, share

TEXT = "You sort cases. Answer with a label."


def label_of(text: str, prompt: str) -> str:
    """What the agent says about the case in ``text`` when it is told ``prompt``."""
    case = int((re.findall(r"#(\d+)", text) or ["0"])[-1])
    right = MAGIC in prompt or share("agent", case) < BASE
    return LABELS[(case + (not right)) % len(LABELS)]


@dataclass(kw_only=True)
class AgentServer(StubServer):
    """The agent; a context manager that listens in a thread of this process.

    Attributes:
        refuse: Status of the answer to cases whose number can be divided by ``refused_every``; 0 refuses none.
        cost_usd: What the agent says a call costs; None for saying nothing.
        longer: Bytes by which each reply is longer than it needs to be.
        asked: The bodies of all requests.
    """

    refuse: int = 0
    refused_every: int = 5
    cost_usd: float | None = None
    longer: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens for JSON."""
        return f"http://127.0.0.1:{self.port}/answer"

    def spec(self, **more: Any) -> dict[str, Any]:
        """A spec of this agent, with ``more`` fields."""
        return {
            "url": self.url,
            "name": "sorter",
            "components": {"system": {"text": TEXT, "description": "The system prompt."}},
            "inputs": ["text"],
            "outputs": {"label": "/label"},
            **more,
        }

    def answer_to(self, body: dict[str, Any], digest: str, *, unreadable: bool) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a good answer, or of one that nobody can read."""
        self.asked.append(body)
        if "messages" in body:
            prompt, text = (str(message["content"]) for message in body["messages"][:2])
            return 200, completion(body, digest, "hm" if unreadable else json.dumps({"label": label_of(text, prompt)}))
        text, prompt = json.dumps(body.get("inputs")), json.dumps(body.get("components"))
        case = int((re.findall(r"#(\d+)", text) or ["1"])[-1])
        if self.refuse and case % self.refused_every == 0:
            return self.refuse, {"error": f"case {case} is not for me"}
        if unreadable:
            return 200, {"nothing": "of use"}
        said: dict[str, Any] = {"label": label_of(text, prompt), "padding": "x" * self.longer}
        if self.cost_usd is not None:
            said["usage"] = {"in": 11, "out": 3, "usd": self.cost_usd}
        return 200, said
