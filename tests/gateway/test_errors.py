"""What a failure is told as: the status, and a page in the form that was asked for."""

import html.parser
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.adapters import errors as adapters
from tetrapylon.gateway.errors import choose_media_type, error_response, exception_status
from tetrapylon.protocols.errors import LocalProtocolError, RemoteProtocolError

BROWSER = b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
PLAIN, HTML, JSON = "text/plain", "text/html", "application/json"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (b"", PLAIN),
        (b"*/*", PLAIN),  # curl
        (BROWSER, HTML),
        (b"application/json", JSON),
        (b"application/json, text/plain, */*", JSON),  # axios
        (b"text/plain, application/json", PLAIN),
        (b"application/problem+json", "application/problem+json"),
        (b"application/json;q=0.5, text/html;q=0.9", HTML),
        (b"application/json; charset=utf-8 ; q=1.0, text/html;q=0.9", JSON),
        (b"text/html;q=0, */*", PLAIN),
        (b"text/plain;q=0, */*", HTML),
        (b"text/*;q=0.1, application/*;q=0.2", JSON),
        (b"TEXT/HTML", HTML),
        (b"text/*", PLAIN),
        (b"image/png", PLAIN),
        (b"text/html;q=nonsense", PLAIN),
        (b"text/html;q=nan", PLAIN),
        (b"text/html;q=7", PLAIN),
        (b",;,/;q=", PLAIN),
        # An exact name outdoes the wild card that would take it, RFC 9110 §12.5.1.
        (
            b"*/*;q=1, text/plain;q=0.1, application/json;q=0.9, text/html;q=0.2",
            "application/problem+json",
        ),
    ],
)
def test_the_form_is_that_of_the_accept_field(accept, chosen) -> None:
    assert choose_media_type(accept) == chosen
    fields, _ = error_response(404, accept=accept)
    assert dict(fields)[b"content-type"].decode().partition(";")[0] == chosen


def test_without_an_accept_field_it_is_text() -> None:
    fields, body = error_response(404, accept=None)
    assert dict(fields)[b"content-type"] == b"text/plain; charset=utf-8"
    assert body == b"404 Not Found\nThere is nothing at this address.\n"


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_is_small_whole_and_for_light_and_dark() -> None:
    fields, body = error_response(503, accept=BROWSER, request_id="5f-1")
    page = _Page()
    page.feed(body.decode())
    assert body.startswith(b"<!doctype html>")
    assert page.tags.count("h1") == 1
    assert page.links == []
    assert b"503" in body
    assert b"Service Unavailable" in body
    assert b"5f-1" in body
    assert b"light dark" in body
    assert len(body) < 1024
    assert b"@import" not in body
    assert dict(fields)[b"content-type"] == b"text/html; charset=utf-8"


def test_json_is_a_problem_of_rfc_9457() -> None:
    _, body = error_response(502, accept=b"application/json", request_id="5f-1")
    assert json.loads(body) == {
        "type": "about:blank",
        "title": "Bad Gateway",
        "status": 502,
        "detail": "The application behind this address gave no usable answer.",
        "request_id": "5f-1",
    }


@pytest.mark.parametrize("accept", [None, BROWSER, b"application/json"])
@pytest.mark.parametrize("status", [400, 404, 418, 499, 500, 599, 999])
def test_every_status_has_a_page_of_its_length(status, accept) -> None:
    for request_id in (None, "5f-1"):
        fields, body = error_response(status, accept=accept, request_id=request_id)
        assert int(dict(fields)[b"content-length"]) == len(body)
        assert str(status).encode() in body
        assert (b"5f-1" in body) is (request_id is not None)
        # The answer depends on Accept and on the moment.
        assert dict(fields)[b"vary"] == b"accept"
        assert dict(fields)[b"cache-control"] == b"no-store"


def test_pages_of_different_requests_are_different_lists() -> None:
    """The driver may add fields to what it gets."""
    first, _ = error_response(404)
    first.append((b"x", b"y"))
    second, _ = error_response(404)
    assert (b"x", b"y") not in second


def test_a_request_id_cannot_write_html() -> None:
    _, body = error_response(500, accept=BROWSER, request_id="<script>")
    assert b"<script>" not in body


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_any_accept_field_gets_an_answer(accept) -> None:
    fields, body = error_response(400, accept=accept)
    assert body
    assert len(fields) == 4


@pytest.mark.parametrize(
    ("error", "status", "retry_after_s"),
    [
        (adapters.BadRequest("x"), 400, None),
        (adapters.Forbidden("x"), 403, None),
        (adapters.NotFound("x"), 404, None),
        (adapters.ContentTooLarge("x"), 413, None),
        (adapters.FieldsTooLarge("x"), 431, None),
        (adapters.InternalError("x"), 500, None),
        (adapters.BadGateway("x"), 502, None),
        (adapters.Unavailable("x"), 503, 1),
        (adapters.Unavailable("x", retry_after_s=7), 503, 7),
        (adapters.GatewayTimeout("x"), 504, None),
        (adapters.InsufficientStorage("x"), 507, None),
        (adapters.ClientDisconnected(), 400, None),
        (adapters.Truncated("x"), 502, None),
        (adapters.LocalRedirect(b"/"), 500, None),
        (RemoteProtocolError("x"), 400, None),
        (RemoteProtocolError("x", status_hint=502), 502, None),
        (LocalProtocolError("x"), 500, None),
        (TimeoutError(), 504, None),
        (ZeroDivisionError("x"), 500, None),
    ],
)
def test_exceptions_and_their_statuses(error, status, retry_after_s) -> None:
    assert exception_status(error) == (status, retry_after_s)


def test_every_failure_of_a_backend_is_answered_with_its_own_status() -> None:
    for kind in adapters.BackendError.__subclasses__():
        assert exception_status(kind("x"))[0] == kind.status
