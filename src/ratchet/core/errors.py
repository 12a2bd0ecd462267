"""Everything Ratchet raises, as one tree.

RatchetError
├── UserError                    the caller can mend it; CLI exit 2, HTTP 4xx
│   ├── UnknownName              a target, metric, algorithm or model that is not there
│   │   └── Missing              what was addressed is not there, or not for whoever asks
│   ├── BadData                  a row, a split or a file that cannot be used
│   │   └── TooLarge             more than is taken
│   ├── BadMetric                a metric that cannot be called or never gives a number
│   ├── BadRequest               an option whose value makes no sense
│   │   └── InUse                another process works on it
│   ├── NotWorthwhile            the pre-flight declined; ``--force`` goes on
│   ├── Conflict                 what is asked for does not go with how things stand
│   │   └── Stale                it was changed by somebody else meanwhile
│   ├── TooMany                  more requests than are granted
│   ├── Denied                   whoever asks may not
│   └── CertificateInvalid       a certificate that does not hold
├── BudgetSpent                  a limit was reached; never a score
├── Cancelled                    the user asked to stop
├── WorldFailure                 the world, not the program: it stops the optimization and is never a score
│   ├── LmUnavailable            an LM that stayed dead, slow or rate-limited through every retry
│   └── StorageUnavailable       the database or the disk refused
│       └── KeyUnavailable       what is stored is encrypted, and its key is not here
├── TrailBroken                  the audit trail was changed behind our back
├── Tampered                     what is stored was changed or moved behind our back
├── MetricFailed                 a metric raised or gave no usable number for one prediction: a failure, not a score
├── BrokenContract               an algorithm that asked for what the contract does not allow
│   └── BrokenProtocol           an algorithm behind a URL that lied, hung or sent what cannot be read
└── BrokenOptimizer              one of DSPy's optimizers raised
"""

from __future__ import annotations

import traceback


class RatchetError(Exception):
    """Ratchet could not go on."""

    def __init__(self, message: str = "", **values: object) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.values = values


class UserError(RatchetError):
    """Something in the request cannot be used as it is."""


class UnknownName(UserError):
    """A name was given that nothing here carries."""


class Missing(UnknownName):
    """There is nothing under this address."""


class BadData(UserError):
    """The data cannot be used as it is."""


class TooLarge(BadData):
    """This is larger than what is taken."""


class BadMetric(UserError):
    """The metric cannot be used as it is."""


class BadRequest(UserError):
    """An option has a value that makes no sense."""


class InUse(BadRequest):
    """Another process works on it."""


class NotWorthwhile(UserError):
    """The pre-flight found no way for this optimization to prove a gain."""


class Conflict(UserError):
    """This does not go with how things stand."""


class Stale(Conflict):
    """It was changed meanwhile."""


class TooMany(UserError):
    """These are more requests than are granted."""


class Denied(UserError):
    """This key may not do that."""


class CertificateInvalid(UserError):
    """The certificate does not hold."""


class BudgetSpent(RatchetError):
    """The budget is spent."""


class Cancelled(RatchetError):
    """The optimization was stopped on request."""


class WorldFailure(RatchetError):
    """Something outside the program failed and stayed failed."""


class LmUnavailable(WorldFailure):
    """The LM did not answer."""


class StorageUnavailable(WorldFailure):
    """The database or the disk refused."""


class KeyUnavailable(StorageUnavailable):
    """What is stored is encrypted, and its key is not here."""


class TrailBroken(RatchetError):
    """The audit trail does not hold."""


class Tampered(RatchetError):
    """What is stored was changed or moved since it was written."""


class MetricFailed(RatchetError):
    """The metric raised or gave no usable number."""


class BrokenContract(RatchetError):
    """An algorithm broke the contract of ``ratchet.core.algorithm``."""


class BrokenProtocol(BrokenContract):
    """An algorithm behind a URL broke its protocol; ``turn`` and ``field`` in the values say where."""


class BrokenOptimizer(RatchetError):
    """One of DSPy's optimizers raised."""


def where(error: BaseException) -> str:
    """The kind of an error and where it was raised, without its message: that may quote an example."""
    return f"{''.join(traceback.format_tb(error.__traceback__))}{type(error).__name__}"
