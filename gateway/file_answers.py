"""What is sent of an open file: the whole of it, ranges, or the verdict on a precondition.

A file is read on the loop as far as the system has it in memory, in a few threads
as far as it must wait for the disk. No more than one piece of a file is held for a
client. Which file it is, others know: the static backend, and `sendfile`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from ..adapters.errors import Truncated
from ..protocols.asgi import Fields, Send
from ..protocols.conditional import evaluate, format_date, is_range_current
from ..protocols.ranges import parse_ranges

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


class OpenFile:
    """A file's descriptor; closed once, and never under a thread that still reads it."""

    __slots__ = ("fd", "reading")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.reading: Future[bytes] | None = None

    def close(self) -> None:
        """Close the descriptor, now or when the thread has read."""
        if self.reading is None:
            os.close(self.fd)
        else:
            self.reading.add_done_callback(lambda _: os.close(self.fd))


class FileAnswers:
    """Answers requests for files; ``ranges`` of one request are honoured (0: none).

    ``name`` is in the names of its threads. `close` lets these go.
    """

    def __init__(self, name: str, *, ranges: int) -> None:
        self._ranges = ranges
        # Read into and copied from at once, by the one loop that runs this.
        self._scratch = memoryview(bytearray(PIECE_BYTES))
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix=name)

    def close(self) -> None:
        """Stop the threads; what is being read is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def answer(
        self,
        method: str,
        asking: Mapping[bytes, bytes],
        file: OpenFile,
        status: os.stat_result,
        send: Send,
        *,
        content_type: bytes,
        fields: Fields,
        cache_fields: Fields,
    ) -> None:
        """Answer a GET or HEAD with the file, of which ``status`` tells length and times.

        ``asking`` are the request's preconditions and ranges (`asking_fields`).
        ``fields`` are added to its validators, ``cache_fields`` go with a 304.
        """
        length = status.st_size
        etag = b'"%x-%x-%x"' % (status.st_mtime_ns, length, status.st_ino)
        now_s = time.time()
        # RFC 9110 §8.8.2.1: never later than the response itself.
        last_modified_s = int(min(status.st_mtime, now_s))
        last_modified = format_date(last_modified_s)
        ranges = None
        if asking:
            verdict = evaluate(
                method, asking, etag=etag, last_modified_s=last_modified_s, now_s=now_s
            )
            if verdict is not None:
                await self._answer_verdict(verdict, [(b"etag", etag), *cache_fields], send)
                return
            # RFC 9110 §14.2: for GET alone
            asked = asking.get(b"range")
            if asked is not None and method == "GET" and self._ranges:
                if_range = asking.get(b"if-range")
                if if_range is None or is_range_current(
                    if_range, etag=etag, last_modified=last_modified
                ):
                    ranges = parse_ranges(asked, length, limit=self._ranges)
        validators: Fields = [(b"last-modified", last_modified), (b"etag", etag), *fields]
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
        await self._send_whole(method, file, length, send)

    async def answer_as(
        self,
        response_status: int,
        method: str,
        file: OpenFile,
        length: int,
        send: Send,
        fields: Fields,
    ) -> None:
        """Answer with the whole file under another status than 200, whatever was asked for."""
        headers = [*fields, (b"content-length", b"%d" % length)]
        await send({"type": "http.response.start", "status": response_status, "headers": headers})
        await self._send_whole(method, file, length, send)

    async def _send_whole(self, method: str, file: OpenFile, length: int, send: Send) -> None:
        if method == "HEAD" or not length:
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._send_slice(file, 0, length, send)

    async def _answer_verdict(self, verdict: int, headers: Fields, send: Send) -> None:
        # RFC 9110 §15.4.5: with 304, what a cache needs to know, and no more.
        body = b""
        if verdict == 412:
            body = b"412 Precondition Failed\n"
            headers = text_fields(body)
        await send({"type": "http.response.start", "status": verdict, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer_ranges(
        self,
        ranges: list[tuple[int, int]],
        length: int,
        content_type: bytes,
        validators: Fields,
        file: OpenFile,
        send: Send,
    ) -> None:
        if not ranges:
            body = b"416 Range Not Satisfiable\n"
            headers = [*text_fields(body), (b"content-range", b"bytes */%d" % length)]
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
        self, file: OpenFile, start: int, stop: int, send: Send, *, is_last: bool = True
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

    async def _read_off_loop(self, file: OpenFile, size: int, offset: int) -> bytes:
        file.reading = self._threads.submit(os.pread, file.fd, size, offset)
        return await asyncio.wrap_future(file.reading)


def asking_fields(headers: Fields) -> Mapping[bytes, bytes]:
    """Collect the preconditions and the range, repeated fields joined (RFC 9110 §5.3)."""
    asking = _NOTHING_ASKED
    for name, value in headers:
        if name in _ASKING:
            if asking is _NOTHING_ASKED:
                asking = {}
            asking[name] = asking[name] + b", " + value if name in asking else value
    return asking


def text_fields(body: bytes) -> Fields:
    """Return the fields of a short text."""
    return [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
