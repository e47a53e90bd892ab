"""Files beneath a root: the static backend (RFC 9110 sections 8, 13 and 14).

The path below the route's mount is looked up beneath the root; a route without
``mount`` looks up the whole path, its own prefix included. Files are opened
beneath the root and nowhere else (`tetrapylon.gateway.beneath`); what is sent of
them is `file_answers`' affair.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from ...adapters.errors import Forbidden, NotFound, answered
from ...protocols.asgi import Fields, Receive, Scope, Send
from ...protocols.fields import is_field_value
from ...protocols.target import path_below, slash_location
from .. import limits
from ..beneath import RESOLVER, Resolver, Root, Symlinks, open_beneath
from ..file_answers import FileAnswers, OpenFile, asking_fields, text_fields
from ..media_types import MediaTypes
from .base import Backend

_NOT_ALLOWED = b"405 Method Not Allowed\n"


class StaticBackend(Backend):
    """Serve the regular files beneath ``root``.

    ``index`` names the files that stand for a directory, in order; without one
    a directory is 403. ``dotfiles``: whether a segment that begins with a dot
    may be served; ``/.well-known/`` always is (RFC 8615). ``mime`` maps ends of
    names to media types, ``cache_control`` is sent as it is with every file,
    ``ranges`` is how many ranges of one request are honoured (0: none).
    Symbolic links are followed while they stay ``"inside"`` the root, or
    ``"never"``. Raises `ValueError` for what cannot be sent in a field.
    """

    kind = "static"

    def __init__(
        self,
        name: str,
        root: str | os.PathLike[str],
        *,
        index: Sequence[str] = ("index.html",),
        dotfiles: bool = False,
        mime: Mapping[str, str] = {},
        cache_control: str = "",
        ranges: int = limits.STATIC_RANGES,
        symlinks: Symlinks = "inside",
        resolver: Resolver = RESOLVER,
    ) -> None:
        super().__init__(name)
        self._root = Root(root)
        self._index = [os.fsencode(file_name) for file_name in index]
        self._serves_dotfiles = dotfiles
        self._media_types = MediaTypes(mime)
        self._symlinks = symlinks
        self._resolver = resolver
        self._answers = FileAnswers(f"static-{name}", ranges=ranges)
        if not cache_control.isascii() or not is_field_value(cache_control.encode()):
            raise ValueError(f"cache_control: {cache_control!r} cannot be a field's value")
        self._cache_control: Fields = (
            [(b"cache-control", cache_control.encode())] if cache_control else []
        )
        # With every file, whichever it is.
        self._fixed: Fields = [
            *([(b"accept-ranges", b"bytes")] if ranges else []),
            (b"x-content-type-options", b"nosniff"),
            *self._cache_control,
        ]

    def describe(self) -> str:
        """Say which folder is served."""
        return f"files in {self._root.path}"

    async def __aenter__(self) -> Self:
        """Open the root; raises `OSError` when it is no directory."""
        self._root.fileno()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._root.close()
        self._answers.close()

    @answered
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        method: str = scope["method"]
        if method != "GET" and method != "HEAD":
            await _answer_method(method, send)
            return
        path = path_below(scope)
        if not self._is_servable(path):
            raise NotFound(f"{path!r} is not served")
        asking = asking_fields(scope["headers"])
        if path.endswith(b"/"):
            file_name, fd, status = self._open_index(path)
        else:
            file_name = path
            try:
                fd, status = self._open(path)
            except IsADirectoryError:
                await _redirect_to_directory(scope, send)
                return
        file = OpenFile(fd)
        try:
            await self._answers.answer(
                method,
                asking,
                file,
                status,
                send,
                content_type=self._media_types.of(file_name),
                fields=self._fixed,
                cache_fields=self._cache_control,
            )
        finally:
            file.close()

    # Which file

    def _is_servable(self, path: bytes) -> bool:
        """Refuse what no file is asked for with, whoever is the server in front of us."""
        if path[:1] not in (b"", b"/") or b"\\" in path or b"//" in path:
            return False
        if b"/." not in path:
            return True
        segments = path.split(b"/")[1:]
        if b"." in segments or b".." in segments:
            return False
        if segments[0] == b".well-known":
            del segments[0]
        return self._serves_dotfiles or not any(name.startswith(b".") for name in segments)

    def _open(self, path: bytes) -> tuple[int, os.stat_result]:
        return open_beneath(
            self._root.fileno(), path[1:], symlinks=self._symlinks, resolver=self._resolver
        )

    def _open_index(self, directory: bytes) -> tuple[bytes, int, os.stat_result]:
        for file_name in self._index:
            path = directory + file_name
            try:
                return path, *self._open(path)
            except (NotFound, IsADirectoryError):
                continue
        try:
            os.close(self._open(directory)[0])
        except IsADirectoryError:
            raise Forbidden(f"{directory!r} has no index, and directories are not listed") from None
        raise NotFound(f"{directory!r} is not a directory")


async def _answer_method(method: str, send: Send) -> None:
    allow = (b"allow", b"GET, HEAD, OPTIONS")
    if method == "OPTIONS":
        await send({"type": "http.response.start", "status": 204, "headers": [allow]})
        await send({"type": "http.response.body", "body": b""})
        return
    headers = [allow, *text_fields(_NOT_ALLOWED)]
    await send({"type": "http.response.start", "status": 405, "headers": headers})
    await send({"type": "http.response.body", "body": _NOT_ALLOWED})


async def _redirect_to_directory(scope: Scope, send: Send) -> None:
    headers: Fields = [(b"location", slash_location(scope)), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 301, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
