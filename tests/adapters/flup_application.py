"""A WSGI application on flup's threaded FastCGI server: a peer for tests.

`python flup_application.py PATH` listens on a unix socket, without PATH on
descriptor 0, as an application that the web server started.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

from flup.server.fcgi import WSGIServer

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
TEXT = [("Content-Type", "text/plain")]


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    page = environ["PATH_INFO"].rpartition("/")[2]
    if page == "stream":
        start_response("200 OK", TEXT)
        return stream(int(environ["QUERY_STRING"]))
    if page == "early":
        start_response("202 Accepted", TEXT)
        return [b"I have not read it"]
    if page == "errors":
        environ["wsgi.errors"].write("first\nwith \x1b[31mcolour\n")
        start_response("500 Oh No", [*TEXT, ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
        return [b"sorry"]
    if page == "exit":
        os._exit(3)
    digest = hashlib.sha256()
    length = int(environ.get("CONTENT_LENGTH") or 0)
    left = length
    while left and (piece := environ["wsgi.input"].read(min(left, 65536))):
        digest.update(piece)
        left -= len(piece)
    variables = {name: value for name, value in environ.items() if isinstance(value, str)}
    answer = {
        "environ": variables,
        "length": length - left,
        "sha256": digest.hexdigest(),
        "pid": os.getpid(),
        "stdin_is_socket": os.fstat(0).st_mode & 0o170000 == 0o140000,
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:3],
        "cwd": os.getcwd(),
        "group": os.getpgid(0),
        "session": os.getsid(0),
        "thread": threading.current_thread().name,
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]


def stream(size: int) -> Iterator[bytes]:
    while size > 0:
        yield b"x" * min(size, 65536)
        size -= 65536


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else None
    WSGIServer(validator(application), bindAddress=address, maxSpare=4).run()
