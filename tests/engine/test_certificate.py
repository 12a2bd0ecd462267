"""A certificate holds exactly as it was signed, and says what is wrong when it does not."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
import sys
import tempfile
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import assume, given
from hypothesis import strategies as st

from ratchet.core.errors import BadData, CertificateInvalid
from ratchet.core.problem import canonical
from ratchet.engine.certificate import KEY_FILE, check_signature, load_or_make_key, read, sign

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=8,
)
PAYLOADS = st.dictionaries(st.sampled_from(["effect", "interval", "n", "p_value", "winner"]), VALUES, min_size=1)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for name, part in inner for place in _places(part, (*at, name))]


@given(PAYLOADS)
def test_a_certificate_holds_after_a_trip_through_a_file(payload: dict[str, Any]) -> None:
    certificate = sign(payload, KEY)
    again = json.loads(json.dumps(certificate, indent=2))
    assert check_signature(again) == certificate["payload"] == payload


@given(PAYLOADS, VALUES, st.data())
def test_a_change_of_any_value_is_detected(payload: dict[str, Any], value: Any, data: st.DataObject) -> None:
    certificate = sign(payload, KEY)
    changed = deepcopy(certificate)
    *path, last = data.draw(st.sampled_from(_places(changed["payload"])))
    inside = changed["payload"]
    for name in path:
        inside = inside[name]
    inside[last] = value
    assume(canonical(changed["payload"]) != canonical(certificate["payload"]))
    with pytest.raises(CertificateInvalid, match="does not fit"):
        check_signature(changed)


@given(PAYLOADS, st.text("abc", min_size=3))
def test_an_added_or_removed_value_is_detected(payload: dict[str, Any], name: str) -> None:
    certificate = sign(payload, KEY)
    fewer = dict(list(certificate["payload"].items())[1:])
    for changed in ({**certificate["payload"], name: 1}, fewer):
        with pytest.raises(CertificateInvalid, match="does not fit"):
            check_signature({**certificate, "payload": changed})


@given(st.sampled_from(["signature", "public_key"]), st.data())
def test_a_change_of_any_bit_of_signature_or_key_is_detected(part: str, data: st.DataObject) -> None:
    certificate = sign({"effect": 0.041}, KEY)
    raw = bytearray(base64.b64decode(certificate[part]))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CertificateInvalid):
        check_signature({**certificate, part: base64.b64encode(raw).decode()})


@given(st.sampled_from(["signature", "public_key"]), st.data())
def test_a_change_of_any_character_of_signature_or_key_is_detected(part: str, data: st.DataObject) -> None:
    certificate = sign({"effect": 0.041}, KEY)
    text = certificate[part]
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + data.draw(st.characters()) + text[place + 1 :]
    assume(changed != text)
    with pytest.raises(CertificateInvalid):
        check_signature({**certificate, part: changed})


def test_another_key_does_not_vouch() -> None:
    certificate, other = sign({"effect": 0.041}, KEY), sign({"effect": 0.041}, Ed25519PrivateKey.generate())
    for part in ("signature", "public_key"):
        with pytest.raises(CertificateInvalid, match="does not fit"):
            check_signature({**certificate, part: other[part]})


@pytest.mark.parametrize("part", ["payload", "signature", "public_key"])
def test_a_missing_part_is_named(part: str) -> None:
    certificate = sign({"effect": 0.041}, KEY)
    del certificate[part]
    with pytest.raises(CertificateInvalid, match=f"has no {part}"):
        check_signature(certificate)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"payload": []}, "payload must be an object"),
        ({"signature": None}, "signature must be text"),
        ({"public_key": 7}, "public_key must be text"),
        ({"signature": "not base64!"}, "signature is not base64"),
        ({"signature": "é"}, "signature is not base64"),
        ({"signature": "AAAA"}, "signature is 3 bytes long, not 64"),
        ({"public_key": ""}, "public_key is 0 bytes long, not 32"),
    ],
)
def test_a_malformed_part_is_named(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(CertificateInvalid, match=says):
        check_signature({**sign({"effect": 0.041}, KEY), **changed})


@pytest.mark.parametrize("certificate", [[], "text", None, 1])
def test_what_is_no_object_is_no_certificate(certificate: Any) -> None:
    with pytest.raises(CertificateInvalid, match="object"):
        check_signature(certificate)


@given(st.data())
def test_a_file_cut_off_anywhere_is_no_certificate(data: st.DataObject) -> None:
    text = json.dumps(sign({"effect": 0.041, "method": "sign-flip"}, KEY))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "certificate.json"
        path.write_text(text[: data.draw(st.integers(0, len(text) - 1))])
        with pytest.raises(CertificateInvalid, match="cut off"):
            read(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[1]", "holds a list"),
        (b'{"payload": {"n": 1, "n": 2}}', "named twice"),
        (b'{"payload": {"n": NaN}}', "the number NaN"),
        (b"\xff\xfe\xfa", "no certificate"),
        (b"[" * 100_000, "no certificate"),
    ],
)
def test_a_file_that_holds_something_else_says_so(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "certificate.json"
    path.write_bytes(content)
    with pytest.raises(CertificateInvalid, match=says):
        read(path)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(CertificateInvalid, match="cannot be read: No such file"):
        read(tmp_path / "certificate.json")


def test_a_file_that_was_written_is_read_and_holds(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(sign({"effect": 0.041, "words": "größer"}, KEY)))
    assert check_signature(read(path)) == {"effect": 0.041, "words": "größer"}


def test_times_are_signed_as_the_text_that_is_read_back() -> None:
    assert check_signature(sign({"at": datetime(2025, 1, 2, tzinfo=UTC), "pair": (1, 2)}, KEY)) == {
        "at": "2025-01-02 00:00:00+00:00",
        "pair": [1, 2],
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_json_cannot_carry_is_not_signed_and_does_not_hold(value: Any) -> None:
    with pytest.raises(BadData, match="cannot carry"):
        sign({"effect": value}, KEY)
    with pytest.raises(CertificateInvalid):
        check_signature({**sign({"effect": 0.041}, KEY), "payload": {"effect": value}})


# The key


def _public(folder: Path) -> bytes:
    return load_or_make_key(folder).public_key().public_bytes_raw()


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert _public(folder) == _public(folder)
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [KEY_FILE]


def test_processes_that_race_get_the_same_key(tmp_path: Path) -> None:
    racer = """
import sys
from pathlib import Path
from ratchet.engine.certificate import load_or_make_key
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(load_or_make_key(folder / "keys").public_key().public_bytes_raw().hex())
"""
    racers = [
        subprocess.Popen([sys.executable, "-c", racer, str(tmp_path)], stdin=PIPE, stdout=PIPE, text=True)
        for _ in range(4)
    ]
    for process in racers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in racers:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert {process.communicate(timeout=60)[0].strip() for process in racers} == {_public(tmp_path / "keys").hex()}
    assert [path.name for path in (tmp_path / "keys").iterdir()] == [KEY_FILE]


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA", b"\x00\xff"])
def test_a_damaged_key_file_is_an_error_and_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(BadData, match="holds no private key"):
        load_or_make_key(tmp_path)
    assert (tmp_path / KEY_FILE).read_bytes() == content


def test_another_kind_of_key_is_an_error(tmp_path: Path) -> None:
    other = X25519PrivateKey.generate()
    (tmp_path / KEY_FILE).write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(BadData, match="not Ed25519"):
        load_or_make_key(tmp_path)
