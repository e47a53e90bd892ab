"""What an application behind a socket is told of a request: which script, which variables.

FastCGI, SCGI and uwsgi applications get meta-variables (RFC 3875 §4.1) beside the
body, and differ only in how a pair is written. Here the place of a request is
found, that is its script, if there are scripts, SCRIPT_NAME and PATH_INFO; and
what its variables are.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..protocols.asgi import Scope, Send
from ..protocols.cgi.meta_variables import meta_variables
from ..protocols.target import mounted_prefix, slash_location, strip_prefix, to_bytes
from .errors import NotFound
from .scripts import Script, find_script

# How long a script that was found is taken to be there, and how many such.
_KNOWN_S = 1.0
_KNOWN_SCRIPTS = 256

#: The variables that come from what is asked for. All others come from who asks: its
#: fields, its connection, the server's settings.
OF_TARGET = frozenset(
    (
        *("DOCUMENT_ROOT", "DOCUMENT_URI", "PATH_INFO", "PATH_TRANSLATED", "QUERY_STRING"),
        *("REDIRECT_STATUS", "REQUEST_METHOD", "REQUEST_URI", "SCRIPT_FILENAME", "SCRIPT_NAME"),
    )
)


class Place(NamedTuple):
    """The script, if the application runs scripts, and the two parts of the path.

    It is believed ``until`` that time on the monotonic clock.
    """

    script: Script | None
    script_name: bytes
    path_info: bytes
    until: float = math.inf


class RequestParams:
    """What the adapters' options of the same names come to, see `FastCgiToAsgi`.

    Raises `ValueError` for ``params`` that cannot be.
    """

    __slots__ = (
        "_check_file",
        "_index",
        "_known",
        "_params",
        "_pass_authorization",
        "_root",
        "_script_name",
        "_server_software",
        "_split",
        "_suffixes",
    )

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None,
        index: str | Sequence[str],
        split: str | Sequence[str],
        check_file: bool,
        script_name: str | None,
        params: Mapping[str, str] | None,
        pass_authorization: bool,
        server_software: str,
    ) -> None:
        self._root = os.path.abspath(root) if root is not None else None
        self._index = (index,) if isinstance(index, str) else tuple(index)
        self._split = (split,) if isinstance(split, str) else tuple(split)
        self._suffixes = tuple(map(os.fsencode, self._split))
        self._check_file = check_file
        self._known: dict[tuple[bytes, bytes], Place] = {}
        self._script_name = script_name.rstrip("/") if script_name is not None else None
        self._params = _checked_params(params or {})
        self._pass_authorization = pass_authorization
        self._server_software = server_software

    def place(self, scope: Scope) -> Place:
        """Return the place of a request; errors are those of `find_script`."""
        mount = mounted_prefix(scope) if self._script_name is None else self._script_name
        prefix = to_bytes(mount)
        below = to_bytes(strip_prefix(scope["path"], mount))
        if self._root is None:
            return Place(None, prefix, below)
        if self._check_file:
            return self._find_script(below, prefix)
        script = self._split_path(below, prefix)
        return Place(script, script.script_name, script.path_info)

    def _find_script(self, below: bytes, prefix: bytes) -> Place:
        # To look at the file system costs more than all else here, and what was found may
        # be gone when the application opens it anyway: it is believed for a moment.
        assert self._root is not None
        now = time.monotonic()
        known = self._known.get((prefix, below))
        if known is not None and now < known.until:
            return known
        script = find_script(self._root, below, prefix=prefix, split=self._split, index=self._index)
        if len(self._known) >= _KNOWN_SCRIPTS:
            self._known.clear()
        place = Place(script, script.script_name, script.path_info, now + _KNOWN_S)
        self._known[prefix, below] = place
        return place

    def _split_path(self, path: bytes, prefix: bytes) -> Script:
        """Return the script that ``path`` names, without a look at the file system."""
        assert self._root is not None
        end = 0
        for segment in path.split(b"/")[1:]:
            if segment.startswith(b".") or b"\0" in segment or b"\\" in segment:
                raise NotFound(f"no script may have a name as in {path!r}")
            end += 1 + len(segment)
            if segment.endswith(self._suffixes):
                break
        else:
            if not self._index or path[-1:] not in (b"", b"/"):
                raise NotFound(f"no script in {path!r}")
            path = path.rstrip(b"/") + b"/" + os.fsencode(self._index[0])
            end = len(path)
        name, path_info = path[:end], path[end:]
        if b".." in path_info.split(b"/"):
            raise NotFound(f"dot segments in {path!r}")
        return Script(self._root + os.fsdecode(name), prefix + name, path_info, self._root)

    def variables(self, scope: Scope, place: Place, length: int) -> dict[str, str]:
        """Return the variables of a request whose body has ``length`` bytes."""
        script, script_name, path_info, _ = place
        variables = meta_variables(
            scope,
            server_software=self._server_software,
            script_name=script_name,
            path_info=path_info,
            content_length=length,
            pass_authorization=self._pass_authorization,
        )
        if script is not None:
            root = os.fsencode(script.root).decode("latin-1")
            info = path_info.decode("latin-1")
            variables["DOCUMENT_ROOT"] = root
            variables["DOCUMENT_URI"] = script_name.decode("latin-1") + info
            variables["SCRIPT_FILENAME"] = os.fsencode(script.filename).decode("latin-1")
            if info:
                # RFC 3875 §4.1.6: PATH_INFO, mapped as if it were a path of its own.
                variables["PATH_TRANSLATED"] = root + info
            # php-cgi runs nothing without it (cgi.force_redirect).
            variables["REDIRECT_STATUS"] = "200"
        variables.update(self._params)
        return variables

    def of_authorizer(self, scope: Scope) -> dict[str, str]:
        """Return what an authorizer is told of a request that others will answer.

        FastCGI Specification 1.0, section 6.3: all but CONTENT_LENGTH, PATH_INFO,
        PATH_TRANSLATED and SCRIPT_NAME. What the request is for it learns from
        DOCUMENT_URI, the normal path that routes are chosen by: REQUEST_URI is as
        the client spelt it.
        """
        variables = meta_variables(
            scope,
            server_software=self._server_software,
            content_length=0,
            pass_authorization=self._pass_authorization,
        )
        for name in ("CONTENT_LENGTH", "PATH_INFO", "SCRIPT_NAME"):
            variables.pop(name, None)
        variables["DOCUMENT_URI"] = to_bytes(scope["path"]).decode("latin-1")
        variables.update(self._params)
        return variables


def _checked_params(params: Mapping[str, str]) -> dict[str, str]:
    checked = {}
    for name, value in params.items():
        if not name or not name.isascii() or "\0" in name + value:
            raise ValueError(f"not a parameter: {name!r} = {value!r}")
        # A latin-1 string that stands for bytes, as all of them (PEP 3333).
        checked[name] = value.encode("utf-8", "surrogateescape").decode("latin-1")
    return checked


async def redirect_to_slash(scope: Scope, send: Send) -> None:
    """Answer a request for a folder of scripts whose path lacks the final slash."""
    fields = [(b"location", slash_location(scope)), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 301, "headers": fields})
    await send({"type": "http.response.body", "body": b""})
