"""What is sealed opens with its key, in its place and as it was written, or not at all."""

from __future__ import annotations

import os
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from ratchet.core.errors import KeyUnavailable, Tampered
from ratchet.storage.envelope import NONCE_BYTES, PRESS_FROM, Box, is_envelope, seal, unseal

CIPHER = AESGCM(bytes(range(32)))
PLACES = st.text(max_size=60)
CONTENTS = st.one_of(
    st.binary(max_size=200), st.text(max_size=20).map(lambda text: (text * 400).encode("utf-8", "replace"))
)


@given(content=CONTENTS, place=PLACES, press=st.booleans())
def test_what_is_sealed_opens_as_it_was(content: bytes, place: str, press: bool) -> None:
    envelope = seal(CIPHER, content, place, press=press)
    assert is_envelope(envelope)
    assert unseal(CIPHER, envelope, place) == content


@given(content=st.binary(max_size=100), place=PLACES, data=st.data())
def test_an_envelope_with_any_bit_changed_does_not_open(content: bytes, place: str, data: st.DataObject) -> None:
    envelope = bytearray(seal(CIPHER, content, place))
    bit = data.draw(st.integers(0, len(envelope) * 8 - 1))
    envelope[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidTag):
        unseal(CIPHER, bytes(envelope), place)


@given(content=st.binary(max_size=100), place=PLACES, cut=st.integers(0, 200))
def test_an_envelope_that_was_cut_off_does_not_open(content: bytes, place: str, cut: int) -> None:
    envelope = seal(CIPHER, content, place)
    with pytest.raises(InvalidTag):
        unseal(CIPHER, envelope[: min(cut, len(envelope) - 1)], place)


@given(place=PLACES, other=PLACES)
def test_an_envelope_opens_nowhere_else_and_with_no_other_key(place: str, other: str) -> None:
    envelope = seal(CIPHER, b"a secret", place)
    if other != place:
        with pytest.raises(InvalidTag):
            unseal(CIPHER, envelope, other)
    with pytest.raises(InvalidTag):
        unseal(AESGCM(bytes(32)), envelope, place)


def test_the_same_content_is_never_sealed_alike() -> None:
    envelopes = {seal(CIPHER, b"yes", "here") for _ in range(3000)}
    assert len({envelope[1 : 1 + NONCE_BYTES] for envelope in envelopes}) == 3000


def _nonce(told: SimpleQueue[bytes]) -> None:
    told.put(seal(CIPHER, b"", "")[1 : 1 + NONCE_BYTES])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_takes_no_nonce_of_its_parent() -> None:
    forking = get_context("fork")
    told: SimpleQueue[bytes] = forking.SimpleQueue()
    seal(CIPHER, b"", "")
    children = [forking.Process(target=_nonce, args=(told,)) for _ in range(2)]
    for child in children:
        child.start()
    nonces = {told.get(), told.get(), seal(CIPHER, b"", "")[1 : 1 + NONCE_BYTES]}
    for child in children:
        child.join()
    assert len(nonces) == 3


def test_large_content_is_compressed_when_that_helps() -> None:
    text, noise = b"the same again. " * PRESS_FROM, os.urandom(PRESS_FROM)
    assert len(seal(CIPHER, text, "here")) < len(text) / 10
    assert len(seal(CIPHER, text, "here", press=False)) > len(text)
    assert len(seal(CIPHER, noise, "here")) == len(noise) + 29


def test_a_box_says_what_is_wrong_and_what_to_do() -> None:
    box, whole = Box("dataset:a", bytes(32), whole=False), Box("dataset:a", bytes(32), whole=True)
    sealed = box.seal(b"a secret", "rows/1")
    assert whole.open(sealed, "rows/1") == b"a secret"
    with pytest.raises(Tampered, match=r"rows/2 of dataset:a was changed or moved.*restore"):
        box.open(sealed, "rows/2")
    assert box.open(b'{"old": 1}', "rows/1") == b'{"old": 1}'
    with pytest.raises(Tampered, match="rows/1 of dataset:a holds plain text"):
        whole.open(b'{"old": 1}', "rows/1")
    none = Box("dataset:a", None, whole=False)
    assert none.open(none.seal(b"{}", "rows/1"), "rows/1") == b"{}"
    with pytest.raises(KeyUnavailable, match=r"dataset:a.*RATCHET_KEYS"):
        none.open(sealed, "rows/1")
