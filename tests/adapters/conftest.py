"""One request sent straight to an ASGI application, and peers that follow a script."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.protocols.asgi import GATEWAY_EXTENSION, Message, Scope

WITHIN_S = 10.0


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A path short enough for a unix socket."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory, "peer")


class Exchange:
    """What our own connection driver shows; here the test is the client."""

    def __init__(self) -> None:
        self.is_departed = False
        self.on_departure: Callable[[], None] | None = None

    def depart(self) -> None:
        self.is_departed = True
        if self.on_departure is not None:
            self.on_departure()


@dataclass
class Client:
    """One request. Without ``exchange`` it comes as from another server than ours."""

    body: list[bytes] = field(default_factory=lambda: [b""])
    exchange: Exchange | None = field(default_factory=Exchange)
    messages: list[Message] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    may_read: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_read.set()

    def scope(self, method: str = "GET", path: str = "/", query: str = "", **more: Any) -> Scope:
        headers = [(b"host", b"example.com"), *more.pop("headers", [])]
        length = sum(map(len, self.body))
        if length:
            headers.append((b"content-length", str(length).encode()))
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50000),
            "scheme": "http",
            "method": method,
            "root_path": "",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": headers,
            "extensions": {GATEWAY_EXTENSION: self.exchange} if self.exchange else {},
            **more,
        }

    async def receive(self) -> Message:
        if self.body:
            data = self.body.pop(0)
            return {"type": "http.request", "body": data, "more_body": bool(self.body)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.may_read.wait()
        self.messages.append(message)
        self.started.set()

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self.messages[0]["headers"]

    @property
    def content(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def is_complete(self) -> bool:
        return len(self.messages) > 1 and not self.messages[-1].get("more_body", False)

    async def call(self, app: Any, method: str = "GET", path: str = "/", **more: Any) -> Client:
        await app(self.scope(method, path, **more), self.receive, self.send)
        return self

    def leave(self) -> None:
        self.gone.set()
        if self.exchange is not None:
            self.exchange.depart()


@pytest.fixture(name="Client")
def _client() -> type[Client]:
    return Client


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """What a scripted peer saw."""

    def __init__(self) -> None:
        self.connections = 0
        self.closed = 0
        self.changed = asyncio.Event()
        self.failures: list[BaseException] = []

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def peer_at(path: Path, script: Script) -> AsyncIterator[Peer]:
    """Run a server whose connections each follow `script`; it closes them at its end."""
    peer = Peer()
    tasks = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        peer.connections += 1
        peer.changed.set()
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        except BaseException as error:
            peer.failures.append(error)
        finally:
            writer.close()
            tasks.discard(task)
            peer.closed += 1
            peer.changed.set()

    server = await asyncio.start_unix_server(connected, path)
    try:
        yield peer
    finally:
        server.close()
        for task in [*tasks]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for failure in peer.failures:
            raise failure


@pytest.fixture(name="peer_at")
def _peer_at() -> Callable[[Path, Script], contextlib.AbstractAsyncContextManager[Peer]]:
    return peer_at
