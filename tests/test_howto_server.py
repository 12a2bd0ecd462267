"""What the pages about servers and agents say works as it is written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ratchet.agent_tools import Tools
from ratchet.cli.server import HERE, REMOTE
from ratchet.testing.serving import free_port

PAGES = [Path(__file__).parents[1] / "docs" / "howto" / name for name in ("use-a-server.md", "mcp.md")]


@pytest.mark.timeout(300)
def test_the_blocks_of_both_pages_lead_from_a_key_to_an_agent_with_a_proof(tmp_path: Path) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    script = "set -e\n" + "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    for port in ("8004", "8123"):
        script = script.replace(port, str(free_port()))
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, words in (("ratchet", "-m ratchet"), ("python", "")):
        source = Path(__file__).parents[1] / "src"
        (commands / name).write_text(f'#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} {words} "$@"\n')
        (commands / name).chmod(0o755)
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")},
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
            code = process.wait(timeout=280)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the servers it began
            process.wait()
    said = (tmp_path / "out").read_text()
    assert code == 0, said + (tmp_path / "err").read_text()
    assert "warning" not in (tmp_path / "err").read_text()
    assert "signed by the holder of" in said
    assert re.search(r"^[0-9a-f]{12} \d+ ended 0\.\d+$", said, re.MULTILINE)
    assert "The tools act at http://127.0.0.1:" in said
    assert "improved {'effect': 0." in said
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 51
    compared = json.loads((tmp_path / "compared.json").read_text())
    assert [each["name"] for each in compared["contenders"]] == ["baseline", "gepa", "bootstrap"]
    assert all(pair["comparison"] for pair in compared["pairs"])
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events[-1]["kind"] == "ended"
    for folder in ("better", "again"):
        assert (tmp_path / folder / "certificate.json").is_file()


def test_the_page_names_every_command_that_works_with_a_server() -> None:
    page = PAGES[0].read_text(encoding="utf-8").split("## Which commands")[1].split("\n## ")[0]
    for command in REMOTE | HERE:
        assert f"`{command}`" in page


def test_the_page_names_every_tool() -> None:
    page = PAGES[1].read_text(encoding="utf-8")
    for name in (name for name in dir(Tools) if not name.startswith("_")):
        assert f"| `{name}` |" in page


def test_the_configuration_for_an_agent_can_be_read() -> None:
    (text,) = re.findall(r"```json\n(.*?)```", PAGES[1].read_text(encoding="utf-8"), re.DOTALL)
    assert json.loads(text)["mcpServers"]["ratchet"]["args"][-1] == "mcp"
