"""A WSGI application that knows who asks, and checks no password."""

from collections.abc import Callable, Iterable
from typing import Any


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Greet whom the authorizer found."""
    body = f"You are {environ['REMOTE_USER']}, {environ['RANK']}.\n".encode()
    fields = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response("200 OK", fields)
    return [body]
