"""A TOML file and the line of each of its keys, for errors that point at them.

``tomllib`` keeps no positions, so a second, small scan of the same text notes
where each key stands: tables, arrays of tables, dotted keys, inline tables and
the elements of arrays. The scan trusts that ``tomllib`` accepted the text
(TOML 1.0, https://toml.io/en/v1.0.0); it is the first step of `gateway.config`.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

#: From the top of the file: names of keys, and indexes within arrays.
KeyPath: TypeAlias = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\]|\\.)*"' r"|'[^']*'",
    re.DOTALL,
)
_PLAIN_VALUE = re.compile(r"[^,\]}#\r\n]+")
_SYNTAX_ERROR = re.compile(r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)

_SYNTAX_HINTS = {
    "Invalid value": 'a text needs quotes: key = "value"',
    "Cannot overwrite a value": "the key is given twice",
    "Cannot declare": "the table is given twice",
    "Expected '=' after a key": "a line is key = value, [table] or # comment",
    "Unclosed array": "the ']' is missing",
    "Expected newline or end of document": "one key = value per line",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where: ``file`` and ``line`` when they are known.

    Its text is one line, whatever the file holds.
    """

    key: KeyPath
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = [place_of(self.file, self.line)] if self.file is not None else []
        key = [render_key(self.key)] if self.key else []
        text = ": ".join([*place, *key, self.message])
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class ConfigError(Exception):
    """The configuration cannot be used; ``problems`` holds all that is wrong with it.

    The text is one line for each.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Source:
    """Says where a key was written; a configuration made in Python has no places."""

    def __init__(self, file: str | None = None, lines: dict[KeyPath, int] | None = None) -> None:
        self.file = file
        self._lines = lines or {}

    def line_of(self, key: KeyPath) -> int | None:
        """Return the line of a key, or of the nearest table around it; counted from 1."""
        for length in range(len(key), 0, -1):
            line = self._lines.get(key[:length])
            if line is not None:
                return line
        return None

    def place_of(self, key: KeyPath) -> str:
        """Return ``tetrapylon.toml:12``, or ``""`` where there is no file."""
        return place_of(self.file, self.line_of(key)) if self.file is not None else ""

    def problem(self, key: KeyPath, message: str) -> Problem:
        """Return a problem placed at ``key``."""
        return Problem(key, message, self.file, self.line_of(key))


def read_toml(path: Path) -> tuple[dict[str, Any], Source]:
    """Return the file's data and its places.

    Raises `ConfigError` for what is not TOML, and `OSError` when the file
    cannot be read.
    """
    octets = path.read_bytes()
    file = str(path)
    try:
        text = octets.decode()
        return tomllib.loads(text), Source(file, locate_keys(text))
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8: byte {octets[error.start : error.start + 1]!r}"
        raise ConfigError([Problem((), message, file, line)]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_describe_syntax_error(str(error), file, text)]) from None
    except RecursionError:
        raise ConfigError([Problem((), "nested too deeply", file)]) from None


def locate_keys(text: str) -> dict[KeyPath, int]:
    """Return the line, counted from 1, of every key in a valid TOML document.

    A key that several lines build (a table, a dotted prefix) stands at the first.
    """
    return _Scanner(text).scan()


def place_of(file: str, line: int | None) -> str:
    """Return ``file:line``, or the file alone."""
    return file if line is None else f"{file}:{line}"


def render_key(key: KeyPath) -> str:
    """Return the key as its owner would write it: ``routes[0].path``."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _BARE_KEY.fullmatch(part) else ascii(part).replace("'", '"')
            text += f".{name}" if text else name
    return text


def _describe_syntax_error(message: str, file: str, text: str) -> Problem:
    match = _SYNTAX_ERROR.match(message)
    if match is None:
        return Problem((), f"not TOML: {message}", file)
    what, line, column = match[1], match[2], match[3]
    hint = next((hint for start, hint in _SYNTAX_HINTS.items() if what.startswith(start)), None)
    # What fails at the end of the document has no line in the message.
    where = int(line) if line else text.rstrip("\n").count("\n") + 1
    said = f"not TOML: {what[0].lower()}{what[1:]}" + (f" (column {column})" if column else "")
    return Problem((), f"{said}; {hint}" if hint else said, file, where)


class _Scanner:
    """One pass over the text; ``at`` is the place reached."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.newlines = [match.start() for match in re.finditer("\n", text)]
        self.last_index: dict[KeyPath, int] = {}  # of each array of tables

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self.skip(_BLANK)
        while self.at < len(self.text):
            line = self.line()
            if self.text.startswith("[[", self.at):
                self.at += 2
                *parents, name = self.dotted_key()
                array = (*self.within((), parents), name)
                self.mark(array, line)
                self.last_index[array] = self.last_index.get(array, -1) + 1
                table = (*array, self.last_index[array])
                self.at += 2
                self.mark(table, line)
            elif self.text[self.at] == "[":
                self.at += 1
                table = self.within((), self.dotted_key())
                self.at += 1
                self.mark(table, line)
            else:
                self.pair(table)
            self.skip(_BLANK)
        return self.lines

    def line(self) -> int:
        return bisect_left(self.newlines, self.at) + 1

    def mark(self, key: KeyPath, line: int) -> None:
        for length in range(1, len(key) + 1):
            self.lines.setdefault(key[:length], line)

    def skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return match[0]

    def within(self, table: KeyPath, parts: list[str]) -> KeyPath:
        """Follow a dotted key; an array of tables stands for its last table."""
        for part in parts:
            table = (*table, part)
            if table in self.last_index:
                table = (*table, self.last_index[table])
        return table

    def dotted_key(self) -> list[str]:
        parts = []
        while True:
            self.skip(_SPACE)
            if self.text[self.at] in "\"'":
                parts.append(tomllib.loads("key=" + self.skip(_STRING))["key"])
            else:
                parts.append(self.skip(_BARE_KEY))
            self.skip(_SPACE)
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def pair(self, table: KeyPath) -> None:
        line = self.line()
        key = (*table, *self.dotted_key())
        self.mark(key, line)
        self.at += 1  # the "="
        self.skip(_SPACE)
        self.value(key)

    def value(self, key: KeyPath) -> None:
        opening = self.text[self.at]
        if opening in "\"'":
            self.skip(_STRING)
        elif opening == "[":
            self.elements(key)
        elif opening == "{":
            self.inline_table(key)
        else:
            self.skip(_PLAIN_VALUE)

    def elements(self, key: KeyPath) -> None:
        self.at += 1
        index = 0
        while self.next_item("]"):
            self.mark((*key, index), self.line())
            self.value((*key, index))
            index += 1

    def inline_table(self, key: KeyPath) -> None:
        self.at += 1
        while self.next_item("}"):
            self.pair(key)

    def next_item(self, closing: str) -> bool:
        self.skip(_BLANK)
        if self.text[self.at] == ",":
            self.at += 1
            self.skip(_BLANK)
        if self.text[self.at] != closing:
            return True
        self.at += 1
        return False
