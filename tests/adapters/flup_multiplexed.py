"""A WSGI application on flup's threaded FastCGI server that multiplexes: a peer for tests.

`python flup_multiplexed.py PATH` listens on a unix socket. Its answers bear the tag that
the request gave, and say how many requests were in hand, on how many connections.
"""

from __future__ import annotations

import collections
import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flup.server import fcgi_base
from flup.server.fcgi import WSGIServer

lock = threading.Lock()
counts = {"now": 0, "most": 0, "connections": 0, "on_one": 0, "aborted": 0}
gates: collections.defaultdict[str, threading.Event] = collections.defaultdict(threading.Event)


class Counted(fcgi_base.MultiplexedConnection):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        with lock:
            counts["connections"] += 1

    def _do_begin_request(self, record: Any) -> None:
        super()._do_begin_request(record)
        with lock:
            counts["on_one"] = max(counts["on_one"], len(self._requests))

    def _do_abort_request(self, record: Any) -> None:
        super()._do_abort_request(record)
        with lock:
            counts["aborted"] += 1


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    _, page, tag, *_ = [*environ["PATH_INFO"].split("/"), "", ""]
    if page == "counts":
        start_response("200 OK", [("Content-Type", "application/json")])
        with lock:
            return [json.dumps(counts).encode()]
    if page == "open":
        gates[tag].set()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"open"]
    with lock:
        counts["now"] += 1
        counts["most"] = max(counts["most"], counts["now"])
    try:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if page == "wait":
            gates[environ["QUERY_STRING"]].wait(20)
        elif page == "sleep":
            time.sleep(float(environ["QUERY_STRING"]))
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Tag", tag)])
        if page == "long":
            return long(tag, int(environ["QUERY_STRING"]))
        return [tag.encode() + b" " + hashlib.sha256(body).hexdigest().encode()]
    finally:
        with lock:
            counts["now"] -= 1


def long(tag: str, pieces: int) -> Iterator[bytes]:
    line = (tag + "\n").encode()
    for _ in range(pieces):
        yield line * (8192 // len(line))


if __name__ == "__main__":
    server = WSGIServer(application, bindAddress=sys.argv[1], multiplexed=True, maxSpare=4)
    server._jobClass = Counted
    server.run()
