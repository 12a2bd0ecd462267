"""The commands on a page of the documentation, run as they stand there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ratchet.testing.ports import free_port

SOURCE = Path(__file__).parents[2]


def run_blocks(pages: Sequence[Path], folder: Path, *, seconds: float) -> tuple[str, str]:
    """Run the bash blocks of some pages as one script in ``folder``; what it printed and what it said.

    The ports that they name, 8004 and 8123, are free ones here. What they leave running is ended.

    Args:
        seconds: How long it may take.

    Raises:
        AssertionError: it failed.
    """
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    script = "set -e\n" + "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    for port in ("8004", "8123"):
        script = script.replace(port, str(free_port()))
    commands = folder / "bin"
    commands.mkdir()
    for name, words in (("ratchet", "-m ratchet"), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nPYTHONPATH={SOURCE} exec {sys.executable} {words} "$@"\n')
        (commands / name).chmod(0o755)
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")},
                "PATH": f"{commands}:{os.environ['PATH']}",
                "RATCHET_HOME": str(folder / "home"),
                "RATCHET_MLFLOW": "false",
                "PYTHONWARNINGS": "ignore",
            },
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=seconds)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the servers it began
            process.wait()
    said, told = (folder / "out").read_text(encoding="utf-8"), (folder / "err").read_text(encoding="utf-8")
    assert code == 0, said + told
    return said, told
