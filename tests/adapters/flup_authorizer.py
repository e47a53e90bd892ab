"""A FastCGI authorizer on flup's threaded server: `python flup_authorizer.py [PATH]`.

Without PATH it listens on descriptor 0, as an application that the web server started.

It lets those pass whose password is "open sesame", and says who they are.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from flup.server.fcgi import WSGIServer
from flup.server.fcgi_base import FCGI_AUTHORIZER


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    kind, _, credentials = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    user, _, password = base64.b64decode(credentials).decode("latin-1").partition(":")
    if kind != "Basic" or password != "open sesame":
        fields = [("Content-Type", "text/plain"), ("WWW-Authenticate", 'Basic realm="cave"')]
        start_response("401 Unauthorized", [*fields, ("Variable-REMOTE_USER", "nobody")])
        return [b"Who are you?"]
    told = {name: value for name, value in environ.items() if isinstance(value, str)}
    fields = [("Variable-REMOTE_USER", user), ("Variable-AUTH_TYPE", kind)]
    start_response("200 OK", [*fields, ("Variable-Told", json.dumps(told)), ("X-Other", "1")])
    return [b"this is ignored"]


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else None
    WSGIServer(application, bindAddress=address, roles=(FCGI_AUTHORIZER,), maxSpare=4).run()
