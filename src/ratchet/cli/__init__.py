"""The command line. Light at the top, so that ``--help`` is quick: each command imports what it uses."""

from __future__ import annotations


def main() -> None:
    """The console entry point."""
    from ratchet.cli.app import app

    app(prog_name="ratchet")
