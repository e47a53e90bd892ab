"""What FastCGI requests carry as PARAMS, remembered where it comes again.

A request's variables (`tetrapylon.adapters.request_params`) fall in two: those of its
target, which are the same for whoever asks for it, and those of its sender, which are
the same for most of what a client asks for over one connection. Made and written
anew they take a quarter of the time that a small request has.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from ..protocols.asgi import AUTHORIZER_EXTENSION, Scope
from ..protocols.errors import LocalProtocolError
from ..protocols.fastcgi import PairTooLarge, encode_params
from ..protocols.fastcgi.records import FULL_CONTENT_BYTES
from .errors import BadRequest, FieldsTooLarge
from .request_params import OF_TARGET, Place, RequestParams

# So many of each kind are remembered, up to such a size. Two always fit one record.
_KNOWN_TARGETS = 256
_KNOWN_SENDERS = 1024
_KNOWN_BYTES = 2048


class _Target(NamedTuple):
    """``content`` goes for what is asked for until that moment, on the monotonic clock."""

    content: bytes
    until: float


class _Sender(NamedTuple):
    """``content`` goes with these very ``fields``, in these circumstances."""

    content: bytes
    fields: tuple[Any, ...]
    circumstances: tuple[Any, ...]


_TargetKey: TypeAlias = tuple[Any, ...]


class FastCgiParams:
    """Encodes the variables of requests to the application ``name``, see `RequestParams`."""

    __slots__ = ("_name", "_senders", "_targets", "_variables")

    def __init__(self, variables: RequestParams, *, name: str) -> None:
        self._variables = variables
        self._name = name
        self._targets: dict[_TargetKey, _Target] = {}
        # By the client's address and port, which are a connection's.
        self._senders: dict[tuple[Any, ...], _Sender] = {}

    def recall(self, scope: Scope) -> bytes | None:
        """Return what `encode` did for such a request without a body; ``None``: it has to."""
        if not _is_ordinary(scope):
            return None
        of_sender = self._of_sender(scope)
        of_target = self._of_target(scope) if of_sender is not None else None
        return of_target + of_sender if of_target is not None and of_sender is not None else None

    def encode(self, scope: Scope, place: Place, length: int) -> Sequence[bytes]:
        """Return the contents of the PARAMS records of a request with so long a body.

        Raises `FieldsTooLarge` and `BadRequest` for what cannot be sent.
        """
        variables = self._variables.variables(scope, place, length)
        if length or not _is_ordinary(scope):
            return self.encoded(variables)
        of_target = self._of_target(scope)
        if of_target is None:
            of_target = b"".join(
                self.encoded({name: variables[name] for name in variables if name in OF_TARGET})
            )
            if len(of_target) <= _KNOWN_BYTES:
                if len(self._targets) >= _KNOWN_TARGETS:
                    self._targets.clear()
                self._targets[_target_key(scope)] = _Target(of_target, place.until)
        of_sender = self._of_sender(scope)
        if of_sender is None:
            of_sender = b"".join(
                self.encoded({name: variables[name] for name in variables if name not in OF_TARGET})
            )
            fields = scope["headers"]
            # Lists in its place could be changed, and not be told from what they were.
            if len(of_sender) <= _KNOWN_BYTES and all(type(field) is tuple for field in fields):
                if len(self._senders) >= _KNOWN_SENDERS:
                    self._senders.clear()
                sender = _Sender(of_sender, tuple(fields), _circumstances(scope))
                self._senders[scope["client"]] = sender
        if len(of_target) + len(of_sender) <= FULL_CONTENT_BYTES:
            return (of_target + of_sender,)
        return self.encoded(variables)

    def _of_target(self, scope: Scope) -> bytes | None:
        target = self._targets.get(_target_key(scope))
        if target is None or time.monotonic() >= target.until:
            return None
        return target.content

    def _of_sender(self, scope: Scope) -> bytes | None:
        sender = self._senders.get(scope["client"])
        if (
            sender is None
            or sender.fields != tuple(scope["headers"])
            or sender.circumstances != _circumstances(scope)
        ):
            return None
        return sender.content

    def encoded(self, variables: Mapping[str, str]) -> list[bytes]:
        """Return the contents of the PARAMS records that say these, as `encode` does."""
        try:
            return encode_params(variables)
        except PairTooLarge as error:
            raise FieldsTooLarge(f"{self._name}: {error}") from error
        except LocalProtocolError as error:
            raise BadRequest(f"{self._name}: {error}") from error


def _target_key(scope: Scope) -> _TargetKey:
    """Return all of a scope that the variables of its target come from."""
    return (
        scope["path"],
        scope["query_string"],
        scope["method"],
        scope.get("raw_path"),
        scope.get("root_path"),
    )


def _circumstances(scope: Scope) -> tuple[Any, ...]:
    """Return what a sender's variables come from beside its address and its fields."""
    return scope.get("server"), scope["http_version"], scope.get("scheme")


def _is_ordinary(scope: Scope) -> bool:
    """Tell whether a request may be remembered.

    It is as our gateway puts it: other servers may give fields that can be read once only.
    And no authorizer has set variables.
    """
    return (
        type(scope["headers"]) is list
        and type(scope.get("client")) is tuple
        and AUTHORIZER_EXTENSION not in (scope.get("extensions") or ())
    )
