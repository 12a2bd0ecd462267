"""Data sets: uploaded in streams, checked row by row, versioned and hashed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pyarrow
import pyarrow.parquet
import pytest

from ratchet.testing.lm_server import rows
from ratchet.testing.service import House, data


def parquet(n: int) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(n)), out)
    return out.getvalue()


def csv(n: int) -> bytes:
    return "".join(["text,label\n", *(f"{row['text']},{row['label']}\n" for row in rows(n))]).encode()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("application/x-ndjson", data(30)),
        ("text/csv; charset=utf-8", csv(30)),
        ("application/json", json.dumps(rows(30)).encode()),
        ("application/vnd.apache.parquet", parquet(30)),
    ],
)
def test_the_same_rows_are_the_same_data_set_however_they_are_written(house: House, kind: str, content: bytes) -> None:
    first = house.upload("first", data(30)).json()
    answer = house.upload("mails", content, kind=kind)
    assert answer.status_code == 201
    kept = answer.json()
    assert answer.headers["location"] == f"/api/v1/datasets/{kept['id']}"
    assert (kept["rows"], sorted(kept["fields"]), kept["hash"]) == (30, ["label", "text"], first["hash"])
    stored = house.desk.shelf.rows(house.desk.shelf.dataset("default", "mails"))
    assert [row.fields for row in stored] == rows(30)


def test_other_rows_make_a_new_version_and_the_same_rows_do_not(house: House) -> None:
    versions = [house.upload(content=data(n)) for n in (30, 30, 40)]
    assert [(answer.status_code, answer.json()["version"]) for answer in versions] == [(201, 1), (200, 1), (201, 2)]
    for reference, n in (("mails", 40), ("mails@1", 30), ("mails@2", 40), (versions[0].json()["id"], 30)):
        assert house.ask("GET", f"/api/v1/datasets/{reference}").json()["rows"] == n
    for reference in ("mails@3", "mails@0", "mails@x", f"mails@{'9' * 40}", "other"):
        assert house.ask("GET", f"/api/v1/datasets/{reference}").status_code == 404


def test_many_rows_come_back_in_order(house: House) -> None:
    house.upload(content=data(2500))
    stored = house.desk.shelf.rows(house.desk.shelf.dataset("default", "mails"))
    assert [row.fields for row in stored] == rows(2500)
    assert [row.number for row in stored] == list(range(1, 2501))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2"),
        (b'{"text": "a"}\n[1]\n', "line 2"),
        (b'{"text": "a"}\n{"text": NaN}\n', "line 2"),
        (b"\xff\xfe", "UTF-8"),
        (b"", "no rows"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_nothing_is_kept(house: House, content: bytes, told: str) -> None:
    answer = house.upload(content=content)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert told in answer.json()["detail"]
    assert "mails" in answer.json()["detail"]
    assert "/tmp" not in answer.text
    assert house.ask("GET", "/api/v1/datasets").json()["items"] == []


def test_more_than_the_limit_is_refused_while_it_comes(house: House) -> None:
    house.desk.settings = house.desk.settings.model_copy(update={"max_upload_mb": 0.01})
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield data(60)

    answer = house.ask(
        "POST", "/api/v1/datasets?name=mails", content=chunks(), headers={"Content-Type": "application/x-ndjson"}
    )
    assert answer.status_code == 413
    assert "RATCHET_MAX_UPLOAD_MB" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["a/b", "-a", "a@1", "a b", "x" * 101, ""])
def test_a_name_that_makes_no_sense_is_refused(house: House, name: str) -> None:
    answer = house.ask(
        "POST",
        "/api/v1/datasets",
        params={"name": name},
        content=data(),
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "name"


def test_a_kind_that_is_not_read_is_refused(house: House) -> None:
    answer = house.upload(kind="text/html")
    assert answer.status_code == 422
    assert answer.json()["errors"][0] == {
        "field": "Content-Type",
        "value": "text/html",
        "remedy": answer.json()["detail"].rpartition("; ")[2],
    }


def test_pages_give_each_data_set_once(house: House) -> None:
    for number in range(5):
        house.upload(f"set-{number}", data(20 + number))
    names, cursor = [], None
    for _ in range(10):
        params = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = house.ask("GET", "/api/v1/datasets", params=params).json()
        names += [item["name"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert names == [f"set-{number}" for number in (4, 3, 2, 1, 0)]
    for cursor in ("nonsense", "YQ", "é"):
        assert house.ask("GET", "/api/v1/datasets", params={"cursor": cursor}).status_code == 422
