"""What the acceptance tests share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ratchet.testing.lm_server import SIGNATURE, rows


def _command(folder: Path, base: str, algorithm: str | None, resume: str | None = None) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True, parents=True)
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(140)))
    new = ["optimize", SIGNATURE, "--data", str(data), "--lm", "stub", "--lm-base", base]
    new += ["--algorithm", str(algorithm), "--max-calls", "400", "--concurrency", "4", "--force", "--no-mlflow"]
    words = ["resume", resume] if resume else new
    return subprocess.Popen(
        [sys.executable, "-m", "ratchet", *words, "--json"],
        env={**os.environ, "RATCHET_HOME": str(folder / "home"), "RATCHET_MLFLOW": "false", "PYTHONWARNINGS": "ignore"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def command() -> Callable[..., subprocess.Popen[str]]:
    """``ratchet optimize``, or ``ratchet resume``, in a process of its own: folder, address, algorithm, id."""
    return _command
