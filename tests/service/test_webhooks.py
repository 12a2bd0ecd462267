"""Webhooks: signed, retried, in order, never inside."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from ratchet.core.access import Actor
from ratchet.core.patience import Patience
from ratchet.courier import Courier, Door
from ratchet.engine.archive import Event
from ratchet.listeners import hosts_of
from ratchet.storage.claims import Claims, MemoryClaims
from ratchet.storage.outbox import Outlet
from ratchet.storage.tables import EVENT, events
from ratchet.testing.service import House
from ratchet.testing.vault import SECRET
from ratchet.testing.webhooks import Delivery, Receiver
from ratchet.webhook import Postman, WebhookSink


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def open_to(house: House, allow: str = "127.0.0.1") -> None:
    """Let webhooks of ``house`` lead to ``allow``."""
    house.desk.settings.webhook_allow = allow


def add(house: House, receiver: Receiver, *, tenant: str = "default", **more: Any) -> dict[str, Any]:
    open_to(house)
    answer = house.ask("POST", "/api/v1/webhooks", json={"url": receiver.url, **more}, tenant=tenant)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def courier(
    house: House,
    *,
    patience: Patience | None = None,
    dead_after: timedelta = timedelta(days=3),
    claims: Claims | None = None,
    say: Callable[[str], None] = lambda line: None,
    chores: Sequence[Callable[[], None]] = (),
) -> Courier:
    """A courier whose time is the clock of ``house``."""
    desk, clock = house.desk, house.clock
    postman = Postman(hosts_of(desk.settings), clock=clock, seconds=5)
    actor = Actor(name="courier", tenant="", role="admin", origin="a test")

    def door(outlet: Outlet) -> Door:
        sink = WebhookSink(outlet.id, desk.webhooks, postman, actor=actor, clock=clock, dead_after=dead_after)
        return Door(sink=sink, patience=patience or Patience())

    return Courier(
        desk.outbox,
        claims or desk.archive.claims,
        door=door,
        chores=chores,
        closing=[postman.close],
        clock=clock,
        rng=random.Random(0),
        say=say,
    )


def deliver(house: House, *, looks: int = 1, seconds: float = 7200.0, **more: Any) -> None:
    """Have a new courier look, and look again after some time."""

    async def looking() -> None:
        one = courier(house, **more)
        for number in range(looks):
            if number:
                house.clock.now += timedelta(seconds=seconds)
            await one.turn()
            await one.settle()
        await one.stop()

    asyncio.run(looking())


def note(house: House, job: str, *kinds: str, **payload: Any) -> None:
    notebook = house.desk.archive.open(job)
    for kind in kinds:
        notebook.note(Event(kind=kind, payload=payload))
    notebook.flush()


def begin(house: House, **more: Any) -> str:
    house.upload(tenant=more.get("tenant", "default"))
    return str(house.optimize(**more).json()["id"])


def check_signature(delivery: Delivery, secret: str) -> None:
    """As the specification of Standard Webhooks tells receivers to do it."""
    name, _, encoded = secret.partition("_")
    assert name == "whsec"
    to_sign = b".".join(
        (delivery.headers["webhook-id"].encode(), delivery.headers["webhook-timestamp"].encode(), delivery.body)
    )
    expected = base64.b64encode(hmac.digest(base64.b64decode(encoded), to_sign, hashlib.sha256)).decode()
    versions = [each.split(",", 1) for each in delivery.headers["webhook-signature"].split(" ")]
    assert ["v1", expected] in versions


def test_an_optimizations_events_arrive_in_order_signed_as_cloudevents(house: House, receiver: Receiver) -> None:
    secret = add(house, receiver, events=["ratchet.optimization.*"])["secret"]
    job = begin(house)
    note(house, job, "begun", "best", "done", "best")
    note(house, job, "ended", status="no_proven_gain", reason="no gain")
    deliver(house)
    events = [delivery.event for delivery in receiver.deliveries]
    assert [event["type"].removeprefix("ratchet.optimization.") for event in events] == [
        "queued",
        "begun",
        "best",
        "best",
        "completed",
    ]
    assert [int(event["sequence"]) for event in events] == [1, 2, 3, 5, 6]
    for delivery, event in zip(receiver.deliveries, events, strict=True):
        check_signature(delivery, secret)
        assert delivery.headers["content-type"].startswith("application/cloudevents+json")
        assert delivery.headers["webhook-id"] == event["id"]
        assert (event["specversion"], event["subject"], event["tenant"]) == ("1.0", job, "default")
        assert event["time"].endswith("Z")
    assert len({event["id"] for event in events}) == 5
    assert events[-1]["data"] == {"status": "no_proven_gain", "reason": "no gain"}
    deliver(house)
    assert len(receiver.deliveries) == 5


def test_what_happened_before_it_was_asked_for_is_not_sent(house: House, receiver: Receiver) -> None:
    job = begin(house)
    note(house, job, "begun")
    add(house, receiver, events=["ratchet.optimization.*"])
    note(house, job, "best")
    deliver(house)
    assert [(event["type"], event["sequence"]) for event in receiver.taken] == [("ratchet.optimization.best", "3")]


def test_other_things_that_happen_come_from_the_audit_trail(house: House, receiver: Receiver) -> None:
    add(house, receiver)
    house.upload()
    house.ask("POST", "/api/v1/targets", json={"name": "sorter", "signature": "a -> b"})
    deliver(house)
    told = {(event["type"], event["subject"]) for event in receiver.taken}
    assert ("ratchet.dataset.created", "mails@1") in told
    assert ("ratchet.target.created", "sorter@1") in told


def test_a_tenant_gets_only_its_own_events(house: House, receiver: Receiver) -> None:
    add(house, receiver, tenant="other")
    begin(house)
    mine = begin(house, tenant="other")
    deliver(house)
    assert {event["tenant"] for event in receiver.taken} == {"other"}
    assert {event["subject"] for event in receiver.taken} == {mine, "mails@1"}


def test_a_failing_event_holds_back_only_its_own_optimization(house: House, receiver: Receiver) -> None:
    add(house, receiver, events=["ratchet.optimization.*"])
    ill, well = begin(house), begin(house)
    failing = True
    receiver.answer = lambda event: 500 if failing and event["subject"] == ill and event["sequence"] == "2" else 204
    for job in (ill, well):
        note(house, job, "begun", "best")
    deliver(house, looks=3)

    def sequences(job: str) -> list[str]:
        return [event["sequence"] for event in receiver.taken if event["subject"] == job]

    assert (sequences(ill), sequences(well)) == (["1"], ["1", "2", "3"])
    tries = [delivery for delivery in receiver.deliveries if delivery.status == 500]
    assert len(tries) == 3
    assert len({delivery.headers["webhook-id"] for delivery in tries}) == 1
    failing = False
    house.clock.now += timedelta(hours=2)
    deliver(house)
    assert sequences(ill) == ["1", "2", "3"]


def test_an_endpoint_that_is_down_is_tried_with_one_optimization_at_a_time(house: House, receiver: Receiver) -> None:
    add(house, receiver, events=["ratchet.optimization.*"])
    jobs = [begin(house, seed=seed) for seed in range(4)]
    receiver.answer = lambda event: 503
    deliver(house, looks=9, seconds=60.0)
    tried = [delivery.event["subject"] for delivery in receiver.deliveries]
    assert len(tried) == 4 + 8  # nobody knew at the first look
    assert {tried.count(job) for job in jobs} == {3}
    receiver.answer = lambda event: 204
    deliver(house, looks=2)
    assert sorted(event["subject"] for event in receiver.taken) == sorted(jobs)


def test_an_event_that_shows_late_is_delivered_although_later_ones_were(house: House, receiver: Receiver) -> None:
    add(house, receiver, events=["ratchet.optimization.*"])
    early, late = begin(house), begin(house, seed=1)

    async def looking() -> None:
        one = courier(house)
        await one.turn()
        await one.settle()
        for number, job in ((1000, early), (999, late)):  # as two transactions that end the other way round
            values = {"number": number, "optimization_id": job, "at": "2026-01-01T00:00:00+00:00"}
            box = house.desk.archive.vault.box(f"optimization:{job}")
            with house.desk.archive.transaction() as connection:
                connection.execute(events.insert().values(**EVENT.hide(box, {**values, "kind": "best", "payload": {}})))
            await one.turn()
            await one.settle()
        await one.stop()

    asyncio.run(looking())
    assert [event["subject"] for event in receiver.taken[2:]] == [early, late]


def test_two_couriers_at_once_lose_nothing_and_one_gives_way(house: House, receiver: Receiver) -> None:
    add(house, receiver, events=["ratchet.optimization.*"])
    job = begin(house)
    note(house, job, *["best"] * 8)
    said: list[str] = []

    async def looking() -> None:
        two = [courier(house, claims=MemoryClaims(), say=said.append) for _ in range(2)]  # each has its claim
        for _ in range(3):
            for one in two:
                await one.turn()
            for one in two:
                await one.settle()
        for one in two:
            await one.stop()

    asyncio.run(looking())
    sequences = [int(event["sequence"]) for event in receiver.taken]
    assert list(dict.fromkeys(sequences)) == list(range(1, 10))
    assert "beginning anew" in said[0]


def test_a_dead_letter_of_what_was_erased_is_struck_off(house: House, receiver: Receiver) -> None:
    webhook = add(house, receiver, events=["ratchet.optimization.*"])
    job = begin(house)
    receiver.answer = lambda event: 400
    deliver(house, patience=Patience(attempts=1))
    with house.desk.archive.transaction() as connection:
        connection.execute(events.delete().where(events.c.optimization_id == job))
    house.ask("POST", f"/api/v1/webhooks/{webhook['id']}/redeliver", json={})
    deliver(house)
    assert house.ask("GET", f"/api/v1/webhooks/{webhook['id']}/dead").json()["items"] == []


def change(house: House, job: str, number: int) -> bytes:
    """Change an event of ``job`` behind our back; what was there."""
    with house.desk.archive.transaction() as connection:
        mine = sa.select(events.c.number, events.c.sealed).where(events.c.optimization_id == job)
        place, sealed = connection.execute(mine.order_by(events.c.number).offset(number - 1).limit(1)).one()
        put(connection, place, sealed[:-1] + bytes([sealed[-1] ^ 1]))
    return bytes(sealed)


def put(connection: sa.Connection, place: int, sealed: bytes) -> None:
    connection.execute(events.update().where(events.c.number == place).values(sealed=sealed))


def test_an_event_that_was_changed_holds_back_its_own_optimization_and_is_told_once(
    house: House, receiver: Receiver
) -> None:
    add(house, receiver, events=["ratchet.optimization.*"])
    ill, well = begin(house), begin(house)
    for job in (ill, well):
        note(house, job, "begun", "best", text="x")
    sealed, said = change(house, ill, 2), list[str]()

    def sequences(job: str) -> list[str]:
        return [event["sequence"] for event in receiver.taken if event["subject"] == job]

    deliver(house, looks=4, say=said.append)
    assert (sequences(ill), sequences(well)) == (["1"], ["1", "2", "3"])
    assert len(said) == 1
    assert f"events of {ill} wait" in said[0]
    assert "was changed or moved" in said[0]
    with house.desk.archive.transaction() as connection:  # as from a backup
        mine = sa.select(events.c.number).where(events.c.optimization_id == ill).order_by(events.c.number)
        put(connection, connection.execute(mine).scalars().all()[1], sealed)
    deliver(house)
    assert sequences(ill) == ["1", "2", "3"]


def test_a_dead_letter_that_was_changed_stays_one_with_its_cause(house: House, receiver: Receiver) -> None:
    webhook = add(house, receiver, events=["ratchet.optimization.*"])
    job = begin(house)
    receiver.answer = lambda event: 400
    deliver(house, patience=Patience(attempts=1))
    change(house, job, 1)
    house.ask("POST", f"/api/v1/webhooks/{webhook['id']}/redeliver", json={})
    deliver(house, looks=4, patience=Patience(attempts=2))
    (dead,) = house.ask("GET", f"/api/v1/webhooks/{webhook['id']}/dead").json()["items"]
    assert (dead["attempts"], dead["again"]) == (2, False)
    assert "was changed or moved" in dead["error"]


def test_a_secret_that_was_changed_fails_its_own_webhook_alone(house: House, receiver: Receiver) -> None:
    ill, _ = (add(house, receiver, events=[kind]) for kind in ("ratchet.*", "ratchet.optimization.*"))
    with house.desk.archive.transaction() as connection:
        this = sa.text("UPDATE webhooks SET secret = :secret WHERE id = :id")
        connection.execute(
            this, {"secret": f"sealed:{base64.b64encode(bytes([0xA1, *[0] * 40])).decode()}", "id": ill["id"]}
        )
    begin(house)
    deliver(house)
    assert [event["type"] for event in receiver.taken] == ["ratchet.optimization.queued"]
    found = house.ask("GET", f"/api/v1/webhooks/{ill['id']}").json()
    assert "was changed or moved" in found["error"]


def test_a_chore_that_fails_is_told_and_holds_back_no_event(house: House, receiver: Receiver) -> None:
    add(house, receiver, events=["ratchet.optimization.*"])
    begin(house)
    said: list[str] = []

    def chore() -> None:
        raise ValueError(SECRET)

    deliver(house, looks=2, say=said.append, chores=[chore])
    assert len(receiver.taken) == 1
    assert len(said) == 1
    assert "by a bug" in said[0]
    assert "ValueError" in said[0]
    assert SECRET not in said[0]


def test_tries_come_later_and_later(house: House, receiver: Receiver) -> None:
    add(house, receiver, events=["ratchet.optimization.*"])
    begin(house)
    receiver.answer = lambda event: 503
    deliver(house, looks=100, seconds=1.0)
    assert 6 <= len(receiver.deliveries) <= 9  # 1 + 2 + 4 + 8 + 16 + 32 + 64 seconds, each from half of it


def test_an_endpoint_that_asks_for_time_gets_it(house: House, receiver: Receiver) -> None:
    add(house, receiver, events=["ratchet.optimization.*"])
    begin(house)
    receiver.answer, receiver.headers = lambda event: 429, {"Retry-After": "600"}
    deliver(house, looks=30, seconds=60.0)
    assert len(receiver.deliveries) == 3


def test_waits_double_to_a_limit_and_never_agree() -> None:
    patience, rng = Patience(first_seconds=2.0, most_seconds=60.0), random.Random(1)
    waits = [patience.wait(attempt, rng).total_seconds() for attempt in range(1, 200)]
    for attempt, wait in enumerate(waits):
        full = min(60.0, 2.0 * 2.0 ** min(attempt, 40))
        assert full / 2 <= wait <= full
    assert len(set(waits)) == len(waits)


def test_an_event_that_is_never_taken_becomes_a_dead_letter_and_can_be_sent_again(
    house: House, receiver: Receiver
) -> None:
    webhook = add(house, receiver, events=["ratchet.optimization.*"])
    job = begin(house)
    note(house, job, "begun", "best")
    receiver.answer = lambda event: 400 if event["sequence"] == "2" else 204
    deliver(house, looks=4, patience=Patience(attempts=3))
    assert [event["sequence"] for event in receiver.taken] == ["1", "3"]
    address = f"/api/v1/webhooks/{webhook['id']}"
    (dead,) = house.ask("GET", f"{address}/dead").json()["items"]
    assert (dead["type"], dead["subject"], dead["attempts"]) == ("ratchet.optimization.begun", job, 3)
    assert dead["error"] == "it answered 400"
    assert house.ask("GET", f"{address}/dead", tenant="other").status_code == 404
    assert house.ask("POST", f"{address}/redeliver", json={"event": "evt_none_1"}).status_code == 404
    receiver.answer = lambda event: 204
    for body in ({"event": dead["event"]}, {}):
        assert house.ask("POST", f"{address}/redeliver", json=body).json() == {"events": 1}
    deliver(house)
    assert receiver.taken[-1]["id"] == dead["event"]
    assert house.ask("GET", f"{address}/dead").json()["items"] == []
    deliver(house)
    assert len(receiver.taken) == 3


def test_a_dead_letter_that_fails_again_stays_one(house: House, receiver: Receiver) -> None:
    webhook = add(house, receiver, events=["ratchet.optimization.*"])
    begin(house)
    receiver.answer = lambda event: 400
    deliver(house, patience=Patience(attempts=1))
    assert house.ask("POST", f"/api/v1/webhooks/{webhook['id']}/redeliver", json={}).json() == {"events": 1}
    deliver(house, looks=4, patience=Patience(attempts=2))
    (dead,) = house.ask("GET", f"/api/v1/webhooks/{webhook['id']}/dead").json()["items"]
    assert (dead["attempts"], dead["again"]) == (2, False)
    assert len(receiver.deliveries) == 3


def test_an_endpoint_that_is_dead_for_long_is_paused_and_loses_nothing(house: House, receiver: Receiver) -> None:
    webhook = add(house, receiver, events=["ratchet.optimization.*"])
    job = begin(house)
    receiver.answer = lambda event: 500
    deliver(house, looks=5, seconds=6 * 3600, dead_after=timedelta(hours=20))
    address = f"/api/v1/webhooks/{webhook['id']}"
    found = house.ask("GET", address).json()
    assert found["paused"] is True
    assert "nothing has arrived since 2026-01-01" in found["reason"]
    tries = len(receiver.deliveries)
    note(house, job, "begun")
    deliver(house, looks=2)
    assert len(receiver.deliveries) == tries
    receiver.answer = lambda event: 204
    assert house.ask("POST", f"{address}/resume").json()["paused"] is False
    deliver(house)
    assert [event["sequence"] for event in receiver.taken] == ["1", "2"]
    assert house.ask("GET", address).json()["failing_since"] is None
    actions = [entry["action"] for entry in house.ask("GET", "/api/v1/audit").json()["items"]]
    assert {"webhook.create", "webhook.pause", "webhook.resume"} <= set(actions)


def test_an_endpoint_that_says_gone_is_paused_at_once(house: House, receiver: Receiver) -> None:
    webhook = add(house, receiver, events=["ratchet.optimization.*"])
    begin(house)
    receiver.answer = lambda event: 410
    deliver(house)
    assert house.ask("GET", f"/api/v1/webhooks/{webhook['id']}").json()["paused"] is True


def test_a_webhook_that_is_removed_gets_nothing_more(house: House, receiver: Receiver) -> None:
    webhook = add(house, receiver)
    address = f"/api/v1/webhooks/{webhook['id']}"
    assert house.ask("DELETE", address, tenant="other").status_code == 404
    assert house.ask("DELETE", address).status_code == 204
    assert house.ask("GET", address).status_code == 404
    begin(house)
    deliver(house)
    assert receiver.deliveries == []


def test_a_ping_tells_what_came_of_it(house: House, receiver: Receiver) -> None:
    webhook = add(house, receiver)
    address = f"/api/v1/webhooks/{webhook['id']}/ping"
    assert house.ask("POST", address).json()["delivered"] is True
    (delivery,) = receiver.deliveries
    check_signature(delivery, webhook["secret"])
    assert delivery.event["type"] == "ratchet.webhook.ping"
    receiver.answer = lambda event: 500
    pong = house.ask("POST", address).json()
    assert (pong["delivered"], pong["error"]) == (False, "it answered 500")


def test_a_secret_is_shown_once(house: House, receiver: Receiver) -> None:
    webhook = add(house, receiver)
    assert webhook["secret"].startswith("whsec_")
    for path in ("/api/v1/webhooks", f"/api/v1/webhooks/{webhook['id']}", "/api/v1/audit"):
        assert webhook["secret"] not in house.ask("GET", path).text


INSIDE = (
    "https://127.0.0.1/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://169.254.169.254/latest/meta-data/",
    "https://10.1.2.3/",
    "https://192.168.0.1/",
    "https://172.16.0.1/",
    "https://100.64.0.1/",
    "https://0.0.0.0/",
    "https://[fd00::1]/",
    "https://[fe80::1]/",
    "https://224.0.0.1/",
    "https://2130706433/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://0x7f.1/",
    "https://１２７.0.0.1/",
    "http://example.org/",
    "https://user:secret@example.org/",
    "ftp://example.org/",
    "https:///nothing",
    "https://example.org:99999/",
    "hooks.example.org",
)
"""Addresses that are not public, in the ways they can be written, and some that are none."""


def test_an_address_inside_is_refused_however_it_is_written(house: House) -> None:
    for url in INSIDE:
        answer = house.ask("POST", "/api/v1/webhooks", json={"url": url})
        assert answer.status_code in (403, 422), (url, answer.text)
        assert answer.json()["errors"][0]["field"] == "url"
    assert house.ask("GET", "/api/v1/webhooks").json()["items"] == []


def test_a_name_that_leads_inside_is_not_connected_to(house: House, receiver: Receiver) -> None:
    # ``localhost`` stands for any name whose owner lets it lead to 127.0.0.1, at once or some time later.
    answer = house.ask("POST", "/api/v1/webhooks", json={"url": f"https://localhost:{receiver.port}/"})
    assert answer.status_code == 201, answer.text
    pong = house.ask("POST", f"{answer.headers['location']}/ping").json()
    assert pong["delivered"] is False
    assert "which is not public" in pong["error"]
    assert receiver.deliveries == []


def test_a_redirection_is_not_followed(house: House, receiver: Receiver) -> None:
    with Receiver() as inside:
        webhook = add(house, receiver)
        receiver.answer, receiver.headers = lambda event: 307, {"Location": inside.url}
        pong = house.ask("POST", f"/api/v1/webhooks/{webhook['id']}/ping").json()
        assert pong["delivered"] is False
        assert "redirection" in pong["error"]
        assert inside.deliveries == []


def test_an_operator_can_name_the_only_hosts(house: House) -> None:
    house.desk.settings.webhook_hosts = "*.example.org"
    for host, status in (("hooks.example.org", 201), ("example.com", 403), ("example.org.evil.com", 403)):
        assert house.ask("POST", "/api/v1/webhooks", json={"url": f"https://{host}/"}).status_code == status


@pytest.mark.parametrize("events", [[], ["everything"], ["ratchet.Optimization"], ["ratchet.*"] * 51, [""]])
def test_types_that_no_event_has_are_refused(house: House, events: list[str]) -> None:
    body = {"url": "https://example.org/", "events": events}
    assert house.ask("POST", "/api/v1/webhooks", json=body).status_code == 422


def test_a_courier_that_is_stopped_lets_another_go_on(house: House, receiver: Receiver) -> None:
    add(house, receiver, events=["ratchet.optimization.*"])
    first, second = courier(house), courier(house)
    for each in (first, second):
        each.start()
    job = begin(house)
    note(house, job, "begun")
    until(lambda: len(receiver.taken) == 2)
    first.close()
    note(house, job, "best")
    until(lambda: len(receiver.taken) == 3)
    second.close()
    assert [event["sequence"] for event in receiver.taken] == ["1", "2", "3"]


def until(holds: Any) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_examples_in_the_description_are_taken(house: House) -> None:
    schemas = house.client.get("/api/v1/openapi.json").json()["components"]["schemas"]
    (example,) = schemas["NewWebhook"]["examples"]
    assert house.ask("POST", "/api/v1/webhooks", json=example).status_code == 201
