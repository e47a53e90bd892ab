"""A FastCGI authorizer: who may see the members' pages?

The gateway asks it before each request to a route that names it. Status 200 lets the
request pass, and what stands behind `Variable-` becomes a variable for whoever answers;
anything else is the client's answer.

Run it by a gateway: `spawn = ["python3", "doorkeeper.py"]`.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable
from typing import Any

from flup.server.fcgi import WSGIServer
from flup.server.fcgi_base import FCGI_AUTHORIZER

SALT = b"examples/authorizer"
# Names, what they are, and scrypt of their passwords: "notes" and "compiler".
MEMBERS = {
    "ada": ("author", "e385460843830d5ae78eccdaff1c3b79"),
    "grace": ("admiral", "b803fe59617a877d303f6df6995363c8"),
}


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Let members pass; ask others for their names."""
    name, password = credentials(environ.get("HTTP_AUTHORIZATION", ""))
    rank, expected = MEMBERS.get(name, ("", ""))
    if not hmac.compare_digest(digest(password), expected):
        fields = [("Content-Type", "text/plain"), ("WWW-Authenticate", 'Basic realm="members"')]
        start_response("401 Unauthorized", fields)
        return [b"Members only.\n"]
    # DOCUMENT_URI is the path that the route was chosen by. REQUEST_URI is as the
    # client spelt it: nothing to decide by.
    if environ["DOCUMENT_URI"].startswith("/members/bridge") and rank != "admiral":
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"Admirals only.\n"]
    passed = [("Variable-REMOTE_USER", name), ("Variable-AUTH_TYPE", "Basic")]
    start_response("200 OK", [*passed, ("Variable-RANK", rank)])
    return []


def credentials(field: str) -> tuple[str, str]:
    """Return name and password of an Authorization field (RFC 7617); both empty if it is none."""
    kind, _, encoded = field.partition(" ")
    try:
        pair = base64.b64decode(encoded, validate=True).decode()
    except ValueError:  # no ASCII, no base64 or no UTF-8
        return "", ""
    name, colon, password = pair.partition(":")
    return (name, password) if colon and kind.lower() == "basic" else ("", "")


def digest(password: str) -> str:
    return hashlib.scrypt(password.encode(), salt=SALT, n=2**12, r=8, p=1, dklen=16).hex()


if __name__ == "__main__":
    # Without an address flup listens on file descriptor 0.
    WSGIServer(application, roles=(FCGI_AUTHORIZER,)).run()
