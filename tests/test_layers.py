"""Imports point towards the core, and what is light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ratchet"
HEAVY = {
    "dspy",
    "fastapi",
    "sqlalchemy",
    "mlflow",
    "optuna",
    "xllamacpp",
    "pyarrow",
    "scipy",
    "dbos",
    "uvicorn",
    "torch",
    "presidio_analyzer",
    "spacy",
}


def loaded_by(statement: str) -> set[str]:
    """Top packages that a fresh interpreter has loaded after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "never"),
    [
        ("import ratchet", HEAVY | {"numpy"}),
        ("import ratchet.core, ratchet.algorithms", HEAVY),
        ("import ratchet.core.result, ratchet.core.request, ratchet.core.statistics, ratchet.core.pareto", HEAVY),
        ("import ratchet.engine.optimize, ratchet.engine.runner, ratchet.storage.memory, ratchet.testing", HEAVY),
        ("import ratchet.cli", HEAVY | {"numpy"}),
        ("import ratchet.storage.sql", HEAVY - {"sqlalchemy"}),
    ],
)
def test_importing_what_is_light_loads_nothing_heavy(statement: str, never: set[str]) -> None:
    assert not never & loaded_by(statement)


ROOMS = {
    "core": {"core"},
    "algorithms": {"core", "algorithms"},
    "programs": {"core", "programs", "algorithms"},
    "engine": {"core", "engine", "programs"},
    "analytics": {"core", "engine", "analytics"},
    "storage": {"core", "engine", "programs", "storage"},
    "privacy": {"core", "privacy"},
    "service": {"core", "storage", "service", "privacy", "desk", "settings", "options", "bootstrap"},
}
"""What each room may import."""


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_rooms_nearer_to_the_core(room: str) -> None:
    for path in sorted((SOURCE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module] + [
                    f"{node.module}.{each.name}" for each in node.names if node.module == "ratchet"
                ]
            elif isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            for name in names:
                if name.startswith("ratchet."):
                    assert name.split(".")[1] in ROOMS[room], f"{path.relative_to(SOURCE)} imports {name}"
                elif room in ("core", "algorithms", "engine"):
                    assert name.partition(".")[0] not in ("dspy", "sqlalchemy", "mlflow"), f"{path.name} imports {name}"


def test_only_the_service_knows_http() -> None:
    knows = {
        path.relative_to(SOURCE).parts[0]
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] != "testing"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("fastapi", "starlette"))
        or (isinstance(node, ast.Import) and node.names[0].name.partition(".")[0] in ("fastapi", "starlette"))
    }
    assert knows == {"service"}


def test_only_the_settings_and_the_lm_room_read_the_environment() -> None:
    readers = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] != "testing"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    # ``cli/noise.py`` only sets what a library reads.
    assert readers <= {"settings.py", "programs/lm.py", "cli/noise.py"}, readers


def test_our_own_package_is_imported_at_the_top_of_a_file() -> None:
    """The CLI, ``bootstrap`` and package ``__init__`` may import late: that keeps ``--help`` fast."""
    late = [
        f"{path.relative_to(SOURCE)}:{inner.lineno}"
        for path in SOURCE.rglob("*.py")
        if path.name not in ("bootstrap.py", "__init__.py", "__main__.py") and "cli" not in path.parts
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(function)
        if isinstance(inner, ast.ImportFrom) and (inner.module or "").partition(".")[0] == "ratchet"
    ]
    assert late == []
