"""Connections to one application: which are kept, for how long, and how many."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from tetrapylon.adapters.byte_stream import TcpAddress
from tetrapylon.adapters.connections import Connections

WITHIN_S = 10.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def connections_to(listener: socket.socket, *, limit: int = 2, idle_s: float = 60.0) -> Connections:
    return Connections(
        TcpAddress(*listener.getsockname()),
        limit=limit,
        queue=0,
        queue_wait_s=0.0,
        connect_s=WITHIN_S,
        idle_s=idle_s,
        name="app",
    )


async def until_closed(accepted: socket.socket) -> None:
    accepted.setblocking(False)
    read = asyncio.get_running_loop().sock_recv(accepted, 1)
    assert await asyncio.wait_for(read, WITHIN_S) == b""


def test_the_last_one_kept_is_taken_first(listener: socket.socket) -> None:
    async def main() -> None:
        connections = connections_to(listener)
        first, second = await connections.open(), await connections.open()
        connections.keep(first)
        connections.keep(second)
        assert connections.take() is second
        assert connections.take() is first
        assert connections.take() is None
        first.close()
        second.close()

    asyncio.run(main())


def test_one_that_the_application_closes_is_not_taken(listener: socket.socket) -> None:
    async def main() -> None:
        connections = connections_to(listener)
        stream = await connections.open()
        accepted, _ = listener.accept()
        connections.keep(stream)
        accepted.close()
        assert connections.take() is None
        assert stream.is_closed
        connections.close()

    asyncio.run(main())


@pytest.mark.parametrize("idle_s", [0.0, 0.02])
def test_one_that_nobody_takes_is_closed_in_time(listener: socket.socket, idle_s: float) -> None:
    async def main() -> None:
        connections = connections_to(listener, idle_s=idle_s)
        stream = await connections.open()
        accepted, _ = listener.accept()
        connections.keep(stream)
        with accepted:
            await until_closed(accepted)
        assert stream.is_closed
        connections.close()

    asyncio.run(main())


def test_kept_ones_count(listener: socket.socket) -> None:
    async def main() -> None:
        connections = connections_to(listener, limit=2)
        async with connections.slots:
            oldest, other = await connections.open(), await connections.open()
            connections.keep(oldest)
            connections.keep(other)
            fresh = await connections.open()
            assert oldest.is_closed
            assert not other.is_closed
            fresh.close()
        connections.close()
        assert other.is_closed

    asyncio.run(main())
