"""What a server reads from an HTTP/1.1 connection, as values.

A request with a body is one `Request`, any number of `Data`, one `EndOfMessage`.
A request without one (``content_length == 0``) is complete with its head.
"""

from __future__ import annotations

from typing import NamedTuple

from ..asgi import Fields

#: `Request.content_length` of a body in chunks, whose length is unknown.
CHUNKED = -1


class Request(NamedTuple):
    """A request's head, found to be beyond doubt (`strictness`).

    ``target`` is in origin form (``/path?query``) or ``*``: of an absolute form
    the authority has become the Host field (RFC 9112 section 3.2.2).
    ``fields`` have lower-case names and values without white space around them.
    ``content_length`` counts bytes, 0 for no body, `CHUNKED` for a chunked one.
    """

    method: str
    target: bytes
    http_version: str
    fields: Fields
    content_length: int
    wants_keep_alive: bool
    expects_continue: bool
    host: bytes


class Data(NamedTuple):
    """Bytes of the body, transfer coding taken off; never empty."""

    data: bytes


class EndOfMessage(NamedTuple):
    """The request is complete. ``trailers`` are apart from ``fields``, always."""

    trailers: Fields


END_WITHOUT_TRAILERS = EndOfMessage([])
