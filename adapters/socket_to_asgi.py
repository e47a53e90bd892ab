"""An application behind a socket that takes one request a connection: SCGI, uwsgi.

A head of meta-variables goes out, the body follows, and the application answers
as a CGI script does (RFC 3875 section 6), until it closes. Request and answer
run at the same time, for an application may answer before it has read the body.
The protocols' own adapters say how a head is written.

Where an answer has no Content-Length its end is that of the connection, and
nobody can tell whether the application meant it.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping, Sequence

import anyio

from ..protocols.asgi import Receive, Scope, Send
from ..protocols.errors import LocalProtocolError
from .addresses import parse_addresses
from .byte_stream import ByteStream
from .connections import Connections
from .errors import (
    BackendError,
    BadGateway,
    BadRequest,
    GatewayTimeout,
    LocalRedirect,
    Truncated,
    answered,
)
from .exchange import ResponseRelay, SpooledBody, TaskDeparture, spool_body
from .lifespan import close_at_shutdown
from .request_params import RequestParams, redirect_to_slash
from .scripts import SlashMissing


class SocketToAsgi:
    """The application at ``address``: ``"unix:/path"``, ``"host:port"``, ``"[::1]:port"``.

    It may have several, one of them ``"srv:_service._tcp.example.com"``: each request
    goes to the one with the fewest connections. Without ``root`` it is one
    application, mounted where the scope says: SCRIPT_NAME is ``script_name`` or else
    the scope's ``root_path``, PATH_INFO the rest of the path. With ``root``, ``index``,
    ``split`` and ``check_file`` it runs scripts, as `FastCgiToAsgi` says.

    ``params`` adds to the meta-variables or overrides them. Times are seconds;
    0 means none: ``connect_s``; ``first_byte_s``, from the request to the
    response's head, counted anew while a large body is being taken;
    ``output_idle_s``, between two pieces of output. At most ``connections``
    requests are with the application, at most ``queue`` wait, for ``queue_wait_s``.
    ``breaker`` failures within ``breaker_window_s`` put an address out of order for a
    while (0: never); names are looked up again after ``resolve_s``. Bodies over
    ``spool_memory_bytes`` wait in a file. ``name`` stands in the log and in messages,
    in place of the address.

    Raises `ValueError` for an address or parameters that cannot be.
    """

    #: The protocol, for messages.
    protocol = ""

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        root: str | os.PathLike[str] | None = None,
        index: str | Sequence[str] = ("index.php",),
        split: str | Sequence[str] = (".php",),
        check_file: bool = True,
        script_name: str | None = None,
        params: Mapping[str, str] | None = None,
        pass_authorization: bool = True,
        connect_s: float = 2.0,
        first_byte_s: float = 30.0,
        output_idle_s: float = 60.0,
        connections: int = 32,
        queue: int = 64,
        queue_wait_s: float = 5.0,
        breaker: int = 5,
        breaker_window_s: float = 10.0,
        resolve_s: float = 10.0,
        body_limit_bytes: int | None = None,
        spool_memory_bytes: int = 64 * 1024,
        head_limit_bytes: int = 64 * 1024,
        server_software: str = "tetrapylon",
        name: str | None = None,
    ) -> None:
        addresses = parse_addresses(address)
        self._name = name if name is not None else ", ".join(map(str, addresses))
        self._params = RequestParams(
            root=root,
            index=index,
            split=split,
            check_file=check_file,
            script_name=script_name,
            params=params,
            pass_authorization=pass_authorization,
            server_software=server_software,
        )
        self._first_byte_s = first_byte_s or math.inf
        self._output_idle_s = output_idle_s or math.inf
        #: Their ``addresses`` are where the application is.
        self.connections = Connections(
            addresses,
            limit=connections,
            queue=queue,
            queue_wait_s=queue_wait_s,
            connect_s=connect_s,
            idle_s=0,
            breaker=breaker,
            breaker_window_s=breaker_window_s,
            resolve_s=resolve_s,
            name=self._name,
        )
        self._body_limit_bytes = body_limit_bytes
        self._spool_memory_bytes = spool_memory_bytes
        self._head_limit_bytes = head_limit_bytes

    @answered
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request; take part in the lifespan protocol to end in order.

        Raises `ValueError` for other scopes, and what `tetrapylon.adapters.errors` lists.
        """
        if scope["type"] == "lifespan":
            await close_at_shutdown(receive, send, self.close)
            return
        if scope["type"] != "http":
            raise ValueError(f"{self.protocol} does not serve {scope['type']!r}")
        try:
            place = self._params.place(scope)
        except SlashMissing:
            await redirect_to_slash(scope, send)
            return
        async with await spool_body(
            receive, memory_bytes=self._spool_memory_bytes, limit_bytes=self._body_limit_bytes
        ) as body:
            try:
                head = self._encode_head(
                    self._params.variables(scope, place, body.length), body.length
                )
            except LocalProtocolError as error:
                raise BadRequest(f"{self._name}: {error}") from error
            relay = ResponseRelay(
                send, method=scope["method"], head_limit_bytes=self._head_limit_bytes
            )
            async with TaskDeparture(scope, receive):
                async with self.connections.slots:
                    stream = await self.connections.open()
                    try:
                        await self._exchange(stream, head, body, relay)
                    finally:
                        stream.close()

    def close(self) -> None:
        """Look up no more names; requests go on as they are."""
        self.connections.close()

    def _encode_head(self, variables: Mapping[str, str], length: int) -> bytes:
        """Return what stands before a body of ``length`` bytes."""
        raise NotImplementedError

    def _explain_silence(self, head_bytes: int) -> str:
        """Say what it may mean that the application closed without a byte."""
        return "it closed without an answer"

    async def _exchange(
        self, stream: ByteStream, head: bytes, body: SpooledBody, relay: ResponseRelay
    ) -> None:
        """Send the request and relay the answer, both at a time."""
        stream.expect(self._first_byte_s)
        feeder: asyncio.Task[None] | None = None
        try:
            rest = stream.send_some(head + body.data)
        except OSError:
            pass  # it reads no more, but what it wrote may be its answer
        else:
            if rest or body.file is not None:
                feeder = asyncio.create_task(self._feed(stream, rest, body, relay))
        try:
            await self._relay(stream, relay, len(head))
        except (BackendError, Truncated) as error:
            text = f"{self._name}: {error}"
            if relay.is_started or isinstance(error, Truncated):
                raise Truncated(text) from error
            raise type(error)(text, retry_after_s=error.retry_after_s) from error
        finally:
            if feeder is not None:
                feeder.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([feeder])

    async def _feed(
        self, stream: ByteStream, rest: bytes | memoryview, body: SpooledBody, relay: ResponseRelay
    ) -> None:
        """Send what the socket did not take at once, and the body if it is in a file."""
        try:
            await stream.send(rest)
            if body.file is not None:
                async for chunk in body.chunks():
                    await stream.send(chunk)
                    if not relay.is_started:
                        stream.expect(self._first_byte_s)
        except BackendError as error:
            stream.fail(error)
        except OSError:
            pass  # it reads no more: its answer counts, or that there is none

    async def _relay(self, stream: ByteStream, relay: ResponseRelay, head_bytes: int) -> None:
        """Relay output until the answer is complete."""
        connections = self.connections
        is_silent = True
        while not relay.is_complete:
            was_started = relay.is_started
            try:
                data = await stream.receive()
            except TimeoutError:
                if not was_started:
                    connections.failed(stream)
                raise GatewayTimeout("no output in time") from None
            if not data and is_silent:
                connections.failed(stream)
                raise BadGateway(self._explain_silence(head_bytes))
            is_silent = False
            # The client reads as it likes, and the application's time does not run meanwhile.
            try:
                await relay.feed(data, is_last=not data)
            except LocalRedirect:
                connections.answered(stream)
                raise
            except BadGateway:
                if not data:
                    connections.failed(stream)  # it died within its head
                raise
            if relay.is_started:
                if not was_started:
                    connections.answered(stream)
                stream.expect(self._output_idle_s)
