"""Meta-variables against RFC 3875 §4.1; the ids are those of the requirement list."""

from __future__ import annotations

import io
import os
import re
import wsgiref.validate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.protocols.cgi import meta_variables as module
from tetrapylon.protocols.cgi.meta_variables import meta_variables


def scope(*headers: tuple[bytes, bytes], **changes: Any) -> dict[str, Any]:
    whole = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "server": ("192.0.2.1", 8080),
        "client": ("203.0.113.7", 51234),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": "/a/b",
        "raw_path": b"/a/b",
        "query_string": b"",
        "headers": list(headers),
        "extensions": {},
    }
    return {**whole, **changes}


def test_a_request_whole() -> None:
    request = scope(
        (b"host", b"www.example.com:8080"),
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"11"),
        (b"accept-language", b"da"),
        (b"x-forwarded-for", b"10.0.0.1"),
        method="POST",
        root_path="/cgi-bin/form",
        path="/cgi-bin/form/extra/p\xe5th",
        raw_path=b"/cgi-bin/form/extra/p%C3%A5th",
        query_string=b"a=%20&b+c",
    )
    # Written by hand from §4.1; the last five as Apache gives them.
    assert meta_variables(request, server_software="tetrapylon/1") == {
        "HTTP_HOST": "www.example.com:8080",
        "CONTENT_TYPE": "text/plain; charset=utf-8",
        "CONTENT_LENGTH": "11",
        "HTTP_ACCEPT_LANGUAGE": "da",
        "HTTP_X_FORWARDED_FOR": "10.0.0.1",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "PATH_INFO": "/extra/p\xc3\xa5th",
        "QUERY_STRING": "a=%20&b+c",
        "REMOTE_ADDR": "203.0.113.7",
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/cgi-bin/form",
        "SERVER_NAME": "www.example.com",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "tetrapylon/1",
        "REMOTE_PORT": "51234",
        "REQUEST_SCHEME": "http",
        "REQUEST_URI": "/cgi-bin/form/extra/p%C3%A5th?a=%20&b+c",
        "SERVER_ADDR": "192.0.2.1",
    }


def test_always_there() -> None:
    # CGI-4.1-GATEWAY-INTERFACE, CGI-4.1-QUERY-STRING, CGI-4.1-REMOTE-ADDR, CGI-4.1-REQUEST-METHOD,
    # CGI-4.1-SCRIPT-NAME, CGI-4.1-SERVER-NAME, CGI-4.1-SERVER-PORT, CGI-4.1-SERVER-PROTOCOL,
    # CGI-4.1-SERVER-SOFTWARE
    variables = meta_variables(scope(server=None, client=None, http_version="1.0"))
    assert variables["GATEWAY_INTERFACE"] == "CGI/1.1"
    assert variables["QUERY_STRING"] == ""
    assert variables["REMOTE_ADDR"] == "0.0.0.0"
    assert variables["REQUEST_METHOD"] == "GET"
    assert variables["SCRIPT_NAME"] == ""
    assert variables["SERVER_NAME"] == "localhost"
    assert variables["SERVER_PORT"] == "80"
    assert variables["SERVER_PROTOCOL"] == "HTTP/1.0"
    assert variables["SERVER_SOFTWARE"] == "tetrapylon"


def test_never_there_unless_known() -> None:
    # CGI-4.1.2-PRESENT, CGI-4.1.3-OMIT, CGI-4.1.6-NULL; nobody is authenticated: CGI-4.1.1-SET,
    # CGI-4.1.11
    variables = meta_variables(scope((b"authorization", b"Basic dTpw")), pass_authorization=True)
    assert not variables.keys() & {
        "CONTENT_LENGTH",
        "CONTENT_TYPE",
        "PATH_TRANSLATED",
        "AUTH_TYPE",
        "REMOTE_USER",
        "REMOTE_IDENT",
        "HTTPS",
    }


def test_what_an_authorizer_found_cannot_be_forged() -> None:  # FCGI-6.3-VARIABLE, C2
    found = {"REMOTE_USER": "ada", "AUTH_TYPE": "Basic", "HTTP_X_LEVEL": "1", "LEVEL": "1"}
    forged = [(b"x-level", b"9"), (b"remote-user", b"root"), (b"remote_user", b"root")]
    variables = meta_variables(scope(*forged, extensions={"tetrapylon.authorizer": found}))
    assert variables.items() >= found.items()
    assert variables["HTTP_REMOTE_USER"] == "root"
    nobody = meta_variables(scope(*forged, extensions={"tetrapylon.authorizer": {}}))
    assert not nobody.keys() & {"REMOTE_USER", "AUTH_TYPE", "LEVEL"}


def test_a_fresh_dict_each_time() -> None:  # WSGI-ENV-FRESH, WSGI-ENV-DICT
    request = scope((b"host", b"a"))
    first = meta_variables(request)
    expected = dict(first)
    first.clear()
    assert type(first) is dict
    assert meta_variables(request) == expected


class TestNames:
    def test_upper_case_and_underscores(self) -> None:  # CGI-4.1.18
        variables = meta_variables(scope((b"x-long-Name-2", b"v"), (b"dnt", b"1")))
        assert variables["HTTP_X_LONG_NAME_2"] == "v"
        assert variables["HTTP_DNT"] == "1"

    @pytest.mark.parametrize(  # A9, CGI-4.1.18-UNDERSCORE
        "name",
        [
            b"content_length",
            b"Content_Length",
            b"x_real_ip",
            b"x.real.ip",
            b"x real ip",
            b"x-r\xe9al-ip",
            b"x-real-ip\n",
            b"",
            b"x=real",
            b"content-length\0",
        ],
    )
    def test_strange_names_are_dropped(self, name: bytes) -> None:
        plain = meta_variables(scope((b"x-real-ip", b"1.2.3.4"), (b"content-length", b"5")))
        for _ in range(2):  # learnt, then known
            assert plain == meta_variables(
                scope(
                    (name, b"first"),
                    (b"x-real-ip", b"1.2.3.4"),
                    (b"content-length", b"5"),
                    (name, b"last"),
                )
            )

    @pytest.mark.parametrize("name", [b"proxy", b"Proxy", b"PROXY"])  # C1, CGI-HTTPOXY
    def test_proxy_is_dropped(self, name: bytes) -> None:
        for _ in range(2):
            variables = meta_variables(
                scope((name, b"http://evil"), (b"proxy-connection", b"close")),
                pass_authorization=True,
            )
            assert "HTTP_PROXY" not in variables
            assert variables["HTTP_PROXY_CONNECTION"] == "close"
            assert "http://evil" not in variables.values()

    def test_no_field_becomes_a_core_variable(self) -> None:  # C2
        fields = [b"remote-user", b"script-name", b"path-info", b"https", b"server-name"]
        variables = meta_variables(scope(*((name, b"evil") for name in fields)))
        assert {key for key, value in variables.items() if value == "evil"} == {
            "HTTP_REMOTE_USER",
            "HTTP_SCRIPT_NAME",
            "HTTP_PATH_INFO",
            "HTTP_HTTPS",
            "HTTP_SERVER_NAME",
        }

    def test_content_fields_once(self) -> None:  # CGI-4.1.18-DUP, WSGI-ENV-NOHTTPCT
        variables = meta_variables(scope((b"content-type", b"a/b"), (b"Content-Length", b"5")))
        assert variables["CONTENT_TYPE"] == "a/b"
        assert variables["CONTENT_LENGTH"] == "5"
        assert not variables.keys() & {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"}

    def test_several_become_one(self) -> None:  # CGI-4.1.18-MULTI, CGI-4.1-UNIQUE
        variables = meta_variables(
            scope(
                (b"accept", b"a/b"),
                (b"cookie", b"a=1"),
                (b"Accept", b"c/d;q=0.5"),
                (b"cookie", b"b=2"),
                (b"x-empty", b""),
                (b"x-empty", b"x"),
            )
        )
        assert variables["HTTP_ACCEPT"] == "a/b, c/d;q=0.5"
        assert variables["HTTP_COOKIE"] == "a=1; b=2"
        assert variables["HTTP_X_EMPTY"] == ", x"

    def test_credentials_only_where_asked_for(self) -> None:  # CGI-4.1.18-AUTH, CGI-9.2
        request = scope((b"authorization", b"Basic eA=="), (b"proxy-authorization", b"Basic eQ=="))
        variables = meta_variables(request)
        assert not variables.keys() & {"HTTP_AUTHORIZATION", "HTTP_PROXY_AUTHORIZATION"}
        variables = meta_variables(request, pass_authorization=True)
        assert variables["HTTP_AUTHORIZATION"] == "Basic eA=="
        assert variables["HTTP_PROXY_AUTHORIZATION"] == "Basic eQ=="

    def test_values_are_bytes(self) -> None:  # CGI-4.1.18-CHARSET, WSGI-STR-NATIVE
        variables = meta_variables(scope((b"x-a", bytes(range(32, 256)))))
        assert variables["HTTP_X_A"].encode("latin-1") == bytes(range(32, 256))

    def test_memory_of_names_is_bounded(self) -> None:
        for i in range(3000):
            meta_variables(scope((b"x-%d" % i, b""), (b"y" * 100 + b"%d" % i, b"")))
            assert len(module._keys) <= 512
        assert all(len(name) <= 64 for name in module._keys)
        assert meta_variables(scope((b"proxy", b"x"), (b"x-1", b"y")))["HTTP_X_1"] == "y"


class TestContentLength:
    def test_of_a_spooled_body(self) -> None:  # CGI-4.1.2-DECODED, CGI-4.2-TRANSFER
        request = scope((b"transfer-encoding", b"chunked"))
        variables = meta_variables(request, content_length=12)
        assert variables["CONTENT_LENGTH"] == "12"
        assert "HTTP_TRANSFER_ENCODING" not in variables
        # As it came: whoever streams the body has to know.
        assert meta_variables(request)["HTTP_TRANSFER_ENCODING"] == "chunked"
        assert "CONTENT_LENGTH" not in meta_variables(request)

    @pytest.mark.parametrize(
        "header", [(b"transfer-encoding", b"chunked"), (b"content-length", b"0")]
    )
    def test_of_an_empty_body(self, header: tuple[bytes, bytes]) -> None:  # CGI-4.1.2-PRESENT
        assert meta_variables(scope(header), content_length=0)["CONTENT_LENGTH"] == "0"

    def test_of_no_body(self) -> None:  # CGI-4.1.2-PRESENT
        assert "CONTENT_LENGTH" not in meta_variables(scope(), content_length=0)

    def test_of_a_body_that_no_field_announced(self) -> None:  # HTTP/2
        assert meta_variables(scope(), content_length=3)["CONTENT_LENGTH"] == "3"

    def test_counted_beats_said(self) -> None:
        variables = meta_variables(scope((b"content-length", b"9")), content_length=3)
        assert variables["CONTENT_LENGTH"] == "3"


class TestPaths:
    @pytest.mark.parametrize(
        ("root_path", "path", "script_name", "path_info"),
        [
            ("", "/", "", "/"),
            ("", "", "", "/"),
            ("", "/a//b;x=1/", "", "/a//b;x=1/"),
            ("/api", "/api", "/api", ""),
            ("/api", "/api/", "/api", "/"),  # CGI-4.1.5-VOID
            ("/api", "/api/x/Y", "/api", "/x/Y"),  # CGI-4.1.5-CASE
            ("/api/", "/api/x", "/api", "/x"),
            ("/", "/x", "", "/x"),
            ("/", "/", "", "/"),
            # Frameworks older than ASGI 3.0's clarification strip `path`.
            ("/api", "/x", "/api", "/x"),
            ("/api", "/apix", "/api", "/apix"),
            ("/api", "/", "/api", "/"),
            ("/p\xe5th", "/p\xe5th/\u20ac", "/p\xc3\xa5th", "/\xe2\x82\xac"),
        ],
    )
    def test_from_the_scope(
        self, root_path: str, path: str, script_name: str, path_info: str
    ) -> None:  # CGI-4.1.5, CGI-4.1.13
        variables = meta_variables(scope(root_path=root_path, path=path))
        assert variables["SCRIPT_NAME"] == script_name
        assert variables["PATH_INFO"] == path_info

    def test_given(self) -> None:
        request = scope(root_path="/api", path="/api/x")
        variables = meta_variables(request, script_name=b"/s\xff.py", path_info=b"/\xe9")
        assert variables["SCRIPT_NAME"] == "/s\xff.py"
        assert variables["PATH_INFO"] == "/\xe9"
        assert meta_variables(request, script_name=b"/s")["PATH_INFO"] == "/x"
        assert meta_variables(request, path_info=b"")["SCRIPT_NAME"] == "/api"
        assert meta_variables(request, path_info=b"")["PATH_INFO"] == ""

    def test_bytes_that_are_not_utf_8(self) -> None:  # D5
        path = b"/\xff\xfe%2f\xc3\xa9".decode("utf-8", "surrogateescape")
        assert meta_variables(scope(path=path))["PATH_INFO"] == "/\xff\xfe%2f\xc3\xa9"

    @given(
        prefix=st.sampled_from([b"", b"/api", b"/\xff", b"/\xc3\xa9/x"]),
        below=st.binary(max_size=12).map(lambda rest: b"/" + rest),
    )
    def test_script_name_and_path_info_make_the_path(self, prefix: bytes, below: bytes) -> None:
        # CGI-4.1.13-PREFIX, CGI-3.3-URI
        root_path = prefix.decode("utf-8", "surrogateescape")
        path = (prefix + below).decode("utf-8", "surrogateescape")
        variables = meta_variables(scope(root_path=root_path, path=path))
        assert variables["SCRIPT_NAME"].encode("latin-1") == prefix
        assert variables["PATH_INFO"].encode("latin-1") == below

    def test_query_string_is_as_sent(self) -> None:  # CGI-4.1.7
        variables = meta_variables(scope(query_string=b"%2F+a=\xff&&?"))
        assert variables["QUERY_STRING"] == "%2F+a=\xff&&?"
        assert variables["REQUEST_URI"] == "/a/b?%2F+a=\xff&&?"

    def test_request_uri_without_raw_path(self) -> None:
        request = scope(path="/a b/\u20ac\udcff?", raw_path=None)
        assert meta_variables(request)["REQUEST_URI"] == "/a%20b/%E2%82%AC%FF%3F"
        del request["raw_path"]
        assert meta_variables(request)["REQUEST_URI"] == "/a%20b/%E2%82%AC%FF%3F"


class TestServerAndClient:
    @pytest.mark.parametrize(
        ("host", "name"),
        [
            (b"example.com", "example.com"),
            (b"example.com:8000", "example.com"),
            (b"example.com:", "example.com"),
            (b"EXAMPLE.com.", "EXAMPLE.com."),
            (b"my_host", "my_host"),
            (b"127.0.0.1:80", "127.0.0.1"),
            (b"[::1]", "[::1]"),
            (b"[::1]:8000", "[::1]"),
            # Not a host: the connection knows better.
            (b"", "192.0.2.1"),
            (b":80", "192.0.2.1"),
            (b"a b", "192.0.2.1"),
            (b"a, b", "192.0.2.1"),
            (b"user@example.com", "192.0.2.1"),
            (b"example.com/x", "192.0.2.1"),
            (b"example.com:port", "192.0.2.1"),
            (b"<script>", "192.0.2.1"),
            (b"::1", "192.0.2.1"),
            (b"example.com\n", "192.0.2.1"),
        ],
    )
    def test_server_name(self, host: bytes, name: str) -> None:  # CGI-4.1.14-HOST
        variables = meta_variables(scope((b"host", host)))
        assert variables["SERVER_NAME"] == name
        assert variables["SERVER_PORT"] == "8080"  # CGI-4.1.15

    def test_without_host(self) -> None:
        assert meta_variables(scope())["SERVER_NAME"] == "192.0.2.1"
        variables = meta_variables(scope(server=("2001:db8::1", 80)))
        assert variables["SERVER_NAME"] == "[2001:db8::1]"
        assert variables["SERVER_ADDR"] == "2001:db8::1"

    @pytest.mark.parametrize("server", [None, ("/run/x.sock", None), ("unix:/run/x", None)])
    def test_unix_socket(self, server: object) -> None:
        variables = meta_variables(scope(server=server, client=None))
        assert variables["SERVER_NAME"] == "localhost"
        assert variables["SERVER_PORT"] == "80"
        assert variables["REMOTE_ADDR"] == "0.0.0.0"
        assert not variables.keys() & {"SERVER_ADDR", "REMOTE_PORT"}
        variables = meta_variables(scope(server=server, scheme="https"))
        assert variables["SERVER_PORT"] == "443"
        variables = meta_variables(scope((b"host", b"example.com:81"), server=server))
        assert variables["SERVER_NAME"] == "example.com"
        assert variables["SERVER_PORT"] == "81"

    @pytest.mark.parametrize(  # CGI-4.1.8-FORM
        ("client", "address", "port"),
        [
            (("127.0.0.1", 5), "127.0.0.1", "5"),
            (["2001:db8::1", 5], "2001:db8::1", "5"),
            (("10.0.0.1", 0), "10.0.0.1", None),
            (("unix:/run/x", None), "0.0.0.0", None),
            (("", None), "0.0.0.0", None),
            (("", 0), "0.0.0.0", None),
            (None, "0.0.0.0", None),
        ],
    )
    def test_client(self, client: object, address: str, port: str | None) -> None:
        variables = meta_variables(scope(client=client))
        assert variables["REMOTE_ADDR"] == address
        assert variables.get("REMOTE_PORT") == port

    def test_scheme(self) -> None:  # CGI-3.3-SCHEME, WSGI-ENV-CGI
        variables = meta_variables(scope(scheme="https"))
        assert variables["HTTPS"] == "on"
        assert variables["REQUEST_SCHEME"] == "https"

    @pytest.mark.parametrize(  # CGI-4.1.16
        ("version", "protocol"),
        [("1.0", "HTTP/1.0"), ("1.1", "HTTP/1.1"), ("2", "HTTP/2.0"), ("3", "HTTP/3.0")],
    )
    def test_protocol(self, version: str, protocol: str) -> None:
        assert meta_variables(scope(http_version=version))["SERVER_PROTOCOL"] == protocol

    def test_method_is_as_sent(self) -> None:  # CGI-4.1.12
        assert meta_variables(scope(method="PropFind"))["REQUEST_METHOD"] == "PropFind"


field_names = st.sampled_from(
    [b"host", b"cookie", b"content-length", b"proxy", b"Proxy", b"transfer-encoding"]
) | st.binary(max_size=8)
field_values = st.binary(max_size=8).map(lambda value: value.translate(None, b"\0\r\n"))


@settings(max_examples=200, deadline=None)
@given(
    headers=st.lists(st.tuples(field_names, field_values), max_size=6),
    server=st.sampled_from([None, ("127.0.0.1", 80), ("::1", 8000), ("/x", None)]),
    client=st.sampled_from([None, ("127.0.0.1", 5), ("unix:/x", None)]),
    root_path=st.sampled_from(["", "/", "/x", "/x/"]),
    path=st.sampled_from(["", "/", "/x", "/x/y", "/xy"]),
    length=st.none() | st.integers(0, 3),
)
def test_whatever_comes_is_an_environment(
    headers: list[tuple[bytes, bytes]],
    server: object,
    client: object,
    root_path: str,
    path: str,
    length: int | None,
) -> None:
    request = scope(*headers, server=server, client=client, root_path=root_path, path=path)
    variables = meta_variables(request, content_length=length)
    for key, value in variables.items():
        assert re.fullmatch("[A-Z0-9_]+", key)  # CGI-4.1-NAME
        value.encode("latin-1")
        os.fsencode(value)
    assert variables["SERVER_NAME"]
    assert re.fullmatch("[0-9]+", variables["SERVER_PORT"])
    assert "HTTP_PROXY" not in variables
    if length is None:
        variables["CONTENT_LENGTH"] = "0"  # servers have checked it; here it is garbage
    environ: dict[str, Any] = {
        **variables,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    wsgiref.validate.check_environ(environ)
