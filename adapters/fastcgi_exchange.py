"""One request and its answer over a FastCGI connection.

FastCGI Specification 1.0, sections 5 and 6.1, from the web server's side.
Request and answer run at the same time: an application may answer before it has
read the body, and one that does both at its own pace must not find both pipes
full. What the socket takes at once is sent at once; a task feeds the rest. The
answer is read only as fast as the client takes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import anyio

from ..protocols.errors import LocalProtocolError, RemoteProtocolError
from ..protocols.fastcgi import (
    NEED_DATA,
    BeginRequest,
    Connection,
    EndRequest,
    PairTooLarge,
    Params,
    ProtocolStatus,
    Side,
    Stderr,
    Stdin,
    Stdout,
)
from .byte_stream import ByteStream
from .connections import StaleConnection
from .errors import (
    BackendError,
    BadGateway,
    BadRequest,
    FieldsTooLarge,
    GatewayTimeout,
    Truncated,
    Unavailable,
)
from .exchange import ResponseRelay, SpooledBody
from .log_lines import LogLines

logger = logging.getLogger("tetrapylon.adapters.fastcgi")

_REQUEST_ID = 1  # one request at a time; section 3.3 wants ids small
_STDIN_BYTES = 65528  # a full record without padding
# An application whose error stream does not end is not answering.
_STDERR_FATAL_BYTES = 1024 * 1024


class FastCgiExchange:
    """A stream, and a codec for one request; the stream stays the caller's.

    ``is_kept`` says that the stream has carried a request before; ``name`` is
    whose application it is, for messages.
    """

    def __init__(self, stream: ByteStream, name: str, *, is_kept: bool) -> None:
        self._stream = stream
        self._codec = Connection(Side.CLIENT)
        self._name = name
        self._is_kept = is_kept
        self._is_sent = False
        #: The exchange ended well, and another one may follow on the stream.
        self.is_reusable = False

    async def run(
        self,
        params: Mapping[str, str],
        body: SpooledBody,
        relay: ResponseRelay,
        stderr: LogLines,
        *,
        keep: bool,
        first_byte_s: float,
        output_idle_s: float,
    ) -> None:
        """Send a request and relay its answer to the end; ``keep`` asks for another one after.

        Waits ``first_byte_s`` seconds for the head of the response, counted anew
        while a large body is being taken, then ``output_idle_s`` for each piece
        of output. Raises `BackendError` before the head was sent on, `Truncated`
        after, `StaleConnection` if a kept connection turns out to be closed.
        """
        request = self._encode(params, body, keep=keep)
        self._stream.expect(first_byte_s)
        feeder: asyncio.Task[None] | None = None
        try:
            rest = self._stream.send_some(request)
        except OSError:
            pass  # it reads no more, but what it wrote may be its answer
        else:
            self._is_sent = not rest and body.file is None
            if not self._is_sent:
                feeder = asyncio.create_task(self._feed(rest, body, relay, first_byte_s))
        try:
            await self._relay(relay, stderr, output_idle_s)
            self.is_reusable = keep and self._is_sent and not self._codec.has_pending
        except (BackendError, RemoteProtocolError) as error:
            if not (relay.is_started and relay.is_complete):
                raise self._failure(error, relay) from error
            # The answer is the client's already, whole by its Content-Length.
            logger.warning("%s: after the answer: %s", self._name, error)
        finally:
            if feeder is not None:
                feeder.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([feeder])

    def _encode(self, params: Mapping[str, str], body: SpooledBody, *, keep: bool) -> bytes:
        """Return the request, with the body if it is in memory."""
        codec = self._codec
        try:
            parts = [
                codec.send(BeginRequest(_REQUEST_ID, keep_conn=keep)),
                codec.send(Params(_REQUEST_ID, params)),
            ]
        except PairTooLarge as error:
            raise FieldsTooLarge(f"{self._name}: {error}") from error
        except LocalProtocolError as error:
            raise BadRequest(f"{self._name}: {error}") from error
        if body.file is None:
            if body.data:
                parts.append(codec.send(Stdin(_REQUEST_ID, body.data)))
            parts.append(codec.send(Stdin(_REQUEST_ID, b"")))
        return b"".join(parts)

    async def _feed(
        self, rest: memoryview, body: SpooledBody, relay: ResponseRelay, first_byte_s: float
    ) -> None:
        """Send what the socket did not take at once, and the body if it is in a file."""
        stream, codec = self._stream, self._codec
        try:
            await stream.send(rest)
            if body.file is not None:
                async for chunk in body.chunks(_STDIN_BYTES):
                    await stream.send(codec.send(Stdin(_REQUEST_ID, chunk)))
                    if not relay.is_started:
                        stream.expect(first_byte_s)
                await stream.send(codec.send(Stdin(_REQUEST_ID, b"")))
            self._is_sent = True
        except LocalProtocolError:
            pass  # it has ended the request without the rest of the body (section 6.2)
        except BackendError as error:
            stream.fail(error)
        except OSError:
            pass  # it reads no more: its answer counts, or that there is none

    async def _relay(self, relay: ResponseRelay, stderr: LogLines, output_idle_s: float) -> None:
        """Relay the output until END_REQUEST; it alone ends an answer (section 5.5)."""
        stream, codec = self._stream, self._codec
        is_stale = self._is_kept
        end: EndRequest | None = None
        while end is None:
            try:
                data = await stream.receive()
            except TimeoutError:
                raise GatewayTimeout("no output in time") from None
            if is_stale and not data:
                raise StaleConnection
            is_stale = False
            codec.receive_data(data)
            output = []
            # To the last event: what follows END_REQUEST makes the whole answer suspect.
            while (event := codec.next_event()) is not NEED_DATA:
                if isinstance(event, Stdout):
                    output.append(event.data)
                elif isinstance(event, Stderr):
                    stderr.feed(event.data)
                elif isinstance(event, EndRequest):
                    end = event
            if stderr.total_bytes > _STDERR_FATAL_BYTES:
                raise RemoteProtocolError("STDERR does not end", status_hint=502)
            if end is not None:
                self._check(end)
            content = b"".join(output)
            if content or end is not None:
                await relay.feed(content, is_last=end is not None)
            # Errors and empty records are no answer: they put nothing off.
            if content and relay.is_started:
                stream.expect(output_idle_s)

    def _check(self, end: EndRequest) -> None:
        status = end.protocol_status
        if status is ProtocolStatus.OVERLOADED:
            raise Unavailable("the application is overloaded", retry_after_s=1)
        if status is not ProtocolStatus.REQUEST_COMPLETE:
            raise BadGateway(f"the application refused: {status.name}")
        if end.app_status:
            # Section 6.2: like an exit code. It takes nothing from an answer that was given.
            logger.info("%s: application status %d", self._name, end.app_status)

    def _failure(
        self, error: BackendError | RemoteProtocolError, relay: ResponseRelay
    ) -> Truncated | BackendError:
        text = f"{self._name}: {error}"
        if relay.is_started:
            return Truncated(text)
        if isinstance(error, BackendError):
            return type(error)(text, retry_after_s=error.retry_after_s)
        return BadGateway(text)
