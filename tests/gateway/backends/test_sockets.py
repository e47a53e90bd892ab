"""SCGI and uwsgi backends: from the configuration to what goes over the socket."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.adapters.errors import GatewayTimeout, LocalRedirect
from tetrapylon.gateway.assembly import assemble
from tetrapylon.gateway.backends.sockets import ScgiBackend, UwsgiBackend
from tetrapylon.gateway.config import Config
from tetrapylon.protocols.cgi.request import NEED_DATA, RequestHead
from tetrapylon.protocols.scgi import ScgiRequestDecoder
from tetrapylon.protocols.uwsgi import UwsgiRequestDecoder

pytestmark = pytest.mark.anyio

ANSWER = b"Status: 200 OK\r\nContent-Type: text/plain\r\n\r\nhello"


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """A path short enough for a unix socket."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory, "peer")


class Server:
    """Reads a request head a connection, and answers."""

    def __init__(self, decoder: type[Any], answer: bytes | None) -> None:
        self.decoder = decoder
        self.answer = answer
        self.decoders: list[Any] = []
        self.heads: list[RequestHead] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = self.decoder()
        self.decoders.append(decoder)
        while (event := decoder.next_event()) is NEED_DATA:
            decoder.receive_data(await reader.read(65536))
        self.heads.append(event)
        if self.answer is None:
            await reader.read()
        else:
            writer.write(self.answer)
        writer.close()


def backend_of(table: dict[str, Any], **tables: Any) -> Any:
    config = Config.from_dict(
        {"backends": {"b": table}, "routes": [{"path": "/app/", "backend": "b"}], **tables}
    )
    assert config.routes[0].mount
    return assemble(config).backends["b"]


@pytest.mark.parametrize(
    ("kind", "cls", "decoder"),
    [("scgi", ScgiBackend, ScgiRequestDecoder), ("uwsgi", UwsgiBackend, UwsgiRequestDecoder)],
)
async def test_every_key_has_its_effect(
    socket_path: Path, ask: Any, kind: str, cls: type[Any], decoder: type[Any]
) -> None:
    address = f"unix:{socket_path}"
    server = Server(decoder, ANSWER)
    async with await asyncio.start_unix_server(server.connected, socket_path):
        defaults = {kind: {"params": {"A": "1", "B": "1"}, "pass_auth": False}}
        backend = backend_of({kind: address, "params": {"B": "2"}, "body": "1KiB"}, **defaults)
        assert type(backend) is cls
        assert (backend.kind, backend.name, backend.body_limit_bytes) == (kind, "b", 1024)
        assert backend.local_redirects > 0
        assert address in backend.describe()
        async with backend:
            secret = [(b"authorization", b"Basic x")]
            answer = await ask(backend, "/app/x", root_path="/app", headers=secret, body=[b""])
        assert (answer.status, answer.body) == (200, b"hello")
        variables = server.heads[0].variables
        assert (variables["A"], variables["B"]) == ("1", "2")
        assert (variables["SCRIPT_NAME"], variables["PATH_INFO"]) == ("/app", "/x")
        assert "HTTP_AUTHORIZATION" not in variables

        if kind == "uwsgi":
            async with backend_of({kind: address, "modifier1": 14, "modifier2": 3}) as backend:
                await ask(backend, "/", body=[b""])
            assert (server.decoders[-1].modifier1, server.decoders[-1].modifier2) == (14, 3)

        server.answer = b"Location: /elsewhere\n\n"
        async with backend_of({kind: address}) as backend:
            with pytest.raises(LocalRedirect):
                await ask(backend, "/", body=[b""])

        server.answer = None
        async with backend_of({kind: address, "first_byte": "100ms"}) as backend:
            with pytest.raises(GatewayTimeout, match=r"^b: no output in time"):
                await ask(backend, "/", body=[b""])


async def test_scripts(socket_path: Path, ask: Any, tmp_path: Path) -> None:
    (tmp_path / "start.cgi").touch()
    server = Server(UwsgiRequestDecoder, ANSWER)
    table = {
        "uwsgi": f"unix:{socket_path}",
        "root": str(tmp_path),
        "index": "start.cgi",
        "split": ".cgi",
    }
    async with await asyncio.start_unix_server(server.connected, socket_path):
        async with backend_of(table) as backend:
            await ask(backend, "/app/", root_path="/app", body=[b""])
    assert server.heads[0].variables["SCRIPT_FILENAME"] == str(tmp_path / "start.cgi")
    assert server.heads[0].variables["SCRIPT_NAME"] == "/app/start.cgi"
    assert backend.describe().endswith(f", scripts in {tmp_path}")
