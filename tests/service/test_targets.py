"""Targets: described, not run; nothing is imported that no operator allows."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from ratchet.admission import check_signature
from ratchet.core.errors import BadRequest
from ratchet.programs.targets import resolve_target, save_program
from ratchet.testing.lm_server import SIGNATURE
from ratchet.testing.service import House


def allow(house: House, patterns: str) -> None:
    house.desk.settings = house.desk.settings.model_copy(update={"import_allow": patterns})


def keep(house: House, **spec: Any) -> Any:
    return house.ask("POST", "/api/v1/targets", json={"name": "t", **spec})


def test_a_signature_is_kept_once_per_version(house: House) -> None:
    answers = [
        keep(house, signature=SIGNATURE),
        keep(house, signature=SIGNATURE),
        keep(house, signature=SIGNATURE, module="cot", instructions="Sort the mail."),
    ]
    assert [(answer.status_code, answer.json()["version"]) for answer in answers] == [(201, 1), (200, 1), (201, 2)]
    assert house.ask("GET", "/api/v1/targets/t").json()["spec"] == {
        "signature": SIGNATURE,
        "module": "cot",
        "instructions": "Sort the mail.",
    }


@pytest.mark.parametrize(
    "signature",
    [
        "a -> b: this",
        "a -> b: os.system",
        "a: antigravity.x -> b",
        "a -> b: list[subprocess.Popen]",
        "a -> b -> c",
        "a",
        "a -> b=1):\n  import this #",
    ],
)
def test_a_signature_imports_nothing(house: House, signature: str) -> None:
    before = set(sys.modules)
    answer = keep(house, signature=signature)
    assert answer.status_code == 422, answer.text
    assert not {"this", "antigravity"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    "signature",
    [
        "a -> b",
        "a: str, b: int -> c: list[str], d: dict[str, float]",
        "q -> a: Literal['x', \"y\"]",
        "a -> b: int | None",
    ],
)
def test_plain_signatures_are_taken(signature: str) -> None:
    check_signature(signature)


def test_a_signature_of_many_brackets_is_refused_and_not_recursed_into() -> None:
    with pytest.raises(BadRequest, match="not understood"):
        check_signature(f"a -> b: {'list[' * 5000}int{']' * 5000}")


def test_an_import_path_needs_the_operators_leave(house: House) -> None:
    path = "ratchet.demo.program:program"
    refused = keep(house, import_path=path)
    assert refused.status_code == 403
    assert "RATCHET_IMPORT_ALLOW" in refused.json()["detail"]
    assert refused.json()["errors"][0]["value"] == path
    allow(house, "other.*, ratchet.demo.program:*")
    assert keep(house, import_path=path).status_code == 201
    for path in ("os:system", "ratchet.demo:DATA", "/etc/x.py:program", "../x.py:program", "ratchet.demo.program"):
        assert keep(house, import_path=path).status_code == 403


def test_a_saved_program_is_taken_when_what_it_is_built_from_may_be(house: House, tmp_path: Any) -> None:
    target = resolve_target(SIGNATURE)
    target.module.predictors()[0].signature = target.module.predictors()[0].signature.with_instructions("Be wise.")
    save_program(target.module, tmp_path / "program.json", target)
    saved = json.loads((tmp_path / "program.json").read_text())
    assert keep(house, program=saved).status_code == 201
    house.upload()
    answer = house.optimize(target={"id": "t"})
    assert answer.status_code == 202, answer.text
    stored = house.desk.archive.find(answer.json()["id"]).request["options"]["target"]
    assert "Be wise." in resolve_target(stored).module.predictors()[0].signature.instructions
    assert resolve_target(json.dumps(saved)).module.predictors()[0].lm is None
    state = {name: value for name, value in saved.items() if name not in ("ratchet", "metadata")}
    nested = {"ratchet": {**saved["ratchet"], "kind": "cot"}, "predict": state}
    for part in ({"lm": {"model": "openai/x", "api_base": "http://10.0.0.1"}}, {"forward": "nothing"}):
        for program in ({**saved, **part}, {**nested, "predict": {**state, **part}}):
            answer = keep(house, program=program)
            assert answer.status_code in (403, 422), answer.text
    for section in ({"target": "os:system"}, {"target": "a -> b: this"}, {"target": "/etc/x.json"}, {}, None):
        answer = keep(house, program={**saved, "ratchet": section})
        assert answer.status_code in (403, 422), answer.text


def test_exactly_one_way_to_build_it_is_given(house: House) -> None:
    for spec in ({}, {"signature": "a -> b", "import_path": "a:b"}):
        answer = keep(house, **spec)
        assert answer.status_code == 422
        assert "exactly one" in answer.json()["detail"]


def test_a_metric_an_algorithm_or_an_lm_that_reaches_further_is_refused(house: House) -> None:
    house.upload()
    for more, field in (
        ({"metric": "os:system"}, "metric"),
        ({"metric": "/etc/x.py:score"}, "metric"),
        ({"metric": "llm_judge:/etc/passwd"}, "metric"),
        ({"algorithms": ["gepa", "os:system"]}, "algorithms"),
        ({"algorithms": ["/etc/x.py:climb"]}, "algorithms"),
        ({"algorithms": ["http://127.0.0.1:9000/"]}, "algorithms"),
        ({"algorithms": [" https://algorithms.example.com/"]}, "algorithms"),
        ({"lm_base": "http://169.254.169.254/latest"}, "lm_base"),
        ({"lm": "local:/etc/passwd", "lm_base": None}, "lm"),
        ({"reflection_lm": "openai/a, local:/etc/passwd"}, "reflection_lm"),
        ({"judge_lm": "local:/etc/passwd"}, "judge_lm"),
    ):
        answer = house.optimize(**more)
        assert answer.status_code == 403, answer.text
        assert answer.json()["errors"][0]["field"] == field
    assert house.queue.waiting == []
