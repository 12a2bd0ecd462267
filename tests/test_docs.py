"""What can be set, named or called is in the documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from ratchet.cli.app import app
from ratchet.prepare import known_algorithms
from ratchet.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"


def commands(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    """Every command with its full name."""
    found = []
    for name, command in getattr(group, "commands", {}).items():
        inner = commands(command, (*path, name))
        found += inner or [(" ".join((*path, name)), command)]
    return found


@pytest.mark.parametrize("name", known_algorithms())
def test_every_algorithm_has_its_line_in_the_table(name: str) -> None:
    assert f"| `{name}` |" in (DOCS / "reference" / "algorithms.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    assert f"`RATCHET_{name.upper()}`" in (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")


def test_every_command_and_every_flag_is_documented() -> None:
    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    for name, command in commands(typer.main.get_command(app)):
        assert f"## `ratchet {name}`" in text
        section = text.split(f"## `ratchet {name}`")[1].split("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert parameter.opts[0] in section, f"ratchet {name} {parameter.opts[0]}: run `make docs`"


def test_readme_names_what_there_is() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for word in ("Example", "Candidate", "Evaluation", "Optimization", "Version", "Experiment"):
        assert f"**{word}**" in readme
