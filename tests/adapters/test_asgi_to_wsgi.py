"""ASGI applications called as WSGI has it, by a validator, by threads and by real servers."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import http.client
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from tetrapylon.adapters.asgi_to_wsgi import AsgiToWsgi
from tetrapylon.adapters.lifespan import LifespanFailure

WITHIN_S = 10.0
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/x")]}


def body(data: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


@pytest.fixture(params=["asyncio", "uvloop"])
def adapt(request: pytest.FixtureRequest) -> Iterator[Callable[..., AsgiToWsgi]]:
    """Make adapters on either loop; they are closed behind the test."""
    factory = asyncio.new_event_loop if request.param == "asyncio" else None
    with contextlib.ExitStack() as made:

        def adapt(app: Any, **options: Any) -> AsgiToWsgi:
            options.setdefault("lifespan", "off")
            adapter = AsgiToWsgi(app, loop_factory=factory, **options)
            made.callback(adapter.close)
            return adapter

        yield adapt


class Call:
    """One request by hand, as a server would do it; under the validator unless told otherwise."""

    def __init__(self, app: Any, *, is_valid: bool = True, **environ: Any) -> None:
        self.environ: dict[str, Any] = {}
        setup_testing_defaults(self.environ)
        self.environ |= {"PATH_INFO": "/", "QUERY_STRING": "", **environ}
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.starts = 0
        self.is_sent = False
        self.iterable = (validator(app) if is_valid else app)(self.environ, self.start_response)

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        self.starts += 1
        if exc_info is not None and self.is_sent:
            raise exc_info[1].with_traceback(exc_info[2])
        self.status, self.headers = status, headers
        return lambda data: None

    def __iter__(self) -> Iterator[bytes]:
        for block in self.iterable:
            self.is_sent = self.is_sent or bool(block)
            yield block

    def close(self) -> None:
        if hasattr(self.iterable, "close"):
            self.iterable.close()

    def read(self) -> bytes:
        try:
            return b"".join(self)
        finally:
            self.close()


def test_a_request(adapt: Any) -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)
        seen["message"] = await receive()
        await send(START)
        await send(body(b"hello"))

    call = Call(
        adapt(app),
        SCRIPT_NAME="/api",
        PATH_INFO="/caf\xc3\xa9",
        QUERY_STRING="a=1",
        RAW_URI="/api/caf%C3%A9?a=1",
        HTTP_X_NAME="value",
        REMOTE_ADDR="10.0.0.1",
        REMOTE_PORT="5000",
        **{"wsgi.url_scheme": "https"},
    )
    assert call.read() == b"hello"
    assert (call.status, call.starts) == ("200 OK", 1)
    assert call.headers == [("content-type", "text/x")]
    assert seen["message"] == {"type": "http.request", "body": b"", "more_body": False}
    assert seen["path"] == "/api/café"
    assert seen["root_path"] == "/api"
    assert seen["raw_path"] == b"/api/caf%C3%A9"
    assert seen["query_string"] == b"a=1"
    assert seen["scheme"] == "https"
    assert seen["client"] == ("10.0.0.1", 5000)
    assert (b"x-name", b"value") in seen["headers"]
    assert "state" not in seen


def test_a_short_response_is_one_block(adapt: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"hello"))

    # WSGI-CLEN-ONE: so the server may tell its length.
    assert Call(adapt(app), is_valid=False).iterable == [b"hello"]
    assert Call(adapt(app), is_valid=False, REQUEST_METHOD="HEAD").iterable == []


async def mirror(scope: Any, receive: Any, send: Any) -> None:
    """Send each piece of the body back as it comes."""
    await send(START)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            await send(body(b"!"))
            return
        await send(body(message["body"], more=message["more_body"]))
        if not message["more_body"]:
            return


class Input(io.BytesIO):
    """Counts what is read; there is always more of it than there should be."""

    reads: int = 0

    def read(self, size: int = -1, /) -> bytes:
        assert 0 < size <= 1 << 16
        self.reads += size
        return super().read(size)

    read1 = read


def test_the_body_is_never_read_beyond_its_length(adapt: Any) -> None:
    data = os.urandom(200_000)
    given = Input(data + b"the next request")
    call = Call(
        adapt(mirror),
        REQUEST_METHOD="POST",
        CONTENT_LENGTH=str(len(data)),
        is_valid=False,
        **{"wsgi.input": given},
    )
    assert call.read() == data
    assert given.reads == len(data)


def test_the_validators_own_input(adapt: Any) -> None:
    call = Call(
        adapt(mirror),
        REQUEST_METHOD="POST",
        CONTENT_LENGTH="70000",
        **{"wsgi.input": io.BytesIO(b"x" * 70000)},
    )
    assert call.read() == b"x" * 70000


def test_a_body_of_unknown_length(adapt: Any) -> None:
    adapter = adapt(mirror)
    data = os.urandom(200_000)
    for is_terminated, expected in ((True, data), (False, b"")):
        call = Call(
            adapter,
            REQUEST_METHOD="POST",
            is_valid=False,
            **{"wsgi.input": io.BytesIO(data), "wsgi.input_terminated": is_terminated},
        )
        assert call.read() == expected


def test_a_body_that_is_cut_is_a_departure(adapt: Any) -> None:
    adapter = adapt(mirror)

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("reset")

        read1 = read

    for stream, expected in ((io.BytesIO(b"abc"), b"abc!"), (Broken(), b"!")):
        call = Call(
            adapter,
            REQUEST_METHOD="POST",
            CONTENT_LENGTH="5",
            is_valid=False,
            **{"wsgi.input": stream},
        )
        assert call.read() == expected


def test_a_length_that_is_none(adapt: Any) -> None:
    call = Call(adapt(mirror), REQUEST_METHOD="POST", CONTENT_LENGTH="+5")
    assert call.read() == b"400 Bad Request\n"
    assert call.status == "400 Bad Request"


def test_an_application_that_reads_nothing(adapt: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"no, thanks"))

    given = Input(b"x" * 100)
    more = {"wsgi.input": given, "CONTENT_LENGTH": "100"}
    assert Call(adapt(app), REQUEST_METHOD="POST", is_valid=False, **more).read() == b"no, thanks"
    assert given.reads == 0


def test_back_pressure(adapt: Any) -> None:
    sent = [0]
    piece = b"x" * 10_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for _ in range(100):
            await send(body(piece, more=True))
            sent[0] += 1
        await send(body())

    call = Call(adapt(app, ahead_bytes=50_000))
    blocks = iter(call)
    read = [next(blocks)]
    for count in (1, 20):
        while len(read) < count:
            read.append(next(blocks))
        wait_for(lambda count=count: sent[0] >= count + 3)
        assert sent[0] <= count + 5
    assert b"".join([*read, *blocks]) == piece * 100
    call.close()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_close_is_a_departure(adapt: Any) -> None:
    seen: list[Any] = []
    is_over = threading.Event()

    async def writes(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send(START)
            while True:
                await send(body(b"x" * 10_000, more=True))
        except OSError as error:
            seen.append(type(error))
            assert (await receive())["type"] == "http.request"
            seen.append((await receive())["type"])
            is_over.set()
            raise

    call = Call(adapt(writes))
    next(iter(call))
    call.close()
    assert is_over.wait(WITHIN_S)
    assert seen == [BrokenPipeError, "http.disconnect"]

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        await send(body(b"x", more=True))
        seen.append((await receive())["type"])
        is_over.set()

    is_over.clear()
    seen.clear()
    call = Call(adapt(waits))
    next(iter(call))
    call.close()
    call.close()
    assert is_over.wait(WITHIN_S)
    assert seen == ["http.disconnect"]


def test_what_runs_on_behind_its_response(adapt: Any) -> None:
    may_end, is_over = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"done"))
        await asyncio.to_thread(may_end.wait)
        assert (await receive())["type"] == "http.disconnect"
        is_over.set()

    assert Call(adapt(app)).read() == b"done"
    assert not is_over.is_set()
    may_end.set()
    assert is_over.wait(WITHIN_S)


class Boom(Exception):
    pass


def test_failures_before_the_response(adapt: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def raises(scope: Any, receive: Any, send: Any) -> None:
        raise Boom("before")

    async def raises_behind_its_start(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        raise Boom("behind")

    for app in (raises, raises_behind_its_start):
        with pytest.raises(Boom):
            Call(adapt(app))
    assert caplog.text == ""  # The server logs it, once.

    async def says_nothing(scope: Any, receive: Any, send: Any) -> None:
        pass

    async def exits(scope: Any, receive: Any, send: Any) -> None:
        raise SystemExit(3)

    async def only_starts(scope: Any, receive: Any, send: Any) -> None:
        await send(START)

    for app in (says_nothing, exits, only_starts):
        call = Call(adapt(app))
        assert call.read() == b"500 Internal Server Error\n"
        assert (call.status, call.starts) == ("500 Internal Server Error", 1)
    assert "the application raised SystemExit(3)" in caplog.text


def test_failures_after_the_response_began(adapt: Any) -> None:
    async def raises(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"a", more=True))
        raise Boom("after")

    call = Call(adapt(raises))
    blocks = iter(call)
    assert next(blocks) == b"a"
    # WSGI-SR-EXC-RAISE: what start_response raises goes to the server.
    with pytest.raises(Boom):
        next(blocks)
    assert call.starts == 2
    call.close()

    # WSGI-SR-EXC-REPLACE: middleware that had sent nothing yet answers 500 instead.
    call = Call(adapt(raises), is_valid=False)
    blocks = iter(call.iterable)
    assert [next(blocks), next(blocks)] == [b"a", b"500 Internal Server Error\n"]
    assert call.status == "500 Internal Server Error"
    assert list(blocks) == []

    async def promises(scope: Any, receive: Any, send: Any) -> None:
        await send({**START, "headers": [(b"content-length", b"5")]})
        await send(body(b"a", more=True))
        await send(body(b"b"))

    call = Call(adapt(promises), is_valid=False)
    blocks = iter(call)
    assert next(blocks) == b"a"
    with pytest.raises(Exception, match="where Content-Length says 5"):
        next(blocks)


def test_silence(adapt: Any) -> None:
    ended = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    call = Call(adapt(app, first_byte_s=0.05))
    assert call.read() == b"504 Gateway Timeout\n"
    assert ended.wait(WITHIN_S)


def test_an_exception_in_the_servers_thread(adapt: Any) -> None:
    seen: list[str] = []
    is_over = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["type"])
        seen.append((await receive())["type"])
        is_over.set()

    class Stopped(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise SystemExit  # as gunicorn's worker does in a signal handler

        read1 = read

    given = {"wsgi.input": Stopped(), "CONTENT_LENGTH": "5"}
    with pytest.raises(SystemExit):
        Call(adapt(app), REQUEST_METHOD="POST", is_valid=False, **given)
    assert is_over.wait(WITHIN_S)
    assert seen == ["http.disconnect", "http.disconnect"]


def test_head_and_responses_without_a_body(adapt: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        status = int(scope["path"][1:])
        headers = [(b"content-length", b"5"), *START["headers"]][: 2 if status == 200 else 1]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send(body(b"hello"))

    adapter = adapt(app)
    call = Call(adapter, REQUEST_METHOD="HEAD", PATH_INFO="/200", is_valid=False)
    assert call.read() == b""
    assert ("content-length", "5") in call.headers
    for status in ("204", "304"):
        call = Call(adapter, PATH_INFO=f"/{status}")
        assert call.read() == b""
        assert call.status[:3] == status


def test_headers_that_servers_want_for_themselves(adapt: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        own = [(b"connection", b"close"), (b"proxy-authenticate", b"Basic"), (b"status", b"404")]
        await send({**START, "status": 299, "headers": [*START["headers"], *own]})
        await send(body(b"a"))

    call = Call(adapt(app))
    call.read()
    assert (call.status, call.headers) == ("299 Unknown Status", [("content-type", "text/x")])


# The event loop and the lifespan


def test_context_variables_come_along(adapt: Any) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(variable.get().encode()))

    variable.set("middleware's")
    assert Call(adapt(app)).read() == b"middleware's"


def test_one_lifespan_for_all_threads(adapt: Any) -> None:
    notes: list[Any] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> Any:
        notes.append("up")
        yield {"loop": asyncio.get_running_loop(), "count": [0]}
        notes.append("down")

    async def page(request: Request) -> Any:
        request.state.count[0] += 1
        assert request.state.loop is asyncio.get_running_loop()
        request.state.own = 1
        return PlainTextResponse(await request.body())

    app = Starlette(routes=[Route("/", page, methods=["POST"])], lifespan=lifespan)
    adapter = adapt(app, lifespan="on")
    assert notes == []

    def ask(number: int) -> bytes:
        data = b"%d" % number * 1000
        given = {"wsgi.input": io.BytesIO(data), "CONTENT_LENGTH": str(len(data))}
        return Call(adapter, REQUEST_METHOD="POST", **given).read() == data

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(64)))
    assert notes == ["up"]
    adapter.close()
    assert notes == ["up", "down"]
    # After that, a request starts it anew.
    assert ask(1)
    assert notes == ["up", "down", "up"]


def test_a_lifespan_that_fails_is_tried_again(adapt: Any) -> None:
    tries: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            tries.append(1)
            await receive()
            if len(tries) == 1:
                await send({"type": "lifespan.startup.failed", "message": "no database"})
            else:
                await send({"type": "lifespan.startup.complete"})
                await receive()
            return
        await send(START)
        await send(body(b"well"))

    adapter = adapt(app, lifespan="on")
    with pytest.raises(LifespanFailure, match="no database"):
        Call(adapter)
    assert Call(adapter).read() == b"well"
    with adapter:
        assert len(tries) == 2


def test_what_still_runs_at_the_end(adapt: Any) -> None:
    notes: list[str] = []
    started = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"done"))
        started.set()
        try:
            if scope["path"] == "/forever":
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(0.05)
            notes.append("finished")
        except asyncio.CancelledError:
            notes.append("cancelled")
            raise

    adapter = adapt(app, stop_s=0.2)
    for path in ("/", "/forever"):
        started.clear()
        assert Call(adapter, PATH_INFO=path).read() == b"done"
        assert started.wait(WITHIN_S)
    adapter.close()
    assert notes == ["finished", "cancelled"]


def test_a_fork_has_a_loop_of_its_own(adapt: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            scope["state"]["pid"] = os.getpid()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            return
        await send(START)
        await send(body(b"%d" % scope["state"]["pid"]))

    adapter = adapt(app, lifespan="on")
    assert Call(adapter).read() == b"%d" % os.getpid()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(int(WITHIN_S))
            os.write(writing, Call(adapter).read())
            adapter.close()
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as answer:
        assert answer.read() == b"%d" % child
    assert os.waitpid(child, 0)[1] == 0
    # And the parent's is as it was.
    assert Call(adapter).read() == b"%d" % os.getpid()


SCRIPT = """
import asyncio, sys
from tetrapylon.adapters.asgi_to_wsgi import AsgiToWsgi
from wsgiref.util import setup_testing_defaults

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        # The executor has an idle thread, for a process that ends starts no more of them.
        await asyncio.to_thread(print, "down", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    await asyncio.to_thread(print, "asked", flush=True)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})

environ = {}
setup_testing_defaults(environ)
print(AsgiToWsgi(app)(environ, lambda status, headers: None), flush=True)
"""


def test_the_lifespan_ends_with_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("asked\n[b'hello']\ndown\n", "")


# Under a real server


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def get_stderr(self) -> Any:
        return io.StringIO()


@pytest.fixture
def serve() -> Iterator[Callable[[Any], http.client.HTTPConnection]]:
    with contextlib.ExitStack() as running:

        def serve(app: Any) -> http.client.HTTPConnection:
            server = running.enter_context(WSGIServer(("127.0.0.1", 0), _Quiet))
            server.set_app(validator(app))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            running.callback(thread.join)
            running.callback(server.shutdown)
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            return running.enter_context(contextlib.closing(connection))

        yield serve


def test_under_wsgiref(adapt: Any, serve: Any) -> None:
    async def echo(request: Request) -> Any:
        return StreamingResponse(request.stream(), media_type="text/x")

    async def fails(request: Request) -> Any:
        raise Boom

    routes = [Route("/echo", echo, methods=["POST"]), Route("/fails", fails)]
    connection = serve(adapt(Starlette(routes=[Mount("/api", routes=routes)])))

    def ask(method: str, path: str, data: bytes | None = None) -> tuple[int, bytes]:
        connection.request(method, path, data)
        answer = connection.getresponse()
        return answer.status, answer.read()

    data = os.urandom(1 << 20)
    assert ask("POST", "/api/echo", data) == (200, data)
    assert ask("POST", "/api/echo", b"") == (200, b"")
    assert ask("GET", "/api/echo") == (405, b"Method Not Allowed")
    assert ask("HEAD", "/api/nothing") == (404, b"")
    assert ask("GET", "/api/fails")[0] == 500


def test_a_departure_under_wsgiref(adapt: Any, serve: Any) -> None:
    is_over = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send(START)
            while True:
                await send(body(b"x" * 100_000, more=True))
        except OSError:
            is_over.set()
            raise

    connection = serve(adapt(app))
    connection.request("GET", "/")
    assert len(connection.getresponse().read(1000)) == 1000
    connection.close()
    assert is_over.wait(WITHIN_S)


@pytest.mark.parametrize("preload", [False, True])
def test_under_gunicorn(preload: bool, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import contextlib, os\n"
        "from starlette.applications import Starlette\n"
        "from starlette.responses import StreamingResponse\n"
        "from starlette.routing import Route\n"
        "from tetrapylon.adapters.asgi_to_wsgi import AsgiToWsgi\n"
        "@contextlib.asynccontextmanager\n"
        "async def lifespan(app):\n"
        "    os.write(1, b'up %d\\n' % os.getpid())\n"
        "    yield\n"
        "    os.write(1, b'down %d\\n' % os.getpid())\n"
        "async def page(request):\n"
        "    return StreamingResponse(request.stream())\n"
        "route = Route('/', page, methods=['POST'])\n"
        "app = AsgiToWsgi(Starlette(routes=[route], lifespan=lifespan))\n"
    )
    log = tmp_path / "log"
    command = [sys.executable, "-m", "gunicorn", "--workers=2", "--bind=127.0.0.1:0"]
    command += ["--worker-tmp-dir", str(tmp_path), "--no-control-socket"]
    command += ["--preload"] if preload else []
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "shop:app"], cwd=tmp_path, stdout=out, stderr=out)
    try:
        data = os.urandom(300_000)
        wait_for(lambda: log.read_text().count("Booting worker") == 2)
        (port,) = re.findall(r"Listening at: http://127.0.0.1:(\d+)", log.read_text())
        for chunked in (False, True):
            for _ in range(4):
                connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=WITHIN_S)
                with contextlib.closing(connection):
                    pieces: Any = iter([data[:1000], data[1000:]]) if chunked else data
                    connection.request("POST", "/", pieces, encode_chunked=chunked)
                    answer = connection.getresponse()
                    assert (answer.status, answer.read()) == (200, data)
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert "Traceback" not in log.read_text()
    lines = [line.split() for line in log.read_text().splitlines() if line]
    up = sorted(line[1] for line in lines if line[0] == "up")
    assert up
    assert len(set(up)) == len(up)
    assert up == sorted(line[1] for line in lines if line[0] == "down"), log.read_text()
    assert str(process.pid) not in up
