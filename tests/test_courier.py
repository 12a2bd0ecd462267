"""Whatever fails and wherever a courier dies, every event arrives, in the order of its optimization."""

from __future__ import annotations

import asyncio
import random
import tempfile
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet.core.cloudevent import CloudEvent
from ratchet.core.patience import Patience
from ratchet.courier import Courier, Door, Undelivered
from ratchet.desk import Desk
from ratchet.engine.archive import Event, Optimization
from ratchet.storage.claims import MemoryClaims
from ratchet.testing.service import Clock, RecordingQueue, actor, desk_in

Fate = Literal["arrives", "fails", "dies before", "dies behind"]


class Killed(Exception):
    """The process ended here."""


@dataclass
class Fated:
    """Takes events, or does not, as it is written.

    Attributes:
        fates: What becomes of each try; when they are used up, all arrive.
        arrived: What arrived.
        dead: Whether the process that tries has ended: nothing is taken from it any more.
    """

    fates: list[Fate]
    arrived: list[CloudEvent] = field(default_factory=list)
    dead: bool = False

    async def send(self, event: CloudEvent) -> None:
        """Take one event."""
        await asyncio.sleep(0)
        fate = self.fates.pop(0) if self.fates and not self.dead else "arrives"
        if self.dead or fate == "dies before":
            self.dead = True
            raise Killed
        if fate == "fails":
            raise Undelivered("it was written")
        self.arrived.append(event)
        if fate == "dies behind":
            self.dead = True
            raise Killed


def begun(desk: Desk, name: str) -> None:
    """An optimization that only has events."""
    desk.archive.start(Optimization(id=name, status="queued", created_at=desk.clock(), request={}))
    desk.jobs.submit(actor(), name, target="t", data={}, priority=1)


def courier(desk: Desk, sink: Fated) -> Courier:
    return Courier(
        desk.outbox,
        MemoryClaims(),
        door=lambda outlet: Door(sink=sink, patience=Patience(attempts=None)),
        clock=desk.clock,
        rng=random.Random(0),
        say=lambda line: None,
    )


@settings(deadline=None, max_examples=12)
@given(
    fates=st.lists(st.sampled_from(["arrives", "arrives", "fails", "dies before", "dies behind"]), max_size=24),
    rounds=st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=6),
)
def test_every_event_arrives_in_order_whatever_fails_and_wherever_the_courier_dies(
    fates: list[Fate], rounds: list[list[int]]
) -> None:
    sink, clock = Fated(list(fates)), Clock()
    with tempfile.TemporaryDirectory() as folder:
        desk = desk_in(Path(folder), queue=RecordingQueue(), clock=clock)
        desk.outbox.ensure("all", None, ["ratchet.optimization.*"])
        names = ["a", "b", "c"]
        for name in names:
            begun(desk, name)
        written = dict.fromkeys(names, 0)

        async def delivering() -> None:
            one = courier(desk, sink)
            for happened in [*rounds, *([[]] * (len(fates) + 4))]:
                for number in happened:
                    notebook = desk.archive.open(names[number])
                    notebook.note(Event(kind="best", payload={}))
                    notebook.flush()
                    written[names[number]] += 1
                await one.turn()
                await one.settle()
                if sink.dead:  # another process begins with what is stored
                    sink.dead = False
                    one = courier(desk, sink)
                clock.now += timedelta(hours=2)
            await one.stop()

        asyncio.run(delivering())
        desk.close()
    for name in names:
        sequences = [event.sequence for event in sink.arrived if event.subject == name]
        assert list(dict.fromkeys(sequences)) == list(range(1, written[name] + 1))
        assert all(after - before in (0, 1) for before, after in pairwise(sequences))
    twice = len(sink.arrived) - len({event.id for event in sink.arrived})
    assert twice <= fates.count("dies behind")
