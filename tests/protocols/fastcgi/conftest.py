"""Golden vectors: bytes written by hand from the specification, and the events they mean.

A `.vector` file has lines of hexadecimal bytes and "quoted text", then `= event`
lines in order, and at last perhaps `! pattern` of the error. Before the bytes:
`receiver SIDE`; `begun ID…`, requests that the receiving client has begun;
`requests N`, how many may be active; `closed`, the peer closes after the bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.protocols import fastcgi
from tetrapylon.protocols.fastcgi import BeginRequest, Connection, Params, Side

VECTORS = Path(__file__).parent / "vectors"
NAMES = {name: getattr(fastcgi, name) for name in fastcgi.__all__}


@dataclass
class Vector:
    name: str
    receiver: Side = Side.CLIENT
    requests: int = 1
    begun: list[int] = field(default_factory=list)
    is_closed: bool = False
    data: bytes = b""
    events: list[Any] = field(default_factory=list)
    error: str | None = None

    def connection(self) -> Connection:
        """Return the receiver's connection, as far as the bytes find it."""
        connection = Connection(self.receiver, max_requests=self.requests)
        for request_id in self.begun:
            connection.send(BeginRequest(request_id))
            connection.send(Params(request_id, {}))
        return connection


def load(path: Path) -> Vector:
    vector = Vector(path.stem)
    for line in path.read_text(encoding="ascii").splitlines():
        word, _, rest = line.partition(" ")
        if not line or word == "#":
            continue
        if word == "receiver":
            vector.receiver = Side[rest]
        elif word == "requests":
            vector.requests = int(rest)
        elif word == "begun":
            vector.begun = [int(text) for text in rest.split()]
        elif word == "closed":
            vector.is_closed = True
        elif word == "=":
            vector.events.append(eval(rest, dict(NAMES)))
        elif word == "!":
            vector.error = rest
        else:
            for token in re.findall(r'"[^"]*"|\S+', line):
                vector.data += token[1:-1].encode() if token[0] == '"' else bytes.fromhex(token)
    return vector


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "vector" in metafunc.fixturenames:
        vectors = [load(path) for path in sorted(VECTORS.glob("*.vector"))]
        metafunc.parametrize("vector", vectors, ids=lambda vector: vector.name)
