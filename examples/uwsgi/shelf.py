"""A shelf of books as a WSGI application, to run in uWSGI."""

import json
from collections.abc import Callable, Iterable
from typing import Any

BOOKS = {
    "1": "A Wizard of Earthsea",
    "2": "Ficciones",
    "3": "The Left Hand of Darkness",
}


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """List the books, or show one of them."""
    # The gateway's route is the application's root: both parts are told apart already.
    prefix, path = environ["SCRIPT_NAME"], environ["PATH_INFO"]
    kind, _, number = path.strip("/").partition("/")
    if kind == "books" and not number:
        links = {title: f"{prefix}/books/{each}" for each, title in BOOKS.items()}
        return answer(start_response, "200 OK", links)
    if kind == "books" and number in BOOKS:
        return answer(start_response, "200 OK", {"number": number, "title": BOOKS[number]})
    if kind == "weigh" and environ["REQUEST_METHOD"] == "PUT":
        weight = 0
        while piece := environ["wsgi.input"].read(65536):
            weight += len(piece)
        return answer(start_response, "200 OK", {"bytes": weight})
    return answer(start_response, "404 Not Found", {"error": f"There is no {path} on the shelf."})


def answer(start_response: Callable[..., Any], status: str, value: object) -> list[bytes]:
    body = json.dumps(value).encode() + b"\n"
    fields = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(status, fields)
    return [body]
