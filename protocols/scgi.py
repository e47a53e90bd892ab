r"""SCGI without I/O, both sides of a request; the answer is a CGI response.

SCGI: A Simple Common Gateway Interface alternative (2008-06-23), section 3. A
head is a netstring of meta-variables, each name and value ended by a NUL, with
CONTENT_LENGTH in first place::

    24:CONTENT_LENGTH\0 0\0 SCGI\0 1\0 …,

(without the spaces). The body follows. One request a connection: the
application answers as a CGI script does
(`tetrapylon.protocols.cgi.response`) and closes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain

from .cgi.request import HEAD_LIMIT_BYTES, RequestDecoder, RequestHead
from .errors import LocalProtocolError, RemoteProtocolError
from .fields import parse_content_length

__all__ = ["ScgiRequestDecoder", "encode_head"]

# A netstring's length has no leading zeros; so many digits are far beyond any limit.
_LENGTH = re.compile(rb"(0|[1-9][0-9]{0,9})(:?)")


def encode_head(variables: Mapping[str, str], content_length: int) -> bytes:
    """Return the head of a request whose body has ``content_length`` bytes.

    CONTENT_LENGTH and SCGI are set here, whatever ``variables`` say. Raises
    `LocalProtocolError` for text that is not latin-1, a NUL or an empty name.
    """
    # The first mention gives a name its place, the last one its value.
    pairs = {
        "CONTENT_LENGTH": "",
        "SCGI": "1",
        **variables,
        "CONTENT_LENGTH": str(content_length),  # noqa: F601
        "SCGI": "1",  # noqa: F601
    }
    text = "\0".join(chain.from_iterable(pairs.items()))
    # A NUL in a value would make variables of what a client sent.
    if text.count("\0") != 2 * len(pairs) - 1 or "" in pairs:
        raise LocalProtocolError("a NUL or an empty name in the variables")
    try:
        content = text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"a variable is not latin-1: {error}") from None
    return b"%d:%b\0," % (len(content) + 1, content)


class ScgiRequestDecoder(RequestDecoder):
    """What an SCGI server receives, as events.

    ``head_limit_bytes`` bounds the netstring.
    """

    def __init__(self, *, head_limit_bytes: int = HEAD_LIMIT_BYTES) -> None:
        super().__init__()
        self._head_limit_bytes = head_limit_bytes

    def _take_head(self, head: bytearray) -> tuple[RequestHead, int] | None:
        if not head:
            return None
        match = _LENGTH.match(head)
        if match is None or (not match[2] and len(head) > match.end()):
            raise RemoteProtocolError(f"not a netstring: {bytes(head[:40])!r}")
        if not match[2]:
            return None
        length = int(match[1])
        if length > self._head_limit_bytes:
            raise RemoteProtocolError(
                f"a head of {length} bytes where {self._head_limit_bytes} are the limit",
                status_hint=431,
            )
        begin = match.end()
        end = begin + length
        if len(head) <= end:
            return None
        if head[end : end + 1] != b",":
            raise RemoteProtocolError(f"no comma after a netstring of {length} bytes")
        return _parse(bytes(head[begin:end])), end + 1


def _parse(content: bytes) -> RequestHead:
    words = content.decode("latin-1").split("\0")
    if words.pop() or len(words) % 2:
        raise RemoteProtocolError(f"the head ends in the middle of a pair: {content[-40:]!r}")
    names = words[::2]
    variables = dict(zip(names, words[1::2], strict=True))
    if len(variables) != len(names) or "" in variables:
        raise RemoteProtocolError("a name is empty or there twice")
    if not names or names[0] != "CONTENT_LENGTH":
        raise RemoteProtocolError("CONTENT_LENGTH is not in first place")
    if variables.get("SCGI") != "1":
        raise RemoteProtocolError("SCGI is not 1")
    try:
        length = parse_content_length(variables["CONTENT_LENGTH"].encode("latin-1"))
    except ValueError as error:
        raise RemoteProtocolError(str(error)) from None
    return RequestHead(variables, length)
