"""The stream under an exchange: what is received after a failed write, deadlines, closing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from tetrapylon.adapters.byte_stream import ByteStream

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def test_what_came_before_a_failed_write_is_received(run: Run[Any], pair: Pair) -> None:
    ours, theirs = pair

    async def main() -> None:
        stream = ByteStream(ours)
        stream.send_some(b"never read")
        theirs.sendall(b"answer")
        theirs.close()
        with pytest.raises(OSError):
            for _ in range(3):
                stream.send_some(b"x" * 10)
        assert await stream.receive() == b"answer"
        assert await stream.receive() == b""
        stream.close()
        stream.close()
        assert stream.is_closed

    run(main())


def test_sending_waits_for_the_reader(run: Run[Any], pair: Pair) -> None:
    ours, theirs = pair

    async def main() -> None:
        stream = ByteStream(ours)
        sending = asyncio.create_task(stream.send(bytes(5_000_000)))
        received = 0
        while received < 5_000_000:
            received += len(await asyncio.to_thread(theirs.recv, 1_000_000))
        await sending
        stream.close()

    run(main())


def test_nothing_is_read_while_nobody_waits(run: Run[Any], pair: Pair) -> None:
    ours, theirs = pair

    async def main() -> None:
        stream = ByteStream(ours)
        theirs.sendall(b"one")
        assert await stream.receive() == b"one"
        theirs.sendall(b"two")
        for _ in range(10):
            await asyncio.sleep(0)
        theirs.sendall(b"three")
        assert await stream.receive() == b"twothree"
        stream.close()

    run(main())


def test_deadlines_move(run: Run[Any], pair: Pair) -> None:
    ours, theirs = pair

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stream = ByteStream(ours)
        stream.expect(100)
        theirs.sendall(b"x")
        await stream.receive()
        stream.expect(0.05)
        began_at = loop.time()
        with pytest.raises(TimeoutError):
            await stream.receive()
        assert 0.04 < loop.time() - began_at < 5
        stream.expect(0.05)
        began_at = loop.time()
        loop.call_later(0.03, stream.expect, 0.1)
        with pytest.raises(TimeoutError):
            await stream.receive()
        assert loop.time() - began_at > 0.12
        loop.call_soon(stream.fail, RuntimeError("given up"))
        stream.expect(100)
        with pytest.raises(RuntimeError, match="given up"):
            await stream.receive()
        stream.close()

    run(main())


def test_a_failure_is_told_to_whoever_receives(run: Run[Any], pair: Pair) -> None:
    ours, theirs = pair

    async def main() -> None:
        stream = ByteStream(ours)
        waiting = stream.receive()
        stream.fail(ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            await waiting
        theirs.sendall(b"too late")
        with pytest.raises(ValueError, match="no"):
            await stream.receive()
        stream.close()

    run(main())


def test_a_close_ends_who_waits(run: Run[Any], pair: Pair) -> None:
    ours, _ = pair

    async def main() -> None:
        stream = ByteStream(ours)
        asyncio.get_running_loop().call_soon(stream.close)
        with pytest.raises(ConnectionAbortedError):
            await stream.receive()

    run(main())


def test_watching_an_idle_stream(run: Run[Any], pair: Pair) -> None:
    ours, theirs = pair

    async def main() -> None:
        stream = ByteStream(ours)
        closed = asyncio.Event()
        stream.watch(lambda idle: closed.set() if idle is stream else None)
        assert stream.is_quiet()
        theirs.close()
        await closed.wait()
        assert not stream.is_quiet()
        stream.close()

    run(main())
