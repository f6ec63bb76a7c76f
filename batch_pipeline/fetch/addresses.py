"""Which addresses may be asked for: the public internet, and what the operator allows.

What belongs here: the rules on URLs, hosts and IP addresses, and resolving a name under them. What
does not: connections (transport.py).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httpx

from batch_pipeline.errors import UsageError
from batch_pipeline.fetch.errors import BadUrlError, RefusedAddressError, UnreachableError

ALLOW_VARIABLE = "BATCH_PIPELINE_FETCH_ALLOW"

MAX_URL_CHARS = 8_000

PORTS = frozenset({80, 443, 8080, 8443})
"""Ports of web servers; others belong to services that a stray GET may disturb."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port -> IP addresses, best first; raises OSError when there are none."""

# Where machines in a cloud are told their credentials. Azure's is a public address.
_METADATA_ADDRESSES = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, Google, Azure, DigitalOcean, OpenStack
        "169.254.170.2",  # AWS containers
        "169.254.170.23",
        "169.254.42.42",  # Scaleway
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "168.63.129.16",  # Azure's host
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:42::42",
    )
)
_METADATA_NAMES = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "instance-data",
        "instance-data.ec2.internal",
    }
)
# IPv6 is given out below 2000::/3 only. Within it, these carry an IPv4 address inside (Teredo,
# 6to4) or belong to nobody.
_IPV6_GLOBAL = ipaddress.ip_network("2000::/3")
_IPV6_REFUSED = tuple(
    ipaddress.ip_network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_IPV4_REFUSED = tuple(
    ipaddress.ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "100.64.0.0/10")
)
_ALLOWED = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^\[\]]*?))(?::(?P<port>\d{1,5}))?")
_HOST = re.compile(rb"[A-Za-z0-9._-]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(%.*)?")
_NUMBER = re.compile(r"(?:\d+|0[xX][0-9a-fA-F]*)")


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """A host name that the operator allows wherever it leads; `port` None is every port."""

    name: str
    port: int | None = None


@dataclass(frozen=True, slots=True)
class AllowedNetwork:
    """Addresses that the operator allows; `port` None is every port."""

    network: Network
    port: int | None = None


@dataclass(frozen=True, slots=True)
class AddressRules:
    """What may be connected to: public addresses at web ports, and what is allowed by name.

    A metadata address is refused even within an allowed network or under an allowed name: it must
    be allowed itself.
    """

    hosts: tuple[AllowedHost, ...] = ()
    networks: tuple[AllowedNetwork, ...] = ()

    @classmethod
    def parse(cls, text: str) -> AddressRules:
        """Rules from the operator's list: host names, addresses and networks, each with a port.

        Raises:
            UsageError: naming the entry that cannot be read.
        """
        hosts: list[AllowedHost] = []
        networks: list[AllowedNetwork] = []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            host, port = _split_allowed(entry)
            try:
                networks.append(AllowedNetwork(ipaddress.ip_network(host), port))
            except ValueError:
                if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?", host) or (
                    _NUMBER.fullmatch(host.rpartition(".")[2])
                ):
                    raise _unreadable(entry) from None
                hosts.append(AllowedHost(host.lower(), port))
        return cls(tuple(hosts), tuple(networks))

    def check_url(self, text: str) -> httpx.URL:
        """`text` as the URL of a page that may be asked for, as far as its letters tell.

        Raises:
            BadUrlError: it is no http or https URL, or names credentials or an odd port.
            RefusedAddressError: its host is an address or name that is refused.
        """
        url = _parse(text)
        host = _host(url)
        port = port_of(url)
        if host.rstrip(".") in _METADATA_NAMES and not self._allows_name(host, port):
            raise RefusedAddressError(
                f"{host} is where machines in a cloud keep their credentials.",
                "Give the address of a public page.",
            )
        address = _address(host)
        if address is not None:
            self.check_address(address, host, port)
        elif _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
            raise RefusedAddressError(
                f"The host '{host}' is an IP address in an unusual form.",
                "Give the site's name, or the address as four numbers with dots.",
            )
        if port not in PORTS and not self._allows_port(host, address, port):
            raise BadUrlError(
                f"Port {port} is not a port of web pages.",
                f"Use one of {', '.join(map(str, sorted(PORTS)))}, or let the operator allow "
                f"{_shown(host, port)} in {ALLOW_VARIABLE}.",
            )
        return url

    def check_address(self, address: Address, host: str, port: int) -> None:
        """Refuse an IP address that is not public, unless it is allowed.

        Args:
            address: what a connection would go to.
            host: the name that led to it, for the allow-list and the message.
            port: of the connection.

        Raises:
            RefusedAddressError: saying what kind of address it is.
        """
        kind = _refused_kind(address)
        if not kind:
            return
        metadata = _plain(address) in _METADATA_ADDRESSES
        if self._allows_address(address, port, exactly=metadata):
            return
        if not metadata and self._allows_name(host, port):
            return
        led = f"{host} is" if _address(host) is not None else f"{host} leads to {address},"
        raise RefusedAddressError(
            f"{led} {kind}.",
            f"Give a public address, or let the operator allow {_shown(host, port)} in "
            f"{ALLOW_VARIABLE}.",
        )

    def _allows_name(self, host: str, port: int) -> bool:
        name = host.rstrip(".")
        return any(one.name == name and one.port in (None, port) for one in self.hosts)

    def _allows_address(self, address: Address, port: int, *, exactly: bool = False) -> bool:
        return any(
            address in one.network
            and one.port in (None, port)
            and (not exactly or one.network.num_addresses == 1)
            for one in self.networks
        )

    def _allows_port(self, host: str, address: Address | None, port: int) -> bool:
        if address is not None:
            return self._allows_address(address, port)
        # A name may lead into an allowed network; where it leads is checked on connecting.
        return self._allows_name(host, port) or any(one.port == port for one in self.networks)

    async def resolve(self, host: str, port: int, resolver: Resolver) -> list[str]:
        """The addresses of a host, all of them checked: connect to these and to no others.

        Raises:
            RefusedAddressError: one of them is refused; a name that leads to both public and
                private addresses is a trick.
            UnreachableError: there are none.
        """
        literal = _address(host)
        try:
            found = [str(literal)] if literal is not None else list(await resolver(host, port))
        except (OSError, UnicodeError) as error:
            raise UnreachableError(
                f"The name {host} cannot be resolved.",
                "Check the spelling of the address; run again later if the site is known to exist.",
                passing=True,
            ) from error
        addresses = [ipaddress.ip_address(text) for text in dict.fromkeys(found)]
        for address in addresses:
            self.check_address(address, host, port)
        if not addresses:
            raise UnreachableError(f"The name {host} has no address.", "Check its spelling.")
        return [str(address) for address in addresses]


async def system_resolver(host: str, port: int) -> list[str]:
    """The operating system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def port_of(url: httpx.URL) -> int:
    """The port that a request for `url` goes to."""
    if url.port is not None:
        return url.port
    return 443 if url.scheme == "https" else 80


def _parse(text: str) -> httpx.URL:
    if len(text) > MAX_URL_CHARS:
        raise BadUrlError(
            f"The address has {len(text):,} characters, the limit is {MAX_URL_CHARS:,}.",
            "Shorten it.",
        )
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise BadUrlError(
            f"'{text[:200]}' is not a web address.",
            "Write it in full, for example https://example.com/page.",
        ) from error
    if url.scheme not in ("http", "https"):
        if not url.scheme:
            wrong = f"'{text[:200]}' has no http:// or https:// before it."
        else:
            wrong = f"'{url.scheme}:' addresses are not fetched."
        raise BadUrlError(wrong, "Write it in full, for example https://example.com/page.")
    if not _HOST.fullmatch(url.raw_host):
        raise BadUrlError(
            f"'{text[:200]}' names no host that can exist.",
            "Write it in full, for example https://example.com/page.",
        )
    if url.userinfo:
        # the address is not repeated: it holds somebody's password
        raise BadUrlError(
            "The address holds a user name or password.", "Remove what stands before the '@'."
        )
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise BadUrlError("The address has a space or control character in it.", "Write it as %20.")
    return url


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii").lower()


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _plain(address: Address) -> Address:
    """The IPv4 address inside one that is mapped into IPv6, else the address."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _refused_kind(address: Address) -> str:
    """What kind of address it is, if it is one that is refused; else nothing."""
    if _plain(address) in _METADATA_ADDRESSES:
        return "an address where machines in a cloud keep their credentials"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            inner = _refused_kind(address.ipv4_mapped)
            return inner or "an IPv4 address in the clothes of IPv6"
        if address.scope_id is not None:
            return "an address of this machine's own network"
    if address.is_loopback:
        return "this very machine (a loopback address)"
    if address.is_unspecified:
        return "no address of any machine (unspecified)"
    if address.is_link_local:
        return "an address of this machine's own network (link-local)"
    if address.is_multicast:
        return "a multicast address"
    if isinstance(address, ipaddress.IPv6Address):
        if address not in _IPV6_GLOBAL or any(address in net for net in _IPV6_REFUSED):
            return "not an address of the public internet"
    elif any(address in net for net in _IPV4_REFUSED):
        return "not an address of the public internet"
    if not address.is_global or address.is_private or address.is_reserved:
        return "a private or reserved address"
    return ""


def _split_allowed(entry: str) -> tuple[str, int | None]:
    try:
        ipaddress.ip_network(entry)
        return entry, None  # an IPv6 address or network: its colons are no port's
    except ValueError:
        match = _ALLOWED.fullmatch(entry)
    if match is None:
        raise _unreadable(entry)
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 0 < port < 65536:
        raise _unreadable(entry)
    return match["v6"] or match["host"], port


def _unreadable(entry: str) -> UsageError:
    return UsageError(
        f"'{entry}' in {ALLOW_VARIABLE} is neither a host name nor an address nor a network.",
        "Write for example intranet.example.com, 10.1.0.0/16 or 127.0.0.1:8000.",
    )


def _shown(host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port in (80, 443) else f"{shown}:{port}"
