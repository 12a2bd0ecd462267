"""Certificate: a result that anyone can re-check, signed with Ed25519."""

from __future__ import annotations

import base64
import binascii
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from ratchet.core.errors import BadData, CertificateInvalid
from ratchet.core.problem import canonical

KEY_FILE = "signing-key.pem"

_PARTS = {"payload": dict, "signature": str, "public_key": str}
_LENGTHS = {"signature": 64, "public_key": 32}  # bytes; RFC 8032, section 5.1


def sign(payload: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """A certificate of ``payload``: what is signed is its canonical JSON.

    Args:
        payload: JSON data. What JSON has no word for (a time, a path) is written as text, as ``canonical`` does, so
            that the certificate equals what is read back from its file.
        key: The private key.

    Raises:
        BadData: the payload holds what a file of JSON cannot carry: NaN, infinity, half a surrogate pair.

    References:
        RFC 8032, "Edwards-Curve Digital Signature Algorithm (EdDSA)", section 5.1.6.

    >>> key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    >>> certificate = sign({"effect": 0.041}, key)
    >>> certificate["public_key"]
    'O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik='
    >>> check_signature(certificate)
    {'effect': 0.041}
    >>> check_signature({**certificate, "payload": {"effect": 0.41}})
    Traceback (most recent call last):
    ratchet.core.errors.CertificateInvalid: the signature does not fit payload and public key; one of them was changed
    """
    try:
        plain = json.loads(canonical(payload), parse_constant=_refuse)
        signature = key.sign(canonical(plain).encode())
    except ValueError as error:
        raise BadData(f"a certificate cannot carry {error}") from error
    return {
        "payload": plain,
        "signature": base64.b64encode(signature).decode(),
        "public_key": base64.b64encode(key.public_key().public_bytes_raw()).decode(),
    }


def check_signature(certificate: Mapping[str, Any]) -> dict[str, Any]:
    """The payload of a certificate that holds.

    It holds when the payload is the one that was signed with the key named in it. Whose key that is, the reader
    decides, by comparing ``public_key`` with the one he knows.

    Raises:
        CertificateInvalid: a part is missing or malformed, or the signature does not fit.
    """
    if not isinstance(certificate, Mapping):
        raise CertificateInvalid(f"a certificate is an object, not a {type(certificate).__name__}")
    if missing := [name for name in _PARTS if name not in certificate]:
        raise CertificateInvalid(f"the certificate has no {' and no '.join(missing)}", missing=missing)
    for name, kind in _PARTS.items():
        if not isinstance(certificate[name], kind):
            raise CertificateInvalid(f"{name} must be {'an object' if kind is dict else 'text'}", part=name)
    payload: dict[str, Any] = certificate["payload"]
    signature, public_key = (_decoded(name, certificate[name]) for name in _LENGTHS)
    try:
        signed = canonical(payload).encode()
    except (ValueError, RecursionError) as error:
        raise CertificateInvalid(f"the payload is no JSON: {error}") from error
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, signed)
    except InvalidSignature:
        raise CertificateInvalid("the signature does not fit payload and public key; one of them was changed") from None
    return payload


def read(path: Path) -> dict[str, Any]:
    """The certificate in the file at ``path``; whether it holds, ``check_signature`` says.

    Raises:
        CertificateInvalid: the file cannot be read, or is no JSON object, or names a field twice.
    """
    try:
        certificate = json.loads(path.read_bytes(), object_pairs_hook=_once, parse_constant=_refuse)
    except OSError as error:
        raise CertificateInvalid(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CertificateInvalid(f"{path} is no certificate, or was cut off: {error}") from error
    if not isinstance(certificate, dict):
        raise CertificateInvalid(f"{path} is no certificate: it holds a {type(certificate).__name__}, not an object")
    return certificate


def load_or_make_key(folder: Path) -> Ed25519PrivateKey:
    """The private key in ``folder``; made there at the first call, readable by its owner alone.

    Processes that make it at the same time all get the key of the one that was first.

    Raises:
        BadData: the file there holds no Ed25519 private key. It is left as it is.
    """
    path = folder / KEY_FILE
    if not path.exists():
        made = Ed25519PrivateKey.generate()
        place_secret(path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadData(f"{path} holds no private key that can be read; restore it or move it away") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadData(f"{path} holds another kind of key, not Ed25519; restore it or move it away")
    return key


def place_secret(path: Path, content: bytes) -> None:
    """Write ``content`` whole at ``path``, readable by its owner alone, unless a file is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: it fails when another process was first, whose key must stand.
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    finally:
        Path(temporary).unlink()


def _decoded(name: str, text: str) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CertificateInvalid(f"{name} is not base64: {error}", part=name) from error
    if len(value) != _LENGTHS[name]:
        raise CertificateInvalid(f"{name} is {len(value)} bytes long, not {_LENGTHS[name]}", part=name)
    if base64.b64encode(value).decode() != text:  # the last character has bits that decoding drops
        raise CertificateInvalid(f"{name} is not written as it was signed", part=name)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) != len(pairs):
        raise ValueError("a field is named twice")
    return named


def _refuse(constant: str) -> Any:
    raise ValueError(f"the number {constant}")
