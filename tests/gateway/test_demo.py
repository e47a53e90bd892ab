"""The demonstration: four mirrors that answer alike, the page, the copy that a user edits."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

import tetrapylon.gateway.demo
from tetrapylon.gateway.config import Config, Endpoint
from tetrapylon.gateway.demo import copy_demo, demo_config, mirror_asgi, mirror_wsgi

FOLDER = Path(tetrapylon.gateway.demo.__file__).parent
PROTOCOLS = {"cgi": "CGI", "fastcgi": "FastCGI", "wsgi": "WSGI", "asgi": "ASGI"}
KEYS = [
    "protocol",
    "method",
    "script_name",
    "path_info",
    "query_string",
    "headers",
    "body_length",
    "body_sha256",
    "pid",
    "thread",
    "requests_served",
]
BY_NATURE = {"protocol", "script_name", "pid", "thread", "requests_served"}

gate = pytest.mark.parametrize("gate", PROTOCOLS)


@pytest.fixture(scope="module")
def demo(shared_gateway: Any) -> Any:
    """The demonstration as `tetrapylon demo` serves it, from where it is installed."""
    return shared_gateway(None, "demo", "--port", "0")


# The four mirrors behind the gateway


def test_four_mirrors_give_the_same_answer(demo: Any) -> None:
    body = bytes(range(256)) * 1000
    target = "/mirror?who=four+gates&x=%C3%A9&x=2"
    headers = {
        "Accept": "text/x-letter;q=0.5, */*",
        "Content-Type": "application/x-letter; charset=utf-8",
        "Cookie": "a=1; b=2",
        "X-Traveller": "caf\xe9",
    }
    answers = {}
    for prefix, protocol in PROTOCOLS.items():
        answer = demo.request("POST", f"/{prefix}{target}", body, headers)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        answers[prefix] = answer.json()
        assert list(answers[prefix]) == KEYS
        assert answers[prefix]["protocol"] == protocol
        assert answers[prefix]["script_name"] == f"/{prefix}"
    for answer in answers.values():
        assert answer["method"] == "POST"
        assert answer["path_info"] == "/mirror"
        assert answer["query_string"] == "who=four+gates&x=%C3%A9&x=2"
        assert answer["body_length"] == len(body)
        assert answer["body_sha256"] == hashlib.sha256(body).hexdigest()
        assert answer["headers"] == {
            "accept": "text/x-letter;q=0.5, */*",
            "accept-encoding": "identity",
            "content-length": str(len(body)),
            "content-type": "application/x-letter; charset=utf-8",
            "cookie": "a=1; b=2",
            "host": f"127.0.0.1:{demo.port}",
            "x-traveller": "caf\xe9",
        }
    pids = {prefix: answer["pid"] for prefix, answer in answers.items()}
    assert pids["wsgi"] == pids["asgi"] == demo.process.pid
    assert len(set(pids.values())) == 3


@gate
def test_repeated_fields_are_joined(demo: Any, gate: str) -> None:
    with contextlib.closing(demo.connect()) as connection:
        connection.putrequest("GET", f"/{gate}/mirror")
        for value in ("one", "two"):
            connection.putheader("X-Road", value)
        connection.endheaders()
        answer = json.loads(connection.getresponse().read())
    assert answer["headers"]["x-road"] == "one, two"
    assert answer["body_length"] == 0
    assert answer["body_sha256"] == hashlib.sha256().hexdigest()


@gate
def test_a_chunked_body_arrives_whole(demo: Any, gate: str) -> None:
    pieces = [os.urandom(100_000) for _ in range(30)]
    answer = demo.request("POST", f"/{gate}/mirror", iter(pieces), encode_chunked=True).json()
    assert answer["body_length"] == 3_000_000
    assert answer["body_sha256"] == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert "transfer-encoding" not in answer["headers"]


@gate
def test_requests_are_counted_once_each(demo: Any, gate: str) -> None:
    def ask(_: int) -> tuple[int, int]:
        answer = demo.get(f"/{gate}/mirror").json()
        return answer["pid"], answer["requests_served"]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(24)))
    if gate == "cgi":
        assert {count for _, count in answers} == {1}
        assert len({pid for pid, _ in answers}) == 24
    else:
        counts = sorted(count for _, count in answers)
        assert len({pid for pid, _ in answers}) == 1
        assert counts == list(range(counts[0], counts[0] + 24))


@gate
def test_about_not_found_and_not_allowed(demo: Any, gate: str) -> None:
    about = demo.get(f"/{gate}/")
    assert about.status == 200
    assert f" {PROTOCOLS[gate]} " in about.text
    assert demo.get(f"/{gate}/nothing").status == 404
    assert demo.get(f"/{gate}/mirror/below").status == 404
    refused = demo.request("PUT", f"/{gate}/mirror", b"x")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD, POST")
    refused = demo.request("POST", f"/{gate}/stream", b"x")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")


@gate
def test_head_has_no_body(demo: Any, gate: str) -> None:
    for page in ("", "mirror", "stream?bytes=1073741824", "clock", "nothing"):
        answer = demo.request("HEAD", f"/{gate}/{page}")
        assert answer.status == (404 if page == "nothing" else 200)
        assert answer.body == b""
    assert demo.request("HEAD", f"/{gate}/stream?bytes=77").headers["Content-Length"] == "77"


@gate
def test_stream_sends_as_many_bytes_as_asked_for(demo: Any, gate: str) -> None:
    for length, chunk in ((0, 1), (1, 1), (1000, 7), (10_000_001, 100_000)):
        answer = demo.get(f"/{gate}/stream?bytes={length}&chunk={chunk}")
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(length)
        assert answer.body == bytes(length)


@gate
@pytest.mark.parametrize(
    "query", ["bytes=-1", "bytes=x", "bytes=1_0", "bytes=%D9%A3", "bytes=1" + "0" * 30, "chunk=0"]
)
def test_stream_refuses_what_is_no_number(demo: Any, gate: str, query: str) -> None:
    answer = demo.get(f"/{gate}/stream?{query}")
    assert answer.status == 400
    assert "must be a number" in answer.text


@gate
def test_clock_ticks_until_the_client_leaves(demo: Any, gate: str) -> None:
    before = len(processes_of(demo))
    with contextlib.closing(demo.connect()) as connection:
        connection.request("GET", f"/{gate}/clock")
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "text/event-stream"
        for _ in range(2):
            assert response.readline().startswith(b"data: 20")
            assert response.readline() == b"\n"
        if gate == "cgi":
            assert len(processes_of(demo)) == before + 1
        response.close()
    if gate == "cgi":
        gone = threading.Event()
        for _ in range(500):
            if len(processes_of(demo)) == before:
                gone.set()
                break
            gone.wait(0.01)
        assert gone.is_set()
    assert demo.get(f"/{gate}/mirror").status == 200


def processes_of(demo: Any) -> list[str]:
    """Return the pids of the mirrors' own processes below the gateway."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"mirror_cgi.py" in (entry / "cmdline").read_bytes():
                environ = (entry / "environ").read_bytes()
                if f"SERVER_PORT={demo.port}".encode() in environ:
                    found.append(entry.name)
    return found


# The page


class Page(HTMLParser):
    """What a page refers to, and what its controls are called."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.labelled = 0
        self._open_labels = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._open_labels += tag == "label"
        if tag in ("input", "select", "textarea"):
            self.labelled += self._open_labels > 0
            assert self._open_labels, "a control without a label"

    def handle_endtag(self, tag: str) -> None:
        self._open_labels -= tag == "label"


def test_page_is_self_contained_and_its_links_lead_somewhere(demo: Any) -> None:
    answer = demo.get("/")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    page = Page(answer.text)
    assert page.labelled == 4
    assert ("html", "lang", "en") in page.attributes
    assert not [found for found in page.attributes if found[1] in ("src", "srcset", "action")]
    assert "@import" not in answer.text
    assert "url(" not in answer.text
    links = [value for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert len(links) == 16
    for link in links:
        assert demo.request("HEAD", f"/{link}").status == 200
    icons = [value for tag, name, value in page.attributes if tag == "link" and name == "href"]
    assert [icon.partition(":")[0] for icon in icons] == ["data"]


@pytest.mark.parametrize("path", ["/mirror_cgi.py", "/tetrapylon.toml", "/__init__.py", "/site/"])
def test_only_the_page_is_served_from_the_folder(demo: Any, path: str) -> None:
    assert demo.get(path).status == 404


# Configuration and copy


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, Endpoint("127.0.0.1", 8000)),
        ({"host": "::1", "port": 0}, Endpoint("::1", 0)),
        ({"host": "localhost", "port": 80}, Endpoint("localhost", 80)),
    ],
)
def test_config_listens_where_it_is_told(arguments: dict[str, Any], expected: Endpoint) -> None:
    config = demo_config(**arguments)
    assert isinstance(config, Config)
    assert config.listen.bind == (expected,)
    paths = [route.path.strip("/") for route in config.routes]
    assert paths == [*PROTOCOLS, ""]


def test_config_on_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (endpoint,) = demo_config(unix="mirror.sock").listen.bind
    assert str(endpoint) == f"unix:{tmp_path / 'mirror.sock'}"


def test_copy_can_be_served_and_edited(gateway: Any, tmp_path: Path) -> None:
    configuration = copy_demo(tmp_path / "my" / "house")
    tables = tomllib.loads(configuration.read_text())
    assert tables["backends"]["fastcgi"]["spawn"][0] == sys.executable
    text = configuration.read_text().replace("127.0.0.1:8000", "127.0.0.1:0")
    configuration.write_text(text)
    mirror = configuration.with_name("mirror_wsgi.py")
    mirror.write_text(mirror.read_text().replace('"protocol": "WSGI"', '"protocol": "edited"'))
    running = gateway(configuration)
    seen = [running.get(f"/{prefix}/mirror").json()["protocol"] for prefix in PROTOCOLS]
    assert seen == ["CGI", "FastCGI", "edited", "ASGI"]
    assert running.get("/").body == (FOLDER / "site" / "index.html").read_bytes()


def test_copy_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "mirror_asgi.py").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mirror_asgi\.py"):
        copy_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mirror_asgi.py"]


# Each mirror by itself, without the gateway


def test_cgi_script_needs_the_standard_library_alone(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-I", "-S", FOLDER / "mirror_cgi.py"],
        input=b"hello and more",
        env={"REQUEST_METHOD": "POST", "PATH_INFO": "/mirror", "CONTENT_LENGTH": "5"},
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )
    head, _, body = finished.stdout.partition(b"\n\n")
    assert head == b"Status: 200 OK\nContent-Type: application/json"
    assert json.loads(body)["body_sha256"] == hashlib.sha256(b"hello").hexdigest()
    assert finished.stderr == b""


@pytest.mark.parametrize("path_info", ["/mirror", "/", "/stream", "/clock", "/nothing"])
def test_wsgi_mirror_obeys_the_standard(path_info: str) -> None:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "/house",
        "PATH_INFO": path_info,
        "QUERY_STRING": "bytes=3",
        "wsgi.input": BytesIO(),
    }
    setup_testing_defaults(environ)
    statuses = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        statuses.append(status)
        return lambda data: None

    result = validator(mirror_wsgi.application)(environ, start_response)
    with contextlib.closing(result):  # type: ignore[type-var]
        assert next(iter(result))
    assert statuses == ["404 Not Found" if path_info == "/nothing" else "200 OK"]


def test_asgi_clock_ends_when_the_client_leaves() -> None:
    async def run() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        left = asyncio.Event()
        messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> Any:
            for message in messages:
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                left.set()

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/house/clock",
            "root_path": "/house",
            "query_string": b"",
            "headers": [],
        }
        await asyncio.wait_for(mirror_asgi.application(scope, receive, send), 5)
        return sent

    start, event, end = asyncio.run(run())
    assert start["status"] == 200
    assert event["body"].startswith(b"data: ")
    assert end == {"type": "http.response.body", "body": b""}
