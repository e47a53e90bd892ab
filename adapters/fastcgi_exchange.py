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
from collections.abc import Sequence
from typing import NamedTuple

import anyio

from ..protocols.errors import LocalProtocolError, RemoteProtocolError
from ..protocols.fastcgi import EndRequest, ProtocolStatus, Role
from .errors import (
    BackendError,
    BadGateway,
    GatewayTimeout,
    Truncated,
    Unavailable,
)
from .exchange import ResponseRelay, SpooledBody
from .fastcgi_link import Link
from .log_lines import LogLines

logger = logging.getLogger("tetrapylon.adapters.fastcgi")

_STDIN_BYTES = 65528  # a full record without padding
# An application whose error stream does not end is not answering.
_STDERR_FATAL_BYTES = 1024 * 1024


class NotMultiplexed(Exception):
    """CANT_MPX_CONN: the application takes one request at a time, and refused this one."""


class ExchangeTerms(NamedTuple):
    """What goes for all requests to an application.

    They wait ``first_byte_s`` seconds for the head of the response, counted anew while a
    large body is being taken, then ``output_idle_s`` for each piece of output. So much
    of STDERR as ``stderr_limit_bytes`` is logged. ``name`` is whose application it is,
    for messages.
    """

    name: str
    first_byte_s: float
    output_idle_s: float
    stderr_limit_bytes: int


class FastCgiExchange:
    """One request over ``link``, which stays the caller's."""

    _stderr: LogLines | None = None
    #: All of the request has left.
    is_sent = False
    #: It broke before the head, and not by the script's doing: the address may be ill.
    is_broken = False

    def __init__(self, link: Link, terms: ExchangeTerms) -> None:
        self._link = link
        self._terms = terms

    async def run(
        self, params: Sequence[bytes], body: SpooledBody, relay: ResponseRelay, role: Role
    ) -> None:
        """Send a request and relay its answer to the end.

        ``params`` are the contents of its PARAMS records. An authorizer (section 6.3)
        gets no ``body``, and its answer counts only once it was ended rightly. Raises
        `BackendError` before the head was sent on, `Truncated` after,
        `StaleConnection` if a kept connection turns out to be closed,
        `NotMultiplexed` if that is why the request was refused.
        """
        link = self._link
        link.expect(self._terms.first_byte_s)
        feeder: asyncio.Task[None] | None = None
        try:
            is_fed = body.file is None or role is Role.AUTHORIZER
            stdin = body.data if is_fed else None
            self.is_sent = link.begin(params, stdin, role)
        except OSError:
            pass  # it reads no more, but what it wrote may be its answer
        else:
            if not self.is_sent:
                feeder = asyncio.create_task(self._feed(body, relay))
        try:
            has_output = False
            # Until END_REQUEST; it alone ends an answer (section 5.5).
            while True:
                stdout, stderr, end = link.take(await link.receive())
                has_output = has_output or bool(stdout)
                if stderr:
                    self._log(stderr)
                if end is not None:
                    self._check(end, has_output=has_output)
                    await relay.feed(stdout, is_last=True)
                    if end.app_status and role is Role.AUTHORIZER:
                        # Whatever it has said, it did not end as one that is sure of it.
                        raise BadGateway(f"application status {end.app_status}")
                    return
                # Errors and empty records are no answer: they put nothing off.
                if stdout:
                    await relay.feed(stdout)
                    if relay.is_started:
                        link.expect(self._terms.output_idle_s)
        except (BackendError, RemoteProtocolError, TimeoutError) as cause:
            failure = cause
            if isinstance(failure, TimeoutError):
                failure = GatewayTimeout("no output in time")
            if role is not Role.RESPONDER or not (relay.is_started and relay.is_complete):
                self.is_broken = not relay.is_started and isinstance(
                    failure, RemoteProtocolError | GatewayTimeout
                )
                raise self._failure(failure, relay) from cause
            # The answer is the client's already, whole by its Content-Length.
            logger.warning("%s: after the answer: %s", self._terms.name, failure)
            self.is_sent = False
        finally:
            if self._stderr is not None:
                self._stderr.finish()
            if feeder is not None:
                feeder.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([feeder])

    async def _feed(self, body: SpooledBody, relay: ResponseRelay) -> None:
        """Send what could not be sent at once, and the body if it is in a file."""
        link = self._link
        try:
            await link.flush()
            if body.file is not None:
                async for chunk in body.chunks(_STDIN_BYTES):
                    await link.feed(chunk)
                    if not relay.is_started:
                        link.expect(self._terms.first_byte_s)
                await link.feed(b"")
            self.is_sent = True
        except LocalProtocolError:
            pass  # it has ended the request without the rest of the body (section 6.2)
        except BackendError as error:
            link.fail(error)
        except OSError:
            pass  # it reads no more: its answer counts, or that there is none

    def _log(self, stderr: bytes) -> None:
        if self._stderr is None:
            self._stderr = LogLines(
                lambda line: logger.warning("%s: %s", self._terms.name, line),
                limit_bytes=self._terms.stderr_limit_bytes,
            )
        self._stderr.feed(stderr)
        if self._stderr.total_bytes > _STDERR_FATAL_BYTES:
            raise RemoteProtocolError("STDERR does not end", status_hint=502)

    def _check(self, end: EndRequest, *, has_output: bool) -> None:
        status = end.protocol_status
        if status is not ProtocolStatus.REQUEST_COMPLETE:
            if status is ProtocolStatus.OVERLOADED:
                raise Unavailable("the application is overloaded", retry_after_s=1)
            # Behind output it is no refusal: the request has run, and cannot be sent again.
            if status is ProtocolStatus.CANT_MPX_CONN and not has_output:
                raise NotMultiplexed
            raise BadGateway(f"the application refused: {status.name}")
        if end.app_status:
            # Section 6.2: like an exit code. It takes nothing from an answer that was given.
            logger.info("%s: application status %d", self._terms.name, end.app_status)

    def _failure(
        self, error: BackendError | RemoteProtocolError, relay: ResponseRelay
    ) -> Truncated | BackendError:
        text = f"{self._terms.name}: {error}"
        if relay.is_started:
            return Truncated(text)
        if isinstance(error, BackendError):
            return type(error)(text, retry_after_s=error.retry_after_s)
        return BadGateway(text)
