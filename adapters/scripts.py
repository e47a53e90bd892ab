"""Which file of a directory a URL path means, and what of the path is left for it.

RFC 3875 §3.2 and §3.3 leave the choice of the script to the server. Here it is
made for CGI (the first file on the way is the script) and for FastCGI (the first
file on the way that is named like a script). All of it is done on the bytes of
the one normal path, percent-decoded once by the server: nothing is decoded,
folded or repaired again, so that no two readings of a path can differ.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Sequence
from typing import NamedTuple

from .errors import Forbidden, NotFound

# Bytes that have no place in the name of a script: controls (NUL above all), and the
# backslash, a separator on some file systems.
_STRANGE = re.compile(rb"[\x00-\x1f\x7f\\]")
_DOT_SEGMENTS = frozenset((b".", b".."))


class Script(NamedTuple):
    """A script and what names it in a request.

    ``filename`` is absolute (SCRIPT_FILENAME), its symlinks unresolved;
    ``script_name`` and ``path_info`` are decoded bytes for the meta-variables of
    these names; ``root`` is the directory it was looked for in, absolute
    (DOCUMENT_ROOT).
    """

    filename: str
    script_name: bytes
    path_info: bytes
    root: str


class SlashMissing(NotFound):
    """The path names a directory that has an index, and does not end with a slash.

    Relative links of the index would go astray: to be answered with a redirect
    to the same path and a slash, else as 404.
    """


def find_script(
    root: str,
    path: bytes,
    *,
    prefix: bytes,
    split: Sequence[str] = (),
    index: Sequence[str] = (),
) -> Script:
    """Return the script beneath ``root`` that ``path`` names.

    ``path`` is the part below ``prefix``, the URL path that ``root`` is mounted at
    (``b""`` or ``b"/cgi-bin"``). Without ``split`` the first regular file on the
    way is the script; with it, the first that ends with one of ``split``
    (``".php"``), in this very case. The rest of the path is PATH_INFO, exact in
    bytes. For a directory, asked for with a final slash, the first of ``index``
    that exists.

    Raises `NotFound` or `Forbidden`. Outside of ``root``, by ``..`` or by a
    symlink, there are no scripts; nor among dotfiles, directories, FIFOs,
    devices, sockets. The file may be exchanged after it was found: whoever can
    do that beneath ``root`` can write scripts anyway.
    """
    if root[:1] != "/":
        root = os.path.abspath(root)
    root, root_name, suffixes, indexes = _prepared(root, tuple(split), tuple(index))
    if not path and not prefix:
        path = b"/"  # RFC 9110 §4.2.3
    # CGI-9.8: an application may join PATH_INFO to a directory of its own. Our listener
    # resolves dot segments and refuses NUL; other servers do not.
    segments = path.split(b"/")
    if segments.pop(0) or b"\0" in path or not _DOT_SEGMENTS.isdisjoint(segments):
        raise NotFound(f"not a path of a script: {path!r}")

    filename = root_name.rstrip(b"/")
    consumed = 0
    for segment in segments:
        if not segment:
            break
        if _is_strange(segment):
            raise NotFound(f"no script has a name as in {path!r}")
        filename += b"/" + segment
        consumed += 1 + len(segment)
        if _is_directory(filename, root_name):
            continue
        if suffixes and not segment.endswith(suffixes):
            raise NotFound(f"{filename!r} is not named like a script")
        return Script(os.fsdecode(filename), prefix + path[:consumed], path[consumed:], root)

    rest = path[consumed:]
    if rest in (b"", b"/"):
        for name in indexes:
            index_filename = filename + b"/" + name
            try:
                if (suffixes and not name.endswith(suffixes)) or _is_directory(
                    index_filename, root_name
                ):
                    continue
            except NotFound:
                continue
            if not rest:
                raise SlashMissing(f"{path!r} is a directory")
            script_name = prefix + path[:consumed] + b"/" + name
            return Script(os.fsdecode(index_filename), script_name, b"", root)
    raise NotFound(f"no script at {path!r}")


@functools.lru_cache(256)
def _prepared(
    root: str, split: tuple[str, ...], index: tuple[str, ...]
) -> tuple[str, bytes, tuple[bytes, ...], tuple[bytes, ...]]:
    """Return what each request for scripts of an absolute ``root`` would make anew."""
    root = os.path.abspath(root)
    suffixes = tuple(map(os.fsencode, split))
    return root, os.fsencode(root), suffixes, tuple(map(os.fsencode, index))


def _is_strange(segment: bytes) -> bool:
    # A dot in first place hides a file; one in last place some file systems overlook.
    return segment[:1] == b"." or segment[-1:] == b"." or _STRANGE.search(segment) is not None


def _is_directory(filename: bytes, root: bytes) -> bool:
    """Tell a directory (true) from a regular file; raise for whatever else it is.

    Nothing is opened, so that no FIFO or device can hold the caller. Permissions
    are looked at even where the system does not: root may read a file of mode 000.
    """
    try:
        status = os.lstat(filename)
        if stat.S_ISLNK(status.st_mode):
            target = os.path.realpath(filename, strict=True)
            if not target.startswith(os.path.realpath(root).rstrip(b"/") + b"/"):
                raise Forbidden(f"{filename!r} is a symlink out of {root!r}")
            status = os.lstat(target)
    except PermissionError as error:
        raise Forbidden(str(error)) from error
    except OSError as error:
        raise NotFound(str(error)) from error
    mode = status.st_mode
    if stat.S_ISDIR(mode) and mode & 0o111:
        return True
    if stat.S_ISREG(mode) and mode & 0o555:
        return False
    raise Forbidden(f"{filename!r} is {stat.filemode(mode)}")
