"""Rows of a file -> Examples -> three splits, with everything that would spoil a proof told or refused."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from ratchet.core.errors import BadData
from ratchet.core.problem import Example, Fields, canonical, content_hash
from ratchet.programs.files import written_whole

AT_LEAST: Mapping[str, int] = {"train": 2, "validation": 2, "test": 10}
"""The fewest examples a split may have."""

STRATA = 20
"""A label with more distinct values than this is not stratified by."""

LEAK_SHARE = 0.95
"""A label that equals an input field in this share of rows is given away by it."""

LONGEST_CELL = 2**31 - 1
"""Characters in a cell of a CSV file; the most that Python takes on every platform."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a file: its number as an editor shows it (a line, or the n-th object or record), and its fields."""

    number: int
    fields: Fields


Examples: TypeAlias = tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Three disjoint sets of examples, and what had to be done to the data to get them."""

    train: Examples
    validation: Examples
    test: Examples
    notes: tuple[str, ...] = ()

    @property
    def examples(self) -> Examples:
        """All of them."""
        return (*self.train, *self.validation, *self.test)


# --- files ----------------------------------------------------------------------------------------------------------


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file, in order; never empty.

    Raises:
        BadData: the file or a row cannot be used; the message names file and line and says what to do.
    """
    path = Path(path)
    if path.is_dir():
        _refuse(path, None, "it is a directory; give the file itself")
    if not path.exists():
        near = difflib.get_close_matches(path.name, _neighbours(path), n=1)
        _refuse(path, None, "no such file" + (f"; did you mean {path.with_name(near[0])}?" if near else ""))
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        _refuse(path, None, f"files ending in {suffix or 'nothing'!r} are not read; use one of {', '.join(_READERS)}")
    rows = [Row(number=number, fields=fields) for number, fields in _READERS[suffix](path)]
    if not rows:
        _refuse(path, None, "there are no rows in it")
    return rows


def _jsonl(path: Path) -> Iterator[tuple[int, Fields]]:
    # Not splitlines(): it also breaks at U+2028 and others, which JSON strings may hold as they are.
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield number, _object(path, number, _parse(path, line, number))


def _json(path: Path) -> Iterator[tuple[int, Fields]]:
    text = _text(path)
    if not text.strip():
        return
    data = _parse(path, text, None)
    if isinstance(data, dict):
        lists = [data[name] for name in ("data", "examples") if isinstance(data.get(name), list)]
        if not lists:
            _refuse(path, None, 'expected a list of objects, or {"data": [...]} or {"examples": [...]}')
        data = lists[0]
    if not isinstance(data, list):
        _refuse(path, None, f"expected a list of objects, found {_kind(data)}")
    for number, value in enumerate(data, 1):
        yield number, _object(path, number, value)


def _table(delimiters: str) -> Callable[[Path], Iterator[tuple[int, Fields]]]:
    def read(path: Path) -> Iterator[tuple[int, Fields]]:
        text = _text(path)
        csv.field_size_limit(LONGEST_CELL)  # Python's own 128 KiB is less than a document
        names = next(filter(str.strip, io.StringIO(text)), "")
        delimiter = next((each for each in delimiters if each in names), delimiters[0])
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        first = 1  # a quoted cell may span lines: a row is known by its first one
        try:
            for cells in reader:
                number, first = first, reader.line_num + 1
                if not any(cell.strip() for cell in cells):
                    continue
                if header is None:
                    header = [name.strip() for name in cells]
                    _check_header(path, number, header)
                elif len(cells) != len(header):
                    _refuse(
                        path,
                        number,
                        f"{len(cells)} columns where the header has {len(header)}; put a cell that contains "
                        f"{delimiter!r} in double quotes",
                    )
                else:
                    yield number, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            _refuse(path, first, f"not valid CSV: {error}; look for a quote that is not closed")

    return read


def _check_header(path: Path, number: int, header: Sequence[str]) -> None:
    if not all(header):
        _refuse(path, number, f"column {list(header).index('') + 1} has no name; the first line must name all columns")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        _refuse(path, number, f"column {twice[0]!r} is named twice; rename one of them")


def _parquet(path: Path) -> Iterator[tuple[int, Fields]]:
    import pyarrow
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        _refuse(path, None, f"not a readable Parquet file: {error}")
    for number, record in enumerate(records, 1):
        # Dates, decimals and bytes have no JSON value of their own; text is what a prompt shows of them anyway.
        yield number, _object(path, number, json.loads(canonical(record)))


_READERS: Mapping[str, Callable[[Path], Iterator[tuple[int, Fields]]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _table(",;"),  # spreadsheets write semicolons where the comma is the decimal point
    ".tsv": _table("\t"),
    ".parquet": _parquet,
}


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows to a file of any kind that ``read_rows`` reads.

    Raises:
        BadData: the file cannot be written, or not in this form.
    """
    path = Path(path)
    suffix, fields = path.suffix.lower(), [dict(row.fields) for row in rows]
    if suffix not in _READERS:
        _refuse(
            path, None, f"files ending in {suffix or 'nothing'!r} are not written; use one of {', '.join(_READERS)}"
        )
    try:
        with written_whole(path) as part:
            if suffix == ".parquet":
                import pyarrow
                import pyarrow.parquet

                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(fields), part)
            elif suffix in (".csv", ".tsv"):
                with part.open("w", encoding="utf-8", newline="") as stream:
                    names = list(dict.fromkeys(name for row in fields for name in row))
                    writer = csv.writer(stream, delimiter="," if suffix == ".csv" else "\t", lineterminator="\n")
                    writer.writerow(names)
                    writer.writerows([_cell(row.get(name, "")) for name in names] for row in fields)
            elif suffix == ".json":
                part.write_text(json.dumps(fields, ensure_ascii=False, indent=1), encoding="utf-8")
            else:
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in fields)
                part.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        _refuse(path, None, f"cannot be written: {error.strerror}")


def _cell(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        _refuse(path, None, f"cannot be read: {error.strerror}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        _refuse(path, line, f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8")


def _parse(path: Path, text: str, number: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if number is not None else f"line {error.lineno}, column {error.colno}"
        _refuse(path, number, f"not valid JSON: {error.msg} at {place}; correct it there")
    except ValueError as error:  # a number of more digits than Python reads
        _refuse(path, number, f"not usable JSON: {error}")
    except RecursionError:
        _refuse(path, number, "nested too deeply to be read")


def _object(path: Path, number: int, value: object) -> Fields:
    if not isinstance(value, dict):
        _refuse(path, number, f'expected an object such as {{"question": "..."}}, found {_kind(value)}')
    for name, part in value.items():
        try:
            json.dumps(part, allow_nan=False).encode()
        except ValueError:
            _refuse(path, number, f"field {name!r} holds NaN or Infinity; use null or a number")
        try:
            canonical({name: part}).encode()
        except UnicodeEncodeError:
            _refuse(path, number, f"field {name!r} holds half of a surrogate pair, which is no character")
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _neighbours(path: Path) -> list[str]:
    return [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []


def _refuse(file: object, number: int | None, what: str) -> NoReturn:
    unit = "row" if Path(str(file)).suffix.lower() in (".json", ".parquet") else "line"
    where = f"{file}" if number is None else f"{file}, {unit} {number}"
    raise BadData(f"{where}: {what}", file=str(file), row=number)


# --- examples -------------------------------------------------------------------------------------------------------


def to_examples(
    rows: Sequence[Row],
    *,
    inputs: Sequence[str],
    labels: Sequence[str] | None = None,
    required_labels: Sequence[str] = (),
    scored: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    file: str | Path = "data",
) -> Examples:
    """One example per row, in order.

    Args:
        rows: What ``read_rows`` gave.
        inputs: The program's input fields; every row must have them.
        labels: The fields kept as labels. None keeps every field that is no input, for a metric may use any.
        required_labels: Labels that no row may leave out or leave empty.
        scored: Labels that no input may give away; where none is named, the required or else all.
        rename: The program's field name -> the file's column name.
        file: Named in messages.
    Raises:
        BadData: a row lacks a field, or a label gives no answer of its own (it is, or equals, an input).

    >>> rows = [Row(number=1, fields={"text": "Who?", "answer": "Ada"})]
    >>> to_examples(rows, inputs=["question"], rename={"question": "text"})[0].fields
    {'question': 'Who?', 'answer': 'Ada'}
    """
    wanted_labels = tuple(dict.fromkeys((*(labels or ()), *required_labels)))
    if both := [name for name in wanted_labels if name in inputs]:
        raise BadData(
            f"{file}: {both[0]!r} is an input of the program and a label too, so the answer is given with the question;"
            f" name another label field",
            field=both[0],
        )
    examples = []
    for row in rows:
        fields = _renamed(row, rename or {}, file)
        for name in inputs:
            _require(fields, name, row.number, file, "input")
        for name in wanted_labels:
            _require(fields, name, row.number, file, "label")
        for name in required_labels:
            _require_content(fields, name, row.number, file)
        kept = [name for name in fields if name not in inputs] if labels is None else wanted_labels
        examples.append(
            Example(inputs={name: fields[name] for name in inputs}, labels={name: fields[name] for name in kept})
        )
    refuse_leaks(examples, labels=scored or required_labels or wanted_labels or None, file=file)
    return tuple(examples)


def check_examples(
    examples: Sequence[Example],
    *,
    inputs: Sequence[str],
    required_labels: Sequence[str] = (),
    scored: Sequence[str] = (),
    file: str | Path = "data",
) -> None:
    """Refuse examples that somebody built by hand where ``to_examples`` would refuse the same in rows.

    Raises:
        BadData: an example lacks a field, or a label gives no answer of its own.
    """
    for number, example in enumerate(examples, 1):
        for name in inputs:
            _require(example.inputs, name, number, file, "input")
        for name in required_labels:
            _require(example.labels, name, number, file, "label")
            _require_content(example.labels, name, number, file)
    refuse_leaks(examples, labels=scored or required_labels or None, file=file)


def _renamed(row: Row, rename: Mapping[str, str], file: object) -> dict[str, Any]:
    for column in rename.values():
        if column not in row.fields:
            _refuse(file, row.number, f"there is no column {column!r} to map{_instead(column, row.fields)}")
    moved = set(rename.values())
    fields = {name: value for name, value in row.fields.items() if name not in moved and name not in rename}
    return {**{name: row.fields[column] for name, column in rename.items()}, **fields}


def _require(fields: Fields, name: str, number: int, file: object, what: str) -> None:
    if name not in fields:
        hint = _instead(name, fields)
        _refuse(file, number, f"{what} field {name!r} is missing{hint}; add it, or map it with --map {name}=COLUMN")


def _require_content(fields: Fields, name: str, number: int, file: object) -> None:
    if _is_empty(fields[name]):
        _refuse(file, number, f"label {name!r} is empty; fill it in or leave the row out")


def _instead(name: str, fields: Fields) -> str:
    lower = {field.lower(): field for field in fields}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    return f" (did you mean {lower[near[0]]!r}?)" if near else f" (there are: {', '.join(fields) or 'no fields'})"


def _is_empty(value: object) -> bool:
    if isinstance(value, float) and not math.isfinite(value):  # what a table of Python's holds where it holds nothing
        return True
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def refuse_leaks(
    examples: Sequence[Example], *, labels: Sequence[str] | None = None, file: str | Path = "data"
) -> None:
    """Refuse data whose input fields give the answer away.

    Args:
        examples: All examples of one file.
        labels: The label fields that are scored; None looks at all.
        file: Named in the message.
    Raises:
        BadData: a label equals an input field in 95 % of the rows or more, and neither is constant.
    """
    if len(examples) < AT_LEAST["test"]:
        return  # in a handful of rows, equality proves nothing
    names = labels if labels is not None else tuple({name: None for example in examples for name in example.labels})
    for label in names:
        for given in examples[0].inputs:
            pairs = [
                (example.inputs[given], example.labels[label])
                for example in examples
                if given in example.inputs and label in example.labels
            ]
            values = {canonical(value) for _, value in pairs}
            equal = sum(canonical(shown) == canonical(value) for shown, value in pairs)
            if len(values) > 1 and equal >= LEAK_SHARE * len(pairs):
                raise BadData(
                    f"{file}: label {label!r} equals input {given!r} in {equal} of {len(pairs)} rows, so the answer is "
                    f"given with the question; drop {given!r} from the program's inputs or score another label",
                    input=given,
                    label=label,
                )


# --- splits ---------------------------------------------------------------------------------------------------------


def split(
    examples: Sequence[Example], *, seed: int, fractions: tuple[float, float, float] = (0.35, 0.25, 0.40)
) -> Splits:
    """Train, validation and test; the same content and seed give the same splits, whatever the order of rows.

    Duplicates are dropped first. A label of few distinct values is spread evenly over the splits.

    Raises:
        BadData: a split would have too few examples.
    """
    unique, notes = without_duplicates(examples)
    train, validation, test = _parts(unique, seed=seed, fractions=fractions)
    return _checked(Splits(train=train, validation=validation, test=test, notes=notes))


def assemble(
    *,
    data: Sequence[Example] | None = None,
    train: Sequence[Example] | None = None,
    validation: Sequence[Example] | None = None,
    test: Sequence[Example] | None = None,
    seed: int,
    fractions: tuple[float, float, float] = (0.35, 0.25, 0.40),
) -> Splits:
    """Splits from the files a user has: what is missing is split off, what is given is kept.

    ``data`` alone is split in three; ``data`` with ``test`` in train and validation; ``train`` without ``validation``
    gives some of its rows to it. A row in two splits stays in test before validation before train: the test split of
    a user is never changed, except that its own duplicates go.

    Raises:
        BadData: files that contradict each other, a split that can be made of nothing, or one with too few examples.
    """
    if data is not None and train is not None:
        raise BadData("--data and --train are both given; --data is split for you, --train is taken as it is: give one")
    if data is not None and validation is not None:
        raise BadData("--data is split in train and validation by itself; give --train with --validation")
    if data is None and train is None:
        raise BadData("there are no examples to learn from; give --data FILE, or --train FILE and --test FILE")
    if data is not None and test is None:
        return split(data, seed=seed, fractions=fractions)
    if test is None:
        raise BadData("there is no test split; give --test FILE, or --data FILE alone to have it split in three")

    kept_test, notes = _named("test", test)
    name, given = ("train", train) if train is not None else ("data", data or ())
    learn, learn_notes = _named(name, given)
    learn, with_test = _apart(name, learn, "test", kept_test)
    notes += learn_notes + with_test
    if validation is None:
        first, second, _ = fractions
        share = first / (first + second)
        kept_train, kept_validation, _ = _parts(learn, seed=seed, fractions=(share, 1 - share, 0.0))
    else:
        kept_validation, validation_notes = _named("validation", validation)
        kept_validation, with_test = _apart("validation", kept_validation, "test", kept_test)
        kept_train, with_validation = _apart("train", learn, "validation", kept_validation)
        notes += validation_notes + with_test + with_validation
    return _checked(Splits(train=kept_train, validation=kept_validation, test=kept_test, notes=notes))


def without_duplicates(examples: Sequence[Example]) -> tuple[Examples, tuple[str, ...]]:
    """The examples with each input once, and what was dropped, in words.

    Of rows with the same inputs and different labels only the first stays.
    """
    kept: dict[str, Example] = {}
    same = different = 0
    for example in examples:
        first = kept.get(question := _question(example))
        if first is None:
            kept[question] = example
        elif first == example:
            same += 1
        else:
            different += 1
    notes = []
    if same:
        notes.append(f"{_count(same, 'duplicate row')} dropped")
    if different:
        notes.append(f"{_count(different, 'row')} dropped: same inputs as an earlier row, other labels")
    return tuple(kept.values()), tuple(notes)


def dataset_hash(splits: Splits) -> dict[str, str]:
    """A SHA-256 per split over its content; the order of rows does not matter."""
    return {
        name: hashlib.sha256(
            "\n".join(sorted(canonical({"inputs": row.inputs, "labels": row.labels}) for row in rows)).encode()
        ).hexdigest()
        for name, rows in (("train", splits.train), ("validation", splits.validation), ("test", splits.test))
    }


def _parts(
    examples: Sequence[Example], *, seed: int, fractions: tuple[float, float, float]
) -> tuple[Examples, Examples, Examples]:
    """Disjoint parts in these fractions, each spread evenly over the strata."""
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise BadData(f"the fractions {fractions} must be 0 or more and sum to 1", fractions=fractions)
    label = _stratum(examples)
    strata: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda one: content_hash([seed, one.key])):
        strata[canonical(example.labels.get(label)) if label else ""].append(example)
    # Strata end to end, then dealt out by largest deficit: every prefix keeps the fractions, and so does every stratum.
    parts: tuple[list[Example], list[Example], list[Example]] = ([], [], [])
    dealt = 0
    for name in sorted(strata):
        for example in strata[name]:
            dealt += 1
            most_short = max(range(3), key=lambda part: fractions[part] * dealt - len(parts[part]))
            parts[most_short].append(example)
    train, validation, test = (tuple(sorted(part, key=lambda one: content_hash([seed, one.key]))) for part in parts)
    return train, validation, test


def _stratum(examples: Sequence[Example]) -> str | None:
    """The label with the fewest distinct values of 2 to 20, each of which is seen at least twice on average."""
    values: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        for name, value in example.labels.items():
            values[name].add(canonical(value))
    sizes = {name: len(seen) for name, seen in values.items() if 2 <= len(seen) <= min(STRATA, len(examples) // 2)}
    return min(sizes, key=lambda name: (sizes[name], name)) if sizes else None


def _checked(splits: Splits) -> Splits:
    for name, rows in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        if len(rows) < AT_LEAST[name]:
            raise BadData(
                f"the {name} split needs at least {AT_LEAST[name]} different examples, has {len(rows)}; give more rows"
                + (f" ({'; '.join(splits.notes)})" if splits.notes else ""),
                split=name,
                has=len(rows),
                needs=AT_LEAST[name],
            )
    return splits


def _named(name: str, examples: Sequence[Example]) -> tuple[Examples, tuple[str, ...]]:
    kept, notes = without_duplicates(examples)
    return kept, tuple(f"{name}: {note}" for note in notes)


def _apart(
    name: str, examples: Sequence[Example], other_name: str, others: Sequence[Example]
) -> tuple[Examples, tuple[str, ...]]:
    """The examples whose question is not among ``others``."""
    taken = {_question(example) for example in others}
    kept = tuple(example for example in examples if _question(example) not in taken)
    gone = len(examples) - len(kept)
    return kept, (f"{name}: {_count(gone, 'row')} dropped that are in {other_name} too",) if gone else ()


def _question(example: Example) -> str:
    return canonical(example.inputs)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
