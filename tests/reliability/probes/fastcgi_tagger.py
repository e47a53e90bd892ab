"""A FastCGI responder whose answers bear the tag of their request, to be restarted at will.

It shares no code with the gateway. ``fastcgi_tagger.py ADDRESS [DOWN UP]`` listens at
a port of 127.0.0.1 or the path of a unix socket, and says so in a line; with two times
it stops listening for the one and listens for the other, by turns, in seconds. It
keeps connections, multiplexes, and ends with its stdin. PATH_INFO is an action and a tag.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from typing import Any

BEGIN, ABORT, END, PARAMS, STDIN, STDOUT, STDERR, _DATA, GET_VALUES, VALUES = range(1, 11)
LINES = 40
counts = {"connections": 0, "begun": 0, "aborted": 0, "most_on_one": 0}
lock = threading.Lock()
gathered = threading.Condition()
waiting = 0


def pack(kind: int, content: bytes, id_: int) -> bytes:
    return struct.pack(">BBHHBx", 1, kind, id_, len(content), 0) + content


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


class Request:
    def __init__(self, id_: int, keeps: bool) -> None:
        self.id = id_
        self.keeps = keeps
        self.params = b""
        self.body = b""
        self.gone = threading.Event()


class Connection:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")
        self._writing = threading.Lock()
        self._requests: dict[int, Request] = {}

    def serve(self) -> None:
        with lock:
            counts["connections"] += 1
        try:
            while len(head := self._file.read(8)) == 8:
                _, kind, id_, length, padding = struct.unpack(">BBHHBx", head)
                content = self._file.read(length + padding)[:length]
                self._take(kind, id_, content)
        except OSError:
            pass
        finally:
            for request in [*self._requests.values()]:
                request.gone.set()
            self._close()

    def _take(self, kind: int, id_: int, content: bytes) -> None:
        if kind == GET_VALUES:
            value = b"\x0f\x01FCGI_MPXS_CONNS1"
            self._send(pack(VALUES, value, 0))
        elif kind == BEGIN:
            request = Request(id_, bool(content[2] & 1))
            self._requests[id_] = request
            with lock:
                counts["begun"] += 1
                counts["most_on_one"] = max(counts["most_on_one"], len(self._requests))
        elif (found := self._requests.get(id_)) is None:
            pass
        elif kind == PARAMS:
            found.params += content
        elif kind == STDIN:
            found.body += content
            if not content:
                threading.Thread(target=self._run, args=(found,), daemon=True).start()
        elif kind == ABORT:
            with lock:
                counts["aborted"] += 1
            found.gone.set()

    def _run(self, request: Request) -> None:
        params = dict(pairs(request.params))
        _, action, tag, *_ = [*params["PATH_INFO"].split("/"), "", ""]
        with contextlib.suppress(OSError):
            self._act(request, action, tag)
            self._send(pack(STDOUT, b"", request.id) + pack(END, bytes(8), request.id))
            if not request.keeps:
                self._close()
        self._requests.pop(request.id, None)

    def _act(self, request: Request, action: str, tag: str) -> None:
        head = f"Content-Type: text/plain\r\nX-Tag: {tag}\r\n\r\n".encode()
        line = f"{tag}\n".encode()
        if action == "mute":
            # Says all of it when nobody wants it any more.
            request.gone.wait(60)
        elif action == "gather":
            gather(int(tag))
        elif action == "counts":
            with lock:
                self._say(request, head + json.dumps(counts).encode())
            return
        elif action == "post":
            line = request.body + b"\n"
        self._say(request, head + line)
        for _ in range(random.randrange(3)):
            self._say(request, line * LINES)
            if action == "drip":
                time.sleep(0.005)
        self._say(request, b"end of " + line)

    def _say(self, request: Request, data: bytes) -> None:
        self._send(pack(STDOUT, data, request.id))

    def _send(self, data: bytes) -> None:
        with self._writing:
            self._sock.sendall(data)

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def gather(count: int) -> None:
    """Wait until so many are here."""
    global waiting
    with gathered:
        waiting += 1
        gathered.notify_all()
        gathered.wait_for(lambda: waiting >= count, 10)


def listen(address: str) -> socket.socket:
    if address.isdigit():
        return socket.create_server(("127.0.0.1", int(address)), backlog=1024)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(1024)
    return listener


def accept(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=Connection(sock).serve, daemon=True).start()


def flap(address: str, down_s: float, up_s: float) -> None:
    while True:
        listener = listen(address)
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        time.sleep(up_s)
        # Wakes who sits in accept(), which a mere close does not.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        time.sleep(down_s)


def main() -> None:
    address = sys.argv[1]
    if len(sys.argv) > 2:
        target, arguments = flap, (address, float(sys.argv[2]), float(sys.argv[3]))
        threading.Thread(target=target, args=arguments, daemon=True).start()
    else:
        threading.Thread(target=accept, args=(listen(address),), daemon=True).start()
    print("listening", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
