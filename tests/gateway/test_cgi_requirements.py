"""RFC 3875 through a whole gateway: what a script is told, and what becomes of its answer.

Each case names the requirements that it shows; scripts are for any shell.
"""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from typing import Any

import pytest

TELLS = """\
#!/bin/sh
printf 'Content-Type: text/plain\\n\\n'
env
echo "argc=$#"
echo "cwd=$(pwd -P)"
echo "input=$(cat | od -An -tx1 | tr -d ' \\n')"
"""

# What a script writes, and the status, fields and body that come of it. Fields with None
# must not be there.
ANSWERS: dict[str, tuple[str, int, dict[str, str | None], bytes]] = {
    "CGI-6.2.1-200 CGI-6.3.1-KEEP": (
        "Content-Type: text/x-own; charset=koi8-r\\n\\n\\320\\320",
        200,
        {"Content-Type": "text/x-own; charset=koi8-r", "Status": None},
        b"\xd0\xd0",
    ),
    "CGI-6.2-NL CGI-6.3.4-TRANSLATE": (
        "content-type: text/plain\\r\\nX-A: 1\\nX-B: 2\\r\\n\\nbody\\r\\n",
        200,
        {"Content-Type": "text/plain", "X-A": "1", "X-B": "2"},
        b"body\r\n",
    ),
    "CGI-6.3.3": (
        "Status: 418 Short And Stout\\nContent-Type: text/plain\\n\\nteapot",
        418,
        {"Status": None},
        b"teapot",
    ),
    "CGI-6.2.3": (
        "Location: https://example.com/a#b\\n\\n",
        302,
        {"Location": "https://example.com/a#b"},
        b"",
    ),
    "CGI-6.2.4 CGI-6.2.4-ADAPT": (
        "Status: 303 See Other\\nLocation: https://example.com/\\n"
        "Content-Type: text/plain\\n\\nthere",
        303,
        {"Location": "https://example.com/", "Content-Type": "text/plain"},
        b"there",
    ),
    "CGI-6.2.2 local redirect": ("Location: /cgi/tells/x?y=1\\n\\n", 200, {}, b"PATH_INFO=/x"),
    "CGI-6.3 CGI-6.3-SPACE": (
        "CONTENT-TYPE:\\t text/plain \\t\\n\\nok",
        200,
        {"Content-Type": "text/plain"},
        b"ok",
    ),
    "CGI-6.3-NULL": (
        "Content-Type: text/plain\\nStatus:\\nLocation: \\n\\nok",
        200,
        {"Location": None, "Status": None},
        b"ok",
    ),
    "CGI-6.3.4-REMOVE CGI-6.3.4-CONFLICT": (
        "Content-Type: text/plain\\nConnection: close\\nUpgrade: h2c\\nServer: own\\n\\nok",
        200,
        {"Connection": None, "Upgrade": None, "Server": "own"},
        b"ok",
    ),
    "CGI-6.3.5-X": (
        "X-CGI-Secret: 1\\nX-Other: 2\\nContent-Type: text/plain\\n\\nok",
        200,
        {"X-CGI-Secret": None, "X-Other": "2"},
        b"ok",
    ),
    "CGI-6.3.1-GUESS": ("Status: 200 OK\\n\\n<html>", 200, {"Content-Type": None}, b"<html>"),
    "CGI-6.2.2-204": ("Status: 204 No Content\\n\\nbody", 204, {"Content-Length": None}, b""),
    "CGI-6.3-NUL": ("Content-Type: text/plain\\nX-A: a\\000b\\n\\nok", 502, {"X-A": None}, b""),
    "CGI-6.3-NUL CR": ("Content-Type: text/plain\\nX-A: a\\rb\\n\\nok", 502, {"X-A": None}, b""),
    "CGI-6.3-SPACE before the colon": ("Content-Type : text/plain\\n\\nok", 502, {}, b""),
    "CGI-5-UNMODIFIED but for the connection": (
        # The name of the case's script says that it is one.
        "HTTP/1.0 401 Who\\nWWW-Authenticate: Basic\\nConnection: close\\n\\nbody",
        401,
        {"WWW-Authenticate": "Basic", "Connection": None},
        b"body",
    ),
}


def name_of(case: str) -> str:
    """Return the name of a case's script."""
    name = "".join(letter if letter.isalnum() else "-" for letter in case)
    return f"nph-{name}" if case.startswith("CGI-5") else name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rfc3875") / "cgi-bin"
    folder.mkdir()

    def write(name: str, text: str) -> None:
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    write("tells", TELLS)
    for case, (output, *_) in ANSWERS.items():
        write(name_of(case), f"#!/bin/sh\nprintf '{output}'\n")
    write(
        "cookies", "#!/bin/sh\nprintf 'Content-Type: a/b\\nSet-Cookie: a\\nSet-Cookie: b\\n\\n'\n"
    )
    write("unread", "#!/bin/sh\nprintf 'Content-Type: a/b\\n\\nok'\n")
    write("late", "#!/bin/sh\nprintf 'Content-Type: a/b\\n\\nearly '\nsleep 0.3\nprintf late\n")
    write("error", "#!/bin/sh\necho not this >&2\nprintf 'Content-Type: a/b\\n\\nthis'\n")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path, shared_gateway: Any) -> Any:
    return shared_gateway(f"""
[listen]
bind = "127.0.0.1:0"
[[routes]]
path = "/cgi/"
backend = {{ cgi = "{folder}" }}
""")


@pytest.mark.parametrize("case", ANSWERS)
def test_what_becomes_of_an_answer(served: Any, case: str) -> None:
    _, status, fields, body = ANSWERS[case]
    answer = served.get(f"/cgi/{name_of(case)}")
    assert answer.status == status
    for name, value in fields.items():
        assert answer.headers.get_all(name) == ([value] if value is not None else None)
    assert body in answer.body if status == 200 else status == 502 or answer.body == body


def told(served: Any, target: str, **options: Any) -> dict[str, str]:
    """Return the variables that a script says it has been given."""
    method = options.pop("method", "GET")
    answer = served.request(method, target, **options)
    assert answer.status == 200
    return dict(line.split("=", 1) for line in answer.text.splitlines())


def test_what_a_script_is_told(served: Any, folder: Path) -> None:
    # CGI-3.4-RUN, CGI-7.2-ENV, CGI-7.2-CWD, CGI-4.1.4, CGI-4.1.17-SAME
    variables = told(served, "/cgi/tells/A%20b/C?q=%20")
    assert variables["GATEWAY_INTERFACE"] == "CGI/1.1"
    assert variables["SERVER_SOFTWARE"] == served.get("/cgi/unread").headers["Server"]
    assert variables["cwd"] == str(folder.resolve())
    # CGI-4.1.5-DECODE, CGI-4.1.6-SET, CGI-4.1.6-MAP, CGI-4.1.6-CASE
    assert variables["PATH_INFO"] == "/A b/C"
    assert variables["PATH_TRANSLATED"] == f"{folder}/A b/C"
    assert variables["SCRIPT_FILENAME"] == f"{folder}/tells"
    # CGI-4.1.2, CGI-4.1.3: none without a body; CGI-4.1.9-SET, CGI-4.1.10: never looked up.
    absent = {"CONTENT_LENGTH", "CONTENT_TYPE", "REMOTE_HOST", "REMOTE_IDENT", "AUTH_TYPE"}
    assert not absent & set(variables)


def test_an_encoded_slash_is_not_decoded_into_a_path(served: Any) -> None:
    """CGI-4.1.5-ENC, CGI-4.1.5-LIMIT, CGI-8.1-DOTS, CGI-8.1-NULLSEG"""
    assert served.get("/cgi/tells/a%2fb").status in (400, 404)
    assert served.get("/cgi/tells/a%00b").status in (400, 404)
    assert told(served, "/cgi/x/../tells/./a")["PATH_INFO"] == "/a"
    assert told(served, "/cgi/tells//a")["PATH_INFO"] == "/a"


@pytest.mark.parametrize("query", ["-s", "a+b", "x", "%2d%2dversion", "a=b", "+", "'$(id)'"])
def test_no_words_of_the_query_are_arguments(served: Any, query: str) -> None:
    """CGI-4.4-SPLIT is left out for good, so CGI-4.4-ALL and CGI-7.2-ARGV hold: none at all. C6"""
    variables = told(served, f"/cgi/tells?{query}")
    assert variables["argc"] == "0"
    assert variables["QUERY_STRING"] == query


def test_the_body(served: Any) -> None:
    """CGI-4.2-STDIN, CGI-4.2-BYTES, CGI-4.2-EOF, CGI-4.2-TRANSFER, CGI-4.2-CONTENT"""
    body = bytes(range(256))
    headers = {"Content-Type": "application/x-own", "Content-Encoding": "gzip"}
    variables = told(served, "/cgi/tells", method="POST", body=body, headers=headers)
    assert variables["input"] == body.hex()
    assert variables["CONTENT_LENGTH"] == "256"
    assert variables["CONTENT_TYPE"] == "application/x-own"
    assert variables["HTTP_CONTENT_ENCODING"] == "gzip"
    chunks = iter([body[:100], body[100:]])
    variables = told(served, "/cgi/tells", method="PUT", body=chunks, encode_chunked=False)
    assert variables["input"] == body.hex()
    assert variables["CONTENT_LENGTH"] == "256"
    assert variables["REQUEST_METHOD"] == "PUT"
    assert "HTTP_TRANSFER_ENCODING" not in variables


def test_a_body_that_nobody_reads(served: Any) -> None:
    """CGI-4.2-UNREAD"""
    answer = served.request("POST", "/cgi/unread", body=bytes(1_000_000))
    assert (answer.status, answer.body) == (200, b"ok")


def test_other_methods(served: Any) -> None:
    """CGI-4.3.4"""
    assert told(served, "/cgi/tells", method="PROPFIND")["REQUEST_METHOD"] == "PROPFIND"


def test_head(served: Any) -> None:
    """CGI-4.3.3"""
    answer = served.request("HEAD", "/cgi/unread")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Type"] == "a/b"


def test_folded_and_odd_fields(served: Any) -> None:
    """CGI-4.1.18-FOLD: there are none, they are refused; CGI-4.1.18-SET, CGI-7.2-ASCII"""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
        client.sendall(b"GET /cgi/tells HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n 2\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    variables = told(served, "/cgi/tells", headers={"X-Own-Name": "a b"})
    assert variables["HTTP_X_OWN_NAME"] == "a b"


def test_cookies_stay_apart(served: Any) -> None:
    """CGI-6.3-MULTI"""
    assert served.get("/cgi/cookies").headers.get_all("Set-Cookie") == ["a", "b"]


def test_all_of_the_output_however_late(served: Any) -> None:
    """CGI-6.4-ALL, CGI-6.4-KEEP, CGI-6.3-NOLEN: chunked, or in HTTP/1.0 until the end."""
    answer = served.get("/cgi/late")
    assert answer.body == b"early late"
    assert answer.headers["Transfer-Encoding"] == "chunked"
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
        client.sendall(b"GET /cgi/late HTTP/1.0\r\nHost: a\r\n\r\n")
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.read() == b"early late"
        assert response.will_close


def test_standard_output_is_the_answer(served: Any) -> None:
    """CGI-6.1-STDOUT; standard error goes to the log."""
    assert served.get("/cgi/error").body == b"this"
    assert served.has_logged("/cgi/error: not this")


def test_what_is_too_long(served: Any) -> None:
    """CGI-8.1-LIMITS"""
    assert served.get("/cgi/tells?" + "q" * 9000).status == 414
    assert served.get("/cgi/tells", headers={"X": "x" * 40000}).status == 431


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_a_script_is_kept_apart_from_the_server(served: Any, folder: Path) -> None:
    """CGI-9.5: its own session, nothing of the gateway's descriptors (C5 has the rest)."""
    (folder / "apart").write_text(
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\n"
        "cut -d ' ' -f 1,5,6 /proc/$$/stat\nls -l /proc/$$/fd\n"
    )
    (folder / "apart").chmod(0o755)
    first, *rest = served.get("/cgi/apart").text.splitlines()
    assert len(set(first.split())) == 1
    assert not any("socket:" in line for line in rest)
