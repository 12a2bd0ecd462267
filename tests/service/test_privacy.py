"""Personal data on its way into the service: replaced before anything is kept, told by counts, the same ever after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ratchet.begin import resumed_run
from ratchet.core.errors import BadRequest, Missing
from ratchet.desk import Desk
from ratchet.options import Options
from ratchet.prepare import Given
from ratchet.storage.privacy import PseudonymKeys, how_cleaned, keys
from ratchet.testing.lm_server import LABELS, SIGNATURE
from ratchet.testing.service import House, actor
from ratchet.testing.vault import clear

SECRETS = ("jane.roe@example.org", "+49 30 901820", "4111 1111 1111 1111", "Amadou Diallo", "C-123456")


def mails(n: int = 60, *, secrets: bool = True) -> bytes:
    """The stub LM's own task, with something personal in every row."""
    lines = []
    for case in range(n):
        secret = SECRETS[case % len(SECRETS)] if secrets else "nobody"
        row = {"text": f"Please sort case #{case}, says {secret}", "label": LABELS[case % 3], "customer": secret}
        lines.append(json.dumps(row) + "\n")
    return "".join(lines).encode()


def upload(house: House, name: str = "mails", content: bytes | None = None, **more: Any) -> Any:
    headers = {"Content-Type": "application/x-ndjson", **more.pop("headers", {})}
    params = [("name", name), *more.pop("params", [])]
    body = mails() if content is None else content
    return house.ask("POST", "/api/v1/datasets", params=params, content=body, headers=headers, **more)


def kept(house: House, reference: str = "mails", tenant: str = "default") -> list[dict[str, Any]]:
    return [dict(row.fields) for row in house.desk.shelf.rows(house.desk.shelf.dataset(tenant, reference))]


def everything(desk: Desk) -> str:
    """All that is in the database, in the clear."""
    with desk.archive.transaction() as connection:
        dump = "\n".join(connection.connection.dbapi_connection.iterdump())  # type: ignore[union-attr]
    return "\n".join([dump, clear(desk.archive)])


POLICY = json.dumps(
    {
        "default": "pseudonymise",
        "fields": {"customer": "drop"},
        "names": ["Amadou Diallo"],
        "patterns": {"CUSTOMER_ID": "C-[0-9]{6}"},
    }
)


@pytest.fixture
def cleaned(house: House) -> tuple[House, Any]:
    answer = upload(house, headers={"Ratchet-Privacy": POLICY})
    assert answer.status_code == 201, answer.text
    return house, answer.json()


def test_rows_are_cleaned_before_anything_is_kept(cleaned: tuple[House, Any]) -> None:
    house, _ = cleaned
    stored = everything(house.desk)
    assert "Please sort case #3" in stored
    for secret in SECRETS:
        assert secret.casefold() not in stored.casefold()
    assert all(set(row) == {"text", "label"} for row in kept(house))


def test_the_answer_and_the_trail_tell_how_much_was_found_and_nothing_of_it(cleaned: tuple[House, Any]) -> None:
    house, answer = cleaned
    report = answer["privacy"]
    assert (report["rows"], report["rows_touched"], report["dropped"]) == (60, 60, {"customer": 60})
    assert {kind: each["count"] for kind, each in report["found"]["text"].items()} == {
        "CREDIT_CARD": 12,
        "CUSTOMER_ID": 12,
        "EMAIL_ADDRESS": 12,
        "PERSON": 12,
        "PHONE_NUMBER": 12,
    }
    assert house.ask("GET", "/api/v1/datasets/mails").json()["privacy"] == report
    entry = house.ask("GET", "/api/v1/audit").json()["items"][0]
    assert entry["action"] == "dataset.clean"
    told = "CREDIT_CARD 12, CUSTOMER_ID 12, EMAIL_ADDRESS 12, PERSON 12, PHONE_NUMBER 12"
    assert entry["object"] == f"mails@1: {told}"
    assert not any(secret in json.dumps(report) + entry["object"] for secret in SECRETS)


def test_a_new_version_and_a_set_of_the_same_name_have_the_same_pseudonyms_and_others_have_others(house: House) -> None:
    how = [("pii", "pseudonymise")]
    upload(house, "mails", params=how)
    upload(house, "mails", mails(61), params=how)
    upload(house, "test", params=[*how, ("pii_set", "mails")])
    upload(house, "else", params=how)
    upload(house, "mails", params=how, tenant="other")
    first = kept(house, "mails@1")
    assert kept(house, "mails@2")[:60] == first == kept(house, "test")
    others = (kept(house, "else"), kept(house, "mails", "other"))
    for row, *rest in zip(first, *others, strict=True):
        if "person-" in row["text"]:
            assert len({row["text"], *(other["text"] for other in rest)}) == 3


def test_the_same_rows_are_the_same_data_set_after_cleaning_too(house: House) -> None:
    answers = [upload(house, params=[("pii", "redact")]) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert answers[0].json() == answers[1].json()


def test_the_installation_says_what_is_done_where_a_request_does_not(house: House, tmp_path: Path) -> None:
    file = tmp_path / "pii.json"
    file.write_text(json.dumps({"names": ["Amadou Diallo"], "fields": {"customer": "drop"}}), encoding="utf-8")
    house.desk.settings = house.desk.settings.model_copy(update={"pii": "redact", "pii_policy": file})
    assert upload(house).json()["privacy"]["dropped"] == {"customer": 60}
    assert kept(house)[3]["text"] == "Please sort case #3, says <PERSON>"
    kept_on_purpose = upload(house, "raw", params=[("pii", "keep"), ("pii_field", "customer=keep")])
    assert kept_on_purpose.json()["privacy"] is None
    assert kept(house, "raw") == [json.loads(line) for line in mails().splitlines()]


def test_without_a_policy_rows_are_kept_as_they_come(house: House) -> None:
    assert upload(house).json()["privacy"] is None
    assert kept(house)[0]["customer"] == SECRETS[0]


@pytest.mark.parametrize(
    ("params", "header", "field"),
    [
        ([("pii", "hide")], None, "pii"),
        ([("pii_field", "customer")], None, "field"),
        ([("pii_field", "customer=hide")], None, "customer"),
        ([("pii", "drop")], None, "fields"),
        ([], "{", "Ratchet-Privacy"),
        ([], "[]", "Ratchet-Privacy"),
        ([], '{"marks": {}}', "Ratchet-Privacy"),
        ([], '{"default": "redact", "patterns": {"ID": "("}}', "ID"),
        ([], '{"default": ["redact"]}', "default"),
        ([], '{"default": "redact", "fields": {"a": 1}}', "fields"),
        ([], '{"default": "\\ud800"}', "policy"),
        ([], "[" * 20_000, "Ratchet-Privacy"),
        ([("pii", "redact"), ("pii_set", "a\0b")], None, "set"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_and_nothing_is_kept(
    house: House, params: list[tuple[str, str]], header: str | None, field: str
) -> None:
    answer = upload(house, params=params, headers={} if header is None else {"Ratchet-Privacy": header})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"].rpartition(".")[2] == field
    assert house.ask("GET", "/api/v1/datasets").json()["items"] == []


def test_an_optimization_is_cleaned_as_its_data_set_was_and_goes_on_the_same_way(cleaned: tuple[House, Any]) -> None:
    house, _ = cleaned
    answer = house.optimize(target={"spec": {"signature": SIGNATURE}})
    assert answer.status_code == 202, answer.text
    desk = house.desk
    identity = answer.json()["id"]
    options = Options.from_json(desk.archive.find(identity).request["options"])
    known = how_cleaned(desk.archive, desk.shelf.dataset("default", "mails").id)
    assert known is not None
    assert options.pii == known.policy
    # The setting is another one now, and what was begun goes on as it was begun.
    changed = desk.settings.model_copy(update={"pii": "redact"})
    cleaner = resumed_run(identity, Given(), changed, desk.archive).prepared.cleaner
    assert cleaner is not None
    said = cleaner.prompt("ask amadou diallo or jane.roe@example.org, and Li Wei")
    texts = [row["text"] for row in kept(house)]
    person, address = (texts[at].rpartition(" ")[2] for at in (3, 0))
    assert said == f"ask {person} or {address}, and Li Wei"
    assert not any(secret.casefold() in everything(desk).casefold() for secret in SECRETS)


def test_nothing_goes_on_whose_key_was_removed(cleaned: tuple[House, Any]) -> None:
    house, _ = cleaned
    identity = house.optimize(target={"spec": {"signature": SIGNATURE}}).json()["id"]
    PseudonymKeys(house.desk.archive).forget("default", "mails")
    with pytest.raises(Missing, match="the key of the pseudonyms of 'mails' was removed"):
        resumed_run(identity, Given(), house.desk.settings, house.desk.archive)


def test_a_key_is_made_once_and_can_be_forgotten(house: House) -> None:
    pseudonyms = PseudonymKeys(house.desk.archive)
    key = pseudonyms.key("default", "mails")
    assert pseudonyms.key("default", "mails") == key != pseudonyms.key("other", "mails")
    assert len(key) == 32
    assert pseudonyms.forget("default", "mails")
    assert not pseudonyms.forget("default", "mails")
    assert pseudonyms.key("default", "mails") != key
    with house.desk.archive.transaction() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(keys)).scalar_one() == 2


def test_a_policy_file_that_cannot_be_read_is_named(house: House, tmp_path: Path) -> None:
    house.desk.settings = house.desk.settings.model_copy(update={"pii_policy": tmp_path / "none.json"})
    with pytest.raises(BadRequest, match=r"none\.json"):
        house.desk.keep_dataset(actor(), "mails", _file(tmp_path))


def _file(folder: Path) -> Path:
    file = folder / "mails.jsonl"
    file.write_bytes(mails())
    return file
