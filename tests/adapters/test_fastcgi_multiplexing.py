"""Several requests over one connection: flup's multiplexing server, and peers that do wrong."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tetrapylon.adapters.addresses import Found, UnixAddress
from tetrapylon.adapters.errors import BadGateway, GatewayTimeout, Truncated, Unavailable
from tetrapylon.adapters.fastcgi_authorizer import FastCgiAuthorizer
from tetrapylon.adapters.fastcgi_multiplexing import SHARE_BYTES
from tetrapylon.adapters.fastcgi_to_asgi import FastCgiToAsgi
from tetrapylon.protocols.fastcgi import (
    NEED_DATA,
    AbortRequest,
    BeginRequest,
    Connection,
    ConnectionClosed,
    EndRequest,
    Event,
    GetValues,
    GetValuesResult,
    Params,
    ProtocolStatus,
    Side,
    Stdin,
    Stdout,
)

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

WITHIN_S = 15.0
HEAD = b"Content-Type: text/plain\r\n\r\n"


# flup


@pytest.fixture(scope="module")
def flup() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "flup")
        script = Path(__file__).with_name("flup_multiplexed.py")
        with subprocess.Popen([sys.executable, str(script), path]) as process:
            try:
                deadline = time.monotonic() + 3 * WITHIN_S
                while True:
                    assert process.poll() is None, "the server has ended"
                    with socket.socket(socket.AF_UNIX) as probe:
                        if probe.connect_ex(path) == 0:
                            break
                    assert time.monotonic() < deadline, f"nothing listens on {path}"
                    time.sleep(0.02)
                yield f"unix:{path}"
            finally:
                process.send_signal(signal.SIGKILL)


@contextlib.asynccontextmanager
async def sharing(address: str, *, multiplex: int = 8, **options: Any) -> AsyncIterator[Any]:
    app = FastCgiToAsgi(address, multiplex=multiplex, queue=10_000, queue_wait_s=0.0, **options)
    try:
        yield app
    finally:
        app.close()
        assert app.connections.slots.taken == 0
        assert sum(target.in_use for target in app.connections._targets) == 0


async def counts(app: Any, Client: Any) -> dict[str, int]:
    return json.loads((await Client().call(app, path="/counts")).content)


def test_requests_share_connections(flup: str, run: Run[Any], Client: Any) -> None:
    # FCGI-CONCURRENCY, FCGI-3.3-ID, FCGI-3.3-ID-REUSE
    async def main() -> None:
        async with sharing(flup, multiplex=16, connections=64) as app:
            before = await counts(app, Client)

            async def ask(number: int) -> None:
                tag, size = f"tag-{number}", number * 2000 if number % 3 == 0 else 0
                body = random.Random(number).randbytes(size)
                client = Client([body] if body else [b""])
                await client.call(app, "POST" if body else "GET", f"/tag/{tag}")
                assert client.status == 200
                digest = hashlib.sha256(body).hexdigest().encode()
                assert client.content == tag.encode() + b" " + digest

            await asyncio.gather(*map(ask, range(200)))
            after = await counts(app, Client)
        assert after["connections"] - before["connections"] < 64 / 16 + 4
        assert after["on_one"] > 4

    run(main())


def test_long_answers_side_by_side(flup: str, run: Run[Any], Client: Any) -> None:
    async def main() -> None:
        async with sharing(flup) as app:
            clients = await asyncio.gather(
                *(Client().call(app, path=f"/long/{tag}", query="40") for tag in "abcdefgh")
            )
        for tag, client in zip("abcdefgh", clients, strict=True):
            assert set(client.content.split()) == {tag.encode()}
            assert len(client.content) == 40 * 8192

    run(main())


def test_who_leaves_aborts_its_request_alone(flup: str, run: Run[Any], Client: Any) -> None:
    # FCGI-5.4-ABORT, FCGI-5.4-MPX
    async def main() -> None:
        async with sharing(flup) as app:
            before = await counts(app, Client)
            gate = os.urandom(8).hex()
            leaving, staying = Client(), Client()
            left = asyncio.create_task(leaving.call(app, path="/wait/left", query=gate))
            stayed = asyncio.create_task(staying.call(app, path="/wait/stayed", query=gate))
            while (await counts(app, Client))["now"] < 2:
                await asyncio.sleep(0.01)
            leaving.exchange.depart()
            with pytest.raises(Exception, match="left"):
                await left
            while (await counts(app, Client))["aborted"] == before["aborted"]:
                await asyncio.sleep(0.01)
            await Client().call(app, path=f"/open/{gate}")
            await stayed
            assert staying.content.startswith(b"stayed ")
            after = await counts(app, Client)
            assert after["connections"] == before["connections"]

    run(main())


def test_a_mix_of_everything(flup: str, run: Run[Any], Client: Any) -> None:
    # F6
    async def main() -> None:
        outcomes: collections.Counter[str] = collections.Counter()
        async with sharing(flup, first_byte_s=0.3, connections=32) as app:

            async def ask(number: int) -> None:
                tag = f"tag-{number}"
                client = Client()
                kind = number % 10
                path, query = f"/tag/{tag}", ""
                if kind == 0:
                    path, query = f"/sleep/{tag}", "0.6"
                elif kind == 1:
                    path, query = f"/long/{tag}", "20"
                task = asyncio.create_task(client.call(app, path=path, query=query))
                if kind == 1:
                    await client.started.wait()
                    client.exchange.depart()
                try:
                    await task
                except GatewayTimeout:
                    outcomes["time out"] += 1
                except Exception as error:
                    assert kind == 1, error
                    outcomes["left"] += 1
                else:
                    outcomes["answered"] += 1
                if kind != 0:
                    words = set(client.content.replace(b"\n", b" ").split())
                    assert {word for word in words if word.startswith(b"tag-")} <= {tag.encode()}

            await asyncio.gather(*map(ask, range(400)))
            assert outcomes["time out"] == 40
            assert outcomes["left"] + outcomes["answered"] == 360
            assert outcomes["answered"] >= 320
            # And all of it is there for others.
            answers = await asyncio.gather(
                *(Client().call(app, path=f"/tag/{number}") for number in range(64))
            )
            assert all(client.status == 200 for client in answers)

    run(main())


# Peers that follow a script


class Application:
    """The other side of one connection: what it has received, and what it says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._codec = Connection(Side.RESPONDER, max_requests=100)

    async def next(self) -> Event:
        while (event := self._codec.next_event()) is NEED_DATA:
            self._codec.receive_data(await self._reader.read(65536))
        return event

    async def ask(self, kind: type[T]) -> T:
        """The next event of one kind; others are passed over."""
        while not isinstance(event := await self.next(), kind):
            assert not isinstance(event, ConnectionClosed), f"no {kind.__name__} came"
        return event

    async def begun(self) -> int:
        """The id of the next request, once it is complete."""
        request = (await self.ask(BeginRequest)).request_id
        while (await self.ask(Stdin)).data:
            pass
        return request

    def say(self, *events: Event) -> None:
        self._writer.write(b"".join(map(self._codec.send, events)))

    def answer(self, request_id: int, content: bytes) -> None:
        self.say(Stdout(request_id, HEAD + content), EndRequest(request_id))

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    async def until_closed(self) -> None:
        while not isinstance(await self.next(), ConnectionClosed):
            pass


def speaking(script: Callable[[Application], Awaitable[None]], **values: str) -> Any:
    """A peer that is asked for its values first."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        application = Application(reader, writer)
        first = await application.next()
        if isinstance(first, ConnectionClosed):
            return
        assert isinstance(first, GetValues)  # FCGI-4.1-GETVALUES
        assert set(first.names) == {"FCGI_MAX_REQS", "FCGI_MPXS_CONNS"}
        application.say(GetValuesResult(values))
        await script(application)

    return connected


CAN = {"FCGI_MPXS_CONNS": "1"}


async def both(app: Any, *clients: Any) -> list[Any]:
    return await asyncio.gather(
        *(client.call(app, path=f"/{number}") for number, client in enumerate(clients)),
        return_exceptions=True,
    )


@pytest.mark.parametrize(
    ("said", "most"),
    [({**CAN, "FCGI_MAX_REQS": "2"}, 2), (CAN, 4), ({"FCGI_MAX_REQS": "3"}, 3), ({}, 4)],
)
def test_how_many_requests_share_one(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any, said: dict[str, str], most: int
) -> None:
    # FCGI-4.1-RESULT, FCGI-4.1-RESPECT
    async def gather(application: Application) -> None:
        for request_id in [await application.begun() for _ in range(most)]:
            application.answer(request_id, b"%d" % request_id)
        await application.until_closed()

    async def main() -> None:
        async with peer_at(short_path, speaking(gather, **said)) as peer:
            async with sharing(f"unix:{short_path}", multiplex=4) as app:
                clients = [Client() for _ in range(2 * most)]
                assert await both(app, *clients) == clients
                assert sorted(client.content for client in clients) == sorted(
                    2 * [b"%d" % number for number in range(1, most + 1)]
                )
                assert peer.connections == 2

    run(main())


@pytest.mark.parametrize("kind", ["no", "silent", "closes", "resets", "garbage"])
def test_who_cannot_gets_one_connection_for_each(
    run: Run[Any],
    short_path: Path,
    peer_at: Any,
    Client: Any,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # FCGI-MPX
    monkeypatch.setattr("tetrapylon.adapters.fastcgi_multiplexing._ASK_S", 0.1)
    asked = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        application = Application(reader, writer)
        first = await application.next()
        if isinstance(first, GetValues):
            asked += 1
            if kind == "no":
                application.say(GetValuesResult({"FCGI_MPXS_CONNS": "0"}))
            elif kind == "garbage":
                application.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            elif kind == "resets":
                writer.transport.abort()
            elif kind == "silent":
                await application.until_closed()
            return
        assert isinstance(first, BeginRequest)
        while (await application.ask(Stdin)).data:
            pass
        application.answer(first.request_id, b"alone")

    async def main() -> None:
        async with peer_at(short_path, script) as peer, sharing(f"unix:{short_path}") as app:
            clients = [Client() for _ in range(5)]
            assert await both(app, *clients) == clients
            assert {client.content for client in clients} == {b"alone"}
            assert (asked, peer.connections) == (1, 6)

    run(main())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "does not multiplex" in caplog.text


def test_a_refused_request_is_sent_again(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any
) -> None:
    # FCGI-5.5-CANTMPX: nothing of it has run, whatever its method
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        application = Application(reader, writer)
        first = await application.next()
        if isinstance(first, GetValues):
            application.say(GetValuesResult(CAN))
            one = await application.begun()
            other = await application.begun()
            application.say(EndRequest(other, 0, ProtocolStatus.CANT_MPX_CONN))
            application.answer(one, b"first")
            return
        assert isinstance(first, BeginRequest)
        body = b""
        while data := (await application.ask(Stdin)).data:
            body += data
        application.answer(first.request_id, b"alone " + body)

    async def main() -> None:
        async with peer_at(short_path, script) as peer, sharing(f"unix:{short_path}") as app:
            first, second = Client(), Client([b"once"])
            one = asyncio.create_task(first.call(app))
            await peer.until(lambda: peer.connections == 1)
            await second.call(app, "POST")
            await one
            assert (first.content, second.content) == (b"first", b"alone once")

    run(main())


@pytest.mark.parametrize("said", [b"Status: 200 OK\nVariable-A: b\n\n", b"Status: 200\nX-A: "])
def test_a_refusal_behind_output_is_a_fault(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any, said: bytes
) -> None:
    # It has run: to send it again would do things twice, and join two answers to one. An
    # authorizer's permission would cover the refusal behind it.
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        application = Application(reader, writer)
        assert isinstance(await application.next(), GetValues)
        application.say(GetValuesResult(CAN))
        for _ in range(2):
            request_id = (await application.ask(Params)).request_id
            application.say(Stdout(request_id, said))
            application.say(EndRequest(request_id, 0, ProtocolStatus.CANT_MPX_CONN))
        await application.until_closed()

    async def main() -> None:
        async with peer_at(short_path, script) as peer, sharing(f"unix:{short_path}") as app:
            client = Client([b"once"])
            with pytest.raises((BadGateway, Truncated), match="CANT_MPX_CONN"):
                await client.call(app, "POST")
            assert not client.is_complete
            client = Client()
            with pytest.raises(BadGateway, match="CANT_MPX_CONN"):
                await FastCgiAuthorizer(app).authorize(client.scope(), client.receive, client.send)
            assert peer.connections == 1

    run(main())


def test_an_overloaded_application(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any
) -> None:
    # FCGI-5.5-OVERLOADED
    async def script(application: Application) -> None:
        one, other = await application.begun(), await application.begun()
        application.say(EndRequest(one, 0, ProtocolStatus.OVERLOADED))
        application.answer(other, b"fine")
        await application.until_closed()

    async def main() -> None:
        async with peer_at(short_path, speaking(script, **CAN)):
            async with sharing(f"unix:{short_path}") as app:
                outcomes = await both(app, Client(), Client())
        refused, answered = sorted(outcomes, key=lambda each: not isinstance(each, Exception))
        assert isinstance(refused, Unavailable)
        assert refused.retry_after_s == 1
        assert answered.content == b"fine"

    run(main())


def test_the_connection_breaks_under_several(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any
) -> None:
    # FCGI-TRUNC
    async def script(application: Application) -> None:
        begun, _ = await application.begun(), await application.begun()
        application.say(Stdout(begun, HEAD + b"half"))

    async def main() -> None:
        async with peer_at(short_path, speaking(script, **CAN)) as peer:
            async with sharing(f"unix:{short_path}") as app:
                outcomes = await both(app, Client(), Client())
                assert {type(each) for each in outcomes} <= {BadGateway, Truncated}
                assert peer.connections == 1

    run(main())


@pytest.mark.parametrize("kind", ["unknown id", "version", "after its end"])
def test_what_cannot_be_told_apart_is_nobodys(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any, kind: str
) -> None:
    # F4, FCGI-3.3-ID
    async def script(application: Application) -> None:
        one, _ = await application.begun(), await application.begun()
        if kind == "unknown id":
            application.write(bytes((1, 6, 0, 9, 0, 1, 0, 0)) + b"x")
        elif kind == "version":
            application.write(bytes((2, 6, 0, one, 0, 1, 0, 0)) + b"x")
        else:
            application.answer(one, b"ended")
            application.write(bytes((1, 6, 0, one, 0, 1, 0, 0)) + b"x")
        await application.until_closed()

    async def main() -> None:
        async with peer_at(short_path, speaking(script, **CAN)) as peer:
            async with sharing(f"unix:{short_path}") as app:
                outcomes = await both(app, Client(), Client())
                failed = [each for each in outcomes if isinstance(each, Exception)]
                assert len(failed) == (1 if kind == "after its end" else 2)
                assert all(isinstance(each, BadGateway) for each in failed)
                await peer.until(lambda: peer.closed == 1)

    run(main())


def test_what_may_be_closing_is_not_for_what_cannot_be_sent_again(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any
) -> None:
    # FCGI-3.1-RECONNECT
    closing = asyncio.Event()

    async def script(application: Application) -> None:
        application.answer(await application.begun(), b"one")
        await application.ask(BeginRequest)
        closing.set()

    async def main() -> None:
        async with peer_at(short_path, speaking(script, **CAN)) as peer:
            async with sharing(f"unix:{short_path}") as app:
                assert (await Client().call(app)).content == b"one"
                posted = await Client([b"x"]).call(app, "POST")
                assert posted.content == b"one"
                assert peer.connections == 2
                assert not closing.is_set()
                # This one is sent twice: the first time on a connection that ends.
                assert (await Client().call(app)).content == b"one"
                assert closing.is_set()

    run(main())


# Who does not take its answer


def test_a_slow_client_among_others_is_cut(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FCGI-FLOW, B7
    monkeypatch.setattr("tetrapylon.adapters.fastcgi_multiplexing.STALL_S", 0.2)
    aborted: list[int] = []

    async def script(application: Application) -> None:
        slow, quick = await application.begun(), await application.begun()
        application.say(Stdout(slow, HEAD))
        for _ in range(64):
            application.say(Stdout(slow, bytes(32 * 1024)))
        application.answer(quick, b"quick")
        aborted.append((await application.ask(AbortRequest)).request_id)
        application.say(EndRequest(slow))
        await application.until_closed()

    async def main() -> None:
        async with peer_at(short_path, speaking(script, **CAN)) as peer:
            async with sharing(f"unix:{short_path}") as app:
                slow, quick = Client(), Client()
                slow.may_read.clear()
                stuck = asyncio.create_task(slow.call(app))
                await peer.until(lambda: peer.connections == 1)
                await asyncio.sleep(0)
                await quick.call(app)
                assert quick.content == b"quick"
                slow.may_read.set()
                with pytest.raises(Truncated, match="too slow"):
                    await stuck
                assert aborted == [1]
                assert sum(len(m.get("body", b"")) for m in slow.messages) < SHARE_BYTES + 200_000

    run(main())


def test_a_slow_client_alone_has_all_its_time(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FCGI-FLOW
    monkeypatch.setattr("tetrapylon.adapters.fastcgi_multiplexing.STALL_S", 0.05)
    written = 0

    async def script(application: Application) -> None:
        nonlocal written
        request = await application.begun()
        application.say(Stdout(request, HEAD))
        for _ in range(256):
            application.say(Stdout(request, bytes(32 * 1024)))
            await application.drain()
            written += 32 * 1024
        application.say(EndRequest(request))
        await application.until_closed()

    async def main() -> None:
        async with peer_at(short_path, speaking(script, **CAN)):
            async with sharing(f"unix:{short_path}") as app:
                slow = Client()
                slow.may_read.clear()
                task = asyncio.create_task(slow.call(app))
                before = -1
                while before != written or not written:
                    before = written
                    await asyncio.sleep(0.1)
                assert written < 2 * SHARE_BYTES + 2_000_000, "it is not read on"
                slow.may_read.set()
                await task
                assert len(slow.content) == 256 * 32 * 1024

    run(main())


def test_an_id_is_taken_until_the_application_has_ended_it(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any
) -> None:
    # FCGI-3.3-ID-REUSE, FCGI-5.4-END
    async def script(application: Application) -> None:
        first = await application.begun()
        assert (await application.ask(AbortRequest)).request_id == first
        second = await application.begun()
        assert second != first
        application.say(Stdout(first, HEAD + b"too late"), EndRequest(first))
        application.answer(second, b"second")
        third = await application.begun()
        application.answer(third, b"%d" % third)
        await application.until_closed()

    async def main() -> None:
        async with peer_at(short_path, speaking(script, **CAN)) as peer:
            async with sharing(f"unix:{short_path}", first_byte_s=0.2) as app:
                with pytest.raises(GatewayTimeout):
                    await Client().call(app)
                # Nobody else is on the connection: a GET may find it closing, and is sent anew.
                assert (await Client().call(app)).content == b"second"
                assert (await Client().call(app)).content == b"1"
                assert peer.connections == 1

    run(main())


def test_a_record_that_was_begun_is_sent_to_its_end(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any
) -> None:
    # FCGI-3.3-TRUNC: who leaves in the middle of a large body leaves others their connection
    size = 40 * 1024 * 1024
    may_read = asyncio.Event()

    async def script(application: Application) -> None:
        large = (await application.ask(BeginRequest)).request_id
        await may_read.wait()
        received = 0
        while not isinstance(event := await application.next(), AbortRequest):
            received += len(event.data) if isinstance(event, Stdin) else 0
        assert event.request_id == large
        assert 0 < received < size
        small = await application.begun()
        application.say(EndRequest(large))
        application.answer(small, b"small")
        await application.until_closed()

    async def main() -> None:
        async with peer_at(short_path, speaking(script, **CAN)) as peer:
            async with sharing(f"unix:{short_path}") as app:
                leaving, staying = Client([bytes(size)]), Client()
                left = asyncio.create_task(leaving.call(app, "POST"))
                await peer.until(lambda: peer.connections == 1)
                (shared,) = await _until(lambda: app._multiplexer._shared)
                await _until(lambda: not shared.is_drained)
                leaving.exchange.depart()
                with pytest.raises(Exception, match="left"):
                    await left
                stayed = asyncio.create_task(staying.call(app))
                may_read.set()
                await stayed
                assert staying.content == b"small"
                assert peer.connections == 1

    run(main())


async def _until(condition: Callable[[], T]) -> T:
    while not (value := condition()):
        await asyncio.sleep(0.005)
    return value


def test_an_idle_connection_is_closed_in_time(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any
) -> None:
    async def script(application: Application) -> None:
        application.answer(await application.begun(), b"one")
        await application.until_closed()

    async def main() -> None:
        async with peer_at(short_path, speaking(script, **CAN)) as peer:
            async with sharing(f"unix:{short_path}", idle_s=0.05) as app:
                await Client().call(app)
                await peer.until(lambda: peer.closed == 1)

    run(main())


def test_a_name_that_leads_elsewhere_takes_the_requests_along(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_path = short_path.with_name("other")
    found = [Found(UnixAddress(str(short_path)))]

    async def look_up(_: object) -> tuple[Found, ...]:
        return tuple(found)

    monkeypatch.setattr("tetrapylon.adapters.lookups.look_up", look_up)

    def answering(content: bytes) -> Any:
        async def answer(application: Application) -> None:
            while not isinstance(event := await application.next(), ConnectionClosed):
                if isinstance(event, Stdin) and not event.data:
                    application.answer(event.request_id, content)

        return speaking(answer, **CAN)

    async def main() -> None:
        async with (
            peer_at(short_path, answering(b"old")) as old,
            peer_at(other_path, answering(b"new")),
            sharing("app.test:9000", resolve_s=0.01, idle_s=600.0) as app,
        ):
            assert (await Client().call(app)).content == b"old"
            found[:] = [Found(UnixAddress(str(other_path)))]
            async with asyncio.timeout(WITHIN_S):
                while (await Client().call(app)).content == b"old":
                    await asyncio.sleep(0.005)
            await old.until(lambda: old.closed == 1)

    run(main())


def test_an_answer_may_take_longer_than_the_one_about_multiplexing(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tetrapylon.adapters.fastcgi_multiplexing._ASK_S", 0.1)

    async def script(application: Application) -> None:
        request = await application.begun()
        await asyncio.sleep(0.3)
        application.answer(request, b"at last")
        await application.until_closed()

    async def main() -> None:
        async with peer_at(short_path, speaking(script, **CAN)):
            async with sharing(f"unix:{short_path}") as app:
                assert (await Client().call(app)).content == b"at last"

    run(main())


def test_nobody_there(run: Run[Any], short_path: Path, Client: Any) -> None:
    async def main() -> None:
        async with sharing(f"unix:{short_path}") as app:
            outcomes = await both(app, *(Client() for _ in range(10)))
            assert all(isinstance(each, BadGateway | Unavailable) for each in outcomes)

    run(main())


def test_parameters_that_do_not_fit_disturb_nobody(
    run: Run[Any], short_path: Path, peer_at: Any, Client: Any
) -> None:
    from tetrapylon.adapters.errors import FieldsTooLarge

    async def script(application: Application) -> None:
        request = await application.begun()
        application.answer(request, b"%d" % request)
        await application.until_closed()

    async def main() -> None:
        async with peer_at(short_path, speaking(script, **CAN)) as peer:
            async with sharing(f"unix:{short_path}") as app:
                with pytest.raises(FieldsTooLarge):
                    await Client().call(app, headers=[(b"x-long", b"x" * 70_000)])
                assert (await Client().call(app)).content == b"1"
                assert peer.connections == 1

    run(main())
