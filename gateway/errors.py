"""What a client is told of a failure: a status and a small page without internals.

The connection driver is the only caller: it asks `exception_status` what an
exception means in HTTP and `error_response` for the page, as plain text, HTML or
JSON by the request's Accept field (RFC 9110 section 12.5.1).
"""

from __future__ import annotations

import functools
import html
import json
from http import HTTPStatus

from ..adapters.errors import BackendError, ClientDisconnected, Truncated
from ..protocols.asgi import Fields
from ..protocols.errors import RemoteProtocolError

#: Retry-After of a 503 when whoever raised it named no time.
RETRY_AFTER_S = 1

_PLAIN, _HTML, _JSON, _PROBLEM = (
    "text/plain",
    "text/html",
    "application/json",
    "application/problem+json",
)
# In the order of our own preference: `*/*` comes from tools, which read text.
_MEDIA_TYPES = (_PLAIN, _HTML, _JSON, _PROBLEM)
_ACCEPT_BYTES = 1024

_EXPLANATIONS = {
    400: "The server could not make sense of the request.",
    403: "This may not be seen from here.",
    404: "There is nothing at this address.",
    405: "This address does not take that method.",
    408: "The request took too long to arrive.",
    411: "The request must say how long its body is.",
    413: "The request's body is larger than the server takes.",
    414: "The address is longer than the server takes.",
    416: "The file has no such range.",
    417: "The server cannot meet the request's expectation.",
    431: "The request's headers are larger than the server takes.",
    500: "The application failed. That is not your doing.",
    501: "The server does not know this method or coding.",
    502: "The application behind this address gave no usable answer.",
    503: "All hands are busy. Please try again in a moment.",
    504: "The application behind this address took too long to answer.",
    505: "The server speaks HTTP/1.0 and HTTP/1.1.",
    507: "The server has no room for the request's body.",
}

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{status} {phrase}</title>
<style>
body{{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:18vh auto 0;padding:0 1.5rem}}
h1{{font-size:1.6rem;margin:0}}
b{{font-weight:300;opacity:.6;margin-right:.3em}}
small{{opacity:.6}}
</style>
<h1><b>{status}</b> {phrase}</h1>
{explanation}{request_id}</html>
"""


def exception_status(error: BaseException) -> tuple[int, int | None]:
    """Return the status that tells a client of ``error``, and its Retry-After in seconds.

    The second is None where waiting would not help.
    """
    if isinstance(error, BackendError):
        retry_after_s = error.retry_after_s
        if retry_after_s is None and error.status == 503:
            retry_after_s = RETRY_AFTER_S
        return error.status, retry_after_s
    if isinstance(error, RemoteProtocolError):
        return error.status_hint, None
    if isinstance(error, ClientDisconnected):
        return 400, None
    if isinstance(error, Truncated):
        return 502, None
    if isinstance(error, TimeoutError):
        return 504, None
    # An application raised, broke its protocol, or redirected without end.
    return 500, None


def error_response(
    status: int, *, accept: bytes | None = None, request_id: str | None = None
) -> tuple[Fields, bytes]:
    """Return the fields and the body of an error's response.

    ``accept`` is the value of the request's Accept field. ``request_id`` stands
    in the page, for a client to quote and the log to be searched for.
    """
    if accept is None:
        media_type = _PLAIN
    elif len(accept) <= _ACCEPT_BYTES:
        media_type = _choose_cached(accept)
    else:
        # To weigh 32 KiB of it would cost more than any page is worth.
        media_type = _PLAIN
    write = _write if request_id else _write_cached
    body = write(status, media_type, request_id)
    charset = b"" if media_type.endswith("json") else b"; charset=utf-8"
    fields = [
        (b"content-type", media_type.encode() + charset),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"vary", b"accept"),
    ]
    return fields, body


def choose_media_type(accept: bytes) -> str:
    """Return the type that an Accept field likes best; plain text when none will do.

    By quality, then by how exactly it is named, then as the field orders them.
    """
    ranges = [_parse_range(item) for item in accept.decode("latin-1").lower().split(",")]
    best, best_rank = _PLAIN, (0.0, 0, 0)
    for candidate in _MEDIA_TYPES:
        kind = candidate.partition("/")[0]
        matches = [
            (exactness, -position, quality)
            for position, (name, quality) in enumerate(ranges)
            for exactness, pattern in ((3, candidate), (2, f"{kind}/*"), (1, "*/*"))
            if name == pattern
        ]
        if not matches:
            continue
        exactness, position, quality = max(matches)
        # What a wild card covers is in our order, not in the order of the wild cards.
        rank = (quality, exactness, position if exactness == 3 else 0)
        if quality > 0 and rank > best_rank:
            best, best_rank = candidate, rank
    return best


_choose_cached = functools.lru_cache(maxsize=256)(choose_media_type)


def _parse_range(item: str) -> tuple[str, float]:
    name, *parameters = item.split(";")
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
            return name.strip(), quality if 0 <= quality <= 1 else 0.0
    return name.strip(), 1.0


def _write(status: int, media_type: str, request_id: str | None) -> bytes:
    phrase = _phrase(status)
    explanation = _EXPLANATIONS.get(status, "")
    if media_type == _HTML:
        text = _PAGE.format(
            status=status,
            phrase=html.escape(phrase),
            explanation=f"<p>{html.escape(explanation)}</p>\n" if explanation else "",
            request_id=f"<p><small>Request {html.escape(request_id)}</small></p>\n"
            if request_id
            else "",
        )
    elif media_type == _PLAIN:
        text = f"{status} {phrase}\n"
        if explanation:
            text += f"{explanation}\n"
        if request_id:
            text += f"Request {request_id}\n"
    else:
        # RFC 9457 §3.1; about:blank: the status says it all.
        problem: dict[str, object] = {"type": "about:blank", "title": phrase, "status": status}
        if explanation:
            problem["detail"] = explanation
        if request_id:
            problem["request_id"] = request_id
        text = json.dumps(problem) + "\n"
    return text.encode()


# Only for pages without a request id: as many as there are statuses and types.
_write_cached = functools.cache(_write)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
