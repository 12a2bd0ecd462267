"""Where requests may go, whatever a name or an address looks like."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from aiohttp.abc import ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from ratchet.core.cloudevent import CloudEvent
from ratchet.core.errors import UserError
from ratchet.courier import Undelivered
from ratchet.programs.hosts import GuardedResolver, OpenHosts, OpenResolver, inner, is_public
from ratchet.testing.webhooks import Receiver
from ratchet.webhook import Postman

PRIVATE = (
    "10.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "0.0.0.0/8",
)
EVENT = CloudEvent(
    id="evt_a_1",
    source="urn:a",
    type="ratchet.a.b",
    subject="a",
    time="2026-01-01T00:00:00Z",
    tenant="t",
    sequence=1,
    data={},
)


@st.composite
def private(draw: st.DrawFn) -> ipaddress.IPv4Address:
    network = ipaddress.IPv4Network(draw(st.sampled_from(PRIVATE)))
    return network[draw(st.integers(0, network.num_addresses - 1))]


@given(address=private())
def test_no_way_of_writing_a_private_address_is_let_through(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    octal = ".".join(f"0{part:o}" for part in address.packed)
    ways = [str(address), str(number), hex(number), octal, f"[::ffff:{address}]", f"[64:ff9b::{address}]"]
    ways += [f"[2002:{number >> 16:x}:{number & 0xFFFF:x}::1]"]
    for way in ways:
        with pytest.raises(UserError):
            OpenHosts().check(f"https://{way}/")


@given(address=private(), other=private())
def test_a_listed_network_lets_through_what_is_in_it_and_nothing_else(
    address: ipaddress.IPv4Address, other: ipaddress.IPv4Address
) -> None:
    network = ipaddress.IPv4Network(f"{address}/24", strict=False)
    hosts = OpenHosts.from_text("", str(network))
    assert hosts.check(f"http://{address}/").host == str(address)
    if other not in network:
        with pytest.raises(UserError):
            hosts.check(f"https://{other}/")


@given(text=st.text(max_size=60) | st.text(max_size=40).map("https://{}/".format))
def test_whatever_is_given_is_taken_or_refused_with_a_reason(text: str) -> None:
    with suppress(UserError):
        found = OpenHosts().check(text)
        assert (found.scheme, found.user) == ("https", None)
        assert found.host


def test_a_listed_name_counts_with_its_port() -> None:
    hosts = OpenHosts.from_text("", "Hooks.internal:8443")
    assert hosts.check("http://hooks.internal:8443/a").port == 8443
    with pytest.raises(UserError, match="RATCHET_WEBHOOK_ALLOW"):
        hosts.check("http://hooks.internal:8444/a")


def test_public_addresses_are_public() -> None:
    for text in ("1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1"):
        assert is_public(inner(ipaddress.ip_address(text)))


@dataclass(frozen=True, kw_only=True)
class Rebinding(OpenHosts):
    """Names led to a public address when they were looked up before, and lead to 127.0.0.1 now."""

    def resolver(self) -> GuardedResolver:
        """Looks names up."""

        class Resolver(OpenResolver):
            async def look_up(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
                found = ResolveResult(
                    hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0
                )
                return [found]

        return Resolver(self)


async def test_a_name_that_leads_elsewhere_a_moment_later_is_not_followed_there() -> None:
    with Receiver() as receiver:
        postman = Postman(Rebinding(), clock=lambda: datetime(2026, 1, 1, tzinfo=UTC), seconds=5)
        with pytest.raises(Undelivered, match=r"leads to 127\.0\.0\.1, which is not public"):
            await postman.post(f"https://hooks.example.org:{receiver.port}/", "whsec_AAAA", EVENT)
        await postman.close()
        assert receiver.deliveries == []
