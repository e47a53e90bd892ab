"""The listening socket of a responder: inherited or our own; and who may connect to it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat

from .addresses import TcpAddress, UnixAddress
from .standard_streams import take_stdin

_BACKLOG = 1024


def listen(address: TcpAddress | UnixAddress, mode: int | None) -> socket.socket:
    """Return a socket that listens at the address; ``mode`` are a unix socket's permissions.

    One that somebody left behind is replaced. Raises `OSError` if the address is taken.
    """
    if isinstance(address, UnixAddress):
        return _listen_unix(address.path, mode)
    family, _, _, _, place = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    )[0]
    return socket.create_server(place[:2], family=family, backlog=_BACKLOG)


def allowed_peers() -> frozenset[str] | None:
    """Return the addresses in FCGI_WEB_SERVER_ADDRS, or ``None`` if all may connect."""
    text = os.environ.get("FCGI_WEB_SERVER_ADDRS")
    if text is None:
        return None
    return frozenset(plain_address(word) for word in text.split(",") if word.strip())


def plain_address(text: str) -> str:
    """Return the one form of an IP address that is compared."""
    try:
        address = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return text.strip()
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def inherited_socket() -> socket.socket:
    """Return the listening socket on descriptor 0, moved out of the application's reach."""
    try:
        is_socket = stat.S_ISSOCK(os.fstat(0).st_mode)
    except OSError:
        is_socket = False
    if not is_socket:
        raise OSError(
            errno.ENOTSOCK, "no listening socket on file descriptor 0; name an address to bind"
        )
    listening = socket.socket(fileno=take_stdin())
    if not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listening.close()
        raise OSError(errno.EINVAL, "the socket on file descriptor 0 does not listen")
    return listening


def _listen_unix(path: str, mode: int | None) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        try:
            listening.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_behind(path):
                raise
            os.unlink(path)
            listening.bind(path)
        if mode is not None:
            os.chmod(path, mode)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, error.strerror, path) from None
    return listening


def _is_left_behind(path: str) -> bool:
    """Tell whether what is there is a socket, on which nobody listens any more."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED
