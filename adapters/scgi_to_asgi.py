"""An SCGI application as an ASGI application: `tetrapylon.protocols.scgi` over a socket."""

from __future__ import annotations

from collections.abc import Mapping

from ..protocols import scgi
from .socket_to_asgi import SocketToAsgi


class ScgiToAsgi(SocketToAsgi):
    """The SCGI application at ``address``; options are those of `SocketToAsgi`."""

    protocol = "SCGI"

    def _encode_head(self, variables: Mapping[str, str], length: int) -> bytes:
        return scgi.encode_head(variables, length)
