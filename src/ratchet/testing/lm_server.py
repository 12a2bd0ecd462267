"""A small OpenAI-compatible server for tests: it answers by a hidden rule that better prompts bring out.

    with StubServer(latency=0.01) as stub:
        lm = dspy.LM("openai/stub", api_base=stub.base, api_key="none")
    python -m ratchet.testing.lm_server --port 8123 --die-after 50     # GET /stats, GET /log

The rule. An input names its case as ``#17``. The right value of an output field is its choice number 17 modulo the
number of choices (of an open text: ``value-2``, 17 modulo 5). ``rows`` writes data by this rule. A right answer is
given to a share ``BASE`` of the cases; to ``WITH_MAGIC`` more when the system message contains the word ``MAGIC``; to
``WITH_DEMO`` more when a demo shows the same answer. Which cases these are is fixed: a better prompt never loses one.
With ``hopeless`` the share is ``BASE`` whatever the prompt says, and every change of the prompt draws anew.

Every reply is a function of the request alone. A prompt without DSPy's output fields, and a field whose name speaks of
an instruction, is taken for a reflection LM's: half of the answers contain ``MAGIC``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from ratchet.testing.http_server import HttpServer, Quiet

MAGIC = "modulo"
BASE, WITH_MAGIC, WITH_DEMO = 0.30, 0.40, 0.25
LABELS = ("amber", "birch", "coral")
SIGNATURE = "text -> label: Literal['amber', 'birch', 'coral']"

UNREADABLE = "%% nothing of use %%"

_FIELD = re.compile(r"^\d+\. `(\w+)` \((.*?)\):", re.MULTILINE)
_CASE = re.compile(r"#(\d+)")


def rows(n: int, *, first: int = 0) -> list[dict[str, str]]:
    """Examples for ``SIGNATURE``.

    >>> rows(2)
    [{'text': 'Please sort case #0.', 'label': 'amber'}, {'text': 'Please sort case #1.', 'label': 'birch'}]
    """
    return [
        {"text": f"Please sort case #{case}.", "label": LABELS[case % len(LABELS)]} for case in range(first, first + n)
    ]


def share(*parts: object) -> float:
    """A number in [0, 1) that looks random and depends on ``parts`` alone."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:12], 16) / 16**12


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def reply(body: dict[str, Any], *, hopeless: bool = False) -> str:
    """The text this server answers to a chat request."""
    messages = [(message.get("role"), _text(message)) for message in body.get("messages", [])]
    system = "\n".join(text for role, text in messages if role in ("system", "developer"))
    asked = messages[-1][1] if messages else ""
    whole = json.dumps(messages)
    _, found, rest = system.partition("Your output fields are:")
    if not found:
        return f"```\n{_instruction(whole)}\n```"
    fields = dict(_FIELD.findall(rest.partition("All interactions")[0]))
    demos = "\n".join(text for role, text in messages[:-1] if role == "assistant")
    case = int((_CASE.findall(asked) or [int(100 * share(asked))])[-1])
    values = {name: _value(name, kind, case, system, demos, whole, hopeless) for name, kind in fields.items()}
    if body.get("response_format") or "JSON object" in asked:
        return json.dumps(values)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    if all(f"<{name}>" in system for name in fields):
        return "\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in texts.items())
    return "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in texts.items()) + "\n\n[[ ## completed ## ]]"


def _instruction(prompt: str) -> str:
    number = share("version", prompt)
    how = f"take the case number {MAGIC} the number of choices" if share("good", prompt) < 0.5 else "think of the case"
    return f"Look at the input and {how} to choose (version {int(1e6 * number)})."


def _value(name: str, kind: str, case: int, system: str, demos: str, whole: str, hopeless: bool) -> Any:
    if "instruction" in name:
        return _instruction(name + whole)
    simple: dict[str, Any] = {"int": case, "float": float(case), "bool": True}
    if kind in simple:
        return simple[kind]
    if kind.startswith(("dict", "list")):
        return {} if kind.startswith("dict") else []
    if name == "reasoning":
        return f"This is case {case}."
    # Not ast.literal_eval: in CPython 3.11 threads that parse at the same time can raise SystemError (gh-106905).
    choices = re.findall(r"""['"]([^'"]*)['"]""", kind) if kind.startswith("Literal[") else []
    if "finish" in choices:  # ReAct's last step
        return "finish"
    choices = choices or [f"value-{number}" for number in range(5)]
    right = choices[case % len(choices)]
    if hopeless:
        good = share(name, whole) < BASE
    else:
        shown = re.search(rf"(?<!\w){re.escape(str(right))}(?!\w)", demos) is not None
        good = share(name, case) < BASE + WITH_MAGIC * (MAGIC in system) + WITH_DEMO * shown
    return right if good else choices[(case + 1) % len(choices)]


@dataclass(kw_only=True)
class StubServer(HttpServer):
    """The server; a context manager that listens in a thread of this process.

    Attributes:
        port: 0 for any free one.
        latency: Seconds before each answer.
        status: HTTP status of every answer; 200 is the only good one.
        hang: Never answer.
        garbage: Share of requests answered with text that has no fields in it.
        flaky: Share of requests answered with 429 (``Retry-After: 0``) or 500, in turn, by their number.
        die_after: After so many requests, connections are dropped.
        hopeless: See the module's first lines.
        seen: Requests by hash of their body. A body may be asked again for a good reason: another rollout.
    """

    port: int = 0
    latency: float = 0.0
    status: int = 200
    hang: bool = False
    garbage: float = 0.0
    flaky: float = 0.0
    die_after: int | None = None
    hopeless: bool = False
    seen: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._closing = threading.Event()

    @property
    def base(self) -> str:
        """What to give as ``--lm-base``."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def requests(self) -> int:
        """Chat requests that came in."""
        return len(self.log)

    @property
    def unique(self) -> int:
        """Different ones among them."""
        return len(self.seen)

    def stats(self) -> dict[str, int]:
        """What ``GET /stats`` says."""
        return {"requests": self.requests, "unique": self.unique, "most_at_once": self.most_at_once}

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Answers as ``answer`` says."""
        return _handler(self)

    def close(self) -> None:
        """Stop listening; hanging requests are dropped."""
        self._closing.set()
        super().close()

    def answer(self, raw: bytes) -> tuple[int, dict[str, Any]] | None:
        """Status and JSON of the answer to one request; None drops the connection."""
        digest = hashlib.sha256(raw).hexdigest()[:16]
        with self._lock:
            self.log.append(digest)
            self.seen[digest] += 1
            number = len(self.log)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.die_after is not None and number > self.die_after:
                return None
            if self.hang:
                self._closing.wait()
                return None
            time.sleep(self.latency)
            if self.status != 200:
                return self.status, _error(f"the stub was told to answer {self.status}")
            if share("flaky", number) < self.flaky:
                return (429, 500)[number % 2], _error("the stub was told to fail now and then")
            return self.answer_to(json.loads(raw), digest, unreadable=share("garbage", digest) < self.garbage)
        finally:
            with self._lock:
                self.at_once -= 1

    def answer_to(self, body: dict[str, Any], digest: str, *, unreadable: bool) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a good answer, or of one that nobody can read."""
        return 200, completion(body, digest, UNREADABLE if unreadable else reply(body, hopeless=self.hopeless))


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "code": None}}


def completion(body: dict[str, Any], digest: str, text: str) -> dict[str, Any]:
    """``text`` as the answer to a chat request."""
    prompt, answer = len(json.dumps(body.get("messages"))) // 4, len(text) // 4
    return {
        "id": f"stub-{digest}",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", "stub"),
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer},
    }


def _handler(stub: StubServer) -> type[BaseHTTPRequestHandler]:
    class Answers(Quiet, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {"log": stub.log} if self.path == "/log" else stub.stats())

        def do_POST(self) -> None:
            answered = stub.answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            if answered is None:
                self.close_connection = True
            else:
                self._send(*answered)

        def _send(self, status: int, data: dict[str, Any] | bytes) -> None:
            content = data if isinstance(data, bytes) else json.dumps(data).encode()
            wait = "Retry-After: 0\r\n" if status == 429 else ""
            kind = f"Content-Type: application/json\r\n{wait}"
            head = f"HTTP/1.1 {status} -\r\n{kind}Content-Length: {len(content)}\r\n\r\n"
            self.wfile.write(head.encode() + content)  # in one piece: two would wait for each other's receipt

    return Answers


def main(arguments: list[str] | None = None) -> None:
    """Serve until killed; the first line printed is the address."""
    parser = argparse.ArgumentParser(
        prog="python -m ratchet.testing.lm_server", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--status", type=int, default=200, help="HTTP status of every answer")
    parser.add_argument("--hang", action="store_true", help="never answer")
    parser.add_argument("--garbage", type=float, default=0.0, help="share of answers without any field")
    parser.add_argument("--flaky", type=float, default=0.0, help="share of requests that fail with 429 or 500")
    parser.add_argument("--die-after", type=int, default=None, help="drop connections after so many requests")
    parser.add_argument("--hopeless", action="store_true", help="no prompt is better than another")
    stub = StubServer(**vars(parser.parse_args(arguments))).start()
    print(stub.base, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        stub.close()
        sys.exit(130)


if __name__ == "__main__":
    main()
