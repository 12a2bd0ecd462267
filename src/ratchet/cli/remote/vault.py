"""Erases on a server."""

from __future__ import annotations

import re
import shutil

from ratchet.cli.remote.connection import client_of, find
from ratchet.settings import Settings


def erase(identity: str, settings: Settings) -> str:
    """The id of an optimization on the server, which is erased; so are its files where ``fetch`` puts them."""
    with client_of(settings) as client:
        found = str(find(client, identity)["id"])
        client.erase(found)
    if re.fullmatch(r"\w+", found):  # it comes from elsewhere, and must name a folder of ours
        shutil.rmtree(settings.home / "runs" / found, ignore_errors=True)
    return found
