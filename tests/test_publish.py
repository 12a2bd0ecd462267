"""The files an optimization leaves, and whether a certificate holds."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import ratchet
from ratchet.bootstrap import open_archive
from ratchet.core.errors import CertificateInvalid, Tampered
from ratchet.engine.certificate import sign
from ratchet.publish import verify
from ratchet.settings import Settings
from ratchet.testing.lm_server import SIGNATURE, StubServer, rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published optimization; its archive is in ``home`` beside the files."""
    path = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch, StubServer() as stub:
        patch.setenv("RATCHET_HOME", str(path / "home"))
        patch.setenv("RATCHET_MLFLOW", "false")
        ratchet.optimize(
            dspy.Predict(SIGNATURE),
            rows(200),
            metric="exact_match",
            lm="stub",
            lm_base=stub.base,
            algorithm="gepa",
            max_calls=300,
            out=path / "out",
        )
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    for file in (folder / "out").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "home").mkdir()
    source, target = (sqlite3.connect(each / "home" / "ratchet.db") for each in (folder, tmp_path))
    source.backup(target)
    source.close()
    target.close()
    shutil.copy2(folder / "home" / "master.keys", tmp_path / "home")
    return tmp_path


def checked(path: Path) -> Any:
    archive = open_archive(Settings(home=path / "home"))
    try:
        return verify(path / "certificate.json", archive)
    finally:
        archive.close()


def forge(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the payload and sign it with a key of one's own."""
    payload = json.loads((path / "certificate.json").read_text())["payload"]
    change(payload)
    (path / "certificate.json").write_text(json.dumps(sign(payload, Ed25519PrivateKey.generate())))


def test_a_certificate_holds_and_says_all_that_was_checked(copy: Path) -> None:
    verdict = checked(copy)
    assert verdict.status == "improved"
    assert not verdict.unchecked
    assert any("stored evaluations" in line for line in verdict.checked)


def test_without_the_archive_the_certificate_still_follows_from_its_own_scores(copy: Path) -> None:
    verdict = verify(copy / "certificate.json", None)
    assert any("stored evaluations" in line for line in verdict.unchecked)


def test_the_comparison_in_the_certificate_is_the_one_in_the_result(copy: Path) -> None:
    payload = json.loads((copy / "certificate.json").read_text())["payload"]
    result = json.loads((copy / "result.json").read_text())
    assert payload["comparison"] == result["comparison"]
    assert len(payload["pairs"]) == result["comparison"]["n"] == result["baseline_performance"]["n"]


def raise_a_score(payload: dict[str, Any]) -> None:
    next(pair for pair in payload["pairs"] if pair[2] == 0.0)[2] = 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p["comparison"].update(effect=0.9), "effect is 0.9"),
        (lambda p: p["comparison"].update(p_value=0.0), "p_value is 0.0"),
        (raise_a_score, "effect is"),
        (lambda p: p.update(status="no_proven_gain"), "status"),
        (lambda p: p["hashes"].update(winner="0" * 16), "winner"),
        (lambda p: p.update(pairs=[]), "paired scores"),
        (lambda p: p.pop("pairs"), "no certificate of an optimization"),
        (lambda p: p["hashes"].update({"program.json": "0"}), "program.json"),
    ],
)
def test_a_forged_certificate_is_refused_naming_what_differs(
    change: Callable[[dict[str, Any]], object], words: str, copy: Path
) -> None:
    forge(copy, change)
    with pytest.raises(CertificateInvalid, match=words):
        checked(copy)


def test_a_stored_score_that_was_changed_is_found(copy: Path) -> None:
    payload = json.loads((copy / "certificate.json").read_text())["payload"]
    key, winner = payload["pairs"][3][0], payload["hashes"]["winner"]
    database = sqlite3.connect(copy / "home" / "ratchet.db")
    database.execute("update evaluations set score = 1 - score where example = ? and candidate = ?", (key, winner))
    database.commit()
    database.close()
    with pytest.raises(CertificateInvalid, match=f"winner's score on example {key}"):
        checked(copy)


def test_stored_prompts_that_were_changed_are_found(copy: Path) -> None:
    winner = json.loads((copy / "certificate.json").read_text())["payload"]["hashes"]["winner"]
    database = sqlite3.connect(copy / "home" / "ratchet.db")
    ((sealed,),) = database.execute("select sealed from candidates where key = ?", (winner,)).fetchall()
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    database.execute("update candidates set sealed = ? where key = ?", (changed, winner))
    database.commit()
    database.close()
    with pytest.raises(Tampered, match="candidates"):
        checked(copy)


@pytest.mark.parametrize("name", ["program.json", "result.json"])
def test_a_changed_file_beside_the_certificate_is_found(name: str, copy: Path) -> None:
    text = (copy / name).read_text()
    (copy / name).write_text(text.replace("modulo", "minus"))
    with pytest.raises(CertificateInvalid, match=name):
        checked(copy)


@pytest.mark.parametrize("name", ["status", "improvement_percentage", "optimized_performance", "reason"])
def test_a_changed_figure_of_the_result_is_found(name: str, copy: Path) -> None:
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(result))  # laid out another way, as a client writes it
    assert "result.json holds the certified result" in checked(copy).checked
    (copy / "result.json").write_text(json.dumps({**result, name: None}))
    with pytest.raises(CertificateInvalid, match=r"result\.json was changed"):
        checked(copy)


def test_a_certificate_from_before_results_were_in_it_holds(copy: Path) -> None:
    forge(copy, lambda payload: payload["hashes"].pop("result.json"))
    assert "result.json holds the certified prompts and comparison" in checked(copy).checked


def test_the_program_loads_in_plain_dspy(copy: Path) -> None:
    program = dspy.Predict(SIGNATURE)
    program.load(str(copy / "program.json"))
    winner = json.loads((copy / "result.json").read_text())["winner"]["predictors"]["self"]
    assert program.signature.instructions == winner["instructions"]


def test_the_report_tells_the_figures_and_needs_no_other_file(copy: Path) -> None:
    page = (copy / "report.html").read_text()
    result = json.loads((copy / "result.json").read_text())
    assert f"{result['baseline_performance']['quality_score']:.3f}" in page
    assert f"{result['optimized_performance']['quality_score']:.3f}" in page
    assert "LM calls to" in page
    assert "src=" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_files_of_an_earlier_optimization_do_not_stay_beside_those_of_a_later_one(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_HOME", str(copy / "home"))
    monkeypatch.setenv("RATCHET_MLFLOW", "false")
    with StubServer() as stub:
        outcome = ratchet.optimize(
            dspy.Predict(SIGNATURE),
            rows(200),
            metric="exact_match",
            lm="stub",
            lm_base=stub.base,
            max_calls=30,
            out=copy,
        )
    assert outcome.status == "declined"
    assert not (copy / "certificate.json").exists()
    assert not list(copy.glob(".ratchet-*"))
