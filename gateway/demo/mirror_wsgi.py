"""The mirror as a WSGI application (PEP 3333), without a framework.

The server imports this module and calls `application` for each request, in one
of its threads. The facts of the request are those of CGI, in the dictionary
`environ`; the body is the file `wsgi.input`. The application calls
`start_response` with status and fields, and returns an iterable of bytes: the
body of the answer, which the server sends piece by piece.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias
from urllib.parse import parse_qs

Environ: TypeAlias = dict[str, Any]
Respond: TypeAlias = Callable[[str, list[tuple[str, str]]], object]

ABOUT = """\
The mirror, as a WSGI application: a call for each request, in one of several threads.

  GET|POST mirror               what reached this program, as JSON
  GET stream?bytes=N&chunk=M    N bytes, M at a time
  GET clock                     the time, once a second (Server-Sent Events)
"""
PLAIN = ("Content-Type", "text/plain; charset=utf-8")
PIECE = 64 * 1024
MOST_BYTES = 1 << 40
MOST_CHUNK = 1 << 20
# These fields are between client and server: RFC 9110, section 7.6.1.
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}

requests_served = 0
requests_served_lock = threading.Lock()


def application(environ: Environ, start_response: Respond) -> Iterable[bytes]:
    """Choose the page by PATH_INFO."""
    global requests_served
    with requests_served_lock:
        requests_served += 1
        number_of_this = requests_served
    pages: dict[str, Callable[[Environ, Respond], Iterable[bytes]]] = {
        "/": about,
        "/mirror": lambda environ, respond: mirror(environ, respond, number_of_this),
        "/stream": stream,
        "/clock": clock,
    }
    path = environ.get("PATH_INFO") or "/"
    allowed = ["GET", "HEAD", "POST"] if path == "/mirror" else ["GET", "HEAD"]
    if path not in pages:
        start_response("404 Not Found", [PLAIN])
        return [b"No such page.\n"]
    if environ["REQUEST_METHOD"] not in allowed:
        start_response("405 Method Not Allowed", [PLAIN, ("Allow", ", ".join(allowed))])
        return [b"Not by this method.\n"]
    return pages[path](environ, start_response)


def about(environ: Environ, start_response: Respond) -> Iterable[bytes]:
    """Say what this application is."""
    start_response("200 OK", [PLAIN])
    return [ABOUT.encode()]


def mirror(environ: Environ, start_response: Respond, number_of_this: int) -> Iterable[bytes]:
    """Show the request as it arrived."""
    body_length = 0
    body_hash = hashlib.sha256()
    for piece in body(environ):
        body_length += len(piece)
        body_hash.update(piece)
    answer = {
        "protocol": "WSGI",
        "method": environ["REQUEST_METHOD"],
        "script_name": text(environ.get("SCRIPT_NAME", "")),
        "path_info": text(environ.get("PATH_INFO", "")),
        "query_string": environ.get("QUERY_STRING", ""),
        "headers": headers(environ),
        "body_length": body_length,
        "body_sha256": body_hash.hexdigest(),
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
        "requests_served": number_of_this,
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer, indent=2).encode() + b"\n"]


def stream(environ: Environ, start_response: Respond) -> Iterable[bytes]:
    """Send as many bytes as asked for, never holding more than a chunk."""
    try:
        length = number(environ, "bytes", 1 << 20, 0, MOST_BYTES)
        chunk = bytes(number(environ, "chunk", PIECE, 1, MOST_CHUNK))
    except ValueError as error:
        start_response("400 Bad Request", [PLAIN])
        return [f"{error}\n".encode()]
    kind = ("Content-Type", "application/octet-stream")
    start_response("200 OK", [kind, ("Content-Length", str(length))])
    return repeat(chunk, length) if environ["REQUEST_METHOD"] != "HEAD" else []


def repeat(chunk: bytes, length: int) -> Iterator[bytes]:
    """Give `length` bytes, a chunk at a time; the server asks for each when it can send it."""
    while length:
        piece = chunk[:length]
        yield piece
        length -= len(piece)


def clock(environ: Environ, start_response: Respond) -> Iterable[bytes]:
    """Tell the time until the client leaves: the server then closes the generator."""
    kind = ("Content-Type", "text/event-stream")
    start_response("200 OK", [kind, ("Cache-Control", "no-store")])
    return ticks() if environ["REQUEST_METHOD"] != "HEAD" else []


def ticks() -> Iterator[bytes]:
    """Give an event now and one each second. It keeps the server's thread for itself."""
    while True:
        yield time.strftime("data: %Y-%m-%dT%H:%M:%SZ\n\n", time.gmtime()).encode()
        time.sleep(1)


def text(value: str) -> str:
    """Read a string of the environ as UTF-8: it has one character for each byte."""
    return value.encode("latin-1").decode("utf-8", "replace")


def headers(environ: Environ) -> dict[str, str]:
    """Return the request's header fields: HTTP_ACCEPT was `Accept`."""
    fields = {}
    for name, value in environ.items():
        if name.startswith("HTTP_"):
            fields[name.removeprefix("HTTP_").replace("_", "-").lower()] = value
        elif name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value:
            fields[name.replace("_", "-").lower()] = value
    return {name: fields[name] for name in sorted(fields) if name not in HOP_BY_HOP}


def body(environ: Environ) -> Iterator[bytes]:
    """Give the request's body in pieces.

    Many servers' input has no end, so no more than CONTENT_LENGTH may be read; a
    body without a length comes only from a server that says the input ends.
    """
    left = int(environ.get("CONTENT_LENGTH") or 0)
    if not left and environ.get("wsgi.input_terminated"):
        left = MOST_BYTES
    while left and (piece := environ["wsgi.input"].read(min(left, PIECE))):
        yield piece
        left -= len(piece)


def number(environ: Environ, name: str, default: int, least: int, most: int) -> int:
    """Return a number from the query; raise `ValueError` with a sentence for the client."""
    query = parse_qs(environ.get("QUERY_STRING", ""))
    value = query.get(name, [str(default)])[-1]
    digits = value.isascii() and value.isdigit() and len(value) <= len(str(most))
    if not digits or not least <= int(value) <= most:
        raise ValueError(f"{name} must be a number from {least} to {most}.")
    return int(value)
