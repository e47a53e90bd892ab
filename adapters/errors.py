"""What can go wrong between an adapter and the application behind it.

Under the gateway these exceptions rise to the connection driver, which turns
them into a response, logs the cause and writes the access log. Under any other
ASGI server `answered` does it: a plain text answer, without internals.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

from ..protocols.asgi import GATEWAY_EXTENSION, Message, Receive, Scope, Send

logger = logging.getLogger("tetrapylon.adapters")

#: An `OSError` of these says that the system has run out of something: a moment later
#: it may have it again (503), and nobody's application is at fault.
EXHAUSTED = frozenset(
    (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)
)


class BackendError(Exception):
    """The request cannot be answered by the application behind the adapter.

    The message is for the log: it may hold internals, never unescaped bytes of
    a peer. The client sees the status alone.
    """

    status = 502

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BadRequest(BackendError):
    """400: the request cannot be put to this kind of application."""

    status = 400


class Forbidden(BackendError):
    """403: there is such a file, and it may not be run or read."""

    status = 403


class NotFound(BackendError):
    """404: no such script or file."""

    status = 404


class ContentTooLarge(BackendError):
    """413: the request body is over its limit."""

    status = 413


class FieldsTooLarge(BackendError):
    """431: the request's fields do not fit the backend's protocol."""

    status = 431


class InternalError(BackendError):
    """500: the application broke its protocol or raised."""

    status = 500


class BadGateway(BackendError):
    """502: the application is absent, died or spoke garbage."""

    status = 502


class Unavailable(BackendError):
    """503: every slot is taken and the queue is full, or the backend is."""

    status = 503


class GatewayTimeout(BackendError):
    """504: no answer in time."""

    status = 504


class InsufficientStorage(BackendError):
    """507: the request body cannot be spooled."""

    status = 507


class ClientDisconnected(Exception):
    """The client left before its request was complete: nobody waits for an answer."""


class Truncated(Exception):
    """The application failed after its head was sent: cut the connection.

    The client must see an incomplete message, never a clean end.
    """


class LocalRedirect(Exception):
    """A CGI local redirect (RFC 3875 section 6.2.2), for the router to follow.

    ``target`` is a path with an optional query, percent-encoded, as the script
    wrote it.
    """

    def __init__(self, target: bytes) -> None:
        super().__init__(f"local redirect to {target!r}")
        self.target = target


_Adapter = TypeVar("_Adapter")
_Call = Callable[[Any, Scope, Receive, Send], Coroutine[Any, Any, None]]


def is_under_gateway(scope: Scope) -> bool:
    """Tell whether our own connection driver serves this scope."""
    extensions = scope.get("extensions")
    return extensions is not None and GATEWAY_EXTENSION in extensions


def answered(call: _Call) -> _Call:
    """Decorate an adapter's ``__call__``: failures become answers under foreign servers.

    Before the head was sent a `BackendError` is answered with its status; after
    it, the exception rises, and a sound server cuts the connection.
    """

    @functools.wraps(call)
    async def call_answered(self: _Adapter, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_under_gateway(scope):
            await call(self, scope, receive, send)
            return
        is_started = False

        async def send_noted(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await call(self, scope, receive, send_noted)
        except ClientDisconnected:
            pass
        except LocalRedirect as redirect:
            # No router to re-enter: the client follows it instead.
            await _answer(send, 302, [(b"location", redirect.target)])
        except BackendError as error:
            logger.error("%s: %s", type(error).__name__, error)
            if is_started:
                raise
            fields = []
            if error.retry_after_s is not None:
                fields.append((b"retry-after", str(error.retry_after_s).encode()))
            await _answer(send, error.status, fields)

    return call_answered


async def _answer(send: Send, status: int, fields: list[tuple[bytes, bytes]]) -> None:
    text = f"{status} {HTTPStatus(status).phrase}\n".encode()
    head: list[tuple[bytes, bytes]] = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(text)).encode()),
        *fields,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": text})
