"""From what was raised to an exit code and one line."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from ratchet.cli.server import guard
from ratchet.core.errors import Cancelled, CertificateInvalid, RatchetError, UserError

DONE, FAILED, WRONG_USAGE, STOPPED = 0, 1, 2, 130


def exit_code(error: BaseException) -> int:
    """0 done, 1 failed, 2 wrong usage, 130 stopped.

    >>> exit_code(UserError()), exit_code(CertificateInvalid()), exit_code(Cancelled()), exit_code(RatchetError())
    (2, 1, 130, 1)
    """
    if isinstance(error, Cancelled | KeyboardInterrupt):
        return STOPPED
    return WRONG_USAGE if isinstance(error, UserError) and not isinstance(error, CertificateInvalid) else FAILED


def say(line: str) -> None:
    """Tell the user something that is not the result."""
    print(line, file=sys.stderr, flush=True)


class Commands(TyperGroup):
    """The commands; the outermost turn, where what was raised is told in one line."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        guard(self)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            say("stopped")
            raise typer.Exit(STOPPED) from None
        except BrokenPipeError:  # `ratchet list | head`
            sys.stdout = None
            raise typer.Exit(DONE) from None
        except Exception as error:  # the outermost turn: no traceback for a user, unless it was asked for
            if type(error).__module__.split(".")[0] in ("click", "typer"):
                raise
            if ctx.params.get("debug"):
                traceback.print_exception(error)
            if isinstance(error, RatchetError):
                say(f"ratchet: {error}")
            else:
                say(f"ratchet: {type(error).__name__}: {error} (a bug; RATCHET_DEBUG=1 shows where)")
            raise typer.Exit(exit_code(error)) from error
