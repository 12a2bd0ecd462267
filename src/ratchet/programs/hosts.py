"""Where our requests may go: not to this machine, its neighbours or a metadata service, unless an operator says so."""

from __future__ import annotations

import ipaddress
import socket
from abc import abstractmethod
from dataclasses import dataclass
from fnmatch import fnmatchcase

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from ratchet.core.errors import BadRequest, Denied

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def inner(address: IpAddress) -> IpAddress:
    """The IPv4 address that an IPv6 address stands for, where it stands for one.

    >>> inner(ipaddress.ip_address("::ffff:127.0.0.1")), inner(ipaddress.ip_address("64:ff9b::a00:1"))
    (IPv4Address('127.0.0.1'), IPv4Address('10.0.0.1'))
    """
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1]) or address


def is_public(address: IpAddress) -> bool:
    """Whether everybody's requests to ``address`` end at the same place.

    >>> [is_public(ipaddress.ip_address(each)) for each in ("1.1.1.1", "10.1.2.3", "169.254.169.254", "::1")]
    [True, False, False, False]
    """
    found = inner(address)
    return found.is_global and not found.is_multicast


class GuardedResolver(ThreadedResolver):
    """Looks names up and refuses what they may not lead to; what was looked at is what is connected to.

    A name that leads elsewhere a moment later (DNS rebinding) gains nothing by it.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of ``host``.

        Raises:
            OSError: there are none, or one of them is not allowed.
        """
        found = await self.look_up(host, port, family)
        for each in found:
            self.check(host, port, inner(ipaddress.ip_address(each["host"].partition("%")[0])))
        return found

    async def look_up(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
        """All addresses of ``host``, allowed or not."""
        return await super().resolve(host, port, family)

    @abstractmethod
    def check(self, host: str, port: int, address: IpAddress) -> None:
        """See whether ``host`` may lead to ``address``.

        Raises:
            OSError: it may not.
        """


def new_session(resolver: GuardedResolver, *, seconds: float) -> aiohttp.ClientSession:
    """A session that asks only what ``resolver`` lets through, uses no proxy, keeps no cookies and unpacks nothing.

    That no redirection is followed is for each request to say.

    Args:
        seconds: How long an answer may take, to its last byte.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=resolver, limit=0),
        timeout=aiohttp.ClientTimeout(total=seconds),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenHosts:
    """Everybody's own receivers: public ones over https, and what an operator allows beside them.

    Attributes:
        only: Patterns of host names; none for any.
        names: ``name`` or ``name:port`` that may also be private, and asked over http.
        networks: Addresses that may, too.
    """

    only: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def from_text(cls, only: str, allow: str) -> OpenHosts:
        """Hosts with commas between them.

        Args:
            only: Patterns of host names, such as ``*.example.org``.
            allow: Names, addresses and networks, such as ``10.1.0.0/16``.

        >>> OpenHosts.from_text("", "localhost:9000, 10.1.0.0/16").networks
        (IPv4Network('10.1.0.0/16'),)
        """
        names, networks = set(), []
        for each in _listed(allow):
            try:
                networks.append(ipaddress.ip_network(each))
            except ValueError:
                names.add(each)
        return cls(only=tuple(_listed(only)), names=frozenset(names), networks=tuple(networks))

    def check(self, url: str) -> URL:
        """``url`` as it is asked, when it may be.

        Raises:
            BadRequest: it is no address.
            Denied: it leads where requests may not go.
        """
        try:
            parsed = URL(url)
            host, port = parsed.host, parsed.port
        except ValueError as error:
            raise BadRequest(f"url {url!r} is no address: {error}", field="url", value=url) from error
        plain = url.isascii() and url.isprintable() and " " not in url
        if parsed.scheme not in ("http", "https") or not host or port is None or not plain:
            raise BadRequest(f"url is {url!r}; give https://HOST/PATH, in ASCII", field="url", value=url)
        if parsed.user is not None or parsed.password is not None:
            raise BadRequest("url holds a password; what is sent is signed instead", field="url")
        if self.only and not any(fnmatchcase(host.lower(), pattern) for pattern in self.only):
            raise Denied(
                f"url names the host {host}, which an operator has not put on RATCHET_WEBHOOK_HOSTS; "
                f"use one of {', '.join(self.only)}",
                field="url",
                value=url,
            )
        address = _address(host, url)
        allowed = self.holds(host, port) or (address is not None and self.covers(address))
        if address is not None and not allowed and not is_public(address):
            raise Denied(f"url: {self.refusal(host, address)}", field="url", value=url)
        if parsed.scheme != "https" and not allowed:
            raise Denied(
                f"url {url!r} is not https; use https, or have {host} put on RATCHET_WEBHOOK_ALLOW",
                field="url",
                value=url,
            )
        return parsed

    def holds(self, host: str, port: int) -> bool:
        """Whether the host is listed by name, with this port or with any."""
        return not self.names.isdisjoint({host.lower(), f"{host.lower()}:{port}"})

    def covers(self, address: IpAddress) -> bool:
        """Whether ``address`` is listed."""
        return any(address in network for network in self.networks)

    def refusal(self, host: str, address: IpAddress) -> str:
        """Why ``host`` is not asked."""
        return f"{host} leads to {address}, which is not public; an operator can put it on RATCHET_WEBHOOK_ALLOW"

    def resolver(self) -> GuardedResolver:
        """Looks names up, and refuses one that leads to a private address without being listed."""
        return OpenResolver(self)


class OpenResolver(GuardedResolver):
    """Names lead to public addresses, or to listed ones."""

    def __init__(self, hosts: OpenHosts) -> None:
        super().__init__()
        self._hosts = hosts

    def check(self, host: str, port: int, address: IpAddress) -> None:
        """See whether ``host`` may lead to ``address``."""
        if not (is_public(address) or self._hosts.holds(host, port) or self._hosts.covers(address)):
            raise OSError(self._hosts.refusal(host, address))


def _listed(text: str) -> list[str]:
    return [each.strip().lower() for each in text.split(",") if each.strip()]


def _address(host: str, url: str) -> IpAddress | None:
    """The address that ``host`` is, if it is one and not a name."""
    try:
        return inner(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        socket.inet_aton(host)  # what a system takes for an address as well: 2130706433, 0x7f.1, 127.1
    except OSError:
        return None
    raise BadRequest(f"url {url!r} hides an address; write it as in 192.0.2.1", field="url", value=url)
