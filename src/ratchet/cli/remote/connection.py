"""The server that a command works on, and what is found there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ratchet.cli.errors import say
from ratchet.cli.output import tell
from ratchet.client import Client, Json
from ratchet.core.errors import BadRequest, Missing
from ratchet.options import Options
from ratchet.settings import Settings

LOCAL_HOSTS = re.compile(r"https://|http://(localhost|127\.|\[::1\])")


@contextmanager
def client_of(settings: Settings) -> Iterator[Client]:
    """A client of the server that the settings name.

    Raises:
        BadRequest: its address is none, or there is no key for it.
    """
    with Client(checked_url(settings.server), key=key_for(settings)) as client:
        yield client


def checked_url(url: str) -> str:
    """``url``, when it can be the address of a server.

    Raises:
        BadRequest: it cannot.
    """
    if not re.match(r"https?://[^/]", url):
        raise BadRequest(f"--server {url!r} is no address; give one such as http://127.0.0.1:8004")
    if not LOCAL_HOSTS.match(url):
        say(f"warning: {url} is not encrypted, so others on the way can read the key; https:// is")
    return url.rstrip("/")


def key_for(settings: Settings) -> str:
    """The key for the server.

    Raises:
        BadRequest: there is none, or its file cannot be read.
    """
    if settings.key_file is None:
        key = settings.api_key.get_secret_value().strip()
    else:
        try:
            key = settings.key_file.read_text(encoding="utf-8").strip()
            if settings.key_file.stat().st_mode & 0o077:
                say(f"warning: others on this machine can read the key in {settings.key_file}; chmod 600 stops that")
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest(f"the key file {settings.key_file} cannot be read: {error}") from error
    if not key or not key.isascii() or not key.isprintable():
        source = settings.key_file or "RATCHET_API_KEY"
        raise BadRequest(
            f"there is no key for {settings.server} in {source}; set RATCHET_API_KEY or give --key-file FILE. "
            "`ratchet keys create` makes one, on the server's machine or with an admin's key"
        )
    return key


def check_tenant(tenant: str) -> None:
    """Refuse a tenant that was named: whose things a server shows, the key says.

    Raises:
        BadRequest: one was.
    """
    if tenant != Options(target="").tenant:
        raise BadRequest(f"--tenant {tenant!r} cannot be given: on a server it is that of the key")


def find(client: Client, identity: str) -> Json:
    """An optimization by its id, or by the beginning of it.

    Raises:
        Missing: there is none.
        BadRequest: there are several.
    """
    return by_beginning(identity, client.optimization, client.optimizations)


def by_beginning(identity: str, one: Callable[[str], Json], everything: Callable[[], Iterator[Json]]) -> Json:
    """What ``one`` gives of this id, or of the only one in ``everything`` that begins so.

    Raises:
        Missing: there is none.
        BadRequest: there are several.
    """
    try:
        return one(identity)
    except Missing:
        found = [each["id"] for each in everything() if identity and each["id"].startswith(identity)]
        if not found:
            raise
        if len(found) > 1:
            raise BadRequest(f"{identity!r} is the beginning of {len(found)} ids: {', '.join(found[:5])}") from None
        return one(found[0])


def command(client: Client, name: str, identity: str) -> str:
    """What a user types to have ``name`` carried out on this server."""
    return f"ratchet --server {client.url} {name} {identity}"


def print_json(data: Any) -> None:
    """Print ``data`` as JSON."""
    tell(json.dumps(data, indent=2, ensure_ascii=False, default=str))
