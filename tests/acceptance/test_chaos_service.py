"""Workers, database and API are killed while optimizations run; nothing is lost, and nothing is done or paid twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.chaos_service import Day, arguments, bars, row

from ratchet.testing.postgres import programs

if programs() is not None:

    @pytest.mark.heavy
    def test_a_bad_day_ends_as_a_calm_one(tmp_path: Path) -> None:
        given, _ = arguments(["--quick", "--optimizations", "8", "--seconds", "4"])
        given.optimizations = 8
        calm = Day(given, tmp_path / "calm", bad=False).live()
        day = Day(given, tmp_path / "bad", bad=True)
        found = [row(*each) for each in zip(calm, day.live(), strict=True)]
        assert [bar.what for bar in bars(found, day) if not bar.passed] == []
