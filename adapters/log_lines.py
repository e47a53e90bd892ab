"""What an application writes to its error stream, as lines that are safe to log."""

from __future__ import annotations

import time
from collections.abc import Callable

_LINE_BYTES = 4096
# Of a stream with a limit: a record of the log costs more than its text does.
_LINES = 1000
# What a line costs of a rate beside its bytes, for the same reason.
_RECORD_BYTES = 64
# A rate that is used up is tried again when so much may be said.
_LEAST_BYTES = 4096


def escape(line: bytes) -> str:
    """Return ``line`` as printable text: other characters stand as ``repr`` shows them.

    So no line of an application can forge another line of the log, nor reach
    the terminal that shows it.
    """
    text = line.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


class LogLines:
    """Cuts a byte stream into lines and calls ``log`` with each, escaped.

    Empty lines are left out, long ones cut at 4 KiB. After ``limit_bytes``, or 1000
    lines, the rest is dropped, with one line that says so; ``None`` has no limit.
    """

    def __init__(self, log: Callable[[str], object], *, limit_bytes: int | None = None) -> None:
        self._log = log
        self._limit_bytes = limit_bytes
        self._rest = b""
        self._lines = 0
        self.total_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        limit = self._limit_bytes
        before = self.total_bytes
        self.total_bytes += len(data)
        if limit is not None and self.total_bytes > limit:
            if before > limit:
                return
            data = data[: limit - before]
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._write(line)
        while len(self._rest) > _LINE_BYTES:
            self._write(self._rest[:_LINE_BYTES])
            self._rest = self._rest[_LINE_BYTES:]
        if limit is not None and self.total_bytes > limit:
            self.finish()
            self._say(f"… (more than {limit} bytes: the rest is dropped)")

    def finish(self) -> None:
        """Log what came after the last line end."""
        rest, self._rest = self._rest, b""
        self._write(rest)

    def _write(self, line: bytes) -> None:
        line = line.rstrip(b"\r")
        for start in range(0, len(line), _LINE_BYTES):
            self._say(escape(line[start : start + _LINE_BYTES]))

    def _say(self, text: str) -> None:
        if self._limit_bytes is not None:
            self._lines += 1
            if self._lines > _LINES + 1:
                return
            if self._lines > _LINES:
                text = f"… (more than {_LINES} lines: the rest is dropped)"
        self._log(text)


class RatedLines(LogLines):
    """`LogLines` for a stream without an end: ``burst_bytes`` of it, and ``bytes_per_s`` after.

    What comes faster is dropped, and a line says how much; each line counts for 64
    bytes more than it has.
    """

    def __init__(
        self,
        log: Callable[[str], object],
        *,
        burst_bytes: int = 256 * 1024,
        bytes_per_s: int = 16 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(log)
        self._burst_bytes = burst_bytes
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._left = float(burst_bytes)
        self._counted_at = clock()
        self._dropped_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        now = self._clock()
        earned = (now - self._counted_at) * self._bytes_per_s
        self._left = min(self._left + earned, self._burst_bytes)
        self._counted_at = now
        if self._dropped_bytes:
            # Half a line would be misread.
            _, line_end, rest = data.partition(b"\n")
            if self._left < _LEAST_BYTES or not line_end:
                self._dropped_bytes += len(data)
                return
            self._dropped_bytes += len(data) - len(rest)
            self._confess()
            data = rest
        said = self._within_rate(data)
        self._dropped_bytes = len(data) - len(said)
        self._left -= len(said) + said.count(b"\n") * _RECORD_BYTES
        super().feed(said)

    def finish(self) -> None:
        """Log what came after the last line end, and how much was dropped."""
        super().finish()
        self._confess()

    def _within_rate(self, data: bytes) -> bytes:
        """Return ``data``, or as many whole lines of it as may be said now."""
        if len(data) + data.count(b"\n") * _RECORD_BYTES <= self._left:
            return data
        size, cost = 0, 0
        for line in data.split(b"\n", int(self._left) // _RECORD_BYTES + 1)[:-1]:
            cost += len(line) + 1 + _RECORD_BYTES
            if cost > self._left:
                break
            size += len(line) + 1
        return data[:size]

    def _confess(self) -> None:
        dropped, self._dropped_bytes = self._dropped_bytes, 0
        if dropped:
            super().finish()
            self._say(f"… ({dropped} bytes came too fast and were dropped)")
