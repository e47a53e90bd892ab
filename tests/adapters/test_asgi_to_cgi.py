"""ASGI applications as CGI scripts: by descriptors, as processes, and under our own gateway."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tetrapylon.adapters.asgi_to_cgi import AsgiToCgi
from tetrapylon.adapters.cgi_to_asgi import CgiToAsgi
from tetrapylon.adapters.processes import Child, ChildCommand, spawn_process

Run = Callable[[Coroutine[Any, Any, Any]], Any]
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/x")]}
HEAD = b"Status: 200 OK\r\ncontent-type: text/x\r\n\r\n"
FAILED = (
    b"Status: 500 Internal Server Error\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 26\r\n\r\n500 Internal Server Error\n"
)


def body(data: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def mirror(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            await send(body(b"!"))
            return
        await send(body(message["body"], more=message["more_body"]))
        if not message["more_body"]:
            return


def as_pipe(data: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def as_socket(data: bytes) -> int:
    ours, theirs = socket.socketpair()
    ours.sendall(data)
    ours.close()
    return theirs.detach()


def as_file(data: bytes) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return os.dup(file.fileno())


async def answer(
    app: Any, stdin: int | None = None, variables: Mapping[str, str] | None = None, **options: Any
) -> tuple[bool, bytes]:
    """Answer a request; return whether it was, and the output."""
    reading, writing = os.pipe()
    options.setdefault("lifespan", "off")
    stdin = os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin
    least = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "/app", "PATH_INFO": "/a"}
    with open(reading, "rb") as output:
        whole = asyncio.create_task(asyncio.to_thread(output.read))
        is_answered = await AsgiToCgi(app, **options).answer(
            {**least, **(variables or {})}, stdin, writing
        )
        return is_answered, await whole


def test_a_request(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (scope["root_path"], scope["path"]) == ("/app", "/app/a")
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await send(START)
        await send(body(b"hello"))

    # CGI-6.3.3: a Status with each response.
    assert run(answer(app)) == (True, HEAD + b"hello")
    head = run(answer(app, variables={"REQUEST_METHOD": "HEAD"}))
    assert head == (True, HEAD)


@pytest.mark.parametrize("make", [as_pipe, as_socket, as_file])
def test_the_body_is_never_read_beyond_its_length(make: Any, run: Run) -> None:
    stdin = make(b"hello, and more")
    kept = os.dup(stdin)
    # RFC 3875 §4.2
    assert run(answer(mirror, stdin, {"CONTENT_LENGTH": "5"})) == (True, HEAD + b"hello")
    with open(kept, "rb") as rest:
        assert rest.read() == b", and more"


def test_without_a_length_there_is_no_body(run: Run) -> None:
    for length in ({}, {"CONTENT_LENGTH": ""}, {"CONTENT_LENGTH": "0"}):
        assert run(answer(mirror, as_pipe(b"hello"), length)) == (True, HEAD)
    refused = run(answer(mirror, as_pipe(b"hello"), {"CONTENT_LENGTH": "+5"}))
    assert refused[0] is False
    assert refused[1].startswith(b"Status: 400 Bad Request\r\n")


def test_a_body_that_is_cut_is_a_departure(run: Run) -> None:
    assert run(answer(mirror, as_pipe(b"abc"), {"CONTENT_LENGTH": "5"})) == (True, HEAD + b"abc!")


def test_streams_both_ways(run: Run) -> None:
    async def main() -> None:
        reading, stdin = os.pipe()
        stdout, writing = os.pipe()
        variables = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "10"}
        task = asyncio.create_task(
            AsgiToCgi(mirror, lifespan="off").answer(variables, reading, writing)
        )
        with open(stdout, "rb", buffering=0) as output, open(stdin, "wb", buffering=0) as given:
            given.write(b"hello")
            assert await asyncio.to_thread(output.read, 100) == HEAD + b"hello"
            given.write(b"world")
            assert await asyncio.to_thread(output.read, 100) == b"world"
            assert await asyncio.to_thread(output.read, 100) == b""
        assert await task is True

    run(main())


def test_back_pressure_and_a_broken_pipe(run: Run) -> None:
    async def main() -> None:
        sent = 0
        seen = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal sent
            await receive()
            await send(START)
            try:
                while True:
                    await send(body(b"x" * 10_000, more=True))
                    sent += 1
            except OSError as error:
                seen.append(type(error))
            seen.append((await receive())["type"])

        stdout, writing = os.pipe()
        stdin = os.open(os.devnull, os.O_RDONLY)
        task = asyncio.create_task(
            AsgiToCgi(app, lifespan="off").answer({"REQUEST_METHOD": "GET"}, stdin, writing)
        )
        with open(stdout, "rb", buffering=0) as output:
            assert await asyncio.to_thread(output.read, 10) == HEAD[:10]
            while sent < 5:
                await asyncio.sleep(0.001)
            # A pipe holds 64 KiB.
            assert sent < 10
        assert await task is True
        assert seen == [BrokenPipeError, "http.disconnect"]

    run(main())


def test_a_departure_is_seen_without_writing(run: Run) -> None:
    async def main() -> None:
        waiting = asyncio.Event()
        seen = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            waiting.set()
            seen.append((await receive())["type"])

        stdout, writing = os.pipe()
        stdin = os.open(os.devnull, os.O_RDONLY)
        task = asyncio.create_task(
            AsgiToCgi(app, lifespan="off").answer({"REQUEST_METHOD": "GET"}, stdin, writing)
        )
        await waiting.wait()
        os.close(stdout)
        assert await task is True
        assert seen == ["http.disconnect"]

    run(main())


def test_tasks_that_send_at_the_same_time(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        async with asyncio.TaskGroup() as group:
            for letter in b"abcd":
                group.create_task(send(body(bytes((letter,)) * 100_000, more=True)))
        await send(body())

    assert run(answer(app))[1] == HEAD + b"".join(bytes((n,)) * 100_000 for n in b"abcd")


def test_failures(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def raises(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("internal")

    async def says_nothing(scope: Any, receive: Any, send: Any) -> None:
        pass

    async def raises_later(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"a", more=True))
        raise ValueError("internal")

    assert run(answer(raises)) == (False, FAILED)
    assert "ValueError: internal" in caplog.text
    assert run(answer(raises, variables={"REQUEST_METHOD": "HEAD"}))[1] == FAILED[:-26]
    assert run(answer(says_nothing)) == (False, FAILED)
    assert run(answer(raises_later)) == (False, HEAD + b"a")


def test_lifespan(run: Run) -> None:
    notes: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            scope["state"]["greeting"] = b"hello"
            await send({"type": "lifespan.startup.complete"})
            await receive()
            notes.append("down")
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send(START)
        await send(body(scope["state"]["greeting"]))

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    assert run(answer(app, lifespan="on")) == (True, HEAD + b"hello")
    assert notes == ["down"]
    assert run(answer(fails, lifespan="on")) == (False, FAILED)


# As a process

SCRIPT = """
import asyncio, os, sys
from tetrapylon.adapters.asgi_to_cgi import AsgiToCgi

print("printed at import")

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.sleep(0.1)
        print("down", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    print("printed", flush=True)
    os.system("echo from a child; cat")
    if scope["path"] == "/raise":
        raise ValueError("internal")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/wait":
        await send({"type": "http.response.body", "body": b"started", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        print("disconnected", flush=True)
        await asyncio.get_running_loop().create_future()
    data, more = b"", True
    while more:
        message = await receive()
        data, more = data + message["body"], message["more_body"]
    await send({"type": "http.response.body", "body": data})
    await asyncio.sleep(0.1)
    print("behind", flush=True)

AsgiToCgi(app, stop_s=0.1).run()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cgi") / "app.py"
    path.write_text(f"#!{sys.executable}\n{SCRIPT}")
    path.chmod(0o755)
    return path


def begin(script: Path, *, stdout: Any = subprocess.PIPE, **variables: str) -> Any:
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", str(script)],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], **variables},
    )


def test_as_processes(script: Path) -> None:
    """All at the same time, for each takes a moment to start."""

    def ask(given: bytes, **variables: str) -> tuple[bytes, str, int]:
        with begin(script, **variables) as process:
            out, err = process.communicate(given, timeout=60)
            return out, err.decode(), process.returncode

    def wait() -> tuple[bytes, str, int]:
        with begin(script, REQUEST_METHOD="GET", PATH_INFO="/wait") as process:
            out = process.stdout.read1()
            process.send_signal(signal.SIGTERM)
            rest, err = process.communicate(timeout=60)
            return out + rest, err.decode(), process.returncode

    def close_early() -> tuple[str, int]:
        with begin(script, REQUEST_METHOD="POST", CONTENT_LENGTH="5") as process:
            process.stdin.write(b"hello")
            process.stdin.close()
            # The end is seen before the application is through.
            assert process.stdout.read().endswith(b"hello")
            assert process.poll() is None
            # As lighttpd does. Whatever it meets, it lets the shutdown be complete.
            process.send_signal(signal.SIGTERM)
            err = process.stderr.read().decode()
            process.stdout.close()
            return err, process.wait(60)

    def shared(tmp: BinaryIO) -> bytes:
        # Standard output and error are one file, or one terminal.
        with begin(script, stdout=tmp, REQUEST_METHOD="GET") as process:
            process.communicate(b"", timeout=60)
        tmp.seek(0)
        return tmp.read()

    with ThreadPoolExecutor() as pool, tempfile.TemporaryFile() as file:
        posted = pool.submit(ask, b"hello", REQUEST_METHOD="POST", CONTENT_LENGTH="5")
        by_hand = pool.submit(ask, b"")
        failed = pool.submit(ask, b"", REQUEST_METHOD="GET", PATH_INFO="/raise")
        waited = pool.submit(wait)
        early = pool.submit(close_early)
        to_file = pool.submit(shared, file)

        out, err, status = posted.result()
        assert (out, status) == (b"Status: 200 OK\r\n\r\nhello", 0)
        lines = err.split("\n")
        # What is printed is no part of the response, and nobody reads the body but the application.
        assert lines[:5] == ["printed at import", "printed", "from a child", "behind", "down"]

        out, err, status = by_hand.result()
        assert (out, status) == (b"printed at import\n", 64)
        assert "there is no REQUEST_METHOD" in err

        out, err, status = failed.result()
        assert (out, status) == (FAILED, 1)
        assert "ValueError: internal" in err
        assert "down" in err

        out, err, status = waited.result()
        assert (out, status) == (b"Status: 200 OK\r\n\r\nstarted", 0)
        assert err.split("\n")[3:5] == ["disconnected", "down"]

        err, status = early.result()
        assert (err.split("\n")[-2], status) == ("down", 0)
        assert to_file.result() == b"Status: 200 OK\r\n\r\n"


def test_standard_streams_may_be_closed(script: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" "$1" <&- 2>&-', sys.executable, str(script)],
        capture_output=True,
        env={"PATH": os.environ["PATH"], "REQUEST_METHOD": "GET"},
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == (b"Status: 200 OK\r\n\r\n", 0)


def test_there_and_back(script: Path, run: Run) -> None:
    """Our own CGI adapter runs the script: a scope becomes variables, and a scope again."""
    messages: list[Any] = []

    async def main() -> None:
        given = [{"type": "http.request", "body": b"hello", "more_body": False}]

        async def receive() -> Any:
            return given.pop() if given else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/a",
            "query_string": b"",
            "headers": [(b"content-length", b"5")],
        }
        children: list[Child] = []

        async def spawn(command: ChildCommand) -> Child:
            children.append(await spawn_process(command))
            return children[-1]

        adapter = CgiToAsgi(script, spawn=spawn)
        try:
            await adapter(scope, receive, send)
            # It goes on behind its answer.
            assert await children[0].exited == 0
        finally:
            adapter.close()

    run(main())
    assert messages[0]["status"] == 200
    assert b"".join(message.get("body", b"") for message in messages) == b"hello"
