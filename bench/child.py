"""What is measured in a process of its own: ``python -m bench.NAME --child WORK``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any


def in_child(bench: str, work: Any, **environment: str) -> dict[str, Any]:
    """What such a process printed last, as JSON data.

    Args:
        bench: The module, such as ``bench.memory``.
        work: What it is to do, a dataclass; it gets this as JSON data.
        environment: More of the environment.
    """
    command = [sys.executable, "-m", bench, "--child", json.dumps(asdict(work))]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{bench} failed at {work}; the last it said: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
