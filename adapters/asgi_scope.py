"""CGI meta-variables as an ASGI scope: the inverse of `protocols.cgi.meta_variables`.

RFC 3875 section 4.1, PEP 3333 "environ Variables" and FastCGI's PARAMS name the same
facts; what they leave open is settled here, once for every way back from ASGI.

A header's name is the ``HTTP_`` variable's, in lower case and with hyphens: which of
its hyphens the client had written as underscores, nobody can know any more. Several
fields of one name have become one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..protocols.asgi import AUTHORIZER_EXTENSION, VERSIONS, Fields, Scope
from ..protocols.cgi.meta_variables import UNKNOWN_ADDRESS
from ..protocols.fields import is_token, parse_content_length
from ..protocols.target import strip_prefix

#: Bytes of a path that are not UTF-8: ``"replace"`` by U+FFFD, as other servers do, or
#: keep them for an adapter behind, by ``"surrogateescape"``.
PathErrors = Literal["replace", "surrogateescape"]

_REMEMBERED = 512
_LONGEST_REMEMBERED = 64
_NO_NAME = b""
# These have variables of their own, and httpoxy (CVE-2016-5385) has taught what "Proxy"
# does where a scope becomes an environment again.
_DROPPED = ("HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH", "HTTP_PROXY")
_HTTP_VERSIONS = {"HTTP/2.0": "2", "HTTP/3.0": "3"}
# RFC 3875 §4.1.16: "INCLUDED" for a server-side include, and whatever extensions say.
_OTHER_VERSION = "1.1"
_PORTS = {"http": 80, "https": 443}
_USER_VARIABLES = ("AUTH_TYPE", "REMOTE_USER")


class _Names(dict[str, bytes]):
    """Variable name → field name, remembered; ``_NO_NAME`` for those that make none."""

    def __missing__(self, key: str) -> bytes:
        name = _NO_NAME
        if key.startswith("HTTP_") and key not in _DROPPED:
            name = key[5:].lower().replace("_", "-").encode("latin-1", "replace")
            if not is_token(name):
                name = _NO_NAME
        if len(key) <= _LONGEST_REMEMBERED:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[key] = name
        return name


_names = _Names()


def body_length(variables: Mapping[str, Any]) -> int | None:
    """Return CONTENT_LENGTH in bytes, or ``None`` if there is none (or an empty one).

    Raises `ValueError` for anything but digits.
    """
    text: str = variables.get("CONTENT_LENGTH") or ""
    return parse_content_length(_bytes(text)) if text else None


def http_scope(
    variables: Mapping[str, Any],
    *,
    scheme: str | None = None,
    root_path: str | None = None,
    is_split: bool = True,
    path_errors: PathErrors = "replace",
) -> Scope:
    """Return the scope of the HTTP request that the meta-variables describe.

    Their values are latin-1 strings that stand for bytes; those of other types, such as
    ``wsgi.input``, are not looked at. ``scheme`` is ``wsgi.url_scheme``, where there is
    one. ``root_path`` is where the application is mounted, if that is known better here
    than by the server, in whose SCRIPT_NAME it is looked for otherwise. Without
    ``is_split`` the server may be one that leaves the whole path in SCRIPT_NAME.

    Raises `KeyError` without a REQUEST_METHOD.
    """
    if scheme is None:
        scheme = _scheme(variables)
    headers: Fields = []
    names = _names
    for key, value in variables.items():
        name = names[key]
        if name:
            headers.append((name, _bytes(value)))
    content_length = variables.get("CONTENT_LENGTH")
    if content_length:
        # A body of known length is no longer in chunks, whatever it came in.
        headers = [field for field in headers if field[0] != b"transfer-encoding"]
        headers.append((b"content-length", _bytes(content_length)))
    content_type = variables.get("CONTENT_TYPE")
    if content_type:
        headers.append((b"content-type", _bytes(content_type)))

    prefix, path = _paths(variables, root_path, is_split, path_errors)
    protocol: str = variables.get("SERVER_PROTOCOL", "")
    version = _HTTP_VERSIONS.get(protocol) or protocol.removeprefix("HTTP/")
    scope: Scope = {
        "type": "http",
        "asgi": dict(VERSIONS),
        "http_version": version if version[:1].isdigit() else _OTHER_VERSION,
        "method": variables["REQUEST_METHOD"],
        "scheme": scheme,
        "path": path,
        "root_path": prefix,
        "query_string": _bytes(variables.get("QUERY_STRING") or ""),
        "headers": headers,
        "client": _client(variables),
        "server": _server(variables, scheme),
        "extensions": {},
    }
    raw_path = _raw_path(variables)
    if raw_path:
        scope["raw_path"] = raw_path
    user = {name: variables[name] for name in _USER_VARIABLES if variables.get(name)}
    if user:
        # Whom the web server has let in: no field of the client's can say so.
        scope["extensions"][AUTHORIZER_EXTENSION] = user
    return scope


def _bytes(value: str) -> bytes:
    # A server that puts text here, against PEP 3333, is taken at its word.
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape")


def _text(value: str, errors: PathErrors) -> str:
    return value if value.isascii() else _bytes(value).decode("utf-8", errors)


def _scheme(variables: Mapping[str, Any]) -> str:
    # Apache's "on", IIS's "ON", some say "1"; nginx leaves it empty without TLS.
    if str(variables.get("HTTPS", "")).lower() in ("on", "1"):
        return "https"
    scheme = variables.get("REQUEST_SCHEME")
    return scheme if scheme in _PORTS else "http"


def _paths(
    variables: Mapping[str, Any], root_path: str | None, is_split: bool, errors: PathErrors
) -> tuple[str, str]:
    """Return root_path, which ends with no slash, and path, which begins with it."""
    script: str = variables.get("SCRIPT_NAME") or ""
    info: str = variables.get("PATH_INFO") or ""
    if not (is_split or info):
        # nginx's list for SCGI has nothing but this.
        whole: str = variables.get("DOCUMENT_URI") or ""
        script = script or whole
        is_split = not (
            "PATH_INFO" not in variables
            or script == whole
            or str(variables.get("SCRIPT_FILENAME", "")).startswith("proxy:")
        )
    script = _text(script, errors)
    below = _text(info, errors)
    if root_path is not None:
        prefix = root_path.rstrip("/")
        below = below or strip_prefix(script, prefix)
    elif is_split or info:
        prefix = script.rstrip("/")
    else:
        # To php there is a script in every path: so nginx, Caddy and Apache's mod_proxy
        # have it until they are told how to split it; lighttpd, for an application at "/".
        prefix, below = "", script
    if below and below[0] != "/" and below != "*":
        below = "/" + below
    return prefix, prefix + below or "/"


def _raw_path(variables: Mapping[str, Any]) -> bytes:
    """Return the path of the request target as it was sent, if the server tells."""
    target: str = variables.get("REQUEST_URI") or variables.get("RAW_URI") or ""
    path = target.partition("?")[0]
    if "://" in path and path[0] != "/":
        # RFC 9112 §3.2.2: absolute-form
        path = "/" + path.partition("://")[2].partition("/")[2]
    return _bytes(path)


def _client(variables: Mapping[str, Any]) -> tuple[str, int] | None:
    address: str = variables.get("REMOTE_ADDR") or ""
    if address in ("", UNKNOWN_ADDRESS) or address.startswith("unix:"):
        return None
    return address, _port(variables.get("REMOTE_PORT"), 0)


def _server(variables: Mapping[str, Any], scheme: str) -> tuple[str, int | None] | None:
    name: str = variables.get("SERVER_ADDR") or variables.get("SERVER_NAME") or ""
    if not name:
        return None
    if name.startswith("["):
        # RFC 3875 §4.1.14 has IPv6 addresses in brackets.
        name = name.strip("[]")
    return name, _port(variables.get("SERVER_PORT"), _PORTS.get(scheme, 80))


def _port(value: Any, default: int) -> int:
    text = str(value or "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else default
