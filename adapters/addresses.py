"""Where an application is: its addresses, and how names become sockets' addresses.

A unix socket and a numeric host are what they are. A host's name stands for all
of its addresses (A and AAAA), an SRV name (RFC 2782) for hosts with ports,
priorities and weights. Names are looked up in threads: no resolver of the system
can be asked without blocking.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

# In which a name server has to answer an SRV question, retries included.
_SRV_S = 5.0


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket by its path."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host, by name or number, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SrvAddress:
    """Hosts and ports by an SRV name, such as ``_fcgi._tcp.example.com``."""

    name: str

    def __str__(self) -> str:
        return f"srv:{self.name}"


Address: TypeAlias = UnixAddress | TcpAddress | SrvAddress
#: What a socket can be connected to, once names are looked up.
SocketAddress: TypeAlias = UnixAddress | TcpAddress


def parse_address(text: str) -> UnixAddress | TcpAddress:
    """Return the address that ``"unix:/path"``, ``"host:port"`` or ``"[::1]:port"`` means.

    Raises `ValueError` for anything else.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise ValueError(f"{text!r} has no path: write unix:/path/to/socket")
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not colon or not host or not is_port or "/" in host:
        raise ValueError(f"{text!r} is not an address: write unix:/path, host:port or [::1]:port")
    return TcpAddress(host, int(port))


def parse_addresses(texts: str | Iterable[str]) -> tuple[Address, ...]:
    """Return the addresses of an application that may have several.

    Beside what `parse_address` takes, each may be ``"srv:_service._proto.name"``.
    Raises `ValueError` for what is no address, for none, and for one given twice.
    """
    addresses: list[Address] = []
    for text in (texts,) if isinstance(texts, str) else texts:
        address: Address
        if text.startswith("srv:"):
            address = _parse_srv(text)
        else:
            address = parse_address(text)
        if address in addresses:
            raise ValueError(f"{text!r} is given twice")
        addresses.append(address)
    if not addresses:
        raise ValueError("no address")
    return tuple(addresses)


def _parse_srv(text: str) -> SrvAddress:
    name = text.removeprefix("srv:").rstrip(".")
    labels = name.split(".")
    if (
        len(labels) < 3
        or not all(0 < len(label) < 64 and label.isascii() for label in labels)
        or not all(label.startswith("_") for label in labels[:2])
    ):
        raise ValueError(f"{text!r} is not like srv:_service._tcp.example.com")
    return SrvAddress(name)


class Found(NamedTuple):
    """An address that can be connected to; lower priorities come first (RFC 2782)."""

    address: SocketAddress
    priority: int = 0
    weight: int = 1


@lru_cache(maxsize=256)
def numeric_family(host: str) -> socket.AddressFamily | None:
    """Return the family of a numeric host; ``None`` for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return family
    return None


def is_name(address: Address) -> bool:
    """Tell whether ``address`` has to be looked up."""
    if isinstance(address, TcpAddress):
        return numeric_family(address.host) is None
    return isinstance(address, SrvAddress)


async def look_up_host(address: TcpAddress) -> list[TcpAddress]:
    """Return the numeric addresses of a host; raise `OSError` if there is no such name."""
    if numeric_family(address.host) is not None:
        return [address]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
    except UnicodeError as error:  # a label too long for IDNA, say
        raise OSError(f"{address.host!r} is not a host's name: {error}") from error
    # A dict, for the order of the resolver (RFC 6724) without repetitions.
    return list({TcpAddress(str(sockaddr[0]), address.port): None for *_, sockaddr in found})


async def look_up(address: TcpAddress | SrvAddress) -> tuple[Found, ...]:
    """Ask the system's resolver, or for an SRV name its name servers.

    Raises `OSError` if there is no such name, or no answer.
    """
    if isinstance(address, TcpAddress):
        return tuple(map(Found, await look_up_host(address)))
    loop = asyncio.get_running_loop()
    records = await loop.run_in_executor(None, _ask_for_srv, address.name)
    found: dict[SocketAddress, Found] = {}
    failure: OSError | None = None
    for priority, weight, target in records:
        try:
            hosts = await look_up_host(target)
        except OSError as error:
            failure = error  # the others will do
            continue
        for each in hosts:
            # Weight 0 is "should be selected rarely" beside others, and as good as any alone.
            found.setdefault(each, Found(each, priority, max(weight, 1)))
    if not found:
        raise failure or OSError(f"{address} has no host")
    return tuple(found.values())


def _ask_for_srv(name: str) -> list[tuple[int, int, TcpAddress]]:
    # Not at the top: few need it, and it takes as long to import as all else here.
    import dns.exception
    import dns.rdatatype
    import dns.resolver

    try:
        answer = dns.resolver.resolve(name, dns.rdatatype.SRV, lifetime=_SRV_S)
    except dns.exception.DNSException as error:
        raise OSError(f"SRV {name}: {error}") from error
    records = [
        (record.priority, record.weight, record.target.to_text(omit_final_dot=True), record.port)
        for record in answer
    ]
    # RFC 2782: a target "." says that there is decidedly no such service here.
    return [
        (priority, weight, TcpAddress(target, port))
        for priority, weight, target, port in records
        if target not in ("", ".")
    ]
