"""The socket at which a managed application listens, made and kept open by the gateway.

Mostly it is private: a unix socket without a name, which only the gateway finds,
by its descriptor. Nothing of it can be left behind in the file system, however
the gateway ends. Where the configuration gives an address, others can call, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import select
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable

from ...adapters.addresses import SocketAddress, TcpAddress, UnixAddress
from .. import limits

_DESCRIPTORS = "/proc/self/fd"


class ListeningSocket:
    """A socket that listens; `listen` makes one.

    ``address`` is where the gateway connects.
    """

    address: SocketAddress

    def __init__(self, bound: socket.socket) -> None:
        self._socket = bound
        self._watch: select.epoll | None = None
        self._is_watched = False

    @property
    def is_apart(self) -> bool:
        """Whether ``address`` leads here alone, and never to a predecessor or successor."""
        return False

    def successor(self) -> ListeningSocket:
        """Return the socket that is to replace this one; raises `OSError`."""
        raise NotImplementedError

    def take_over(self) -> None:
        """Be found where the predecessor was."""

    def fileno(self) -> int:
        """Return the descriptor, for processes to inherit and for readiness."""
        return self._socket.fileno()

    def has_callers(self) -> bool:
        """Tell whether connections wait to be accepted."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def watch(self, on_call: Callable[[], None]) -> None:
        """Have the running loop call back as long as connections wait, until `unwatch`."""
        # uvloop would make the socket one that does not block, which applications do not
        # expect, and old ones that still use it even less. A set of it alone may be so.
        watched = self.fileno()
        if sys.platform == "linux":
            self._watch = select.epoll()
            self._watch.register(watched, select.EPOLLIN)
            watched = self._watch.fileno()
        asyncio.get_running_loop().add_reader(watched, on_call)
        self._is_watched = True

    def unwatch(self) -> None:
        """Call back no more; it may be called at any time."""
        if not self._is_watched:
            return
        self._is_watched = False
        loop = asyncio.get_running_loop()
        if self._watch is not None:
            loop.remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None
        else:
            loop.remove_reader(self.fileno())
            os.set_blocking(self.fileno(), True)

    def turn_away(self) -> None:
        """Close the connections that wait, while nobody else is to accept any."""
        # The socket is one that blocks, as applications expect, and this must not.
        os.set_blocking(self.fileno(), False)
        with contextlib.suppress(OSError):
            for _ in range(limits.BACKLOG):
                self._socket.accept()[0].close()
        os.set_blocking(self.fileno(), True)

    def knock(self) -> None:
        """Connect and leave, for whoever sits in accept() and has to look up."""
        address = self.address
        if isinstance(address, UnixAddress):
            _knock(socket.AF_UNIX, address.path)
        else:
            _knock(_family(address), (address.host, address.port))

    def close(self) -> None:
        """Close it; the file of a unix socket goes with it."""
        self.unwatch()
        self._socket.close()


def listen(given: SocketAddress | None) -> ListeningSocket:
    """Return a socket that listens at ``given``, or at an address of its own.

    A path may be that of a socket that nobody listens on any more. Raises `OSError`.
    """
    if isinstance(given, TcpAddress):
        bound = socket.create_server(
            (given.host, given.port), family=_family(given), backlog=limits.BACKLOG
        )
        return _Tcp(bound, given)
    if given is not None:
        return _Unix(_bind(given.path), given.path, given.path)
    return _private()


class _Tcp(ListeningSocket):
    """There can be no second socket at its port: the successor is the same once more."""

    def __init__(self, bound: socket.socket, address: TcpAddress) -> None:
        super().__init__(bound)
        self.address = address

    def successor(self) -> ListeningSocket:
        assert isinstance(self.address, TcpAddress)
        return _Tcp(self._socket.dup(), self.address)


class _Unix(ListeningSocket):
    """At ``path``, and to be at ``given``: the successor lies beside, and is then renamed."""

    def __init__(self, bound: socket.socket, path: str, given: str) -> None:
        super().__init__(bound)
        self._path = path
        self._given = given
        self._place = -1
        self.address = UnixAddress(path)
        try:
            status = os.stat(path)
            self._identity = status.st_dev, status.st_ino
            # A descriptor leads to this socket whatever becomes of its name.
            if os.path.isdir(_DESCRIPTORS):
                self._place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                self.address = UnixAddress(f"{_DESCRIPTORS}/{self._place}")
            bound.listen(limits.BACKLOG)
        except BaseException:
            self.close()
            raise

    @property
    def is_apart(self) -> bool:
        return self._place >= 0

    def successor(self) -> ListeningSocket:
        folder, name = os.path.split(self._given)
        name = f".tetrapylon-{secrets.token_hex(4)}"
        path = os.path.join(folder, name)
        if self._place < 0:
            return _Unix(_bind(path), path, self._given)
        # A socket's path is short (unix(7)); so the folder's may be of any length.
        directory = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            bound = _bind(f"{_DESCRIPTORS}/{directory}/{name}")
        finally:
            os.close(directory)
        return _Unix(bound, path, self._given)

    def take_over(self) -> None:
        os.rename(self._path, self._given)
        self._path = self._given
        if self._place < 0:
            self.address = UnixAddress(self._path)

    def close(self) -> None:
        if self.fileno() < 0:
            return
        super().close()
        if self._place >= 0:
            os.close(self._place)
        with contextlib.suppress(OSError):
            status = os.stat(self._path)
            # A successor may have taken the place.
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self._path)


class _Private(_Unix):
    """In a folder of its own, which goes at once where a descriptor leads to the socket."""

    @property
    def is_apart(self) -> bool:
        return True

    def successor(self) -> ListeningSocket:
        return _private()

    def take_over(self) -> None:
        pass

    def forget_name(self) -> None:
        """Take socket and folder out of the file system, if it is found without."""
        if self._place >= 0:
            os.unlink(self._path)
            os.rmdir(os.path.dirname(self._path))

    def close(self) -> None:
        super().close()
        shutil.rmtree(os.path.dirname(self._path), ignore_errors=True)


def _private() -> ListeningSocket:
    directory = tempfile.mkdtemp(prefix="tetrapylon-")  # mode 0700
    try:
        path = os.path.join(directory, "socket")
        listener = _Private(_bind(path), path, path)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    listener.forget_name()
    return listener


def _family(address: TcpAddress) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def _knock(family: socket.AddressFamily, address: str | tuple[str, int]) -> None:
    # Without it, the end of who is called takes longer.
    with contextlib.suppress(OSError), socket.socket(family) as caller:
        caller.setblocking(False)
        caller.connect_ex(address)


def _bind(path: str) -> socket.socket:
    """Bind a unix socket, in the place of one that nobody listens on any more."""
    bound = socket.socket(socket.AF_UNIX)
    try:
        try:
            bound.bind(path)
        except OSError:
            if not _is_left_over(path):
                raise
            os.unlink(path)
            bound.bind(path)
        # Nobody but the gateway has any business there.
        os.chmod(path, 0o600)
    except BaseException:
        bound.close()
        raise
    return bound


def _is_left_over(path: str) -> bool:
    """Tell whether there is a socket that nobody listens on."""
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX) as caller:
        # A full backlog is somebody, too, and so is a socket that only others may call.
        caller.setblocking(False)
        return is_socket and caller.connect_ex(path) == errno.ECONNREFUSED
