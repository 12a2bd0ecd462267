"""Who listens to events comes back when the database was away, as when the server was."""

from __future__ import annotations

import json

import httpx

from ratchet.client import AsyncClient, Client

EVENTS = [
    {"sequence": number, "at": "2026-01-01", "kind": kind, "payload": {}}
    for number, kind in enumerate(("queued", "begun", "ended"), start=1)
]


class Server:
    """Answers 503, then tells one event and breaks off, then tells the rest."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        """One answer."""
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json={"status": "improved"})
        after = int(request.url.params["after"])
        self.asked.append(str(after))
        if len(self.asked) in (1, 3):
            return httpx.Response(503, json={"detail": "the database server does not answer"})
        told = EVENTS[after:] if len(self.asked) > 3 else EVENTS[after : after + 1]
        return httpx.Response(200, text="".join(f"data: {json.dumps(event)}\n\n" for event in told))


def test_a_listener_comes_back_when_the_database_was_away() -> None:
    server = Server()
    transport = httpx.MockTransport(server.answer)
    with Client("http://server", key="k", retry_seconds=(0.0, 0.0), transport=transport) as client:
        assert [event.sequence for event in client.events("job")] == [1, 2, 3]
    assert server.asked == ["0", "0", "1", "1"]


async def test_a_listener_on_a_loop_comes_back_too() -> None:
    server = Server()
    transport = httpx.MockTransport(server.answer)
    async with AsyncClient("http://server", key="k", retry_seconds=(0.0, 0.0), transport=transport) as client:
        assert [event.sequence async for event in client.events("job")] == [1, 2, 3]
