"""nginx in front of the gateway, and behind its `proxy` backend.

One gateway serves applications and files; nginx passes everything on to it, over
TCP and over a unix socket; and a second gateway passes everything on to nginx. So
each test runs with one foreign peer before the gateway, or on both sides of it.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import random
import re
import subprocess
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

MIB = 1 << 20
LARGE = 200 * MIB

# nginx's own temporary files would go where only root may write.
NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log info;
worker_processes 1;
{user}
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    client_max_body_size 0;
    upstream gateway {{
        server {upstream};
        keepalive 8;
    }}
    server {{
        listen {address};
        add_header X-Requests-Of-Connection $connection_requests always;
        location / {{
            proxy_pass http://gateway;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_request_buffering off;
            proxy_buffering off;
        }}
        # As most people have it: HTTP/1.0, a connection for each request, buffers.
        location /old/ {{ proxy_pass http://gateway/; }}
        location /files/ {{ alias {folder}/public/; }}
    }}
}}
"""
APPLICATION = """
import asyncio, hashlib, json

async def application(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    if scope["path"].endswith("/slowly"):
        return await slowly(send)
    digest, length, more = hashlib.sha256(), 0, True
    while more:
        message = await receive()
        piece, more = message.get("body", b""), message.get("more_body", False)
        digest.update(piece)
        length += len(piece)
    fields = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
    answer = {
        "method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode(),
        "http_version": scope["http_version"], "fields": fields, "client": scope["client"],
        "length": length, "sha256": digest.hexdigest(),
    }
    body = json.dumps(answer).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [
        (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
        (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]})
    await send({"type": "http.response.body", "body": body})

async def slowly(send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(5):
        await send({"type": "http.response.body", "body": b"%d\\n" % number, "more_body": True})
        await asyncio.sleep(0.2)
    await send({"type": "http.response.body"})
"""
BEHIND = """
[listen]
bind = ["127.0.0.1:0", "unix:{folder}/gateway.sock"]
[limits]
body = "1GiB"
[[routes]]
path = "/"
backend = {{ asgi = "peer_application:application" }}
[[routes]]
path = "/static/"
backend = {{ static = "public" }}
"""
BEFORE = """
[listen]
bind = ["127.0.0.1:0"]
[[routes]]
path = "/"
backend = {{ proxy = "{address}", body = "1GiB" }}
"""


class Peer:
    """An HTTP server by its address, asked over one kept connection."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._connection = HTTPConnection(address, timeout=30)

    def close(self) -> None:
        self._connection.close()

    def begin(
        self, method: str, path: str, body: Any = None, chunked: bool = False, **fields: str
    ) -> HTTPResponse:
        """Send a request; the caller reads the response to its end or closes the connection."""
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        self._connection.request(method, path, body, headers, encode_chunked=chunked)
        return self._connection.getresponse()

    def ask(self, method: str, path: str, **more: Any) -> tuple[int, HTTPMessage, bytes]:
        response = self.begin(method, path, **more)
        return response.status, response.headers, response.read()


@pytest.fixture
def behind(gateway: Any, tmp_path: Path) -> Any:
    """The gateway that nginx passes everything on to."""
    (tmp_path / "peer_application.py").write_text(APPLICATION)
    public = tmp_path / "public"
    public.mkdir()
    (public / "page.html").write_text("<p>a page</p>" * 1000)
    with (public / "large.bin").open("wb") as file:
        file.truncate(LARGE)
    (tmp_path / "behind.toml").write_text(BEHIND.format(folder=tmp_path))
    return gateway(tmp_path / "behind.toml")


@pytest.fixture
def start_nginx(
    find_program: Any, start_server: Any, free_address: Any, tmp_path: Path
) -> Callable[[str], str]:
    """Start nginx in front of an upstream; return nginx's address."""

    def start(upstream: str) -> str:
        program = find_program("nginx", package="nginx-light")
        address: str = free_address()
        text = NGINX.format(
            folder=tmp_path,
            # As root it would become one who may not read the test's folder.
            user=f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
            upstream=upstream,
            address=address,
        )
        (tmp_path / "nginx.conf").write_text(text)
        log = str(tmp_path / "nginx-error.log")
        start_server(program, "-c", str(tmp_path / "nginx.conf"), "-e", log, address=address)
        return address

    return start


@pytest.fixture(params=["nginx over TCP", "nginx over a unix socket", "gateway and nginx"])
def peer(
    request: pytest.FixtureRequest, behind: Any, start_nginx: Any, gateway: Any, tmp_path: Path
) -> Any:
    """What the client talks to: the way on to the gateway behind leads through nginx."""
    upstream = f"127.0.0.1:{behind.port}"
    if request.param == "nginx over a unix socket":
        upstream = f"unix:{tmp_path}/gateway.sock"
    address = start_nginx(upstream)
    if request.param == "gateway and nginx":
        (tmp_path / "before.toml").write_text(BEFORE.format(address=f"http://{address}"))
        address = f"127.0.0.1:{gateway(tmp_path / 'before.toml').port}"
    with contextlib.closing(Peer(address)) as asked:
        yield asked


def test_requests_arrive_as_they_are_over_kept_connections(peer: Peer) -> None:
    seen = set()
    for number in range(50):
        path = f"/caf%C3%A9/{number}/a%20b?x=%2F&y"
        # Only what may be sent again goes over a connection that others have used.
        method = "GET" if number else "DELETE"
        status, fields, body = peer.ask(method, path, X_Traveller="a letter")
        assert status == 200
        assert fields.get_all("Set-Cookie") == ["a=1", "b=2"]
        answer = json.loads(body)
        assert answer["method"] == method
        assert answer["path"] == f"/caf\u00e9/{number}/a b"
        assert answer["query"] == "x=%2F&y"
        assert answer["http_version"] == "1.1"
        assert ["x-traveller", "a letter"] in answer["fields"]
        assert not {"connection", "keep-alive"} & {name for name, _ in answer["fields"]}
        seen.add(json.dumps(answer["client"]))
    # One connection from nginx to the gateway behind it, and one to nginx.
    assert len(seen) == 1
    assert fields["X-Requests-Of-Connection"] == "50"


@pytest.mark.parametrize("path", ["/upload", "/old/upload"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_uploads(peer: Peer, path: str, framing: str) -> None:
    block = random.Random(2).randbytes(MIB)
    size = 40 * MIB
    for _ in range(2):
        blocks = (block for _ in range(size // MIB))
        if framing == "chunks":
            status, _, body = peer.ask(
                "PUT", path, body=blocks, chunked=True, Transfer_Encoding="chunked"
            )
        else:
            status, _, body = peer.ask("PUT", path, body=blocks, Content_Length=str(size))
        assert status == 200
        answer = json.loads(body)
        assert answer["length"] == size
        assert answer["sha256"] == hashlib.sha256(block * (size // MIB)).hexdigest()
        assert answer["http_version"] == ("1.0" if path.startswith("/old/") else "1.1")


def test_many_at_once_lose_nothing(peer: Peer, find_program: Any) -> None:
    # Long enough that connections reach their last request (1000) many times.
    program = find_program("wrk", package="wrk")
    url = f"http://{peer.address}/application?x=1"
    command = [program, "-t1", "-c32", "-d4s", "--timeout", "10s", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "Socket errors" not in done.stdout, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout
    found = re.search(r"(\d+) requests in", done.stdout)
    assert found
    print(done.stdout)
    assert int(found[1]) > 1000


def test_head_conditional_requests_and_ranges(peer: Peer) -> None:
    page = b"<p>a page</p>" * 1000
    for path in ("/static/page.html", "/old/static/page.html", "/files/page.html"):
        status, fields, body = peer.ask("GET", path)
        assert (status, body) == (200, page)
        etag, modified = fields["ETag"], fields["Last-Modified"]
        status, fields, body = peer.ask("HEAD", path)
        assert (status, fields["Content-Length"], body) == (200, str(len(page)), b"")
        for condition in ({"If_None_Match": etag}, {"If_Modified_Since": modified}):
            for method in ("GET", "HEAD"):
                status, fields, body = peer.ask(method, path, **condition)
                assert (status, fields["ETag"], body) == (304, etag, b"")
        status, fields, body = peer.ask("GET", path, Range="bytes=13-25")
        assert (status, body) == (206, b"<p>a page</p>")
        assert fields["Content-Range"] == f"bytes 13-25/{len(page)}"
        assert peer.ask("GET", path, Range="bytes=99999-")[0] == 416
        assert peer.ask("GET", path.replace("page", "none"))[0] == 404
    # An application's head, without a body behind it.
    status, fields, body = peer.ask("HEAD", "/application")
    assert (status, fields["Content-Type"], body) == (200, "application/json", b"")
    assert int(fields["Content-Length"]) > 0


@pytest.mark.parametrize("path", ["/static/large.bin", "/old/static/large.bin", "/files/large.bin"])
def test_a_large_response(peer: Peer, path: str) -> None:
    zeros = bytes(MIB)
    response = peer.begin("GET", path)
    assert response.headers["Content-Length"] == str(LARGE)
    received = 0
    while piece := response.read(MIB):
        assert piece == zeros[: len(piece)]
        received += len(piece)
    assert received == LARGE
    assert peer.ask("GET", "/static/page.html")[0] == 200


def test_a_stream_comes_as_it_is_sent(peer: Peer) -> None:
    began = time.monotonic()
    response = peer.begin("GET", "/slowly")
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert response.readline() == b"0\n"
    assert time.monotonic() - began < 0.5  # the rest takes a second
    assert response.read() == b"1\n2\n3\n4\n"
    # HTTP/1.0 has no chunks: the stream ends with nginx's connection to the gateway.
    assert peer.ask("GET", "/old/slowly")[2] == b"0\n1\n2\n3\n4\n"


def sockets_of(pid: int) -> int:
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += os.readlink(descriptor).startswith("socket:")
    return count


def test_a_client_that_leaves(peer: Peer, behind: Any) -> None:
    # nginx keeps this connection to the gateway, and no other afterwards.
    assert peer.ask("GET", "/static/page.html")[0] == 200
    before = sockets_of(behind.process.pid)
    for path in ("/static/large.bin", "/old/static/large.bin", "/slowly"):
        for _ in range(10):
            response = peer.begin("GET", path)
            assert response.read(2)
            response.close()
            peer.close()
    deadline = time.monotonic() + 5
    while sockets_of(behind.process.pid) > before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert peer.ask("GET", "/static/page.html")[0] == 200


def test_the_gateway_behind_stops(peer: Peer, behind: Any) -> None:
    assert peer.ask("GET", "/static/page.html")[0] == 200
    began = time.monotonic()
    behind.stop()  # and checks that it ends well
    assert time.monotonic() - began < 5  # nginx's kept connections are no reason to wait
    assert peer.ask("GET", "/static/page.html")[0] == 502
    assert peer.ask("GET", "/files/page.html")[0] == 200
