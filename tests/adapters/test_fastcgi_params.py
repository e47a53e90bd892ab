"""What is remembered of requests: never anything but what would be made anew."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.adapters import fastcgi_params
from tetrapylon.adapters.errors import BadRequest, FieldsTooLarge, NotFound
from tetrapylon.adapters.fastcgi_params import FastCgiParams
from tetrapylon.adapters.request_params import RequestParams
from tetrapylon.protocols.asgi import AUTHORIZER_EXTENSION, Scope
from tetrapylon.protocols.fastcgi.params import decode_params


def request_params(**options: Any) -> RequestParams:
    return RequestParams(
        **{
            "root": None,
            "index": "index.php",
            "split": ".php",
            "check_file": True,
            "script_name": None,
            "params": None,
            "pass_authorization": True,
            "server_software": "server",
            **options,
        }
    )


def scope_of(**more: Any) -> Scope:
    return {
        "type": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": "/a.php",
        "raw_path": b"/a.php",
        "query_string": b"",
        "headers": [(b"host", b"example.com")],
        **more,
    }


def said(
    encoder: FastCgiParams, params: RequestParams, scope: Scope, length: int
) -> dict[str, str]:
    """Return the variables that the application gets, as the adapter has them sent."""
    known = encoder.recall(scope)
    if known is not None and not length:
        return decode_params(known)
    return decode_params(b"".join(encoder.encode(scope, params.place(scope), length)))


# Few of each, so that requests differ from one before in one thing and not in another.
SCOPES = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "HEAD", "POST"]),
        "path": st.sampled_from(["/app/a.php", "/app/a.php/b", "/app/\udce9.php", "/x"]),
        "raw_path": st.sampled_from([None, b"/app/a.php", b"/app/%61.php"]),
        "root_path": st.sampled_from(["", "/app", "/app/a.php"]),
        "query_string": st.sampled_from([b"", b"q", b"q=1"]),
        "http_version": st.sampled_from(["1.0", "1.1"]),
        "scheme": st.sampled_from(["http", "https"]),
        "server": st.sampled_from([None, ("::1", 80), ("/run/a.sock", None)]),
        "client": st.sampled_from([None, ("127.0.0.1", 1), ("127.0.0.1", 2), ("", 0)]),
        "headers": st.lists(
            st.sampled_from(
                [
                    (b"host", b"example.com"),
                    (b"host", b"[::1]:81"),
                    (b"cookie", b"a=1"),
                    (b"content-length", b"0"),
                    (b"transfer-encoding", b"chunked"),
                    (b"authorization", b"Basic eDp5"),
                    (b"proxy", b"x"),
                ]
            ),
            max_size=3,
        ),
        "extensions": st.sampled_from(
            [{}, {AUTHORIZER_EXTENSION: {"REMOTE_USER": "me", "SCRIPT_NAME": "/other"}}]
        ),
    }
)
OPTIONS = st.sampled_from(
    [
        {},
        {"root": "/srv", "check_file": False},
        {"script_name": "/mine", "params": {"HTTP_HOST": "fixed", "SCRIPT_NAME": "", "X": "y"}},
        {"pass_authorization": False},
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    options=OPTIONS,
    requests=st.lists(st.tuples(SCOPES, st.sampled_from([0, 0, 5])), min_size=2, max_size=12),
)
def test_it_is_what_the_variables_are(
    options: dict[str, Any], requests: list[tuple[dict[str, Any], int]]
) -> None:
    params = request_params(**options)
    encoder = FastCgiParams(params, name="app")
    # And again, each with what the others have left behind.
    for scope, length in [*requests, *requests]:
        try:
            place = params.place(scope)
        except NotFound:
            assert encoder.recall(scope) is None
            continue
        assert said(encoder, params, scope, length) == params.variables(scope, place, length)


def test_what_comes_again_is_recalled() -> None:
    params = request_params()
    encoder = FastCgiParams(params, name="app")
    for path, client in (("/a.php", 1), ("/b.php", 2)):
        scope = scope_of(path=path, client=("127.0.0.1", client))
        assert encoder.recall(scope) is None
        said(encoder, params, scope, 0)
        assert encoder.recall(scope) is not None
    # What one has asked for and who another was make a request that nobody has sent yet.
    scope = scope_of(path="/a.php", client=("127.0.0.1", 2))
    known = encoder.recall(scope)
    assert known is not None
    assert decode_params(known) == params.variables(scope, params.place(scope), 0)


def test_fields_are_compared_as_they_were() -> None:
    params = request_params()
    encoder = FastCgiParams(params, name="app")
    scope = scope_of()
    said(encoder, params, scope, 0)
    scope["headers"].append((b"x-more", b"1"))
    assert encoder.recall(scope) is None
    # Lists could be changed in place, and iterators are gone once they were read.
    for fields in ([[b"host", b"x"]], iter([(b"host", b"x")])):
        scope = scope_of(headers=fields)
        assert said(encoder, params, scope, 0)["HTTP_HOST"] == "x"
        assert encoder.recall(scope_of(headers=[])) is None


def test_a_script_is_believed_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.php").write_text("<?php")
    params = request_params(root=tmp_path)
    encoder = FastCgiParams(params, name="app")
    said(encoder, params, scope_of(), 0)
    assert encoder.recall(scope_of()) is not None
    (tmp_path / "a.php").unlink()
    later = time.monotonic() + 1.1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert encoder.recall(scope_of()) is None
    with pytest.raises(NotFound):
        params.place(scope_of())


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastcgi_params, "_KNOWN_TARGETS", 3)
    monkeypatch.setattr(fastcgi_params, "_KNOWN_SENDERS", 3)
    params = request_params()
    encoder = FastCgiParams(params, name="app")

    def recalled(name: str, values: list[Any]) -> int:
        for value in values:
            said(encoder, params, scope_of(**{name: value}), 0)
        return sum(encoder.recall(scope_of(**{name: value})) is not None for value in values)

    assert 0 < recalled("query_string", [b"%d" % i for i in range(20)]) <= 3
    assert 0 < recalled("client", [("127.0.0.1", i) for i in range(1, 21)]) <= 3
    large = b"x" * 3000
    assert recalled("query_string", [large]) == 0
    assert recalled("headers", [[(b"x-large", large)]]) == 0


def test_what_cannot_be_sent() -> None:
    params = request_params()
    encoder = FastCgiParams(params, name="app")
    for scope, error in (
        (scope_of(headers=[(b"x-large", b"x" * 66_000)]), FieldsTooLarge),
        (scope_of(headers=[(b"x-nul", b"\0")]), BadRequest),
        (scope_of(query_string=b"x" * 66_000), FieldsTooLarge),
    ):
        with pytest.raises(error, match="app: "):
            encoder.encode(scope, params.place(scope), 0)
        assert encoder.recall(scope) is None


def test_more_than_a_record_holds() -> None:
    params = request_params()
    encoder = FastCgiParams(params, name="app")
    scope = scope_of(
        headers=[(b"x-%d" % i, b"x" * 30_000) for i in range(3)], query_string=b"q" * 40_000
    )
    contents = encoder.encode(scope, params.place(scope), 0)
    assert len(contents) > 1
    assert decode_params(b"".join(contents)) == params.variables(scope, params.place(scope), 0)
