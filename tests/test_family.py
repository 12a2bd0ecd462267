"""Related programs in turn: what one taught is tried on the others, measured, and kept where it helps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

import ratchet
from ratchet.core.errors import BadRequest, UserError
from ratchet.testing.lm_server import SIGNATURE, StubServer, rows


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RATCHET_MLFLOW", "false")


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def member(program: dspy.Module, field: str, *, first: int, sign: float = 1.0) -> dict[str, Any]:
    def right(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        return float((example.label == prediction.label) == (sign > 0))

    found = [{field: row["text"], "label": row["label"]} for row in rows(120, first=first)]
    return {"program": program, "data": [dspy.Example(**row).with_inputs(field) for row in found], "metric": right}


def test_what_helped_one_is_tried_on_the_other_and_kept_where_it_helps(stub: StubServer) -> None:
    mails = dspy.Predict(SIGNATURE)
    chats = dspy.Predict(SIGNATURE.replace("text", "chat"))
    of_mails = member(mails, "text", first=0)
    with dspy.context(lm=dspy.LM("openai/stub", api_base=stub.base, api_key="none", cache=False)):
        family = ratchet.optimize_family(
            {"mails": {**of_mails, "data": iter(of_mails["data"])}, "chats": member(chats, "chat", first=500)},
            max_calls=600,
            lessons_may_quote=False,
            force=True,
        )
    assert list(family.outcomes) == ["mails", "chats"]
    assert stub.requests <= 600
    first, second = family.outcomes.values()
    assert first.status == "improved"
    (transfer,) = family.transfers
    assert (transfer.source, transfer.target) == ("mails", "chats")
    assert transfer.gain is not None
    assert transfer.gain.n > 1
    assert transfer.gain.effect > 0
    assert transfer.kept
    assert "mails to chats: +" in str(transfer)
    assert second.status == "improved"


def test_what_helps_nobody_else_is_not_kept(stub: StubServer) -> None:
    """For the second the first one's answers are wrong."""
    mails, chats = dspy.Predict(SIGNATURE), dspy.Predict(SIGNATURE.replace("text", "chat"))
    with dspy.context(lm=dspy.LM("openai/stub", api_base=stub.base, api_key="none", cache=False)):
        family = ratchet.optimize_family(
            {"mails": member(mails, "text", first=0), "chats": member(chats, "chat", first=500, sign=-1.0)},
            max_calls=600,
            force=True,
        )
    (transfer,) = family.transfers
    assert transfer.gain is not None
    assert transfer.gain.effect < 0
    assert not transfer.kept
    assert str(transfer).endswith("not kept")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"metric": "exact_macht"}, "member b: .*exact_match"),
        ({"nonsense": 1}, "member b: there is no option 'nonsense'"),
        ({"max_calls": 0}, "member b: max_calls is 0"),
        ({"program": "app"}, "member b: the program is of type str"),
        ({"algorithm": lambda problem, *, rng: iter(())}, "member b is optimized by a function"),
        ({"warm_start": False}, "member b has warm_start=False"),
        ({"tenant": "else"}, "of the tenants default, else"),
    ],
)
def test_what_is_wrong_with_any_member_is_told_before_anything_is_paid(
    other: dict[str, Any], words: str, stub: StubServer
) -> None:
    one = member(dspy.Predict(SIGNATURE), "text", first=0)
    with (
        dspy.context(lm=dspy.LM("openai/stub", api_base=stub.base, api_key="none", cache=False)),
        pytest.raises(UserError, match=words),
    ):
        ratchet.optimize_family({"a": one, "b": {**one, **other}}, max_calls=200, force=True)
    assert stub.requests == 0


def test_a_family_of_one_is_none(stub: StubServer) -> None:
    one = member(dspy.Predict(SIGNATURE), "text", first=0)
    with pytest.raises(BadRequest, match="at least 2 members"):
        ratchet.optimize_family({"a": one})
    with pytest.raises(BadRequest, match="member a is optimized by gepa, which learns nothing"):
        ratchet.optimize_family({"a": one, "b": one}, algorithm="gepa")
