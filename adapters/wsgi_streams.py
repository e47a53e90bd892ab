"""The file-like objects of WSGI: ``wsgi.errors``, ``wsgi.file_wrapper``, a streamed ``wsgi.input``.

PEP 3333, "Input and Error Streams" and "Optional Platform-Specific File Handling".
"""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from .log_lines import LogLines, escape

logger = logging.getLogger("tetrapylon.adapters.wsgi")

#: What is read from a file at a time, in bytes.
BLOCK_BYTES = 64 * 1024


def escaped(text: str) -> str:
    """Return the text as one line that is safe to log."""
    # Applications repeat what clients sent: it must neither forge lines nor steer a terminal.
    return text if text.isprintable() else escape(text.encode("utf-8", "surrogatepass"))


def escaped_traceback(error: BaseException) -> str:
    """Return the traceback on lines that no text within can be mistaken for a log line."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join("  | " + escaped(line) for line in lines)


class ErrorStream:
    """``wsgi.errors``: text goes to the log, line by line, escaped."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        # Most requests write nothing.
        self._lines: LogLines | None = None

    def write(self, text: str) -> int:
        """Log the lines that are complete; keep the rest. Return the number of characters."""
        if not isinstance(text, str):
            raise TypeError(f"wsgi.errors takes str, not {type(text).__name__}")
        if self._lines is None:
            self._lines = LogLines(_log_line)
        self._lines.feed(text.encode("utf-8", "surrogatepass"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of the strings."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Log what was written, be the line ended or not."""
        if self._lines is not None:
            self._lines.finish()


def _log_line(line: str) -> None:
    # The level that a log without configuration shows.
    logger.warning("%s", line)


class Readable(Protocol):
    """What `FileWrapper` wraps (PEP 3333: "a ``read()`` method")."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes; none at the end."""


class FileWrapper:
    """``wsgi.file_wrapper``: the blocks of a file, from its current position on."""

    def __init__(self, file: Readable, block_size: int = BLOCK_BYTES) -> None:
        self._file = file
        # The size is a suggestion (PEP 3333), and frameworks suggest 4 or 8 KiB. What is in
        # memory or on disk gives more at once without waiting, as a pipe would not.
        if isinstance(file, io.BytesIO | io.BufferedReader) and _is_seekable(file):
            block_size = max(block_size, BLOCK_BYTES)
        self._block_size = block_size

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = self._file.read(self._block_size)
        if not block:
            raise StopIteration
        return block

    def close(self) -> None:
        """Close the file, if it can be closed."""
        close = getattr(self._file, "close", None)
        if close is not None:
            close()


def _is_seekable(file: io.IOBase) -> bool:
    try:
        return file.seekable()
    except (OSError, ValueError):
        return False


class StreamedInput(io.RawIOBase):
    """A request body that is still arriving, read by the thread as it comes.

    ``next_piece`` blocks until there is more and returns ``b""`` at the end of
    the body; what it raises, the application's read raises.
    """

    def __init__(self, first: bytes, next_piece: Callable[[], bytes]) -> None:
        self._piece = memoryview(first)
        self._next_piece = next_piece
        self._is_at_end = False

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read what is there into the buffer; wait only if that is nothing."""
        if not self._piece and not self._is_at_end:
            self._piece = memoryview(self._next_piece())
            # Once told, the end stays: reading on must not wait for what never comes.
            self._is_at_end = not self._piece
        size = min(len(buffer), len(self._piece))
        buffer[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        return size
