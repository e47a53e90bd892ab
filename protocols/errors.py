"""Who broke the protocol: this side (a defect here) or the other (their bytes).

Garbage from a peer raises `RemoteProtocolError` and nothing else, whatever the
bytes are; the state of the codec that raised it is then of no more use and the
connection is to be closed.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """A rule of the protocol was broken; the subclass says by whom."""


class LocalProtocolError(ProtocolError):
    """The caller asked for something that the protocol does not allow.

    State is as it was before the call.
    """


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow.

    ``status_hint`` is the HTTP status that tells the client so: 4xx where the
    peer is an HTTP client, 502 where it is an application behind us. The
    message quotes offending bytes with ``repr``, so that it is safe to log.
    """

    def __init__(self, message: str, *, status_hint: int = 400) -> None:
        super().__init__(message)
        self.status_hint = status_hint
