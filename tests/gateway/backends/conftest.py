"""Backends called as ASGI applications, as the connection driver calls them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_from_bytes

import pytest


class Exchange:
    """What adapters see of the gateway's exchange."""

    def __init__(self) -> None:
        self.on_departure: Callable[[], None] | None = None
        self.is_departed = False
        self.body_limit_bytes = 16 * 1024 * 1024
        self.backend = "-"

    def depart(self) -> None:
        self.is_departed = True
        callback, self.on_departure = self.on_departure, None
        if callback is not None:
            callback()


@dataclass
class Answer:
    """What was sent."""

    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        fields = self.messages[0]["headers"]
        assert len(dict(fields)) == len(fields), f"a field twice: {fields}"
        return dict(fields)

    @property
    def pieces(self) -> list[bytes]:
        assert all(message["type"] == "http.response.body" for message in self.messages[1:])
        return [message.get("body", b"") for message in self.messages[1:]]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def is_complete(self) -> bool:
        return len(self.messages) > 1 and not self.messages[-1].get("more_body", False)


Send = Callable[[Answer, dict[str, Any]], Awaitable[None]]


async def ask(
    backend: Any,
    path: str | bytes,
    *,
    method: str = "GET",
    host: bytes = b"example.com",
    headers: Iterable[tuple[bytes, bytes]] = (),
    query: bytes = b"",
    body: Iterable[bytes] = (),
    is_under_gateway: bool = True,
    exchange: Exchange | None = None,
    on_send: Send | None = None,
    **scope: Any,
) -> Answer:
    """Call the backend once; what it raises rises."""
    if isinstance(path, bytes):
        path = path.decode("utf-8", "surrogateescape")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "server": ("127.0.0.1", 8000),
        "client": ("192.0.2.7", 50000),
        "path": path,
        "raw_path": quote_from_bytes(path.encode("utf-8", "surrogateescape")).encode(),
        "root_path": "",
        "query_string": query,
        "headers": [(b"host", host), *headers],
        "extensions": {"tetrapylon": exchange or Exchange()} if is_under_gateway else {},
        **scope,
    }
    answer = Answer()
    pieces = list(body)

    async def receive() -> dict[str, Any]:
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        answer.messages.append(message)
        if on_send is not None:
            await on_send(answer, message)

    await backend(scope, receive, send)
    assert answer.is_complete
    return answer


@pytest.fixture(name="ask")
def _ask() -> Callable[..., Awaitable[Answer]]:
    return ask


@pytest.fixture
def exchange() -> Exchange:
    return Exchange()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
