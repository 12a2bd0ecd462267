"""What the tests of the service share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ratchet.testing.service import House, house_in


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with house_in(tmp_path / "home") as house:
        yield house


@pytest.fixture(scope="module")
def town_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house that all tests of a file live in."""
    with house_in(tmp_path_factory.mktemp("house") / "home") as house:
        yield house
