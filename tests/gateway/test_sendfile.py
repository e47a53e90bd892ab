"""X-Sendfile and X-Accel-Redirect: files of configured folders, from every kind of backend. D6"""

import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tetrapylon.adapters.errors import BadGateway, NotFound
from tetrapylon.gateway.sendfile import SentFiles

GATES = ("cgi", "fastcgi", "wsgi", "asgi")
PAGE = b"0123456789" * 1000

# Each answers with the fields that the query gives, a line for each, and a body of its own.
SCRIPT = """\
#!{python}
import os, sys
from urllib.parse import unquote_to_bytes
sys.stdout.buffer.write(unquote_to_bytes(os.environ["QUERY_STRING"]) + b"\\n\\nnot this")
"""
APPLICATIONS = """\
from urllib.parse import unquote

def fields_of(query):
    lines = unquote(query, "latin-1").split("\\n")
    return [tuple(line.split(": ", 1)) for line in lines]

def wsgi(environ, start_response):
    fields = fields_of(environ["QUERY_STRING"])
    status = dict(fields).pop("Status", "200 OK")
    start_response(status, [field for field in fields if field[0] != "Status"])
    return [b"not ", b"this"]

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        fields = fields_of(scope["query_string"].decode())
        status = int(dict(fields).get("Status", "200")[:3])
        headers = [(n.encode(), v.encode("latin-1")) for n, v in fields if n != "Status"]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"not ", "more_body": True})
        await send({"type": "http.response.body", "body": b"this"})

if __name__ == "__main__":
    from flup.server.fcgi import WSGIServer
    WSGIServer(wsgi).run()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sendfile")
    for name in ("files/sub", "outside", "app"):
        (folder / name).mkdir(parents=True)
    (folder / "files/page.txt").write_bytes(PAGE)
    (folder / "files/sub/50% of ü.pdf").write_bytes(b"%PDF")
    (folder / "files/empty.bin").touch()
    (folder / "outside/secret").write_text("secret")
    (folder / "files/link-in").symlink_to("page.txt")
    (folder / "files/link-out").symlink_to("../outside/secret")
    (folder / "files/fifo").parent.mkdir(exist_ok=True)
    os.mkfifo(folder / "files/fifo")
    script = folder / "app/script"
    script.write_text(SCRIPT.format(python=sys.executable))
    script.chmod(0o755)
    (folder / "app/apps.py").write_text(APPLICATIONS)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path, shared_gateway: Any) -> Any:
    file = folder / "app/tetrapylon.toml"
    file.write_text(f"""
[listen]
bind = "127.0.0.1:0"
[static]
sendfile_roots = ["../files"]
accel = {{ "/protected" = "../files", "/protected/deep/" = "../files/sub" }}
mime = {{ ".txt" = "text/x-test" }}
[[routes]]
path = "/cgi"
backend = {{ cgi = "script" }}
[[routes]]
path = "/fastcgi"
backend = {{ spawn = [{sys.executable!r}, "apps.py"] }}
[[routes]]
path = "/wsgi"
backend = {{ wsgi = "apps:wsgi" }}
[[routes]]
path = "/asgi"
backend = {{ asgi = "apps:asgi" }}
""")
    return shared_gateway(file)


@pytest.fixture
def ask(served: Any) -> Any:
    def ask(gate: str, *fields: str, method: str = "GET", **headers: str) -> Any:
        query = quote("\n".join(fields).encode())
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return served.request(method, f"/{gate}?{query}", headers=named)

    return ask


@pytest.mark.parametrize("gate", GATES)
def test_the_file_is_sent_with_the_fields_of_the_backend(ask, folder, gate) -> None:
    answer = ask(
        gate,
        "Content-Type: text/csv",
        'Content-Disposition: attachment; filename="a.csv"',
        "Set-Cookie: a=1",
        "Set-Cookie: b=2",
        "Cache-Control: private",
        "Content-Length: 8",
        'ETag: "of-the-body"',
        f"X-Sendfile: {folder}/files/page.txt",
    )
    assert (answer.status, answer.body) == (200, PAGE)
    assert answer.headers.get_all("Content-Type") == ["text/csv"]
    assert answer.headers.get_all("Content-Length") == [str(len(PAGE))]
    assert answer.headers["Content-Disposition"] == 'attachment; filename="a.csv"'
    assert answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    assert answer.headers["Cache-Control"] == "private"
    assert answer.headers["Accept-Ranges"] == "bytes"
    (etag,) = answer.headers.get_all("ETag")
    assert etag != '"of-the-body"'
    assert "X-Sendfile" not in answer.headers


@pytest.mark.parametrize("gate", GATES)
def test_a_length_beside_it_is_that_of_the_file(ask, folder, gate) -> None:
    """As PHP scripts and Flask write it."""
    file = folder / "files/page.txt"
    length = f"Content-Length: {file.stat().st_size}"
    for _ in range(2):
        answer = ask(gate, "Content-Type: text/csv", length, f"X-Sendfile: {file}")
        assert (answer.status, answer.body) == (200, PAGE)
        assert answer.headers.get_all("Content-Length") == [str(len(PAGE))]


@pytest.mark.parametrize("gate", ["cgi", "fastcgi"])
def test_it_may_be_the_only_field(ask, folder, gate) -> None:
    answer = ask(gate, f"X-Sendfile: {folder}/files/page.txt")
    assert (answer.status, answer.body) == (200, PAGE)
    assert answer.headers["Content-Type"] == "text/x-test"


@pytest.mark.parametrize("gate", GATES)
def test_ranges_preconditions_and_head_are_the_file_s(ask, folder, gate) -> None:
    fields = ("Content-Type: text/plain", f"X-Sendfile: {folder}/files/page.txt")
    part = ask(gate, *fields, Range="bytes=10-19")
    assert (part.status, part.body) == (206, PAGE[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(PAGE)}"
    assert ask(gate, *fields, Range="bytes=99999-").status == 416
    known = ask(gate, *fields, "Set-Cookie: seen=1", If_None_Match=part.headers["ETag"])
    assert (known.status, known.body) == (304, b"")
    assert known.headers["Set-Cookie"] == "seen=1"
    head = ask(gate, *fields, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(PAGE))
    posted = ask(gate, *fields, method="POST", Range="bytes=10-19")
    assert (posted.status, posted.body) == (200, PAGE)


@pytest.mark.parametrize("gate", GATES)
def test_another_status_has_the_whole_file(ask, folder, gate) -> None:
    fields = ("Status: 403 Forbidden", "Content-Type: text/html")
    answer = ask(gate, *fields, f"X-Sendfile: {folder}/files/page.txt", Range="bytes=0-1")
    assert (answer.status, answer.body) == (403, PAGE)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/protected/page.txt", PAGE),
        ("/protected/page.txt?query=1", PAGE),
        ("/protected/link-in", PAGE),
        ("/protected/empty.bin", b""),
        ("/protected/sub/50%25%20of%20%C3%BC.pdf", b"%PDF"),
        ("/protected/deep/50%25%20of%20%C3%BC.pdf", b"%PDF"),
    ],
)
def test_accel_maps_paths_to_folders(ask, path, body) -> None:
    for gate in ("cgi", "wsgi"):
        answer = ask(gate, "Content-Type: text/plain", f"X-Accel-Redirect: {path}")
        assert (answer.status, answer.body) == (200, body)
        assert "X-Accel-Redirect" not in answer.headers


@pytest.mark.parametrize("name", ["50% of ü.pdf", "50%25%20of%20%C3%BC.pdf"])
def test_the_name_may_be_encoded(ask, folder, name) -> None:
    answer = ask("cgi", "Content-Type: a/b", f"X-Sendfile: {folder}/files/sub/{name}")
    assert answer.body == b"%PDF"


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    "value",
    [
        "X-Sendfile: /etc/passwd",
        "X-Sendfile: {folder}/files/../outside/secret",
        "X-Sendfile: {folder}/files/%2e%2e/outside/secret",
        "X-Sendfile: {folder}/files/link-out",
        "X-Sendfile: {folder}/files-not/x",
        "X-Sendfile: {folder}/files",
        "X-Sendfile: {folder}/files/",
        "X-Sendfile: {folder}/files/sub",
        "X-Sendfile: {folder}/files/fifo",
        "X-Sendfile: page.txt",
        "X-Sendfile: ",
        "X-Sendfile: /protected/page.txt",
        "X-Accel-Redirect: {folder}/files/page.txt",
        "X-Accel-Redirect: /protected/../outside/secret",
        "X-Accel-Redirect: /protected/%2e%2e/outside/secret",
        "X-Accel-Redirect: /protected/link-out",
        "X-Accel-Redirect: /protectedpage.txt",
        "X-Accel-Redirect: /wsgi",
        "X-Sendfile: {folder}/files/page.txt\nX-Accel-Redirect: /protected/page.txt",
    ],
)
def test_nothing_else_is_sent(ask, folder, gate, value) -> None:  # D6
    answer = ask(gate, "Content-Type: text/plain", value.format(folder=folder))
    assert answer.status == 502
    assert b"secret" not in answer.body
    assert "X-Sendfile" not in answer.headers
    assert "X-Accel-Redirect" not in answer.headers


@pytest.mark.parametrize("gate", GATES)
def test_a_file_that_is_not_there(ask, folder, gate) -> None:
    answer = ask(gate, "Content-Type: text/plain", f"X-Sendfile: {folder}/files/none")
    assert answer.status == 404


def test_the_log_says_why(ask, served) -> None:
    ask("wsgi", "X-Sendfile: /etc/passwd")
    assert served.has_logged("'/etc/passwd' is in no folder that files may be sent from")


# The folders by themselves


@pytest.fixture
def files(folder: Path) -> SentFiles:
    return SentFiles([f"{folder}/files/"], {"/": f"{folder}/files"}, ranges=16, symlinks="never")


def test_links_are_followed_as_configured(files, folder) -> None:
    with pytest.raises(BadGateway, match="may not be sent"):
        files.open([(b"X-SENDFILE", f"{folder}/files/link-in".encode())])
    with pytest.raises(NotFound):
        files.open([(b"x-accel-redirect", b"/none")])
    files.open([(b"x-accel-redirect", b"/page.txt")]).close()


def test_a_nul_is_not_taken_apart(files) -> None:
    with pytest.raises(NotFound):
        files.open([(b"x-accel-redirect", b"/page.txt%00.pdf")])
