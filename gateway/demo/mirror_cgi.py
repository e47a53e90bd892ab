#!/usr/bin/env python3
"""The mirror as a CGI script (RFC 3875).

The server starts this program for one request. The facts of the request are
environment variables (section 4.1), its body is the standard input, of
CONTENT_LENGTH bytes (4.2). What the program writes to the standard output is
the answer: fields, an empty line, a body (6). Then the program ends, and all
that it knew is gone. It needs the standard library alone.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from urllib.parse import parse_qs

ABOUT = """\
The mirror, as a CGI script: a process for each request.

  GET|POST mirror               what reached this program, as JSON
  GET stream?bytes=N&chunk=M    N bytes, M at a time
  GET clock                     the time, once a second (Server-Sent Events)
"""
PIECE = 64 * 1024
MOST_BYTES = 1 << 40
MOST_CHUNK = 1 << 20
# These fields are between client and server: RFC 9110, section 7.6.1.
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}


def main() -> None:
    """Answer the one request of this process."""
    # When the reader of a pipe has left, end, as any other program in a pipe.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    pages = {"/": about, "/mirror": mirror, "/stream": stream, "/clock": clock}
    page = pages.get(variable("PATH_INFO") or "/")
    allowed = ["GET", "HEAD", "POST"] if page is mirror else ["GET", "HEAD"]
    if page is None:
        begin("404 Not Found", "text/plain; charset=utf-8")
        write(b"No such page.\n")
    elif variable("REQUEST_METHOD") not in allowed:
        begin("405 Method Not Allowed", "text/plain; charset=utf-8", Allow=", ".join(allowed))
        write(b"Not by this method.\n")
    else:
        page()


def about() -> None:
    """Say what this application is."""
    begin("200 OK", "text/plain; charset=utf-8")
    write(ABOUT.encode())


def mirror() -> None:
    """Show the request as it arrived."""
    body_length = 0
    body_hash = hashlib.sha256()
    for piece in body():
        body_length += len(piece)
        body_hash.update(piece)
    answer = {
        "protocol": "CGI",
        "method": variable("REQUEST_METHOD"),
        "script_name": text(variable("SCRIPT_NAME")),
        "path_info": text(variable("PATH_INFO")),
        "query_string": variable("QUERY_STRING"),
        "headers": headers(),
        "body_length": body_length,
        "body_sha256": body_hash.hexdigest(),
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
        "requests_served": 1,  # a process for each request: always the first
    }
    begin("200 OK", "application/json")
    write(json.dumps(answer, indent=2).encode() + b"\n")


def stream() -> None:
    """Send as many bytes as asked for, never holding more than a chunk."""
    try:
        left = number("bytes", 1 << 20, 0, MOST_BYTES)
        chunk = bytes(number("chunk", PIECE, 1, MOST_CHUNK))
    except ValueError as error:
        begin("400 Bad Request", "text/plain; charset=utf-8")
        write(f"{error}\n".encode())
        return
    begin("200 OK", "application/octet-stream", Content_Length=str(left))
    if variable("REQUEST_METHOD") == "HEAD":
        return
    while left:
        piece = chunk[:left]
        write(piece)
        left -= len(piece)


def clock() -> None:
    """Tell the time until the client leaves: the server then ends this process."""
    begin("200 OK", "text/event-stream", Cache_Control="no-store")
    while variable("REQUEST_METHOD") != "HEAD":
        write(time.strftime("data: %Y-%m-%dT%H:%M:%SZ\n\n", time.gmtime()).encode())
        time.sleep(1)


def variable(name: str) -> str:
    """Return a meta-variable; each character of it stands for one byte."""
    return os.environb.get(name.encode(), b"").decode("latin-1")


def text(value: str) -> str:
    """Read the bytes of a meta-variable as UTF-8."""
    return value.encode("latin-1").decode("utf-8", "replace")


def headers() -> dict[str, str]:
    """Return the request's header fields: HTTP_ACCEPT was `Accept` (section 4.1.18)."""
    fields = {}
    for name in os.environ:
        if name.startswith("HTTP_"):
            fields[name.removeprefix("HTTP_").replace("_", "-").lower()] = variable(name)
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if variable(name):
            fields[name.replace("_", "-").lower()] = variable(name)
    return {name: fields[name] for name in sorted(fields) if name not in HOP_BY_HOP}


def body() -> Iterator[bytes]:
    """Give the request's body in pieces: CONTENT_LENGTH bytes and no more (section 4.2)."""
    left = int(variable("CONTENT_LENGTH") or 0)
    while left and (piece := sys.stdin.buffer.read(min(left, PIECE))):
        yield piece
        left -= len(piece)


def number(name: str, default: int, least: int, most: int) -> int:
    """Return a number from the query; raise `ValueError` with a sentence for the client."""
    value = parse_qs(variable("QUERY_STRING")).get(name, [str(default)])[-1]
    digits = value.isascii() and value.isdigit() and len(value) <= len(str(most))
    if not digits or not least <= int(value) <= most:
        raise ValueError(f"{name} must be a number from {least} to {most}.")
    return int(value)


def begin(status: str, content_type: str, **fields: str) -> None:
    """Write the fields of the answer and the empty line after them (section 6.3)."""
    lines = [f"Status: {status}", f"Content-Type: {content_type}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    write("\n".join([*lines, "", ""]).encode())


def write(data: bytes) -> None:
    """Send bytes of the answer at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
