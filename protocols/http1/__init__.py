"""HTTP/1.1 (RFC 9112), server side: bytes in, events out, events in, bytes out.

Two engines parse a request's head behind one interface (`codec.ServerCodec`):
`h11_codec` is the reference, `httptools_codec` the fast one. What must never
differ between them stands here once: which bytes are refused (`strictness`),
how a body is framed (`codec`, `chunked`), how a response is written
(`response`).
"""

from __future__ import annotations

from .codec import NEED_DATA, Http1Limits, ServerCodec
from .events import Data, EndOfMessage, Request

__all__ = ["NEED_DATA", "Data", "EndOfMessage", "Http1Limits", "Request", "ServerCodec", "engine"]


def engine(name: str = "auto") -> type[ServerCodec]:
    """Return the codec class for ``"h11"``, ``"httptools"`` or ``"auto"``.

    ``"auto"`` is httptools where it can be imported and h11 elsewhere. Raises
    `ImportError` when the engine asked for by name is not installed.
    """
    if name == "h11":
        from .h11_codec import H11Codec

        return H11Codec
    try:
        from .httptools_codec import HttptoolsCodec
    except ImportError:
        if name == "httptools":
            raise
        return engine("h11")
    return HttptoolsCodec
