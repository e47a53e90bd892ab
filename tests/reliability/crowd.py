"""Many slow sockets at once, in one loop: the clients of section B."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from ground import want_descriptors
from wire import HOST

_CONNECT_BATCH = 200


@dataclass(slots=True)
class Member:
    """One of the crowd; times are of the monotonic clock."""

    sock: socket.socket
    number: int
    began_at: float = 0.0
    ended_at: float = 0.0
    received: bytes = b""
    ending: str = ""
    sent: int = 0

    @property
    def lasted_s(self) -> float:
        return self.ended_at - self.began_at


class Crowd:
    """So many connections to the gateway; ``hello(number)`` is what each sends at first."""

    def __init__(
        self,
        port: int,
        count: int,
        hello: Callable[[int], bytes] = lambda _: b"",
        *,
        receive_buffer: int = 0,
        reads: bool = True,
    ) -> None:
        want_descriptors(count)
        self._epoll = select.epoll()
        self.members: dict[int, Member] = {}
        for number in range(count):
            sock = socket.socket()
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(10)
            sock.connect((HOST, port))
            sock.setblocking(False)
            member = Member(sock, number, time.monotonic())
            self.members[sock.fileno()] = member
            member.sent = self._send(member, hello(number))
            if reads:
                self._epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)
            if number % _CONNECT_BATCH == 0:
                self._look(0)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members.values():
            member.sock.close()
        self._epoll.close()

    @property
    def open(self) -> list[Member]:
        """Those that the gateway has not closed."""
        return [member for member in self.members.values() if not member.ending]

    @property
    def last_s(self) -> float:
        """How long the one lasted that lasted longest."""
        return max(member.lasted_s for member in self.members.values())

    def endings(self) -> dict[str, int]:
        """How they ended: by the first words of the answer, or without one."""
        found: dict[str, int] = {}
        for member in self.members.values():
            how = member.received[9:12].decode("latin-1") or member.ending or "open"
            found[how] = found.get(how, 0) + 1
        return found

    def drip(self, piece: bytes, *, every_s: float, until_s: float) -> None:
        """Send ``piece`` on each, again and again, until all are closed or time is up."""
        deadline = time.monotonic() + until_s
        members = list(self.members.values())
        began, turn = time.monotonic(), 0
        while self.open and time.monotonic() < deadline:
            # Spread over the interval, as clients that know nothing of each other.
            due = int((time.monotonic() - began) / every_s * len(members))
            while turn < due:
                member = members[turn % len(members)]
                turn += 1
                if not member.ending and piece:
                    self._send(member, piece)
            self._look(0.01)

    def wait(self, until_s: float) -> None:
        """Wait until all are closed, or the time is up."""
        self.drip(b"", every_s=1.0, until_s=until_s)

    def _send(self, member: Member, data: bytes) -> int:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            return member.sock.send(data) if data else 0
        return 0

    def _look(self, timeout_s: float) -> None:
        for fd, _ in self._epoll.poll(timeout_s):
            member = self.members[fd]
            try:
                piece = member.sock.recv(65536)
            except BlockingIOError:
                continue
            except ConnectionError:
                piece, member.ending = b"", "reset"
            if piece:
                member.received += piece
                continue
            member.ending = member.ending or "eof"
            member.ended_at = time.monotonic()
            self._epoll.unregister(fd)
