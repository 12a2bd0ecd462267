"""How texts stand in a table: as JSON that every database takes, and those of a row together in one envelope."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
import sqlalchemy as sa

from ratchet.core.errors import Tampered
from ratchet.storage.envelope import Box

Row = Mapping[str, Any] | sa.RowMapping

_UNSTORABLE = re.compile("[\ud800-\udfff]")


def as_json(value: object) -> str:
    """``value`` as JSON that every database stores: what UTF-8 cannot carry is escaped, all else stays readable."""
    with suppress(TypeError):  # orjson takes no surrogates, large integers, keys that are no text, nor other objects
        quick = orjson.dumps(value)
        if b"null" not in quick:  # it may have been NaN
            return quick.decode()
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _UNSTORABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Words(sa.TypeDecorator[str]):
    """Text as LMs and users write it; as JSON when it holds what a database refuses, and so begins with a quote."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """What is stored."""
        if value is None or not (value.startswith('"') or "\0" in value or _UNSTORABLE.search(value)):
            return value
        return as_json(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """What was given."""
        return str(json.loads(value)) if value is not None and value.startswith('"') else value


class Texts:
    """The columns of a table whose values are private, kept in one envelope per row.

    Databases from before there were envelopes have them in the columns themselves, where they are still read from.

    Args:
        table: The table.
        names: The private columns.
        at: The columns that say which row it is; an envelope that was moved to another row does not open.
        into: The column of the envelope.
        owner: What a row belongs to, as in ``optimization``; the column ``of`` says which one.
        of: The column with the owner's id.
    """

    def __init__(
        self, table: sa.Table, *names: str, at: tuple[str, ...], of: str, owner: str, into: str = "sealed"
    ) -> None:
        self.table = table
        self.names = names
        self.into = into
        self.kind = owner
        self.key = of
        self._at = at
        self._prefix = f"{table.name}.{into}"
        self._blank = {name: None if table.c[name].nullable else "" for name in names}
        self._json = [name for name in names if not isinstance(table.c[name].type, Words)]

    def owner(self, row: Row) -> str:
        """Whose data key the row is under."""
        return f"{self.kind}:{row[self.key]}"

    def some(self, row: Row) -> bool:
        """Whether there is anything private in a row."""
        return row[self.into] is not None or any(row[name] != blank for name, blank in self._blank.items())

    def hide(self, box: Box, values: Mapping[str, Any]) -> dict[str, Any]:
        """A row as it is stored, from one whose private values are plain objects; None is for what it does not have."""
        private = {name: values[name] for name in self.names if values.get(name) is not None}
        sealed = box.seal(as_json(private).encode(), self._place(values)) if private else None
        return {**values, **self._blank, self.into: sealed}

    def show(self, box: Box, row: Row) -> dict[str, Any]:
        """What ``hide`` was given.

        Raises:
            Tampered: the envelope was changed or moved, or there is plain text where an envelope belongs.
        """
        found: dict[str, Any] = {str(name): value for name, value in row.items()}
        place = self._place(row)
        sealed = found.pop(self.into)
        if sealed is not None:
            private = json.loads(box.open(bytes(sealed), place))
            return found | {name: private.get(name, blank) for name, blank in self._blank.items()}
        if box.whole and self.some(row):
            raise Tampered(f"{place} of {box.owner} holds plain text where an envelope belongs; restore a backup")
        return found | {name: json.loads(found[name]) for name in self._json if found[name]}

    def _place(self, row: Row) -> str:
        return "/".join([self._prefix, *(str(row[name]) for name in self._at)])
