"""What carries one FastCGI request: a connection of its own, or a share of one.

`Link` is all that an exchange (`tetrapylon.adapters.fastcgi_exchange`) knows of it.
`OwnConnection` is the usual kind. The other, for applications that multiplex, is in
`tetrapylon.adapters.fastcgi_multiplexing`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from ..protocols.fastcgi import (
    NEED_DATA,
    BeginRequest,
    Connection,
    EndRequest,
    Output,
    Params,
    Role,
    Side,
    Stderr,
    Stdin,
    Stdout,
    decode_answer,
    encode_request,
)
from .byte_stream import ByteStream
from .connections import StaleConnection


class Link(Protocol):
    """One request's way to the application and back."""

    def begin(self, params: Sequence[bytes], stdin: bytes | None, role: Role) -> bool:
        """Send the request, with ``None`` without STDIN; return whether all of it has left.

        ``params`` are the contents of PARAMS records. Raises `OSError` if the peer
        reads no more.
        """

    async def flush(self) -> None:
        """Send what `begin` could not; raise `OSError` if the peer reads no more."""

    async def feed(self, data: bytes) -> None:
        """Send a piece of STDIN, or with ``b""`` its end.

        Raises `OSError` if the peer reads no more, and `LocalProtocolError` once the
        application has ended the request.
        """

    def receive(self) -> Awaitable[bytes]:
        """Wait until something has come, and return what `take` makes something of.

        Raises `TimeoutError` when the time given to `expect` is over, and what was
        given to `fail`.
        """

    def take(self, data: bytes) -> Output:
        """Return what has come, possibly nothing of either stream.

        Raises `StaleConnection` if the link was stale from the start, and
        `RemoteProtocolError`.
        """

    def expect(self, within_s: float) -> None:
        """Let `receive` give up in so many seconds."""

    def fail(self, error: BaseException) -> None:
        """Let the waiting `receive` raise ``error``."""


class OwnConnection:
    """``stream`` for one request; the application is told to keep it open if ``keep`` is true.

    Ids take turns from request to request of one connection. Whatever an application
    says too late of the one before is then told from the answer to this one.
    """

    # What stays so in most exchanges stands here once: one of these is made for each.
    _role = Role.RESPONDER
    _rest: bytes | memoryview = b""
    _codec: Connection | None = None
    _is_begun = False
    _is_ended = False

    def __init__(self, stream: ByteStream, *, keep: bool) -> None:
        self._stream = stream
        self._keep = keep
        self._request_id = 1 + stream.uses % 2

    @property
    def is_clean(self) -> bool:
        """Whether the answer has ended and nothing came behind it."""
        return self._is_ended and (self._codec is None or not self._codec.has_pending)

    def begin(self, params: Sequence[bytes], stdin: bytes | None, role: Role) -> bool:
        """See `Link`."""
        request = encode_request(self._request_id, params, stdin, role=role, keep_conn=self._keep)
        if role is not Role.RESPONDER:
            self._role = role
        if stdin is None:
            self._follow()
        rest = self._stream.send_some(request)
        if rest:
            self._rest = rest
            return False
        return stdin is not None

    def expect(self, within_s: float) -> None:
        """See `Link`."""
        self._stream.expect(within_s)

    def fail(self, error: BaseException) -> None:
        """See `Link`."""
        self._stream.fail(error)

    async def flush(self) -> None:
        """See `Link`."""
        await self._stream.send(self._rest)

    async def feed(self, data: bytes) -> None:
        """See `Link`."""
        assert self._codec is not None
        await self._stream.send(self._codec.send(Stdin(self._request_id, data)))

    def receive(self) -> Awaitable[bytes]:
        """See `Link`."""
        return self._stream.receive()

    def take(self, data: bytes) -> Output:
        """See `Link`."""
        if not self._is_begun:
            if not data and self._stream.uses:
                raise StaleConnection
            self._is_begun = True
            if self._codec is None:
                answer = decode_answer(data, self._request_id)
                if answer is not None:
                    self._is_ended = True
                    return answer
        codec = self._codec or self._follow(is_all_sent=True)
        codec.receive_data(data)
        stdout, stderr = [], []
        end: EndRequest | None = None
        # To the last event: what follows END_REQUEST makes the whole answer suspect.
        while (event := codec.next_event()) is not NEED_DATA:
            if isinstance(event, Stdout):
                stdout.append(event.data)
            elif isinstance(event, Stderr):
                stderr.append(event.data)
            elif isinstance(event, EndRequest):
                end = event
                self._is_ended = True
        return Output(b"".join(stdout), b"".join(stderr), end)

    def _follow(self, *, is_all_sent: bool = False) -> Connection:
        """Let a codec know what was said so far: it judges what comes now."""
        codec = self._codec = Connection(Side.CLIENT)
        codec.send(BeginRequest(self._request_id, self._role, keep_conn=self._keep))
        codec.send(Params(self._request_id, {}))
        if is_all_sent and self._role is not Role.AUTHORIZER:
            codec.send(Stdin(self._request_id, b""))
        return codec
