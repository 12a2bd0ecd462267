"""The command line. Light at the top, so that ``--help`` is quick: each command imports what it uses."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The console entry point."""
    try:
        from ratchet.cli.app import app

        _keep_standard_output()
        app(prog_name="ratchet")
    except KeyboardInterrupt:  # while modules were loaded; from then on commands answer it themselves
        sys.exit(130)
    finally:
        sys.stdout = sys.stderr  # for what is printed on the way out


def _keep_standard_output() -> None:
    """Let only our own results reach standard output: what libraries write to its descriptor goes to standard error."""
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, "w", buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors)
