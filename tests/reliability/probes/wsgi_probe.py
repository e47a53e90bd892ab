"""The WSGI application under test: echoes, and misbehaves on demand."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

from asgi_probe import SENDFILES, record

CANARY = "canary of a traceback"


def app(environ: dict[str, Any], start_response: Any) -> Any:
    word, _, argument = environ["PATH_INFO"].lstrip("/").partition("/")
    action = ACTIONS.get(word, echo)
    if action is not ok:
        record(app="wsgi", event="call", path=environ["PATH_INFO"], script=environ["SCRIPT_NAME"])
    return action(environ, start_response, argument)


class Tale:
    """An iterable that writes down when it is closed."""

    def __init__(self, pieces: Iterator[bytes], name: str) -> None:
        self._pieces = pieces
        self._name = name

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        record(app="wsgi", event="close", name=self._name)


def ok(environ: Any, start_response: Any, argument: str) -> Any:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


def echo(environ: Any, start_response: Any, argument: str) -> Any:
    body = environ["wsgi.input"].read()
    record(app="wsgi", event="body", path=environ["PATH_INFO"], length=len(body))
    said = {name: value for name, value in environ.items() if isinstance(value, str)}
    said["body_length"] = len(body)
    said["body_sha256"] = hashlib.sha256(body).hexdigest()
    text = json.dumps(said).encode()
    start_response(
        "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(text)))]
    )
    return [text]


def sleep(environ: Any, start_response: Any, argument: str) -> Any:
    time.sleep(float(argument))
    return ok(environ, start_response, "")


def unread(environ: Any, start_response: Any, argument: str) -> Any:
    return ok(environ, start_response, "")


def no_start(environ: Any, start_response: Any, argument: str) -> Any:
    return Tale(iter([b"body"]), "no-start")


def raise_(environ: Any, start_response: Any, argument: str) -> Any:
    def pieces() -> Iterator[bytes]:
        if argument == "late":
            yield b"half"
        raise RuntimeError(CANARY)

    start_response("200 OK", [("Content-Type", "text/plain")])
    if argument == "call":
        raise RuntimeError(CANARY)
    return Tale(pieces(), f"raise-{argument}")


def length(environ: Any, start_response: Any, argument: str) -> Any:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", argument)])
    return Tale(iter([b"0123", b"456789"]), f"length-{argument}")


def endless(environ: Any, start_response: Any, argument: str) -> Any:
    def pieces() -> Iterator[bytes]:
        while True:
            yield bytes(16384)

    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return Tale(pieces(), "endless")


def head(environ: Any, start_response: Any, argument: str) -> Any:
    status, headers = "200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")]
    if argument == "cr":
        headers.append(("X-Bad", "a\rSet-Cookie: b"))
    elif argument == "lf":
        headers.append(("X-Bad", "a\nSet-Cookie: b"))
    elif argument == "nul":
        headers.append(("X-Bad", "a\0b"))
    elif argument == "name":
        headers.append(("X Bad", "a"))
    elif argument == "hop":
        headers += [("Connection", "x-hop"), ("Keep-Alive", "timeout=1000")]
    elif argument.isdigit():
        status = f"{argument} Whatever"
    elif argument.startswith("sendfile"):
        headers.append(("X-Sendfile", SENDFILES[argument].decode()))
    start_response(status, headers)
    return Tale(iter([b"body"]), f"head-{argument}")


ACTIONS = {
    "ok": ok,
    "sleep": sleep,
    "unread": unread,
    "no-start": no_start,
    "raise": raise_,
    "length": length,
    "endless": endless,
    "head": head,
}
