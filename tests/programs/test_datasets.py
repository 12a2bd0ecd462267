"""Files become rows, rows examples, examples splits; what would spoil a proof is told or refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet.core.errors import BadData
from ratchet.core.problem import Example, canonical
from ratchet.demo import DATA
from ratchet.demo.make_support_mail import PATTERNS, PRODUCTS, mails
from ratchet.programs.datasets import (
    Row,
    Splits,
    assemble,
    dataset_hash,
    read_rows,
    split,
    to_examples,
    without_duplicates,
)

WriteFile = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def question(number: int, answer: object = None) -> Example:
    return Example(inputs={"q": f"question {number}"}, labels={"answer": f"a{number}" if answer is None else answer})


def rows_of(*fields: Mapping[str, object]) -> list[Row]:
    return [Row(number=number, fields=each) for number, each in enumerate(fields, 1)]


# --- files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", '{"q": "Who?", "a": "Ada\u2028"}\n\n{"q": "Wo?", "a": "Köln"}\n'),
        ("d.ndjson", '\ufeff{"q": "Who?", "a": "Ada\u2028"}\r\n{"q": "Wo?", "a": "Köln"}'),
        ("d.json", '[{"q": "Who?", "a": "Ada\u2028"}, {"q": "Wo?", "a": "Köln"}]'),
        ("e.json", '{"data": [{"q": "Who?", "a": "Ada\u2028"}, {"q": "Wo?", "a": "Köln"}]}'),
        ("f.json", '{"examples": [{"q": "Who?", "a": "Ada\u2028"}, {"q": "Wo?", "a": "Köln"}]}'),
        ("d.csv", "\ufeffq,a\nWho?,Ada\u2028\nWo?,Köln\n"),
        ("d.csv", "\ufeff\r\nq;a\r\nWho?;Ada\u2028\r\nWo?;Köln\r\n"),
        ("d.TSV", "q\ta\nWho?\tAda\u2028\nWo?\tKöln\n"),
    ],
)
def test_every_format_gives_the_same_rows(write: WriteFile, name: str, content: str) -> None:
    assert [row.fields for row in read_rows(write(name, content))] == [
        {"q": "Who?", "a": "Ada\u2028"},
        {"q": "Wo?", "a": "Köln"},
    ]


def test_parquet_is_read_with_its_types(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"q": ["a", "b"], "n": [1, None], "tags": [["x"], []]}), path)
    assert [row.fields for row in read_rows(path)] == [
        {"q": "a", "n": 1, "tags": ["x"]},
        {"q": "b", "n": None, "tags": []},
    ]


def test_a_cell_may_hold_a_document(write: WriteFile) -> None:
    assert [row.fields for row in read_rows(write("d.csv", f"q,a\n{'x' * 200_000},1\n"))] == [
        {"q": "x" * 200_000, "a": "1"}
    ]


def test_rows_carry_the_line_an_editor_shows(write: WriteFile) -> None:
    assert [row.number for row in read_rows(write("d.csv", 'q,a\n"two\nlines",1\nx,2\n'))] == [2, 4]
    assert [row.number for row in read_rows(write("d.jsonl", '{"q": 1}\n\n{"q": 2}\n'))] == [1, 3]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.jsonl", '{"q": 1}\n{"q": }\n', "line 2: not valid JSON"),
        ("d.jsonl", '{"q": 1}\n[1]\n', "line 2: expected an object .* found a list"),
        ("d.jsonl", '{"q": NaN}\n', "line 1: field 'q' holds NaN or Infinity; use null or a number"),
        ("d.jsonl", '{"q": {"deep": [1, -Infinity]}}\n', "line 1: field 'q' holds NaN or Infinity"),
        ("d.jsonl", '{"q": "\\ud800"}\n', "line 1: field 'q' holds half of a surrogate pair"),
        ("d.jsonl", '{"q": ' + "9" * 5000 + "}", "line 1: not usable JSON"),
        ("d.jsonl", '{"q": ' + "[" * 100_000, "line 1: nested too deeply"),
        ("d.jsonl", b'{"q": "a"}\n{"q": "\xe9"}\n', "line 2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("d.jsonl", "\n \n", "there are no rows in it"),
        ("d.json", "", "there are no rows in it"),
        ("d.json", "[]", "there are no rows in it"),
        ("d.json", '[{"q": 1}, 2]', "row 2: expected an object .* found a number"),
        ("d.json", '{"rows": []}', 'expected a list of objects, or {"data"'),
        ("d.json", '"text"', "expected a list of objects, found a text"),
        ("d.json", '[{"q": 1},\n {"q" 2}]', "not valid JSON: .* at line 2, column 7"),
        ("d.csv", "q,a\n1,2\n3\n", "line 3: 1 columns where the header has 2"),
        ("d.csv", "q,a\n1,2,3\n", "line 2: 3 columns where the header has 2; put a cell that contains ','"),
        ("d.csv", "q,q\n1,2\n", "line 1: column 'q' is named twice"),
        ("d.csv", "q,\n1,2\n", "line 1: column 2 has no name"),
        ("d.csv", 'q,a\n1,"open\n', "line 2: not valid CSV"),
        ("d.csv", "q,a\n", "there are no rows in it"),
        ("d.parquet", "no parquet", "not a readable Parquet file"),
        ("d.xlsx", "x", "files ending in '.xlsx' are not read; use one of .jsonl"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_place_and_remedy(
    write: WriteFile, name: str, content: str | bytes, says: str
) -> None:
    path = write(name, content)
    with pytest.raises(BadData, match=says) as refused:
        read_rows(path)
    assert str(path) in str(refused.value)


def test_a_missing_file_names_the_one_that_is_there(write: WriteFile, tmp_path: Path) -> None:
    write("train.jsonl", "{}")
    with pytest.raises(BadData, match=r"no such file; did you mean .*train\.jsonl"):
        read_rows(tmp_path / "trian.jsonl")
    with pytest.raises(BadData, match="it is a directory"):
        read_rows(tmp_path)


# --- examples


def test_all_fields_that_are_no_inputs_become_labels() -> None:
    (example,) = to_examples(rows_of({"q": 1, "answer": 2, "level": "easy"}), inputs=["q"])
    assert (example.inputs, example.labels) == ({"q": 1}, {"answer": 2, "level": "easy"})


def test_named_labels_are_the_only_ones_kept() -> None:
    (example,) = to_examples(
        rows_of({"q": 1, "a": 2, "b": 3, "c": 4}), inputs=["q"], labels=["a"], required_labels=["b"]
    )
    assert example.labels == {"a": 2, "b": 3}


def test_columns_are_renamed_to_fields_even_when_names_are_swapped() -> None:
    (example,) = to_examples(rows_of({"q": 1, "a": 2}), inputs=["q"], rename={"q": "a", "a": "q"})
    assert example.fields == {"q": 2, "a": 1}


def test_a_missing_input_names_row_field_and_what_may_be_meant() -> None:
    with pytest.raises(
        BadData,
        match=r"d.jsonl, line 2: input field 'question' is missing \(did you mean 'Questoin'\?\).*--map question=",
    ):
        to_examples(rows_of({"question": 1}, {"Questoin": 1}), inputs=["question"], file="d.jsonl")
    with pytest.raises(BadData, match=r"there is no column 'txt' to map \(did you mean 'text'\?\)"):
        to_examples(rows_of({"text": 1}), inputs=["q"], rename={"q": "txt"})


@pytest.mark.parametrize("empty", [None, "", "  ", [], {}, float("nan")])
def test_an_empty_required_label_is_refused_and_a_zero_is_not(empty: object) -> None:
    assert to_examples(rows_of({"q": 1, "a": 0}, {"q": 2, "a": False}), inputs=["q"], required_labels=["a"])
    with pytest.raises(BadData, match="line 2: label 'a' is empty"):
        to_examples(rows_of({"q": 1, "a": 1}, {"q": 2, "a": empty}), inputs=["q"], required_labels=["a"])
    with pytest.raises(BadData, match="line 1: label field 'a' is missing"):
        to_examples(rows_of({"q": 1}), inputs=["q"], required_labels=["a"])


def test_a_label_that_an_input_gives_away_is_refused() -> None:
    leaking = rows_of(*({"q": f"q{i}", "hint": f"a{i}", "answer": f"a{i}" if i else "other"} for i in range(40)))
    with pytest.raises(BadData, match=r"label 'answer' equals input 'hint' in 39 of 40 rows.*drop 'hint'"):
        to_examples(leaking, inputs=["q", "hint"])
    with pytest.raises(BadData, match="'q' is an input of the program and a label too"):
        to_examples(leaking, inputs=["q"], labels=["q"])


def test_a_label_that_sometimes_or_always_trivially_equals_an_input_is_no_leak() -> None:
    half = rows_of(*({"word": f"w{i}", "plural": f"w{i}" if i % 2 else f"w{i}s"} for i in range(40)))
    assert to_examples(half, inputs=["word"])
    constant = rows_of(*({"q": f"q{i}", "lang": "en", "target": "en"} for i in range(40)))
    assert to_examples(constant, inputs=["q", "lang"])


# --- splits

numbers = st.lists(st.integers(0, 10_000), min_size=40, max_size=120, unique=True)


@settings(max_examples=30, deadline=None)
@given(numbers=numbers, seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_splits_do_not_depend_on_the_order_of_rows_and_share_nothing(
    numbers: list[int], seed: int, order: random.Random
) -> None:
    examples = [question(number, number % 3) for number in numbers]
    once = split(examples, seed=seed)
    order.shuffle(examples)
    assert split(examples, seed=seed) == once
    everything = [*once.train, *once.validation, *once.test]
    assert len(set(everything)) == len(everything) == len(examples)
    for rows, share in ((once.train, 0.35), (once.validation, 0.25), (once.test, 0.40)):
        assert abs(len(rows) - share * len(examples)) <= 1


def test_another_seed_gives_another_split() -> None:
    examples = [question(number) for number in range(60)]
    assert split(examples, seed=0).test != split(examples, seed=1).test


def test_a_label_of_few_values_is_spread_evenly_over_the_splits() -> None:
    splits = split([question(number, "rare" if number % 10 == 0 else "common") for number in range(200)], seed=3)
    rare = [
        sum(each.labels["answer"] == "rare" for each in rows) for rows in (splits.train, splits.validation, splits.test)
    ]
    assert all(abs(n - share * 20) <= 1 for n, share in zip(rare, (0.35, 0.25, 0.40), strict=True))


def test_duplicates_are_dropped_and_told() -> None:
    examples = [question(number) for number in range(40)]
    splits = split([*examples, *examples[:7], question(3, "something else")], seed=0)
    assert splits.notes == (
        "7 duplicate rows dropped",
        "1 row dropped: same inputs as an earlier row, other labels",
    )
    assert {each.key for rows in (splits.train, splits.validation, splits.test) for each in rows} == {
        each.key for each in examples
    }
    assert without_duplicates(examples) == (tuple(examples), ())


@pytest.mark.parametrize("n", [0, 3, 20])
def test_too_few_examples_are_refused_with_numbers(n: int) -> None:
    with pytest.raises(BadData, match=r"split needs at least \d+ different examples, has \d+"):
        split([question(number) for number in range(n)], seed=0)


def test_own_files_are_kept_and_overlaps_leave_train_and_validation_never_test() -> None:
    train = [question(number) for number in range(10)]
    validation = [question(number) for number in range(8, 20)]
    test = [question(number) for number in range(18, 40)]
    splits = assemble(train=train, validation=validation, test=test, seed=0)
    assert splits == Splits(
        train=tuple(train[:8]),
        validation=tuple(validation[:10]),
        test=tuple(test),
        notes=(
            "validation: 2 rows dropped that are in test too",
            "train: 2 rows dropped that are in validation too",
        ),
    )


def test_validation_is_split_off_train_and_data_stands_for_both() -> None:
    train, test = [question(number) for number in range(24)], [question(number) for number in range(20, 40)]
    splits = assemble(train=train, test=test, seed=0)
    assert (len(splits.train), len(splits.validation), splits.test) == (12, 8, tuple(test))
    assert splits.notes == ("train: 4 rows dropped that are in test too",)
    from_data = assemble(data=train, test=test, seed=0)
    assert (from_data.train, from_data.validation) == (splits.train, splits.validation)
    assert assemble(data=[*train, *test], seed=0) == split([*train, *test], seed=0)


def test_what_cannot_be_made_is_asked_for() -> None:
    some = [question(number) for number in range(30)]
    with pytest.raises(BadData, match="give --data FILE, or --train FILE and --test FILE"):
        assemble(test=some, seed=0)
    with pytest.raises(BadData, match="there is no test split; give --test FILE"):
        assemble(train=some, validation=some, seed=0)
    with pytest.raises(BadData, match="--data and --train are both given"):
        assemble(data=some, train=some, seed=0)
    with pytest.raises(BadData, match="give --train with --validation"):
        assemble(data=some, validation=some, seed=0)
    with pytest.raises(BadData, match=r"the train split needs at least 2 .*20 rows dropped that are in test too"):
        assemble(train=some[:20], validation=some[20:], test=some[:20], seed=0)


def test_the_hash_of_a_split_follows_its_content_only() -> None:
    splits = split([question(number) for number in range(40)], seed=0)
    turned = Splits(train=splits.train[::-1], validation=splits.validation, test=splits.test, notes=("told",))
    assert dataset_hash(turned) == dataset_hash(splits)
    changed = Splits(train=splits.train, validation=splits.validation, test=(*splits.test[1:], question(999)))
    assert dataset_hash(changed)["test"] != dataset_hash(splits)["test"]
    assert dataset_hash(changed)["train"] == dataset_hash(splits)["train"]


# --- the demo data


def test_the_demo_data_is_what_its_script_writes_and_splits_cleanly() -> None:
    assert [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()] == mails()
    examples = to_examples(
        read_rows(DATA), inputs=["message"], required_labels=["order", "product", "queue"], file=DATA
    )
    splits = split(examples, seed=0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (105, 75, 120)
    assert splits.notes == ()
    assert {each.labels["product"] for each in examples} == set(PRODUCTS)
    assert {each.labels["queue"] for each in examples} == set(PATTERNS)
    assert len({pattern for patterns in PATTERNS.values() for pattern in patterns}) >= 60
    assert max(len(canonical(each.inputs)) for each in examples) < 260
