"""What the way through a thread costs: microseconds per request, without any socket.

    .venv/bin/python benchmarks/wsgi_hop.py [requests]

Drives `WsgiToAsgi` and asgiref's adapter of the same name directly, on uvloop,
with 64 requests in flight and with one, for an application that answers with a
list, one that is a generator with a Content-Length (as Flask and Django are), and
one that streams 16 blocks. The two take turns; the best of three runs counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

import asgiref.wsgi
import uvloop

from tetrapylon.adapters.wsgi_to_asgi import WsgiToAsgi

SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.5"},
    "http_version": "1.1",
    "server": ("127.0.0.1", 8000),
    "client": ("127.0.0.1", 54321),
    "scheme": "http",
    "method": "GET",
    "root_path": "",
    "path": "/hello",
    "raw_path": b"/hello",
    "query_string": b"",
    "headers": [
        (b"host", b"127.0.0.1:8000"),
        (b"user-agent", b"wrk"),
        (b"accept", b"*/*"),
    ],
    "extensions": {},
}
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "14")]


def a_list(environ, start_response):
    start_response("200 OK", HEADERS)
    return [b"Hello, world!\n"]


def a_generator(environ, start_response):
    start_response("200 OK", HEADERS)
    yield b"Hello, world!\n"


def a_stream(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(16):
        yield b"Hello, world!\n"


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    pass


async def microseconds(app, requests, in_flight):
    async def client():
        for _ in range(requests // in_flight):
            await app(dict(SCOPE, headers=list(SCOPE["headers"])), receive, send)

    began = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(in_flight)))
    ended = time.perf_counter(), time.process_time()
    return tuple(
        (after - before) / requests * 1e6 for before, after in zip(began, ended, strict=True)
    )


async def main(requests):
    print(f"{'':28}{'WsgiToAsgi':>20}{'asgiref':>20}{'ratio':>8}")
    for application in (a_list, a_generator, a_stream):
        for in_flight in (64, 1):
            count = requests if in_flight > 1 else requests // 5
            async with contextlib.AsyncExitStack() as stack:
                ours = await stack.enter_async_context(WsgiToAsgi(application, threads=8, queue=64))
                theirs = asgiref.wsgi.WsgiToAsgi(application)
                results = [[], []]
                for _ in range(3):
                    for which, app in enumerate((ours, theirs)):
                        share = count if which == 0 else count // 4
                        results[which].append(await microseconds(app, share, in_flight))
            best = [min(result) for result in results]
            cells = "".join(f"{wall:9.1f} (cpu{cpu:6.1f})" for wall, cpu in best)
            ratio = best[1][0] / best[0][0]
            print(
                f"{application.__name__:15}{in_flight:3} in flight{cells}{ratio:8.1f}", flush=True
            )


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))
