"""Request heads by httptools (llhttp): the fast engine."""

from __future__ import annotations

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from ..asgi import Fields
from ..errors import RemoteProtocolError
from .codec import DEFAULT_LIMITS, Http1Limits, ServerCodec


class HttptoolsCodec(ServerCodec):
    """`ServerCodec` on llhttp.

    The parser sees heads only: bodies are framed in `codec`, so that both
    engines frame them alike and each limit holds to the byte.
    """

    __slots__ = ("_raw_fields",)

    def __init__(self, limits: Http1Limits = DEFAULT_LIMITS) -> None:
        super().__init__(limits)
        self._raw_fields: Fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field from httptools."""
        # llhttp leaves the white space behind a value (RFC 9112 §5.1).
        self._raw_fields.append((name, value.strip(b" \t")))

    def _parse_fields(self, head: bytes, method: str) -> Fields:
        fields: Fields = []
        self._raw_fields = fields
        # A parser of its own for each head: one that saw a head waits for the
        # body, which it is not given.
        parser = HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except HttpParserUpgrade:
            # An offer to switch protocols, or CONNECT; llhttp stops reading
            # there, which is no business of ours.
            pass
        except HttpParserInvalidMethodError:
            raise RemoteProtocolError(
                f"method {method[:40]!r} is not known to this engine", status_hint=501
            ) from None
        except HttpParserError as error:
            raise RemoteProtocolError(f"malformed request: {error}") from None
        return fields
