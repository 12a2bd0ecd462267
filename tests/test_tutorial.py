"""The tutorial of the service works as it is written."""

from __future__ import annotations

from pathlib import Path

from ratchet.testing.pages import run_blocks

PAGE = Path(__file__).parents[1] / "docs" / "tutorial" / "service.md"


def test_the_blocks_of_the_tutorial_lead_from_a_key_to_a_certificate(tmp_path: Path) -> None:
    said, _ = run_blocks([PAGE], tmp_path, seconds=120)
    assert "holds: " in said
    assert "signed by the holder of" in said
    assert (tmp_path / "events.txt").read_text().count("event: ended") == 1
