"""Files beneath a root: the static backend (RFC 9110 sections 8, 13 and 14).

The path below the route's mount is looked up beneath the root; a route without
``mount`` looks up the whole path, its own prefix included. Files are opened
beneath the root and nowhere else (`tetrapylon.gateway.beneath`) and read on the
loop as far as the system has them in memory, in a few threads as far as it must
wait for the disk. No more than one piece of a file is held for a client.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from ...adapters.errors import Forbidden, NotFound, Truncated, answered
from ...protocols.asgi import Fields, Receive, Scope, Send
from ...protocols.conditional import evaluate, format_date, is_range_current
from ...protocols.fields import is_field_value
from ...protocols.ranges import parse_ranges
from ...protocols.target import path_below, slash_location
from .. import limits
from ..beneath import RESOLVER, Resolver, Root, Symlinks, open_beneath
from ..media_types import MediaTypes
from .base import Backend

#: A file is read and sent in pieces of this size.
PIECE_BYTES = 128 * 1024
# So many pieces are sent in a row before others have their turn on the loop,
# where the client takes them as fast as they come.
_TURN_PIECES = 8
_READERS = 4

# The fields that are preconditions, or ask for ranges.
_ASKING = frozenset(
    (
        b"range",
        b"if-range",
        b"if-match",
        b"if-none-match",
        b"if-modified-since",
        b"if-unmodified-since",
    )
)
_NOTHING_ASKED: dict[bytes, bytes] = {}
_NOT_ALLOWED = b"405 Method Not Allowed\n"


class _OpenFile:
    """A file's descriptor; closed once, and never under a thread that still reads it."""

    __slots__ = ("fd", "reading")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.reading: Future[bytes] | None = None

    def close(self) -> None:
        if self.reading is None:
            os.close(self.fd)
        else:
            self.reading.add_done_callback(lambda _: os.close(self.fd))


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
        self._ranges = ranges
        self._symlinks = symlinks
        self._resolver = resolver
        # Read into and copied from at once, by the one loop that runs this backend.
        self._scratch = memoryview(bytearray(PIECE_BYTES))
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix=f"static-{name}")
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
        self._threads.shutdown(wait=False, cancel_futures=True)

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
        fields = _asking_fields(scope["headers"])
        if path.endswith(b"/"):
            file_name, fd, status = self._open_index(path)
        else:
            file_name = path
            try:
                fd, status = self._open(path)
            except IsADirectoryError:
                await _redirect_to_directory(scope, send)
                return
        file = _OpenFile(fd)
        try:
            await self._answer(method, fields, file_name, file, status, send)
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

    # What is sent of it

    async def _answer(
        self,
        method: str,
        fields: Mapping[bytes, bytes],
        path: bytes,
        file: _OpenFile,
        status: os.stat_result,
        send: Send,
    ) -> None:
        length = status.st_size
        etag = b'"%x-%x-%x"' % (status.st_mtime_ns, length, status.st_ino)
        now_s = time.time()
        # RFC 9110 §8.8.2.1: never later than the response itself.
        last_modified_s = int(min(status.st_mtime, now_s))
        last_modified = format_date(last_modified_s)
        ranges = None
        if fields:
            verdict = evaluate(
                method, fields, etag=etag, last_modified_s=last_modified_s, now_s=now_s
            )
            if verdict is not None:
                await self._answer_verdict(verdict, etag, send)
                return
            # RFC 9110 §14.2: for GET alone
            asked = fields.get(b"range")
            if asked is not None and method == "GET" and self._ranges:
                if_range = fields.get(b"if-range")
                if if_range is None or is_range_current(
                    if_range, etag=etag, last_modified=last_modified
                ):
                    ranges = parse_ranges(asked, length, limit=self._ranges)
        content_type = self._media_types.of(path)
        validators: Fields = [(b"last-modified", last_modified), (b"etag", etag), *self._fixed]
        if ranges is not None:
            await self._answer_ranges(ranges, length, content_type, validators, file, send)
            return
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", content_type),
                    (b"content-length", b"%d" % length),
                    *validators,
                ],
            }
        )
        if method == "HEAD" or not length:
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._send_slice(file, 0, length, send)

    async def _answer_verdict(self, verdict: int, etag: bytes, send: Send) -> None:
        # RFC 9110 §15.4.5: what a cache needs to know, and no more.
        headers: Fields = [(b"etag", etag), *self._cache_control]
        body = b""
        if verdict == 412:
            body = b"412 Precondition Failed\n"
            headers = _text_fields(body)
        await send({"type": "http.response.start", "status": verdict, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer_ranges(
        self,
        ranges: list[tuple[int, int]],
        length: int,
        content_type: bytes,
        validators: Fields,
        file: _OpenFile,
        send: Send,
    ) -> None:
        if not ranges:
            body = b"416 Range Not Satisfiable\n"
            headers = [*_text_fields(body), (b"content-range", b"bytes */%d" % length)]
            await send({"type": "http.response.start", "status": 416, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        if len(ranges) == 1:
            start, stop = ranges[0]
            headers = [
                (b"content-type", content_type),
                (b"content-length", b"%d" % (stop - start)),
                (b"content-range", b"bytes %d-%d/%d" % (start, stop - 1, length)),
                *validators,
            ]
            await send({"type": "http.response.start", "status": 206, "headers": headers})
            await self._send_slice(file, start, stop, send)
            return
        # RFC 9110 §14.6: multipart/byteranges
        boundary = secrets.token_hex(16).encode()
        part_heads = [
            b"\r\n--%b\r\ncontent-type: %b\r\ncontent-range: bytes %d-%d/%d\r\n\r\n"
            % (boundary, content_type, start, stop - 1, length)
            for start, stop in ranges
        ]
        end = b"\r\n--%b--\r\n" % boundary
        total = sum(map(len, part_heads)) + sum(stop - start for start, stop in ranges) + len(end)
        headers = [
            (b"content-type", b"multipart/byteranges; boundary=" + boundary),
            (b"content-length", b"%d" % total),
            *validators,
        ]
        await send({"type": "http.response.start", "status": 206, "headers": headers})
        for part_head, (start, stop) in zip(part_heads, ranges, strict=True):
            await send({"type": "http.response.body", "body": part_head, "more_body": True})
            await self._send_slice(file, start, stop, send, is_last=False)
        await send({"type": "http.response.body", "body": end})

    async def _send_slice(
        self, file: _OpenFile, start: int, stop: int, send: Send, *, is_last: bool = True
    ) -> None:
        """Send the bytes ``start`` to ``stop`` of the file as body messages."""
        pieces = 0
        while start < stop:
            size = min(PIECE_BYTES, stop - start)
            data = self._read_from_memory(file.fd, size, start)
            if data is None:
                data = await self._read_off_loop(file, size, start)
            if not data:
                raise Truncated("the file became shorter while it was sent")
            start += len(data)
            await send(
                {
                    "type": "http.response.body",
                    "body": data,
                    "more_body": start < stop or not is_last,
                }
            )
            pieces += 1
            if pieces % _TURN_PIECES == 0:
                await asyncio.sleep(0)

    def _read_from_memory(self, fd: int, size: int, offset: int) -> bytes | None:
        """Read what needs no wait for the disk; ``None`` if that is nothing.

        Where the file system cannot tell, a small file is read at once all the same.
        """
        if sys.platform == "linux":
            try:
                got = os.preadv(fd, [self._scratch[:size]], offset, os.RWF_NOWAIT)
                return bytes(self._scratch[:got])
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return None
                if error.errno != errno.EOPNOTSUPP:
                    raise
        return os.pread(fd, size, offset) if size < PIECE_BYTES else None

    async def _read_off_loop(self, file: _OpenFile, size: int, offset: int) -> bytes:
        file.reading = self._threads.submit(os.pread, file.fd, size, offset)
        return await asyncio.wrap_future(file.reading)


def _asking_fields(headers: Fields) -> Mapping[bytes, bytes]:
    """Collect the preconditions and the range, repeated fields joined (RFC 9110 §5.3)."""
    asking = _NOTHING_ASKED
    for name, value in headers:
        if name in _ASKING:
            if asking is _NOTHING_ASKED:
                asking = {}
            asking[name] = asking[name] + b", " + value if name in asking else value
    return asking


def _text_fields(body: bytes) -> Fields:
    return [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]


async def _answer_method(method: str, send: Send) -> None:
    allow = (b"allow", b"GET, HEAD, OPTIONS")
    if method == "OPTIONS":
        await send({"type": "http.response.start", "status": 204, "headers": [allow]})
        await send({"type": "http.response.body", "body": b""})
        return
    headers = [allow, *_text_fields(_NOT_ALLOWED)]
    await send({"type": "http.response.start", "status": 405, "headers": headers})
    await send({"type": "http.response.body", "body": _NOT_ALLOWED})


async def _redirect_to_directory(scope: Scope, send: Send) -> None:
    headers: Fields = [(b"location", slash_location(scope)), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 301, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
