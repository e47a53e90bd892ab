"""A poll as an SCGI application, on flup's threaded server: `python votes.py [HOST:PORT]`.

SCGI is what is left of FastCGI if a connection carries one request only: a block of
variables, the body, and an answer as a CGI script writes it.
"""

import html
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from flup.server.scgi import WSGIServer

CHOICES = ("tea", "coffee", "water")
MOST_BYTES = 1024

votes = Counter(dict.fromkeys(CHOICES, 0))
votes_lock = threading.Lock()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Show the poll, or count a vote."""
    if environ["REQUEST_METHOD"] == "POST":
        length = int(environ["CONTENT_LENGTH"])
        if length > MOST_BYTES:
            return answer(start_response, "413 Content Too Large", "That is no vote.\n")
        form = parse_qs(environ["wsgi.input"].read(length).decode("utf-8", "replace"))
        choice = form.get("choice", [""])[0]
        if choice not in votes:
            return answer(start_response, "422 Unprocessable Content", "Tea, coffee or water?\n")
        with votes_lock:
            votes[choice] += 1
        # SCRIPT_NAME is where the gateway has put the poll.
        start_response("303 See Other", [("Location", environ["SCRIPT_NAME"] + "/")])
        return [b""]
    with votes_lock:
        counted = votes.most_common()
    if environ["PATH_INFO"] == "/plain":
        return answer(start_response, "200 OK", "".join(f"{n:5} {name}\n" for name, n in counted))
    rows = "".join(f"<li>{html.escape(name)}: {n}\n" for name, n in counted)
    buttons = "".join(f'<button name="choice" value="{name}">{name}</button>\n' for name in CHOICES)
    page = (
        '<!doctype html>\n<meta charset="utf-8">\n<title>Votes</title>\n'
        f"<h1>What shall there be?</h1>\n<ul>\n{rows}</ul>\n"
        f'<form method="post">\n{buttons}</form>\n'
    )
    return answer(start_response, "200 OK", page, "text/html")


def answer(
    start_response: Callable[..., Any], status: str, text: str, kind: str = "text/plain"
) -> list[bytes]:
    body = text.encode()
    fields = [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(status, fields)
    return [body]


if __name__ == "__main__":
    host, _, port = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:4000").rpartition(":")
    WSGIServer(application, bindAddress=(host, int(port))).run()
