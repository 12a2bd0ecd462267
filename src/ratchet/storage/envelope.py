"""Envelopes: what is private, encrypted with AES-256-GCM and bound to the place where it is stored."""

from __future__ import annotations

import os
import threading
import zlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ratchet.core.errors import KeyUnavailable, Tampered

PLAIN, PRESSED = b"\xa1", b"\xa2"
"""The first byte of an envelope, its version: what is in it stands as it is, or was compressed. No text in UTF-8 begins
with either, and no gzip file does: what was stored before there were envelopes is told apart by it."""

PRESS_FROM = 4096
"""Bytes from which compression is tried. Below it costs many times what the encryption does (15-40 us against 1 us)."""

NONCE_BYTES, TAG_BYTES, KEY_BYTES = 12, 16, 32


class _Nonces:
    """Random nonces, drawn many at a time: each draw lets go of the interpreter, and a busy one comes back late."""

    def __init__(self, at_once: int = 1024) -> None:
        self._size = at_once * NONCE_BYTES
        self._drawn = b""
        self._next = 0
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def take(self) -> bytes:
        """One that was never taken, not by a forked process either."""
        with self._lock:
            if self._next == len(self._drawn):
                self._drawn, self._next = os.urandom(self._size), 0
            self._next += NONCE_BYTES
            return self._drawn[self._next - NONCE_BYTES : self._next]

    def _forget(self) -> None:
        """Draw anew, in a forked process; whoever held the lock is not in it."""
        self._drawn, self._next = b"", 0
        self._lock = threading.Lock()


_NONCES = _Nonces()


def is_envelope(content: bytes) -> bool:
    """Whether ``content`` is one, by its first byte."""
    return content[:1] in (PLAIN, PRESSED)


def seal(cipher: AESGCM, content: bytes, place: str, *, press: bool = True) -> bytes:
    """An envelope: version (1 byte), nonce (12), ciphertext, tag (16).

    Args:
        cipher: The key.
        content: What is private.
        place: Where it will be stored; it opens nowhere else.
        press: Whether compressing is worth a try.

    >>> cipher = AESGCM(bytes(32))
    >>> unseal(cipher, seal(cipher, b"a secret", "here"), "here")
    b'a secret'
    """
    version = PLAIN
    if press and len(content) >= PRESS_FROM:
        pressed = zlib.compress(content, 1)
        if len(pressed) < len(content):
            version, content = PRESSED, pressed
    nonce = _NONCES.take()
    return version + nonce + cipher.encrypt(nonce, content, version + place.encode("utf-8", "surrogatepass"))


def unseal(cipher: AESGCM, envelope: bytes, place: str) -> bytes:
    """What is in an envelope.

    Raises:
        InvalidTag: it was changed, or belongs elsewhere, or this is not its key.
    """
    version, nonce = envelope[:1], envelope[1 : 1 + NONCE_BYTES]
    if len(envelope) < 1 + NONCE_BYTES + TAG_BYTES:
        raise InvalidTag
    content = cipher.decrypt(nonce, envelope[1 + NONCE_BYTES :], version + place.encode("utf-8", "surrogatepass"))
    return zlib.decompress(content) if version == PRESSED else content


class Box:
    """Seals and opens with the data key of one owner; without a key, leaves things as they are.

    Args:
        owner: Whose key it is, such as ``optimization:3f2a``.
        key: 32 bytes; None seals nothing.
        whole: Whether everything of this owner is sealed, so that nothing of it may stand in plain text.
    """

    __slots__ = ("_cipher", "owner", "whole")

    def __init__(self, owner: str, key: bytes | None, *, whole: bool) -> None:
        self.owner = owner
        self.whole = whole
        self._cipher = None if key is None else AESGCM(key)

    def seal(self, content: bytes, place: str, *, press: bool = True) -> bytes:
        """``content`` as it is stored at ``place``, such as ``replies.sealed/0a1b``."""
        return content if self._cipher is None else seal(self._cipher, content, place, press=press)

    def open(self, stored: bytes, place: str) -> bytes:
        """What ``seal`` was given; plain content of a database from before there were envelopes, as it is.

        Raises:
            Tampered: it was changed or moved, or is plain where an envelope belongs.
            KeyUnavailable: there is no key for it.
        """
        if not is_envelope(stored):
            if self.whole:
                raise Tampered(f"{place} of {self.owner} holds plain text where an envelope belongs; restore a backup")
            return stored
        if self._cipher is None:
            raise KeyUnavailable(
                f"{self.owner} is encrypted and its data key is not in this database, or no master key was given; "
                "open it with its RATCHET_KEYS or RATCHET_KEYS_FILE, or restore a whole backup"
            )
        try:
            return unseal(self._cipher, stored, place)
        except InvalidTag:
            raise Tampered(
                f"{place} of {self.owner} was changed or moved since it was written; restore a backup"
            ) from None
