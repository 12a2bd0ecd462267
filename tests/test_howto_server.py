"""What the pages about servers and agents say works as it is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ratchet.agent_tools import Tools
from ratchet.cli.server import HERE, REMOTE
from ratchet.testing.pages import run_blocks

PAGES = [Path(__file__).parents[1] / "docs" / "howto" / name for name in ("use-a-server.md", "mcp.md")]


@pytest.mark.timeout(300)
def test_the_blocks_of_both_pages_lead_from_a_key_to_an_agent_with_a_proof(tmp_path: Path) -> None:
    said, told = run_blocks(PAGES, tmp_path, seconds=280)
    assert "warning" not in told
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
