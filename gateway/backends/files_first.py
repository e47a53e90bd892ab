"""A folder of files and scripts together, as PHP sites are: files as they are,
scripts through FastCGI (``files = true`` of a FastCGI backend).

Whatever may be a script never comes out as a file, in whatever case it is
written: on a file system that folds case ``/Index.PHP`` opens ``index.php``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ...adapters.errors import Forbidden, NotFound
from ...protocols.asgi import Receive, Scope, Send
from .base import Backend

# Beside `split`: what interpreters of PHP run or include under other names.
_SOURCES = (".php", ".phtml", ".phar", ".phps", ".inc")


class FilesFirstBackend(Backend):
    """Ask ``files`` for what is not named like a script, and ``scripts`` for the rest.

    A folder's index is a script's affair first, then a file's. Both look beneath
    the same root. The router knows it by the name of ``scripts``.
    """

    kind = "fastcgi"

    def __init__(self, scripts: Backend, files: Backend, *, split: Sequence[str]) -> None:
        super().__init__(scripts.name, body_limit_bytes=scripts.body_limit_bytes)
        self.local_redirects = scripts.local_redirects
        self._scripts = scripts
        self._files = files
        self._sources = (*(suffix.casefold() for suffix in split), *_SOURCES)
        self._lifetimes = contextlib.AsyncExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD") or self._names_script(path):
            await self._scripts(scope, receive, send)
            return
        first, second = self._files, self._scripts
        if path.endswith("/"):
            # Of a folder's indexes the script comes first.
            first, second = second, first
        try:
            await first(scope, receive, send)
        except (Forbidden, NotFound):
            # Nothing was read or sent yet.
            await second(scope, receive, send)

    def _names_script(self, path: str) -> bool:
        return any(
            segment.rstrip(". ").casefold().endswith(self._sources) for segment in path.split("/")
        )

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as entered:
            await entered.enter_async_context(self._files)
            await entered.enter_async_context(self._scripts)
            self._lifetimes = entered.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._lifetimes.aclose()

    def describe(self) -> str:
        """Say in a few words what is served."""
        return f"{self._scripts.describe()}; other files as they are"
