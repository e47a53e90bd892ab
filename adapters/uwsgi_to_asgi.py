"""An application in uWSGI as an ASGI application: `tetrapylon.protocols.uwsgi` over a socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..protocols import uwsgi
from .errors import FieldsTooLarge
from .socket_to_asgi import SocketToAsgi

# What uWSGI takes of a head unless it is told otherwise.
_USUAL_BUFFER_BYTES = 4096


class UwsgiToAsgi(SocketToAsgi):
    """The uWSGI server at ``address``; ``options`` are those of `SocketToAsgi`.

    ``modifier1`` and ``modifier2``, 0 to 255, say what a request is for: 0 a Python
    application, 5 Perl, 7 Ruby, 9 a CGI script, 14 PHP.
    """

    protocol = "uwsgi"

    # The options have their types in the base class.
    def __init__(
        self,
        address: str | Sequence[str],
        *,
        modifier1: int = 0,
        modifier2: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(address, **options)
        for modifier in (modifier1, modifier2):
            if not 0 <= modifier <= 255:
                raise ValueError(f"a uwsgi modifier is 0 to 255, not {modifier}")
        self._modifier1 = modifier1
        self._modifier2 = modifier2

    def _encode_head(self, variables: Mapping[str, str], length: int) -> bytes:
        try:
            return uwsgi.encode_head(
                variables, modifier1=self._modifier1, modifier2=self._modifier2
            )
        except uwsgi.HeadTooLarge as error:
            raise FieldsTooLarge(f"{self._name}: {error}") from error

    def _explain_silence(self, head_bytes: int) -> str:
        reason = "it closed without an answer, as uWSGI does where an application raises"
        if head_bytes > _USUAL_BUFFER_BYTES:
            reason += (
                f", or where its buffer-size is less than the request's head, {head_bytes} bytes"
            )
        return reason
