"""The access log: one line for each request, whatever the request was.

``combined`` is Apache's format of that name with the seconds taken and the
backend after it; ``json`` is an object a line. What a client sent is escaped, so
that no request can write a second line or speak to a terminal.

The connection driver calls `AccessLog.record`, which formats a line and leaves
it to a thread: a full disk or a reader that stands still costs log lines, which
are counted, and never a request.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import select
import threading
import time
from collections import deque
from typing import Literal, TypeAlias

import msgspec

from ..protocols.http1.events import Request

logger = logging.getLogger("tetrapylon.gateway")

Format: TypeAlias = Literal["combined", "json"]

#: A line waits at most this long for others to be written with it.
FLUSH_S = 0.25
#: Lines together this long are written at once.
FLUSH_BYTES = 64 * 1024
#: Beyond this lines are dropped: the file or pipe does not take them.
BUFFER_BYTES = 4 * 1024 * 1024
#: Lines that were dropped are reported this often at the most.
REPORT_S = 10.0
#: How long `AccessLog.close` waits for what is still to be written.
CLOSE_S = 2.0

_STDOUT = 1
_MONTHS = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# What is left of a line without what needs no escape: its own quotes and end.
_SAFE = bytes(octet for octet in range(0x20, 0x7F) if octet not in b'"\\')
_COMBINED_QUOTES = b'""""""\n'
_UNSAFE = re.compile(r'[^\x20-\x7e]|["\\]')


class _Entry(msgspec.Struct, omit_defaults=True):
    """A line in JSON; text that is not UTF-8 has ``\\xHH`` for its bytes."""

    time: str
    client: str
    method: str | None
    target: str | None
    http_version: str | None
    status: int
    body_bytes: int
    duration_s: float
    backend: str
    user: str | None = None
    referer: str | None = None
    user_agent: str | None = None
    request_id: str | None = None


_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Writes lines to ``file``, a path or ``"-"`` for standard output.

    Raises `OSError` when the file cannot be opened.
    """

    def __init__(self, format: Format = "combined", file: str | os.PathLike[str] = "-") -> None:
        self._format = self._format_json if format == "json" else self._format_combined
        self._file = os.fspath(file)
        self._fd = _STDOUT if self._file == "-" else _open(self._file)
        # Counted by two threads, each its own: lines not taken, lines not written.
        self._refused = 0
        self._failed = 0
        self._reported = 0
        self._reported_at = -math.inf
        self._lines: deque[bytes] = deque()
        # Each is counted up by one thread only, so their difference needs no lock.
        self._put_bytes = 0
        self._taken_bytes = 0
        self._is_waiting = False
        self._has_lines = threading.Event()
        self._hurry = threading.Event()
        self._is_written = threading.Condition()
        self._is_closing = False
        self._writer: threading.Thread | None = None
        self._is_torn = False  # the last write ended within a line
        self._second = -1
        self._stamp = self._stamp_iso = ""

    def record(
        self,
        *,
        client: str,
        request: Request | None,
        status: int,
        body_bytes: int,
        duration_s: float,
        backend: str,
        user: str = "",
        request_id: str | None = None,
    ) -> None:
        """Take note of one request; never raises and never waits.

        ``client`` is an address, ``""`` for a unix socket. ``request`` is None
        when what came was no request. ``user`` is whom an authorizer found it to
        be of, in latin-1; ``""`` for nobody.
        """
        try:
            line = self._format(
                client or "-", request, status, body_bytes, duration_s, backend, user, request_id
            )
        except Exception:
            logger.exception("the access log cannot write of a request")
            return
        waiting_bytes = self._put_bytes - self._taken_bytes
        if waiting_bytes > FLUSH_BYTES:
            if waiting_bytes > BUFFER_BYTES:
                self._refused += 1
                return
            self._hurry.set()
        self._lines.append(line)
        self._put_bytes += len(line)
        if not self._is_waiting:
            self._wake()

    @property
    def dropped(self) -> int:
        """How many lines could not be written."""
        return self._refused + self._failed

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Wait until all lines are written; tell whether they were in time."""
        target_bytes = self._put_bytes
        self._hurry.set()
        with self._is_written:
            return self._is_written.wait_for(lambda: self._taken_bytes >= target_bytes, timeout_s)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what is left, within ``timeout_s``, and close the file."""
        self._is_closing = True
        writer, self._writer = self._writer, None
        if writer is not None:
            self._hurry.set()
            self._has_lines.set()
            writer.join(timeout_s)
            if writer.is_alive():
                # It holds the descriptor in a write that may never end.
                return
        if self._file != "-" and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def reopen(self) -> None:
        """Open the file anew, after it was renamed; keep the old one where that fails."""
        if self._file == "-":
            return
        try:
            fresh = _open(self._file)
        except OSError as error:
            logger.error("the access log stays in its old file: %s", error)
            return
        self.flush()
        # dup2 replaces what the descriptor stands for even while the writer uses it.
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)

    # Formats

    def _format_combined(
        self,
        client: str,
        request: Request | None,
        status: int,
        body_bytes: int,
        duration_s: float,
        backend: str,
        user: str,
        request_id: str | None,
    ) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._turn_second(second)
        referer = agent = b"-"
        if request is None:
            what = "-"
        else:
            method, target, version, fields, *_ = request
            what = f"{method} {target.decode('latin-1')} HTTP/{version}"
            for name, value in fields:
                if name == b"user-agent":
                    agent = value
                elif name == b"referer":
                    referer = value
        parts = (what, referer.decode("latin-1"), agent.decode("latin-1"), client, backend)
        # It has no quotes round it: a space in it would make two fields of it.
        user = _escape(user).replace(" ", "\\x20") if user else "-"
        line = self._combine(parts, user, status, body_bytes, duration_s)
        # One look at the whole: hardly any request has something to escape.
        if line.translate(None, _SAFE) != _COMBINED_QUOTES:
            line = self._combine(tuple(map(_escape, parts)), user, status, body_bytes, duration_s)
        return line

    def _combine(
        self, parts: tuple[str, ...], user: str, status: int, body_bytes: int, duration_s: float
    ) -> bytes:
        what, referer, agent, client, backend = parts
        return (
            f'{client} - {user} [{self._stamp}] "{what}" {status} {body_bytes} '
            f'"{referer}" "{agent}" {duration_s:.6f} {backend}\n'
        ).encode("utf-8", "surrogatepass")

    def _format_json(
        self,
        client: str,
        request: Request | None,
        status: int,
        body_bytes: int,
        duration_s: float,
        backend: str,
        user: str,
        request_id: str | None,
    ) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._turn_second(second)
        method = target = version = referer = agent = None
        if request is not None:
            method, target_bytes, version, fields, *_ = request
            target = target_bytes.decode("utf-8", "backslashreplace")
            for name, value in fields:
                if name == b"user-agent":
                    agent = value.decode("utf-8", "backslashreplace")
                elif name == b"referer":
                    referer = value.decode("utf-8", "backslashreplace")
        entry = _Entry(
            self._stamp_iso,
            client,
            method,
            target,
            version,
            status,
            body_bytes,
            int(duration_s * 1e6 + 0.5) / 1e6,
            backend,
            user.encode("latin-1").decode("utf-8", "backslashreplace") if user else None,
            referer,
            agent,
            request_id,
        )
        line = _encode(entry)
        if not line.isascii():
            # U+0085, U+009B and the like stay off terminals too.
            line = json.dumps(msgspec.to_builtins(entry)).encode("ascii")
        return line + b"\n"

    def _turn_second(self, second: int) -> None:
        at = time.localtime(second)
        hours, minutes = divmod(abs(at.tm_gmtoff) // 60, 60)
        sign = "-" if at.tm_gmtoff < 0 else "+"
        # Not strftime, whose months follow the locale that an application sets.
        clock = f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}"
        self._second = second
        month, zone = _MONTHS[at.tm_mon], f"{sign}{hours:02}{minutes:02}"
        self._stamp = f"{at.tm_mday:02}/{month}/{at.tm_year}:{clock} {zone}"
        date = f"{at.tm_year}-{at.tm_mon:02}-{at.tm_mday:02}"
        self._stamp_iso = f"{date}T{clock}{sign}{hours:02}:{minutes:02}"

    # The writing thread

    def _wake(self) -> None:
        self._is_waiting = True
        if self._writer is None and not self._is_closing:
            self._writer = threading.Thread(
                target=self._write_lines, name="tetrapylon-access-log", daemon=True
            )
            self._writer.start()
        self._has_lines.set()

    def _write_lines(self) -> None:
        is_last = False
        while not is_last or self._lines:
            self._has_lines.wait()
            if not self._is_closing:
                self._hurry.wait(FLUSH_S)
            is_last = self._is_closing
            self._hurry.clear()
            if not is_last:
                self._has_lines.clear()
            # From here on a new line sets the event again: it is not overlooked.
            self._is_waiting = False
            batch = []
            size = 0
            while self._lines and size < BUFFER_BYTES:
                batch.append(self._lines.popleft())
                size += len(batch[-1])
            why = "it does not take them fast enough"
            try:
                self._write(b"".join(batch))
            except OSError as error:
                self._failed += len(batch)
                why = str(error)
            with self._is_written:
                self._taken_bytes += size
                self._is_written.notify_all()
            self._report(why, is_last)

    def _report(self, why: str, is_last: bool) -> None:
        """Say that lines were dropped; at most once in a while."""
        count = self.dropped - self._reported
        now = time.monotonic()
        if count and (is_last or now - self._reported_at >= REPORT_S):
            logger.error("the access log dropped %d lines: %s", count, why)
            self._reported += count
            self._reported_at = now

    def _write(self, data: bytes) -> None:
        if self._is_torn:
            data = b"\n" + data
        rest = memoryview(data)
        while rest:
            try:
                written = os.write(self._fd, rest)
            except BlockingIOError:
                # Standard output that another program made non-blocking.
                select.select((), (self._fd,), (), 1.0)
                continue
            self._is_torn = rest[written - 1] != 0x0A
            rest = rest[written:]


def _open(file: str) -> int:
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _escape(text: str) -> str:
    return _UNSAFE.sub(_escape_character, text)


def _escape_character(match: re.Match[str]) -> str:
    character = match[0]
    if character in '"\\':
        return "\\" + character
    if character > "\xff":
        return "".join(f"\\x{octet:02x}" for octet in character.encode("utf-8", "surrogatepass"))
    return f"\\x{ord(character):02x}"
