"""A script's output as events (RFC 3875 section 6), incrementally and without I/O.

::

    parser = CgiResponseParser()
    parser.receive_data(b"Content-Type: text/plain\\n\\nhello")
    parser.next_event()    # ResponseHead(status=200, …)
    parser.next_event()    # Data(b"hello")
    parser.receive_data(b"")    # end of file
    parser.next_event()    # EndOfMessage()

The output may come from a pipe or from the STDOUT records of FastCGI. However
it is cut, the events are the same, but for where one `Data` ends and the next
begins. `EndOfMessage` comes as soon as the message is whole: with a
Content-Length that is before the end of the output, and all that follows is
dropped, as are the bodies that HTTP forbids (HEAD, 204, 304).

Where the text leaves room, or practice departs from it:

- Line ends are LF or CR LF (§7.2), mixed at will. A lone CR, a NUL or another
  control character makes the head invalid, as does a continuation line (§6.3:
  CGI has none) or white space before the colon.
- A status line (``HTTP/1.1 404 Not Found``) in first place counts as the Status
  field. lighttpd takes it so; many an old script writes it.
- Neither Content-Type nor Location nor Status: no CGI response (§6.3), unless a file
  is named to be sent. Each of them, and Content-Length, may be there once.
- A Location that is a path is a *local* redirect only where it is the sole field
  (§6.2.2), as in lighttpd. With a Status it is a redirect for the client to
  follow, as frameworks mean it; with any other field likewise, with 302, so that
  a Set-Cookie beside it is not lost. (Apache redirects locally then, nginx
  never.) A path with a fragment, or with bytes that no URI has, goes to the
  client too. The body of a local redirect is dropped.
- Connection, Transfer-Encoding and their like are the server's (§6.3.4): removed.
  With Content-Length beside Transfer-Encoding nobody knows where the body ends.
- ``X-CGI-…`` fields are removed (§6.3.5).
"""

from __future__ import annotations

import enum
import functools
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal, NamedTuple, TypeAlias

from ..asgi import Fields
from ..errors import LocalProtocolError, RemoteProtocolError
from ..fields import FILE_FIELDS, HOP_BY_HOP, is_token, parse_content_length


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of a document response or of a client redirect.

    ``fields`` are for the client, Content-Length among them; ``reason`` is empty
    where the script gave none and the status has no usual one.
    """

    status: int
    reason: bytes
    fields: Fields
    content_length: int | None


@dataclass(frozen=True, slots=True)
class LocalRedirect:
    """§6.2.2: answer as if ``target``, a path with an optional query, had been requested.

    It is the last event. The path is as the script wrote it: percent-encoded,
    and not resolved; it may begin with two slashes and is a path even then.
    """

    target: bytes


@dataclass(frozen=True, slots=True)
class Data:
    """A part of the body, never empty."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndOfMessage:
    """The body is complete."""


class _Signal(enum.Enum):
    NEED_DATA = enum.auto()


#: There is no event yet; after the last one, there will be none.
NEED_DATA: Final = _Signal.NEED_DATA

Event: TypeAlias = ResponseHead | LocalRedirect | Data | EndOfMessage | Literal[_Signal.NEED_DATA]


class _State(enum.Enum):
    HEAD = enum.auto()
    BODY = enum.auto()
    DONE = enum.auto()
    BROKEN = enum.auto()


# An empty line ends the head; so does one in first place, where the head is empty.
_END_OF_HEAD = re.compile(rb"(?:\A|\n)\r?\n")
_EMPTY_LINES = (b"\n", b"\r\n")
# How much of the end may have come already: `\n\r` of `\n\r\n`.
_END_OF_HEAD_OVERLAP = 2
# All controls but HTAB and LF, and CR only before LF.
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")
# §6.3.3: three digits, and a reason.
_STATUS = re.compile(rb"([2-9][0-9]{2})(?:[ \t]+(.*))?")
_STATUS_LINE = re.compile(rb"HTTP/[0-9](?:\.[0-9])?[ \t]+(.*)")
# §6.2.2: local-pathquery; a fragment is none of the server's business.
_LOCAL_PATHQUERY = re.compile(rb"/[!\"$-~]*")

# §6.3: the CGI fields, and the one that frames the body.
_ONCE = frozenset((b"content-type", b"location", b"status", b"content-length"))
_CGI_FIELDS = frozenset((b"content-type", b"location", b"status"))
# RFC 9110 §15.3.5, §15.4.5
_BODILESS = frozenset((204, 304))

# Most scripts begin all their answers alike: so many heads, up to such a size, are
# known by their bytes.
_KNOWN_HEADS = 64
_KNOWN_HEAD_BYTES = 512
# `_new_tuple(WholeResponse, …)`, for one is made for each request.
_new_tuple = tuple.__new__


class WholeResponse(NamedTuple):
    """A response that came in one piece.

    ``fields`` are as in `ResponseHead`, and may be those of another one: not to be
    changed. ``content_length`` is the script's own word.
    """

    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    content_length: int | None
    body: bytes


def read_whole(data: bytes, *, method: str, head_limit_bytes: int) -> WholeResponse | None:
    """Return what all the output of a script in one piece is.

    That is what `CgiResponseParser` comes to, sooner. None: that has to tell what it
    is, a local redirect, an error.
    """
    # Nearly always the head ends so, and the search for what else may end it is slow.
    size = data.find(b"\n\r\n", 0, _KNOWN_HEAD_BYTES) + 3
    if size < 3 or data.find(b"\n\n", 0, size) >= 0 or data.startswith(_EMPTY_LINES):
        match = _END_OF_HEAD.search(data)
        if match is None:
            return None
        size = match.end()
    if size > head_limit_bytes:
        return None
    try:
        head = _read_head(data[:size])
    except RemoteProtocolError:
        return None
    if isinstance(head, LocalRedirect):
        return None
    status, _, fields, length = head
    body = data[size:]
    if method == "HEAD" or status in _BODILESS:
        body = b""
    elif length is not None:
        if len(body) < length:
            return None
        body = body[:length]
    return _new_tuple(WholeResponse, (status, fields, length, body))


class CgiResponseParser:
    """Turns the output of one run of a script into events.

    ``method`` is the request's, for HEAD; ``head_limit_bytes`` bounds the head,
    its empty line included, and so what is kept between calls. Not a CGI
    response: `next_event` raises `RemoteProtocolError` with ``status_hint`` 502.
    """

    def __init__(self, *, method: str = "GET", head_limit_bytes: int = 65536) -> None:
        self._is_head_request = method == "HEAD"
        self._head_limit_bytes = head_limit_bytes
        self._state = _State.HEAD
        self._head: bytes | bytearray = b""
        self._scanned = 0
        self._body = b""
        # How much of the body is to come; None: until the end of the output.
        self._remaining: int | None = None
        self._is_at_end = False

    def receive_data(self, data: bytes) -> None:
        """Take output of the script; ``b""`` says that it has ended.

        Call `next_event` until it returns `NEED_DATA` before giving more.
        Raises `LocalProtocolError` for data after the end.
        """
        if not data:
            self._is_at_end = True
        elif self._is_at_end:
            raise LocalProtocolError("output of a script after its end")
        elif self._state is _State.HEAD:
            if not self._head:
                self._head = data
            else:
                # A head that comes byte by byte is not copied for each.
                if isinstance(self._head, bytes):
                    self._head = bytearray(self._head)
                self._head += data
        elif self._state is _State.BODY:
            self._body = self._body + data if self._body else data
        # §6.4: the rest is read, and is nobody's.

    def next_event(self) -> Event:
        """Return the next event, or `NEED_DATA`."""
        if self._state is _State.BODY:
            return self._next_of_body()
        if self._state is _State.HEAD:
            return self._next_of_head()
        if self._state is _State.BROKEN:
            raise RemoteProtocolError("the script's output is not to be read on", status_hint=502)
        return NEED_DATA

    def _next_of_head(self) -> Event:
        head = self._head
        match = _END_OF_HEAD.search(head, max(0, self._scanned - _END_OF_HEAD_OVERLAP))
        self._scanned = len(head)
        size = len(head) if match is None else match.end()
        if size > self._head_limit_bytes:
            raise self._error(f"the head is larger than {self._head_limit_bytes} bytes")
        if match is None:
            if not self._is_at_end:
                return NEED_DATA
            if not head:
                raise self._error("no output")
            raise self._error(f"no empty line after the head {bytes(head[-60:])!r}")
        self._body = bytes(head[size:])
        head_bytes = bytes(head[:size])
        self._head = b""
        try:
            parsed = _read_head(head_bytes)
        except RemoteProtocolError:
            self._give_up()
            raise
        if isinstance(parsed, LocalRedirect):
            self._state = _State.DONE
            self._body = b""
            return parsed
        status, reason, fields, content_length = parsed
        self._state = _State.BODY
        is_bodiless = self._is_head_request or status in _BODILESS
        self._remaining = 0 if is_bodiless else content_length
        return ResponseHead(status, reason, [*fields], content_length)

    def _next_of_body(self) -> Event:
        data, self._body = self._body, b""
        if self._remaining is None:
            if data:
                return Data(data)
            if not self._is_at_end:
                return NEED_DATA
        elif self._remaining:
            if data:
                if len(data) > self._remaining:
                    data = data[: self._remaining]
                self._remaining -= len(data)
                return Data(data)
            if not self._is_at_end:
                return NEED_DATA
            raise self._error(f"the output ended {self._remaining} bytes before its Content-Length")
        self._state = _State.DONE
        return EndOfMessage()

    def _give_up(self) -> None:
        self._state = _State.BROKEN
        self._head = b""
        self._body = b""

    def _error(self, message: str) -> RemoteProtocolError:
        self._give_up()
        return _error(message)


def _error(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"the script's output: {message}", status_hint=502)


# Status, reason, fields, Content-Length.
_Head: TypeAlias = tuple[int, bytes, tuple[tuple[bytes, bytes], ...], int | None]


def _read_head(head: bytes) -> _Head | LocalRedirect:
    return _known_head(head) if len(head) <= _KNOWN_HEAD_BYTES else _parse_head(head)


def _parse_head(head: bytes) -> _Head | LocalRedirect:
    forbidden = _FORBIDDEN.search(head)
    if forbidden is not None:
        place = head[max(0, forbidden.start() - 20) : forbidden.end() + 20]
        raise _error(f"a control character in the head, in {place!r}")
    lines = head.replace(b"\r\n", b"\n").split(b"\n")[:-2]

    cgi: dict[bytes, bytes] = {}
    fields: Fields = []
    is_transfer_coded = False
    if lines and (status_line := _STATUS_LINE.fullmatch(lines[0])) is not None:
        cgi[b"status"] = status_line[1]
        del lines[0]
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not is_token(name):
            raise _error(f"not a header field: {line[:60]!r}")
        name = name.lower()
        value = value.strip(b" \t")
        if name in _ONCE:
            # §6.3: a CGI field without a value was not sent.
            if not value and name in _CGI_FIELDS:
                continue
            if name in cgi:
                raise _error(f"{name.decode()} twice: {cgi[name]!r} and {value!r}")
            cgi[name] = value
            if name == b"status":
                continue
        elif name in HOP_BY_HOP:
            is_transfer_coded = is_transfer_coded or name == b"transfer-encoding"
            continue
        elif name.startswith(b"x-cgi-"):
            continue
        fields.append((name, value))

    names_file = not FILE_FIELDS.isdisjoint(name for name, _ in fields)
    if cgi.keys().isdisjoint(_CGI_FIELDS) and not names_file:
        raise _error("neither Content-Type nor Location nor Status in the head")
    location = cgi.get(b"location")
    if (
        location is not None
        and len(fields) == 1
        and b"status" not in cgi
        and _LOCAL_PATHQUERY.fullmatch(location) is not None
    ):
        return LocalRedirect(location)

    content_length = None
    if b"content-length" in cgi:
        if is_transfer_coded:
            raise _error("both Content-Length and Transfer-Encoding")
        try:
            content_length = parse_content_length(cgi[b"content-length"])
        except ValueError as error:
            raise _error(str(error)) from None
    status, reason = _read_status(cgi)
    if content_length is not None and (status == 204 or names_file):
        # RFC 9110 §8.6: no Content-Length with 204.
        fields = [field for field in fields if field[0] != b"content-length"]
        content_length = None
    return status, reason, tuple(fields), content_length


def _read_status(cgi: dict[bytes, bytes]) -> tuple[int, bytes]:
    value = cgi.get(b"status")
    if value is None:
        # §6.2.1: a document is 200; §6.2.3: a redirect is 302.
        return (302, b"Found") if b"location" in cgi else (200, b"OK")
    match = _STATUS.fullmatch(value)
    if match is None:
        raise _error(f"Status {value[:40]!r} is not like '200 OK'")
    status = int(match[1])
    reason: bytes = match[2] or b""
    return status, reason or _usual_reason(status)


_known_head = functools.lru_cache(_KNOWN_HEADS)(_parse_head)


def _usual_reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""
