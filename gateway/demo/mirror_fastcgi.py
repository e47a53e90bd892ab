#!/usr/bin/env python3
"""The mirror as a FastCGI application (FastCGI 1.0), on flup's server.

The server starts this program once, with a listening socket as file descriptor
0 (section 2.2), and connects to it for each request. The facts of the request
are those of CGI, sent as PARAMS records; the body comes as STDIN records, and
the answer leaves as STDOUT records in CGI's form (section 6.2): fields, an
empty line, a body. The process lives on, with a thread for each connection.

Run it by a gateway: `spawn = ["python3", "mirror_fastcgi.py"]`.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

from flup.server.fcgi import WSGIServer
from flup.server.fcgi_base import FCGI_REQUEST_COMPLETE, FCGI_RESPONDER, FCGI_UNKNOWN_ROLE

ABOUT = """\
The mirror, as a FastCGI application: one process, a thread for each connection.

  GET|POST mirror               what reached this program, as JSON
  GET stream?bytes=N&chunk=M    N bytes, M at a time
  GET clock                     the time, once a second (Server-Sent Events)
"""
PIECE = 64 * 1024
MOST_BYTES = 1 << 40
MOST_CHUNK = 1 << 20
# These fields are between client and server: RFC 9110, section 7.6.1.
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}

requests_served = 0
requests_served_lock = threading.Lock()


class MirrorServer(WSGIServer):  # type: ignore[misc]  # flup has no types
    """flup's server speaks the records; a request comes to `handler`."""

    maxwrite = 65535  # bytes of a STDOUT record: as much as its length field can say

    def handler(self, request: Any) -> tuple[int, int]:
        """Answer one request; return its protocol status and application status."""
        if request.role != FCGI_RESPONDER:
            return FCGI_UNKNOWN_ROLE, 0
        try:
            answer(request)
        except BrokenPipeError:
            pass  # the client has left, and the gateway has closed the connection
        return FCGI_REQUEST_COMPLETE, 0


def answer(request: Any) -> None:
    """Choose the page by PATH_INFO."""
    global requests_served
    with requests_served_lock:
        requests_served += 1
        number_of_this = requests_served
    pages: dict[str, Callable[[Any], None]] = {
        "/": about,
        "/mirror": lambda request: mirror(request, number_of_this),
        "/stream": stream,
        "/clock": clock,
    }
    path = request.params.get("PATH_INFO") or "/"
    allowed = ["GET", "HEAD", "POST"] if path == "/mirror" else ["GET", "HEAD"]
    if path not in pages:
        begin(request, "404 Not Found", "text/plain; charset=utf-8")
        request.stdout.write(b"No such page.\n")
    elif request.params["REQUEST_METHOD"] not in allowed:
        refusal = "405 Method Not Allowed"
        begin(request, refusal, "text/plain; charset=utf-8", Allow=", ".join(allowed))
        request.stdout.write(b"Not by this method.\n")
    else:
        pages[path](request)


def about(request: Any) -> None:
    """Say what this application is."""
    begin(request, "200 OK", "text/plain; charset=utf-8")
    request.stdout.write(ABOUT.encode())


def mirror(request: Any, number_of_this: int) -> None:
    """Show the request as it arrived."""
    body_length = 0
    body_hash = hashlib.sha256()
    for piece in body(request):
        body_length += len(piece)
        body_hash.update(piece)
    answer = {
        "protocol": "FastCGI",
        "method": request.params["REQUEST_METHOD"],
        "script_name": text(request.params.get("SCRIPT_NAME", "")),
        "path_info": text(request.params.get("PATH_INFO", "")),
        "query_string": request.params.get("QUERY_STRING", ""),
        "headers": headers(request),
        "body_length": body_length,
        "body_sha256": body_hash.hexdigest(),
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
        "requests_served": number_of_this,
    }
    begin(request, "200 OK", "application/json")
    request.stdout.write(json.dumps(answer, indent=2).encode() + b"\n")


def stream(request: Any) -> None:
    """Send as many bytes as asked for, never holding more than a chunk."""
    try:
        left = number(request, "bytes", 1 << 20, 0, MOST_BYTES)
        chunk = bytes(number(request, "chunk", PIECE, 1, MOST_CHUNK))
    except ValueError as error:
        begin(request, "400 Bad Request", "text/plain; charset=utf-8")
        request.stdout.write(f"{error}\n".encode())
        return
    begin(request, "200 OK", "application/octet-stream", Content_Length=str(left))
    if request.params["REQUEST_METHOD"] == "HEAD":
        return
    while left:
        piece = chunk[:left]
        request.stdout.write(piece)
        left -= len(piece)


def clock(request: Any) -> None:
    """Tell the time until the client leaves: the connection is then closed."""
    begin(request, "200 OK", "text/event-stream", Cache_Control="no-store")
    while request.params["REQUEST_METHOD"] != "HEAD":
        now = time.strftime("data: %Y-%m-%dT%H:%M:%SZ\n\n", time.gmtime())
        request.stdout.write(now.encode())
        time.sleep(1)


def text(value: str) -> str:
    """Read a parameter as UTF-8; flup made one character of each byte."""
    return value.encode("latin-1").decode("utf-8", "replace")


def headers(request: Any) -> dict[str, str]:
    """Return the request's header fields: HTTP_ACCEPT was `Accept`."""
    fields = {}
    for name, value in request.params.items():
        if name.startswith("HTTP_"):
            fields[name.removeprefix("HTTP_").replace("_", "-").lower()] = value
        elif name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value:
            fields[name.replace("_", "-").lower()] = value
    return {name: fields[name] for name in sorted(fields) if name not in HOP_BY_HOP}


def body(request: Any) -> Iterator[bytes]:
    """Give the request's body in pieces: CONTENT_LENGTH bytes and no more."""
    left = int(request.params.get("CONTENT_LENGTH") or 0)
    while left and (piece := request.stdin.read(min(left, PIECE))):
        yield piece
        left -= len(piece)


def number(request: Any, name: str, default: int, least: int, most: int) -> int:
    """Return a number from the query; raise `ValueError` with a sentence for the client."""
    query = parse_qs(request.params.get("QUERY_STRING", ""))
    value = query.get(name, [str(default)])[-1]
    digits = value.isascii() and value.isdigit() and len(value) <= len(str(most))
    if not digits or not least <= int(value) <= most:
        raise ValueError(f"{name} must be a number from {least} to {most}.")
    return int(value)


def begin(request: Any, status: str, content_type: str, **fields: str) -> None:
    """Write the fields of the answer and the empty line after them."""
    lines = [f"Status: {status}", f"Content-Type: {content_type}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    request.stdout.write("\r\n".join([*lines, "", ""]).encode())


if __name__ == "__main__":
    # Without an address flup listens on file descriptor 0. It starts the first
    # threads at once and more as connections come, and keeps some in reserve.
    MirrorServer(application=None, minSpare=8, maxSpare=16).run()
