"""The ways that lead through ASGI."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from tetrapylon.adapters.asgi_to_wsgi import AsgiToWsgi
from tetrapylon.adapters.compositions import (
    CgiToWsgi,
    FastCgiToWsgi,
    WsgiToCgi,
    WsgiToFastCgi,
    WsgiToScgi,
)
from tetrapylon.adapters.processes import Child, ChildCommand, spawn_process
from tetrapylon.adapters.wsgi_to_asgi import WsgiToAsgi

Run = Callable[[Coroutine[Any, Any, Any]], Any]
# A path of bytes that are not UTF-8, to be the same at the other end.
PATH = "/\xc3\xa9/\xff"


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Say what came, and mirror the body."""
    names = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "HTTP_X_NAME")
    said = [environ.get(name, "-") for name in names]
    said += [str(environ["wsgi.run_once"]), str(environ["wsgi.multithread"])]
    length = int(environ.get("CONTENT_LENGTH") or 0)
    data = "|".join(said).encode("latin-1") + b"|" + environ["wsgi.input"].read(length)
    start_response("201 Created", [("Content-Type", "text/x"), ("Content-Length", str(len(data)))])
    return [data]


SAID = b"POST|/app|" + PATH.encode("latin-1") + b"|a=1|name|"
HEAD = b"Status: 201 Created\r\ncontent-type: text/x\r\ncontent-length: %d\r\n\r\n"

VARIABLES = {
    "REQUEST_METHOD": "POST",
    "SCRIPT_NAME": "/app",
    "PATH_INFO": PATH,
    "QUERY_STRING": "a=1",
    "HTTP_X_NAME": "name",
    "CONTENT_LENGTH": "5",
}


def call(app: Any, **more: Any) -> tuple[str, bytes]:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ |= {**VARIABLES, "wsgi.input": io.BytesIO(b"hello"), **more}
    statuses = []
    iterable = validator(app)(environ, lambda status, headers, *_: statuses.append(status) or print)
    try:
        return statuses[0] if statuses else "", b"".join(iterable)
    finally:
        iterable.close()


def test_wsgi_to_cgi(run: Run) -> None:
    async def main() -> None:
        stdin, given = os.pipe()
        os.write(given, b"hello")
        os.close(given)
        reading, stdout = os.pipe()
        adapter = WsgiToCgi(validator(application), environ={"HTTP_X_NAME": "name"})
        assert await adapter.answer(VARIABLES, stdin, stdout)
        with open(reading, "rb") as output:
            # WSGI-RUNONCE
            expected = SAID + b"True|False|hello"
            assert output.read() == HEAD % len(expected) + expected

    run(main())


@pytest.mark.parametrize("kind", ["fastcgi", "scgi"])
def test_wsgi_to_responders_and_back(kind: str, short_path: Path, run: Run) -> None:
    async def main() -> None:
        make: Any = WsgiToFastCgi if kind == "fastcgi" else WsgiToScgi
        responder = make(application, threads=2, bind=f"unix:{short_path}")
        async with responder:
            served = asyncio.create_task(responder.serve())
            if kind == "fastcgi":
                back = FastCgiToWsgi(f"unix:{short_path}")
                asked = await asyncio.to_thread(call, back)
                back.close()
                assert asked == ("201 Created", SAID + b"False|True|hello")
            else:
                from tetrapylon.adapters.scgi_to_asgi import ScgiToAsgi

                with AsgiToWsgi(
                    ScgiToAsgi(f"unix:{short_path}"), path_errors="surrogateescape"
                ) as back:
                    asked = await asyncio.to_thread(call, back)
                assert asked == ("201 Created", SAID + b"False|True|hello")
            responder.stop()
            await served

    run(main())


def test_wsgi_through_asgi_to_wsgi() -> None:
    with AsgiToWsgi(WsgiToAsgi(validator(application)), path_errors="surrogateescape") as back:
        assert call(back) == ("201 Created", SAID + b"False|True|hello")


def test_cgi_to_wsgi(tmp_path: Path) -> None:
    script = tmp_path / "say"
    script.write_text(
        f"#!{sys.executable} -IS\n"
        "import os, sys\n"
        "names = 'REQUEST_METHOD', 'SCRIPT_NAME', 'PATH_INFO', 'QUERY_STRING', 'HTTP_X_NAME'\n"
        "said = b'|'.join(os.environb[name.encode()] for name in names)\n"
        "sys.stdout.buffer.write(b'Status: 201 Made\\nContent-Type: text/x\\n\\n')\n"
        "sys.stdout.buffer.write(said + b'|' + sys.stdin.buffer.read())\n"
    )
    script.chmod(0o755)
    children: list[Child] = []

    async def spawn(command: ChildCommand) -> Child:
        children.append(await spawn_process(command))
        return children[-1]

    with CgiToWsgi(script, timeout_s=20, spawn=spawn) as adapter:
        assert call(adapter) == ("201 Created", SAID + b"hello")
        # A directory finds its scripts by the path.
        with CgiToWsgi(tmp_path, spawn=spawn) as scripts:
            found = call(scripts, PATH_INFO="/say" + PATH)
            assert found == ("201 Created", SAID.replace(b"/app", b"/app/say") + b"hello")
            assert call(scripts, PATH_INFO="/nothing")[0] == "404 Not Found"
            # Each is reaped by the loop that it was started from.
            deadline = time.monotonic() + 20
            while not all(child.exited.done() for child in children):
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_a_backend_that_is_not_there(short_path: Path) -> None:
    adapter = FastCgiToWsgi(f"unix:{short_path}")
    try:
        assert call(adapter)[0] == "502 Bad Gateway"
    finally:
        adapter.close()
