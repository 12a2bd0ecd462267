"""What all tests share: property tests draw the same examples every time, and a busy machine fails none of them.

And a server with two LMs, for the tests of what talks to one.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from ratchet.testing.lm_server import StubServer
from ratchet.testing.serving import ServingProcess

settings.register_profile("ratchet", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ratchet")

# What a shell starts in the background ignores Ctrl-C, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    """An LM that answers at once."""
    with StubServer() as stub:
        yield stub


@pytest.fixture(scope="module")
def slow() -> Iterator[StubServer]:
    """An LM under which an optimization is still under way when it is cancelled."""
    with StubServer(latency=0.2) as slow:
        yield slow


@pytest.fixture(scope="module")
def serving(stub: StubServer, slow: StubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    """A server process that may ask both."""
    with ServingProcess(tmp_path_factory.mktemp("server"), lm_base=f"{stub.base},{slow.base}") as serving:
        yield serving
