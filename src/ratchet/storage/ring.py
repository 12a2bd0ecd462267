"""The key ring: master keys, from the environment or a file. They wrap data keys, and nothing else."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
import tempfile
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from filelock import FileLock

from ratchet.core.errors import BadRequest, Conflict, KeyUnavailable, Tampered
from ratchet.engine.certificate import place_secret
from ratchet.storage.envelope import KEY_BYTES, seal, unseal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a master key may be called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Master:
    """One master key.

    Attributes:
        id: Its name, which stands beside everything it wraps.
        key: 32 bytes.
    """

    id: str
    key: bytes = field(repr=False)

    @property
    def print(self) -> str:
        """Tells it from another key of the same name, and tells nothing else of it."""
        return hashlib.sha256(b"ratchet master key\0" + self.key).hexdigest()[:16]

    def wrap(self, key: bytes, place: str) -> bytes:
        """A data key as it is stored at ``place``."""
        return seal(AESGCM(self.key), key, place, press=False)

    def unwrap(self, wrapped: bytes, place: str, *, owner: str = "") -> bytes:
        """The data key of ``owner``.

        Raises:
            Tampered: the wrapped key was changed, or belongs elsewhere.
        """
        try:
            return unseal(AESGCM(self.key), wrapped, place)
        except InvalidTag:
            raise Tampered(
                f"the wrapped key of {owner or place} was changed or moved; restore a backup of data_keys"
            ) from None


def new_master() -> Master:
    """A new master key with a name of its own."""
    return Master(id=f"k-{secrets.token_hex(4)}", key=secrets.token_bytes(KEY_BYTES))


def parse(text: str, *, source: str) -> tuple[Master, ...]:
    """Master keys written as ``id:base64``, with commas or line ends between them; ``#`` begins a comment.

    Raises:
        BadRequest: one cannot be read; the message tells its place, never the key.

    >>> [master.id for master in parse("new:" + "A" * 43 + "=, old:" + "B" * 43 + "=", source="RATCHET_KEYS")]
    ['new', 'old']
    """
    found: list[Master] = []
    lines = [line.partition("#")[0] for line in text.splitlines()]
    for number, entry in enumerate((part.strip() for part in ",".join(lines).split(",") if part.strip()), start=1):
        name, colon, encoded = entry.partition(":")
        try:
            key = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not colon or not NAME.fullmatch(name) or len(key) != KEY_BYTES:
            raise BadRequest(
                f"key {number} of {source} is no master key; write id:KEY, where KEY is 32 bytes in base64 "
                "(openssl rand -base64 32)"
            )
        if name in [master.id for master in found]:
            raise BadRequest(f"{source} names the master key {name} twice; keep one of them")
        found.append(Master(id=name, key=key))
    return tuple(found)


def _written(masters: Sequence[Master]) -> bytes:
    head = "# Master keys of Ratchet: the first wraps what is new. Who loses them loses all that is stored.\n"
    return (head + "".join(f"{each.id}:{base64.b64encode(each.key).decode()}\n" for each in masters)).encode()


class KeyRing:
    """The master keys there are; the first wraps what is new.

    A file is read again when it has changed, so that running processes follow a rotation.

    Args:
        keys: As ``parse`` takes them; when there are some, no file is looked at.
        file: Where they are kept otherwise, readable by its owner alone.

    Raises:
        BadRequest: by every method, when the keys or the file cannot be used.
    """

    def __init__(self, keys: str = "", *, file: Path | None = None) -> None:
        self._fixed = parse(keys, source="RATCHET_KEYS")
        self.file = None if self._fixed else file
        if not self._fixed and file is None:
            raise BadRequest("there is no master key; set RATCHET_KEYS or RATCHET_KEYS_FILE")
        self._read: tuple[tuple[int, ...], tuple[Master, ...]] | None = None
        self._lock = threading.Lock()

    @property
    def source(self) -> str:
        """Where the keys are, for messages."""
        return "RATCHET_KEYS" if self.file is None else str(self.file)

    @property
    def there(self) -> bool:
        """Whether there is a key at all."""
        return self.file is None or self.file.exists()

    def make(self) -> None:
        """Make the file with one new key, unless it is there; who is first makes it for all."""
        if self.file is not None and not self.file.exists():
            place_secret(self.file, _written([new_master()]))

    def masters(self) -> tuple[Master, ...]:
        """All of them, as they are now.

        Raises:
            KeyUnavailable: the file is not there.
        """
        if self.file is None:
            return self._fixed
        with self._lock:
            try:
                stat = self.file.stat()
                state = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                if self._read is None or self._read[0] != state:
                    if os.name == "posix" and stat.st_mode & 0o077:
                        raise BadRequest(f"{self.file} can be read by others; chmod 600 {self.file}")
                    self._read = state, parse(self.file.read_text(encoding="ascii"), source=str(self.file))
            except FileNotFoundError:
                raise KeyUnavailable(
                    f"the file with the master keys, {self.file}, is not there; put it back, or name another one "
                    "with RATCHET_KEYS_FILE"
                ) from None
            except (OSError, UnicodeDecodeError) as error:
                raise BadRequest(f"{self.file} holds no master keys that can be read: {error}; restore it") from error
            if not self._read[1]:
                raise BadRequest(f"{self.file} holds no master key; restore it")
            return self._read[1]

    @property
    def first(self) -> Master:
        """The one that wraps what is new."""
        return self.masters()[0]

    def find(self, identity: str, fingerprint: str, *, owner: str) -> Master:
        """The master key with this name.

        Raises:
            KeyUnavailable: it is not here, or another one has its name.
        """
        for master in self.masters():
            if master.id == identity:
                if master.print != fingerprint:
                    raise KeyUnavailable(
                        f"{owner} is under the master key {identity} with the fingerprint {fingerprint}, and the one "
                        f"of that name in {self.source} has {master.print}; put the right one back"
                    )
                return master
        raise KeyUnavailable(
            f"{owner} is under the master key {identity} (fingerprint {fingerprint}), which is not in {self.source}; "
            "put it back; what is under a key that is lost for good can only be deleted"
        )

    def put_first(self, master: Master) -> None:
        """Have ``master`` wrap what is new from now on, in all processes.

        Raises:
            Conflict: the keys are not in a file, and so are not ours to change.
        """
        with self._changing():
            self._write([master, *self.masters()])

    def drop(self, identity: str) -> None:
        """Take a master key out of the file, for good.

        Raises:
            Conflict: the keys are not in a file, or it is the first one, or there is none of this name.
        """
        with self._changing():
            masters = self.masters()
            if identity not in [each.id for each in masters[1:]]:
                raise Conflict(
                    f"{identity} is not one of the older master keys in {self.source}; `ratchet vault status`"
                )
            self._write([each for each in masters if each.id != identity])

    def _changing(self) -> AbstractContextManager[Any]:
        """One process at a time: a key that another one put into the file meanwhile must not be lost."""
        if self.file is None:
            raise Conflict("the master keys are in RATCHET_KEYS; change them there, in every process")
        return FileLock(f"{self.file}.lock")

    def _write(self, masters: Sequence[Master]) -> None:
        assert self.file is not None
        handle, temporary = tempfile.mkstemp(dir=self.file.parent, prefix=f".{self.file.name}.")  # it makes it 0600
        with os.fdopen(handle, "wb") as file:
            file.write(_written(masters))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(self.file)
