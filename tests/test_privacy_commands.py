"""``ratchet data scan|clean`` and ``--pii``, from a user's words to files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ratchet.cli.app import app
from ratchet.programs.datasets import read_rows, write_rows
from ratchet.testing.lm_server import LABELS, SIGNATURE, StubServer

SECRET, NAME = "jane.roe@example.org", "Amadou Diallo"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of its own for each test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RATCHET_NO_MLFLOW", "1")
    return tmp_path / "home"


@dataclass
class Listener(StubServer):
    """A server that remembers what it was sent."""

    sent: list[str] = field(default_factory=list)

    def answer(self, raw: bytes) -> Any:
        self.sent.append(json.dumps(json.loads(raw), ensure_ascii=False))
        return super().answer(raw)


@pytest.fixture
def stub() -> Iterator[Listener]:
    with Listener() as server:
        yield server


def write(path: Path, n: int, *, first: int = 0) -> Path:
    lines = [
        {"text": f"case #{case}, {SECRET} asks {NAME}", "label": LABELS[case % 3], "customer": f"C-{case:06d}"}
        for case in range(first, first + n)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "cases.jsonl", 100)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "pii.json"
    file.write_text(json.dumps({"names": [NAME], "patterns": {"CUSTOMER_ID": "C-[0-9]{6}"}}), encoding="utf-8")
    return file


def ratchet(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


def test_scan_tells_what_is_there_by_field_and_kind_and_stores_and_shows_nothing_of_it(
    data: Path, policy: Path, home: Path
) -> None:
    told = ratchet("data", "scan", data, "--pii-policy", policy)
    assert told.exit_code == 0, told.output
    assert "EMAIL_ADDRESS 100, PERSON 100" in told.output
    assert SECRET not in told.output
    assert NAME not in told.output
    assert not home.exists()
    report = json.loads(ratchet("data", "scan", data, "--pii-policy", policy, "--json").stdout)
    assert report["found"]["customer"]["CUSTOMER_ID"]["count"] == 100


def test_scan_finds_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    file = tmp_path / "plain.jsonl"
    file.write_text('{"text": "order 4711 of 2026-11-25"}\n', encoding="utf-8")
    assert "no personal data was found in 1 rows" in ratchet("data", "scan", file).output


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_clean_writes_a_copy_of_any_kind_without_what_was_found(
    data: Path, policy: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / f"clean{kind}"
    done = ratchet("data", "clean", data, "--out", out, "--pii-policy", policy, "--pii-field", "customer=drop")
    assert done.exit_code == 0, done.output
    rows = [dict(row.fields) for row in read_rows(out)]
    assert rows[4] == {"text": "case #4, <EMAIL_ADDRESS> asks <PERSON>", "label": LABELS[1]}
    assert len(rows) == 100


def test_files_cleaned_under_one_name_go_by_one_map(data: Path, tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", 5, first=200)
    for file, name in ((data, "mails"), (test, "mails"), (test, "else")):
        out = tmp_path / f"{file.stem}-{name}.jsonl"
        assert ratchet("data", "clean", file, "--out", out, "--pii", "pseudonymise", "--pii-set", name).exit_code == 0
    texts = [
        read_rows(tmp_path / f"{name}.jsonl")[0].fields["text"].split()[2]
        for name in ("cases-mails", "test-mails", "test-else")
    ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("person-")
    again = tmp_path / "again.jsonl"
    ratchet("data", "clean", tmp_path / "cases-mails.jsonl", "--out", again, "--pii", "pseudonymise")
    assert again.read_bytes() == (tmp_path / "cases-mails.jsonl").read_bytes()


def test_keeping_everything_keeps_the_rows(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "same.jsonl"
    assert ratchet("data", "clean", data, "--out", out, "--pii", "keep").exit_code == 0
    assert out.read_bytes() == data.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--pii", "hide"), "default is 'hide'; choose from keep, redact, pseudonymise, drop"),
        (("--pii-field", "customer"), "give FIELD=TREATMENT such as customer=drop"),
        (("--pii-policy", "none.json"), "none.json cannot be read"),
        (("--pii", "drop"), "every field is dropped"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(data: Path, tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = ratchet("data", "clean", data, "--out", tmp_path / "out.jsonl", *arguments)
    assert done.exit_code == 2
    assert told in done.output
    assert not (tmp_path / "out.jsonl").exists()


def test_an_optimization_sends_and_stores_pseudonyms_and_tells_of_it(
    stub: Listener, data: Path, policy: Path, tmp_path: Path
) -> None:
    done = ratchet(
        *("optimize", SIGNATURE, "--data", data, "--lm", "stub", "--lm-base", stub.base, "--max-calls", 200),
        *("--algorithm", "gepa", "--out", tmp_path / "out", "--force", "--json"),
        *("--pii", "pseudonymise", "--pii-field", "customer=drop", "--pii-policy", policy),
    )
    assert done.exit_code == 0, done.output
    assert sum("person-" in text for text in stub.sent) > 50
    written = [file.read_text(encoding="utf-8") for file in (tmp_path / "out").iterdir()]
    listed = ratchet("list", "--json").stdout
    assert json.loads(listed)[0]["request"]["options"]["pii"]["set"] == "cases"
    for secret in (SECRET, NAME, "C-000042"):
        assert not any(secret.casefold() in text.casefold() for text in (*stub.sent, *written, listed, done.output))
    assert "EMAIL_ADDRESS 100, PERSON 100, customer left out of 100 rows" in "".join(written)


def test_an_evaluation_is_cleaned_as_the_installation_says(
    stub: Listener, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_PII", "redact")
    out = ratchet(
        *("evaluate", SIGNATURE, "--data", data, "--lm", "stub", "--lm-base", stub.base, "--limit", 12),
        *("--out", "rows.jsonl"),
    )
    assert out.exit_code == 0, out.output
    rows = Path("rows.jsonl").read_text(encoding="utf-8")
    assert "<EMAIL_ADDRESS>" in rows
    assert SECRET not in rows


def test_contenders_are_compared_on_the_same_clean_rows(stub: Listener, data: Path, policy: Path) -> None:
    done = CliRunner().invoke(
        app,
        [
            *("compare", SIGNATURE, "random_search", "bootstrap", "--data", str(data), "--lm", "stub"),
            *("--lm-base", stub.base, "--max-calls", "120", "--force", "--json"),
        ],
        env={"RATCHET_PII": "pseudonymise", "RATCHET_PII_POLICY": str(policy)},
    )
    assert done.exit_code == 0, done.output
    assert any("person-" in text for text in stub.sent)
    assert not any(secret in text for text in (*stub.sent, done.output) for secret in (SECRET, NAME))
    listed = json.loads(ratchet("list", "--json").stdout)
    data_hashes = {
        json.dumps(each["request"]["identities"]["data"]) for each in listed if "identities" in each["request"]
    }
    assert len(data_hashes) == 1


def test_rows_are_written_as_they_are_read(tmp_path: Path, data: Path) -> None:
    rows = read_rows(data)
    for kind in (".jsonl", ".json", ".csv", ".tsv", ".parquet"):
        write_rows(tmp_path / f"copy{kind}", rows)
        assert [row.fields for row in read_rows(tmp_path / f"copy{kind}")] == [row.fields for row in rows]
