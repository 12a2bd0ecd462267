"""The tutorial of the service works as it is written."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "tutorial" / "service.md"


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_the_blocks_of_the_tutorial_lead_from_a_key_to_a_certificate(tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    script = "set -e\n" + "\n".join(blocks)
    for port, free in zip(("8004", "8123"), free_ports(2), strict=True):
        script = script.replace(port, str(free))
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, words in (("ratchet", "-m ratchet"), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (commands / name).chmod(0o755)
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{commands}:{os.environ['PATH']}",
                "RATCHET_HOME": str(tmp_path / "home"),
                "RATCHET_MLFLOW": "false",
                "PYTHONWARNINGS": "ignore",
            },
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=120)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the servers it began
    said = (tmp_path / "out").read_text()
    assert code == 0, said + (tmp_path / "err").read_text()
    assert "holds: " in said
    assert "signed by the holder of" in said
    assert (tmp_path / "events.txt").read_text().count("event: ended") == 1
