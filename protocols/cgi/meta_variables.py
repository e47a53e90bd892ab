"""An ASGI scope as CGI meta-variables (RFC 3875 section 4.1).

The one place where the facts of a request get their CGI names: CGI makes them
environment variables, FastCGI PARAMS, WSGI the environ. Values are latin-1
`str`, that is bytes in the manner of PEP 3333; every key here is made by us,
never by the client, but for ``HTTP_`` names of ``[A-Z0-9_]``.

Which document gives what: the variables of RFC 3875 §4.1, and beside them
REQUEST_URI, REQUEST_SCHEME, HTTPS, REMOTE_PORT and SERVER_ADDR in the manner of
Apache, which applications have come to expect. PATH_TRANSLATED, DOCUMENT_ROOT
and SCRIPT_FILENAME need a file system: callers add them. AUTH_TYPE and REMOTE_USER
are there only where an authorizer set them (`AUTHORIZER_EXTENSION`), as all that it
sets; REMOTE_IDENT is never asked for.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import quote_from_bytes

from ..asgi import AUTHORIZER_EXTENSION, Scope
from ..fields import is_plain_name
from ..target import strip_prefix, to_bytes

# A client chooses its field names: the cache forgets all it learnt when it is full.
_CACHE_NAMES = 512
_CACHE_NAME_BYTES = 64

# RFC 3875 §4.1.18 leaves out what is available elsewhere (Content-Type) and what
# authenticates; these are told apart from the others by their keys alone.
_DROPPED = ""
_AUTHORIZATION = ("HTTP_AUTHORIZATION", "HTTP_PROXY_AUTHORIZATION")
_KNOWN = {
    b"content-type": "CONTENT_TYPE",
    b"content-length": "CONTENT_LENGTH",
    # HTTP_PROXY is the outgoing proxy to most HTTP clients (httpoxy, CVE-2016-5385).
    b"proxy": _DROPPED,
}


class _Keys(dict[bytes, str]):
    """Field name → variable name, remembered; ``_DROPPED`` for names that get none."""

    def __missing__(self, name: bytes) -> str:
        lower = name.lower()
        if lower in _KNOWN:
            key = _KNOWN[lower]
        elif is_plain_name(name):
            key = "HTTP_" + name.decode("ascii").upper().replace("-", "_")
        else:
            # `Content_Length` or `X.Real.IP` must not stand in for the hyphened name.
            key = _DROPPED
        if len(name) <= _CACHE_NAME_BYTES:
            if len(self) >= _CACHE_NAMES:
                self.clear()
            self[name] = key
        return key


_keys = _Keys()

# RFC 9110 §7.2: a host, then a port. Of what RFC 3986 §3.2.2 calls a host only names
# and addresses; with anything stranger the server's own address is the better name.
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?")

_PROTOCOLS = {
    "1.0": "HTTP/1.0",
    "1.1": "HTTP/1.1",
    # RFC 3875 §4.1.16 knows versions with two numbers only.
    "2": "HTTP/2.0",
    "3": "HTTP/3.0",
}

#: Stands for a peer whose address is not known, as on a unix socket. It has the
#: form that §4.1.8 asks for; it is not 127.0.0.1, which applications trust.
UNKNOWN_ADDRESS = "0.0.0.0"  # noqa: S104 nothing is bound to it


def meta_variables(
    scope: Scope,
    *,
    server_software: str = "tetrapylon",
    script_name: bytes | None = None,
    path_info: bytes | None = None,
    content_length: int | None = None,
    pass_authorization: bool = False,
) -> dict[str, str]:
    """Return the meta-variables of an HTTP scope: a fresh `dict`, values latin-1.

    ``script_name`` and ``path_info`` are decoded bytes; without them the scope's
    ``root_path`` and the rest of its ``path`` stand. ``content_length``, in
    bytes, is given when the body has been read and counted: it stands instead
    of what the client said, and Transfer-Encoding, now undone, is left out.
    Authorization and Proxy-Authorization stay away from applications unless
    ``pass_authorization``.
    """
    variables: dict[str, str] = {}
    keys = _keys
    for name, value in scope["headers"]:
        key = keys[name]
        if key in variables:
            # §4.1.18: several of one name become one value of the same meaning.
            # RFC 9110 §5.3, RFC 6265 §5.4: that is a list, but for Cookie.
            separator = "; " if key == "HTTP_COOKIE" else ", "
            variables[key] += separator + value.decode("latin-1")
        else:
            variables[key] = value.decode("latin-1")
    variables.pop(_DROPPED, None)
    if not pass_authorization:
        # §4.1.18, §9.2: credentials are the server's business.
        for key in _AUTHORIZATION:
            variables.pop(key, None)

    if content_length is not None:
        transfer_encoding = variables.pop("HTTP_TRANSFER_ENCODING", None)
        # §4.1.2: set if and only if there is a body, be it empty.
        if content_length or transfer_encoding is not None or "CONTENT_LENGTH" in variables:
            variables["CONTENT_LENGTH"] = str(content_length)

    path: str = scope["path"]
    if script_name is None or path_info is None:
        prefix: str = scope.get("root_path", "")
        if prefix:
            prefix = prefix.rstrip("/")
            below = strip_prefix(path, prefix)
        else:
            # RFC 9110 §4.2.3: an empty path is "/".
            below = path or "/"
        script = _latin1(prefix) if script_name is None else script_name.decode("latin-1")
        info = _latin1(below) if path_info is None else path_info.decode("latin-1")
    else:
        script = script_name.decode("latin-1")
        info = path_info.decode("latin-1")
    variables["SCRIPT_NAME"] = script
    variables["PATH_INFO"] = info

    raw_path: bytes | None = scope.get("raw_path")
    if raw_path is None:
        raw_path = quote_from_bytes(to_bytes(path)).encode("ascii")
    query = scope["query_string"].decode("latin-1")
    variables["QUERY_STRING"] = query
    target = raw_path.decode("latin-1")
    variables["REQUEST_URI"] = f"{target}?{query}" if query else target

    variables["REQUEST_METHOD"] = scope["method"]
    version: str = scope["http_version"]
    variables["SERVER_PROTOCOL"] = _PROTOCOLS.get(version) or f"HTTP/{version}"
    variables["GATEWAY_INTERFACE"] = "CGI/1.1"
    variables["SERVER_SOFTWARE"] = server_software
    scheme: str = scope.get("scheme", "http")
    variables["REQUEST_SCHEME"] = scheme
    if scheme == "https":
        variables["HTTPS"] = "on"

    # §4.1.14: among several names of this server the Host field chooses. §4.1.15: the
    # port is that of the connection; on a unix socket, whoever connected knows it better.
    host = variables.get("HTTP_HOST")
    host_name, host_port = _split_host(host) if host else ("", "")
    server = scope.get("server")
    if server is None or server[1] is None:
        variables["SERVER_NAME"] = host_name or "localhost"
        variables["SERVER_PORT"] = host_port or ("443" if scheme == "https" else "80")
    else:
        address: str = server[0]
        variables["SERVER_NAME"] = host_name or (f"[{address}]" if ":" in address else address)
        variables["SERVER_PORT"] = str(server[1])
        variables["SERVER_ADDR"] = address

    client = scope.get("client")
    if client is None or client[1] is None:
        variables["REMOTE_ADDR"] = UNKNOWN_ADDRESS
    else:
        variables["REMOTE_ADDR"] = client[0] or UNKNOWN_ADDRESS
        if client[1]:
            variables["REMOTE_PORT"] = str(client[1])

    extensions = scope.get("extensions")
    if extensions and AUTHORIZER_EXTENSION in extensions:
        # Last, so that no field of the client's can stand for one of them.
        variables.update(extensions[AUTHORIZER_EXTENSION])
    return variables


def _latin1(path: str) -> str:
    """Return the path's bytes as a latin-1 string (PEP 3333, "Unicode Issues")."""
    if path.isascii():
        return path
    return to_bytes(path).decode("latin-1")


@lru_cache(maxsize=256)
def _split_host(host: str) -> tuple[str, str]:
    """Return name and port of a Host value; brackets stay. Both empty if it is none."""
    match = _HOST.fullmatch(host)
    return (match[1], match[2] or "") if match is not None else ("", "")
