"""Request heads by h11: the reference engine, in Python alone."""

from __future__ import annotations

import h11

from ..asgi import Fields
from ..errors import RemoteProtocolError
from . import strictness
from .codec import ServerCodec


class H11Codec(ServerCodec):
    """`ServerCodec` on h11's parser."""

    __slots__ = ()

    def _parse_fields(self, head: bytes, method: str) -> Fields:
        limits = self._limits
        reader = h11.Connection(
            h11.SERVER, max_incomplete_event_size=limits.request_line + limits.headers
        )
        reader.receive_data(head)
        try:
            event = reader.next_event()
        except h11.RemoteProtocolError as error:
            raise RemoteProtocolError(
                f"malformed request: {error}", status_hint=error.error_status_hint
            ) from None
        if not isinstance(event, h11.Request):
            raise RemoteProtocolError("malformed request: no head")
        # As sent: h11 has merged what `examine` is to refuse ("5,5", two lengths).
        return strictness.field_lines(head.partition(b"\r\n")[2])
