"""Listening sockets: TCP over IPv4 and IPv6, and unix sockets.

`open_sockets` binds them all before anything else is started, so that an address
in use stops the start early and says which one it is.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable

from .config_values import Endpoint

__all__ = ["BindFailure", "address_of", "open_sockets"]


class BindFailure(Exception):
    """An address cannot be listened on; the message says which, why and what to do."""


def open_sockets(endpoints: Iterable[Endpoint], *, backlog: int) -> list[socket.socket]:
    """Bind and listen on every endpoint; close all and raise `BindFailure` if one fails."""
    opened: list[socket.socket] = []
    try:
        for endpoint in endpoints:
            opened.extend(_open(endpoint, backlog))
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return opened


def _open(endpoint: Endpoint, backlog: int) -> Iterable[socket.socket]:
    if endpoint.path:
        return [_open_unix(endpoint.path, backlog)]
    return _open_tcp(endpoint, backlog)


def _open_tcp(endpoint: Endpoint, backlog: int) -> Iterable[socket.socket]:
    try:
        found = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        raise BindFailure(f"cannot listen on {endpoint}: no such host name ({error})") from None
    opened: list[socket.socket] = []
    port = endpoint.port
    for family, kind, protocol, _, address in dict.fromkeys(found):
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, kind, protocol)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # Each family has a socket of its own: no address twice, none mapped.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            sock.listen(backlog)
        except OSError as error:
            for other in (*opened, *((sock,) if sock is not None else ())):
                other.close()
            raise BindFailure(_why_not(endpoint, error)) from None
        sock.setblocking(False)
        # Port 0 is chosen once for all the addresses of a name.
        port = sock.getsockname()[1]
        opened.append(sock)
    return opened


def _open_unix(path: str, backlog: int) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise BindFailure(_why_not(Endpoint("", 0, path), error)) from None
    sock.setblocking(False)
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more; leave anything else alone."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise BindFailure(f"cannot listen on unix:{path}: there is a file, and no socket")
    except FileNotFoundError:
        return
    except OSError as error:
        raise BindFailure(_why_not(Endpoint("", 0, path), error)) from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as error:
            raise BindFailure(_why_not(Endpoint("", 0, path), error)) from None
        else:
            raise BindFailure(f"cannot listen on unix:{path}: another server listens there")


def _why_not(endpoint: Endpoint, error: OSError) -> str:
    hint = ""
    if error.errno == errno.EADDRINUSE:
        hint = "; another server listens there: stop it, or choose another port"
    elif error.errno == errno.EACCES and endpoint.path:
        hint = "; the folder does not let this user make a socket"
    elif error.errno == errno.EACCES:
        hint = "; ports below 1024 are for root: choose one above, such as 8000"
    elif error.errno == errno.EADDRNOTAVAIL:
        hint = "; this machine has no such address"
    elif error.errno == errno.ENOENT:
        hint = "; the folder does not exist"
    return f"cannot listen on {endpoint}: {os.strerror(error.errno or 0)}{hint}"


def address_of(sock: socket.socket) -> str:
    """Return what a person types to get there: ``http://127.0.0.1:8000``, ``unix:/path``."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"
