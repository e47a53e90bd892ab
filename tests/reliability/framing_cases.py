"""The requests that nobody may take: cases for the checks of section A.

A case is bytes and the answers that they may get. Behind each stands a second
request, `SMUGGLED`: nothing may ever run it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BAD = frozenset({400})
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """Bytes that must be refused, with one of ``statuses`` and a close."""

    check: str
    label: str
    data: bytes
    statuses: frozenset[int] = BAD
    #: Whether the client closes its side, instead of a second request.
    ends: bool = False
    #: The head is good: an application that reads as it comes may have been called,
    #: if the rest came later. It must not be told that the body is complete.
    is_in_body: bool = False

    @property
    def bytes(self) -> bytes:
        return self.data if self.ends else self.data + SMUGGLED


def post(name: str, *fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    lines = [b"POST /%s HTTP/%s" % (name.lower().encode(), version), b"Host: a.test", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def bare_get(name: str, *fields: bytes) -> bytes:
    return b"\r\n".join([b"GET /%s HTTP/1.1" % name.lower().encode(), *fields]) + b"\r\n\r\n"


CHUNKED = b"Transfer-Encoding: chunked"


def _cases() -> Iterable[Case]:
    te, cl = CHUNKED, b"Content-Length: 5"
    pairs: tuple[tuple[bytes, ...], ...] = (
        (cl, te),
        (te, cl),
        (b"content-length: 0", te),
        (te, b"X: y", b"CONTENT-LENGTH: 5"),
    )
    for fields in pairs:
        yield Case("A1", repr(fields), post("A1", *fields, body=b"0\r\n\r\n"))

    lengths = (
        b"+5", b"5_0", b"0x5", b"-0", b"", b"5,5", b"5, 5", b"9223372036854775808",
        b"99999999999999999999", b"0" * 20 + b"5", "٥".encode(), b"\xb2", "²".encode(),
        b"5 5", b"5;", b"5.0", b"5e0", b'"5"', b"\x0b5", b"5\x85",
    )  # fmt: skip
    for value in lengths:
        yield Case("A2", repr(value), post("A2", b"Content-Length: " + value, body=b"12345"))
    for other in (b"5", b"4", b"50"):
        data = post("A2", cl, b"Content-Length: " + other, body=b"12345")
        yield Case("A2", f"twice, 5 and {other!r}", data)

    codings = (
        b"identity, chunked", b",chunked", b"chunked,", b"xchunked", b"chunked;a",
        b"chunked, chunked",
        b"gzip", b"gzip, chunked", b"identity", b"", b"chunked, identity", b"chunked\xa0",
        b"\xc2\x85chunked",
        b"\x85chunked", b"\xa0chunked", b"chunked\xc2\xa0", b'"chunked"', b"chun ked",
    )  # fmt: skip
    refused = frozenset({400, 501})
    for value in codings:
        data = post("A3", b"Transfer-Encoding: " + value, body=b"0\r\n\r\n")
        yield Case("A3", repr(value), data, refused)
    for value in (b"\x0bchunked", b"\x0cchunked", b"chunked\x0b", b"chunked\x0c"):
        data = post("A3", b"Transfer-Encoding:" + value, body=b"0\r\n\r\n")
        yield Case("A3", repr(value), data, refused)
    yield Case("A3", "twice", post("A3", te, te, body=b"0\r\n\r\n"), refused)
    yield Case("A3", "HTTP/1.0", post("A3", te, body=b"0\r\n\r\n", version=b"1.0"), refused)

    chunks = {
        "0x1": b"0x1\r\na\r\n", "1_0": b"1_0\r\n" + bytes(10) + b"\r\n", "+1": b"+1\r\na\r\n",
        " 1": b" 1\r\na\r\n", "1 ": b"1 \r\na\r\n", "empty": b"\r\na\r\n", "-1": b"-1\r\na\r\n",
        "17 digits": b"0" * 16 + b"1\r\na\r\n", "ffffffffffffffff1": b"f" * 16 + b"1\r\na\r\n",
        "LF": b"1\na\r\n", "CR": b"1\ra\r\n", "CR CR LF": b"1\r\r\na\r\n",
        "LF behind data": b"1\r\na\n",
        "no CRLF behind data": b"1\r\nab\r\n", "nothing behind data": b"1\r\na0\r\n",
        "NUL in an extension": b"1;a=\0\r\na\r\n", "CR in an extension": b"1;a=\rb\r\na\r\n",
        "LF in an extension": b"1;a=\nb\r\na\r\n",
        "extension over 256 bytes": b"1;" + b"a" * 257 + b"\r\na\r\n",
        "no size but extension": b";a\r\na\r\n", "fullwidth digit": "１\r\na\r\n".encode(),
    }  # fmt: skip
    for label, body in chunks.items():
        data = post("A4", te, body=body + b"0\r\n\r\n")
        yield Case("A4", label, data, is_in_body=True)
    for label, body in {
        "EOF behind 0 CRLF": b"1\r\na\r\n0\r\n",
        "EOF inside a chunk": b"5\r\na",
        "EOF behind a chunk": b"1\r\na\r\n",
        "bare LF ends the trailers": b"0\r\nX: y\n\n",
    }.items():
        yield Case("A4", label, post("A4", te, body=body), ends=True, is_in_body=True)
    yield Case(
        "A4",
        "EOF inside Content-Length",
        post("A4", b"Content-Length: 9", body=b"1234"),
        ends=True,
        is_in_body=True,
    )

    host = b"Host: a.test"
    fields_of = {
        "bare CR in a value": (host, b"X: a\rb"), "bare CR before the end": (host, b"X: a\r"),
        "bare LF in a value": (host, b"X: a\nY: b"), "NUL": (host, b"X: a\0b"),
        "CTL 1": (host, b"X: a\x01b"),
        "DEL": (host, b"X: a\x7fb"), "VT": (host, b"X: a\x0bb"), "folded": (host, b"X: a\r\n b"),
        "folded by a tab": (host, b"X: a\r\n\tb"), "space before the colon": (host, b"X : a"),
        "tab before the colon": (host, b"X\t: a"), "no colon": (host, b"X"),
        "empty name": (host, b": a"),
        "space in a name": (host, b"X Y: a"), "high byte in a name": (host, b"X\xe9: a"),
        "NUL in a name": (host, b"X\0: a"),
        "space before the first field": (b" X: a", host),
        "tab before the first field": (b"\tX: a", host),
        "folded Content-Length": (host, b"Content-Length:\r\n 5"),
        "folded first field": (b" " + host,),
    }  # fmt: skip
    for label, fields in fields_of.items():
        yield Case("A6", label, bare_get("A6", *fields))
    yield Case("A6", "LF line ends", b"GET /a6 HTTP/1.1\nHost: a.test\n\n")
    yield Case("A6", "LF behind the request line", b"GET /a6 HTTP/1.1\nHost: a.test\r\n\r\n")
    yield Case("A6", "CR behind the request line", b"GET /a6 HTTP/1.1\rHost: a.test\r\n\r\n")
    yield Case("A6", "LF ends the head", b"GET /a6 HTTP/1.1\r\nHost: a.test\r\n\n")
    yield Case("A6", "CR LF CR", b"GET /a6 HTTP/1.1\r\nHost: a.test\r\n\rX: y\r\n\r\n")

    hosts = {
        "missing": (), "empty": (b"Host:",), "blank": (b"Host:  ",), "twice": (host, host),
        "two": (host, b"Host: b.test"), "list": (b"Host: a,b",),
        "userinfo": (b"Host: user@a.test",),
        "path": (b"Host: a.test/b",), "query": (b"Host: a.test?b",),
        "port": (b"Host: a.test:http",),
        "port too long": (b"Host: a.test:123456",), "space": (b"Host: a b",),
        "high bytes": (b"Host: \xe9",),
        "backslash": (b"Host: a\\b",), "bracket": (b"Host: [::1",),
    }  # fmt: skip
    for label, fields in hosts.items():
        yield Case("A7", label, bare_get("A7", *fields))
    yield Case(
        "A7", "absolute, userinfo", b"GET http://u@a.test/a7 HTTP/1.1\r\nHost: a.test\r\n\r\n"
    )
    yield Case("A7", "absolute, empty host", b"GET http:///a7 HTTP/1.1\r\nHost: a.test\r\n\r\n")
    yield Case(
        "A7", "absolute, Host twice", b"GET http://a.test/a7 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
    )

    lines: dict[bytes, frozenset[int]] = {
        b"GET /a8 b HTTP/1.1": BAD, b"GET /a8\0 HTTP/1.1": BAD, b"GET /a8#b HTTP/1.1": BAD,
        b"GET /a8\xc3\xa9 HTTP/1.1": BAD, b"GET /a8\xff HTTP/1.1": BAD,
        b"GET /a8\x7f HTTP/1.1": BAD,
        b"GET /a8\tb HTTP/1.1": BAD, b"GET * HTTP/1.1": BAD, b"GET a8 HTTP/1.1": BAD,
        b"GET  /a8 HTTP/1.1": BAD,
        b"GET /a8  HTTP/1.1": BAD, b" GET /a8 HTTP/1.1": BAD, b"GET\t/a8 HTTP/1.1": BAD,
        b"G(T /a8 HTTP/1.1": BAD,
        b"GET /a8": BAD, b"GET /a8 ": BAD, b"/a8 HTTP/1.1": BAD, b"GET /a8 HTTP/1.1 ": BAD,
        b"GET ftp://a.test/a8 HTTP/1.1": BAD, b"GET /a8 http/1.1": BAD, b"GET /a8 HTTP/1.\xb9": BAD,
        b"CONNECT a.test:443 HTTP/1.1": frozenset({400, 405, 501}),
        b"TRACE /a8 HTTP/1.1": frozenset({405, 501}),
        b"CONNECT /a8 HTTP/1.1": frozenset({400, 405, 501}),
        b"GET /a8 HTTP/1.10": frozenset({400, 505}), b"GET /a8 HTTP/2.0": frozenset({505}),
        b"GET /a8 HTTP/0.9": frozenset({400, 505}), b"GET /a8 HTTP/1.2": frozenset({400, 505}),
        b"PRI * HTTP/2.0": frozenset({400, 505}), b"GET /a8 HTTP/11": BAD, b"GET /a8 XTTP/1.1": BAD,
        b"GET /%zz HTTP/1.1": BAD, b"GET /a8%00 HTTP/1.1": BAD,
    }  # fmt: skip
    for line, statuses in lines.items():
        yield Case("A8", repr(line), line + b"\r\nHost: a.test\r\n\r\n", statuses)


CASES = tuple(_cases())
