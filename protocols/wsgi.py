"""The types of WSGI (PEP 3333) and the one place where its strings are made.

PEP 3333, "Unicode Issues": native strings stand for bytes, decoded as latin-1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from .errors import LocalProtocolError

# PEP 3333 puts streams, flags, tuples and whatever middleware adds beside strings.
Environ: TypeAlias = dict[str, Any]
ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]
Write: TypeAlias = Callable[[bytes], object]


class StartResponse(Protocol):
    """PEP 3333, "The start_response() Callable"."""

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Write:
        """Give status and headers; get the ``write`` callable."""


Application: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

_STATUS_LINE = re.compile(r"([1-9][0-9]{2}) ([\x20-\x7e\x80-\xff]*)\Z")


def parse_status(status: str) -> int:
    """Return the code of a status string such as ``"404 Not Found"``.

    Raises `LocalProtocolError` for what PEP 3333 does not allow: a missing
    space, white space around it, control characters, a code that HTTP lacks.
    """
    match = _STATUS_LINE.match(status) if isinstance(status, str) else None
    if match is None or match[2] != match[2].strip():
        raise LocalProtocolError(f"start_response: status {status!r} is not like '200 OK'")
    return int(match[1])
