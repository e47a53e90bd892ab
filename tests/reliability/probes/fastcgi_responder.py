"""A FastCGI responder that misbehaves on demand, written from the specification.

It shares no code with the gateway. PATH_INFO says what it does; every connection
has a thread. The port is the first line of its output; it ends with its stdin.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

BEGIN, ABORT, END, PARAMS, STDIN, STDOUT, STDERR = 1, 2, 3, 4, 5, 6, 7
HEAD = b"Content-Type: text/plain\r\n\r\n"
# Connections so far, those open now, and requests begun.
counts = {"accepted": 0, "open": 0, "begun": 0}
lock = threading.Lock()


def pack(kind: int, content: bytes, *, version: int = 1, id_: int = 1, padding: int = 0) -> bytes:
    head = struct.pack(">BBHHBx", version, kind, id_, len(content), padding)
    return head + content + bytes(padding)


def end(id_: int = 1) -> bytes:
    return pack(END, struct.pack(">IB3x", 0, 0), id_=id_)


class Request:
    """What came in, and how it was cut into records."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")
        self.sock = sock
        self.begun = 0
        self.largest = 0
        self.records = 0
        self.params_bytes = 0
        self.body = hashlib.sha256()
        self.body_length = 0
        self.params: dict[str, str] = {}

    def record(self) -> tuple[int, int, bytes]:
        head = self._file.read(8)
        if len(head) < 8:
            raise EOFError
        _version, kind, id_, length, padding = struct.unpack(">BBHHBx", head)
        content = self._file.read(length + padding)[:length]
        self.records += 1
        self.largest = max(self.largest, length)
        return kind, id_, content

    def read(self) -> None:
        params = b""
        while True:
            kind, _id, content = self.record()
            if kind == BEGIN:
                self.begun += 1
                with lock:
                    counts["begun"] += 1
            elif kind == PARAMS:
                params += content
                if not content:
                    self.params_bytes = len(params)
                    self.params = dict(pairs(params))
            elif kind == STDIN:
                self.body.update(content)
                self.body_length += len(content)
                if not content:
                    return


def pairs(data: bytes) -> Any:
    at = 0

    def length() -> int:
        nonlocal at
        if data[at] < 128:
            at += 1
            return data[at - 1]
        at += 4
        return int.from_bytes(data[at - 4 : at], "big") & 0x7FFFFFFF

    while at < len(data):
        name_length, value_length = length(), length()
        name = data[at : at + name_length].decode("latin-1")
        at += name_length
        yield name, data[at : at + value_length].decode("latin-1")
        at += value_length


def ok(request: Request, argument: str) -> bytes:
    return pack(STDOUT, HEAD + b"ok") + pack(STDOUT, b"") + end()


def echo(request: Request, argument: str) -> bytes:
    said = {
        **{name: value for name, value in request.params.items() if len(value) < 1024},
        "body_length": request.body_length,
        "body_sha256": request.body.hexdigest(),
        "begun": request.begun,
        "records": request.records,
        "largest": request.largest,
        "params_bytes": request.params_bytes,
        "longest": max(len(value) for value in request.params.values()),
    }
    record = os.environ.get("RELIABILITY_RECORD")
    if record:
        with open(record, "a") as file:
            file.write(json.dumps({"app": "fastcgi", "event": "body"}) + "\n")
    return pack(STDOUT, HEAD + json.dumps(said).encode()) + end()


def stats(request: Request, argument: str) -> bytes:
    with lock:
        return pack(STDOUT, HEAD + json.dumps(counts).encode()) + end()


def mute(request: Request, argument: str) -> bytes:
    with contextlib.suppress(OSError):
        while request.sock.recv(4096):
            pass
    return b""


def wrong(request: Request, argument: str) -> bytes:
    """Answer with records that a responder must not send."""
    good = pack(STDOUT, HEAD + b"good")
    if argument == "version-2":
        return pack(STDOUT, HEAD + b"body", version=2) + end()
    if argument == "id-0":
        return pack(STDOUT, HEAD + b"body", id_=0) + end()
    if argument == "id-unknown":
        return pack(STDOUT, HEAD + b"body", id_=7) + end()
    if argument == "end-of-unknown":
        return good + end(7)
    if argument == "past-eof":
        return pack(STDOUT, HEAD + b"body")[:-2]
    if argument == "head-past-eof":
        return pack(STDOUT, HEAD + b"body")[:5]
    if argument == "no-end":
        return good
    if argument == "type":
        return pack(99, b"what") + good + end()
    if argument == "short-end":
        return good + pack(END, b"\0\0")
    if argument == "padding-255":
        return (
            pack(STDOUT, HEAD, padding=255)
            + pack(STDOUT, b"padded", padding=255)
            + pack(STDOUT, b"", padding=255)
            + end()
        )
    if argument == "padding-past-eof":
        return pack(STDOUT, HEAD + b"body", padding=255)[:-200]
    if argument == "stdout-after-end":
        return good + end() + pack(STDOUT, b"and more")
    if argument == "stderr":
        return (
            pack(STDERR, b'PHP \x1b[31mred\x1b[0m\r\nforged line \x00 \xff "quoted"\n')
            + good
            + end()
        )
    if argument == "params":
        return pack(PARAMS, b"") + good + end()
    raise ValueError(argument)


def loud(request: Request, argument: str) -> bytes:
    """Complain without an end, slowly or fast, and never answer."""
    with contextlib.suppress(OSError):
        while True:
            request.sock.sendall(pack(STDERR, b"on and on\n" * 800))
            if argument == "slow":
                time.sleep(0.5)
    return b""


def head(request: Request, argument: str) -> bytes:
    heads = {
        "cr": b"Content-Type: text/plain\r\nX-Bad: a\rSet-Cookie: b\r\n\r\nbody",
        "nul": b"Content-Type: text/plain\r\nX-Bad: a\0b\r\n\r\nbody",
        "name": b"Content-Type: text/plain\r\nX Bad: a\r\n\r\nbody",
        "hop": b"Content-Type: text/plain\r\nConnection: x-hop\r\nKeep-Alive: timeout=1000\r\n"
        b"Upgrade: h2c\r\nProxy-Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\nbody",
        "204": b"Status: 204 No Content\r\n\r\nbody",
        "304": b"Status: 304 Not Modified\r\n\r\nbody",
        "103": b"Status: 103 Early\r\nContent-Type: text/plain\r\n\r\nbody",
        "100": b"Status: 100 Continue\r\nContent-Type: text/plain\r\n\r\nbody",
        "200": HEAD + b"body",
        "sendfile": b"Content-Type: text/plain\r\nX-Sendfile: /etc/passwd\r\n\r\nbody",
        "sendfile-dots": b"Content-Type: text/plain\r\nX-Sendfile: ../../etc/passwd\r\n\r\nbody",
        "sendfile-link": b"Content-Type: text/plain\r\nX-Sendfile: files/link-out\r\n\r\nbody",
    }
    return pack(STDOUT, heads[argument]) + end()


ACTIONS: dict[str, Callable[[Request, str], bytes]] = {
    "ok": ok,
    "stats": stats,
    "mute": mute,
    "wrong": wrong,
    "loud": loud,
    "head": head,
}


def serve(sock: socket.socket) -> None:
    with lock:
        counts["accepted"] += 1
        counts["open"] += 1
    try:
        request = Request(sock)
        request.read()
        word, _, argument = request.params.get("PATH_INFO", "").lstrip("/").partition("/")
        answer = ACTIONS.get(word, echo)(request, argument)
        # It is over before its answer can be seen.
        with lock:
            counts["open"] -= word != "stats"
        sock.sendall(answer)
        with lock:
            counts["open"] += word != "stats"
    except (OSError, EOFError):
        pass
    finally:
        with lock:
            counts["open"] -= 1
        sock.close()


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
