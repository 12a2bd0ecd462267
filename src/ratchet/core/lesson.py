"""What an optimization taught: plain data, without the text of any example unless that was allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from ratchet.core.features import TaskFeatures

WarmStart = Literal["on", "held out", "off", "nothing known"]
"""Whether earlier lessons were used: yes; not, by chance, to measure their worth; not, as asked; there were none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """One edit, and the validation gain that is lost without it; None where that was not measured.

    >>> print(Bought(edit="answer: 2 demos added", gain=0.1, interval=(0.02, 0.2), n=40))
    answer: 2 demos added; it bought +0.100 [+0.020, +0.200] on 40 validation examples
    """

    edit: str
    gain: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0

    def __str__(self) -> str:
        if self.gain is None or self.interval is None:
            return f"{self.edit}; what it bought was not measured"
        low, high = self.interval
        return f"{self.edit}; it bought {self.gain:+.3f} [{low:+.3f}, {high:+.3f}] on {self.n} validation examples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one algorithm carried the best validation mean, and with how many runs."""

    algorithm: str
    runs: int
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What one optimization taught.

    Attributes:
        id: The optimization's id.
        tenant: Whose it is; nobody else's optimizations learn from it.
        status: How it ended: ``improved`` or ``no_proven_gain``.
        warm_start: Whether it used earlier lessons itself.
        baseline: Mean validation score of the program as it was.
        validation_gain: Mean of the chosen candidate minus that; 0 where nothing was chosen.
        gain: The gain on the sealed test; 0 where the program stayed as it was, None where it was not measured.
        bought: What each edit bought.
        progress: What each algorithm brought, in order.
        failures: Runs that failed, by kind.
        instructions: The chosen instructions per predictor, where they gained; what quotes examples is left out.
        demos: The chosen demos per predictor; always empty unless quoting was allowed.
        calls: LM calls sent.
        usd: Dollars; None when a price is not known.
        seconds: Wall time.
    """

    id: str
    tenant: str
    created_at: datetime
    features: TaskFeatures
    status: str
    warm_start: WarmStart
    baseline: float | None = None
    validation_gain: float | None = None
    gain: float | None = None
    bought: tuple[Bought, ...] = ()
    progress: tuple[Progress, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict)
    instructions: Mapping[str, str] = field(default_factory=dict)
    demos: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    calls: int = 0
    usd: float | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The lesson as JSON data."""
        return {**asdict(self), "created_at": self.created_at.isoformat()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Lesson:
        """The lesson that ``to_json`` came from."""
        values = dict(data)
        values["created_at"] = datetime.fromisoformat(values["created_at"])
        values["features"] = TaskFeatures.from_json(values["features"])
        values["bought"] = tuple(
            Bought(**{**each, "interval": each["interval"] and tuple(each["interval"])}) for each in values["bought"]
        )
        values["progress"] = tuple(Progress(**each) for each in values["progress"])
        values["demos"] = {name: tuple(demos) for name, demos in values["demos"].items()}
        return cls(**values)
