"""By which interpreter the system would run a script, and what a warm one of it needs.

What the kernel reads of a ``#!`` line (execve(2), "Interpreter scripts"), and what
``env`` makes of it. The families of interpreters, `warm_python` and `warm_perl`, go on
from an `Interpreter` to a `Eligible` or the reason why not.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

_LINE_BYTES = 256  # as much as Linux looks at
_REMEMBERED = 1024
# So long it may go unnoticed that PATH leads to another program.
_FRESH_S = 2.0
_ENV = ("/usr/bin/env", "/bin/env")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./+:,=@%-]+")


class Interpreter(NamedTuple):
    """How the system would run a script.

    ``program`` is the absolute path of a machine program, ``name`` what it is called
    by (its ``argv[0]``), ``flags`` what precedes the script. ``is_direct``: by the
    script's own first line, so that it must be executable; else the configuration
    names the program.
    """

    program: str
    name: str
    flags: tuple[str, ...]
    is_direct: bool

    @property
    def names_process(self) -> bool:
        """Whether the system lists the process under the script's name, not the program's."""
        return self.is_direct and self.name.startswith("/")


class Eligible(NamedTuple):
    """A warm process (a template): equal ones are one process.

    ``argv`` is all of its arguments, ``program`` what is executed, ``environ`` its
    sorted environment, ``identity`` whatever else tells templates apart.
    """

    argv: tuple[str, ...]
    program: str
    environ: tuple[tuple[bytes, bytes], ...]
    identity: tuple[Any, ...] = ()


class NotEligible(NamedTuple):
    """Why a script runs plain, in words that can follow "it runs plain: "."""

    reason: str


class Interpreters:
    """Finds interpreters, and remembers them as long as the scripts stay the same."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[float, Interpreter | NotEligible]] = {}

    def find(
        self, script: str, program: str | None, environ: Mapping[bytes, bytes]
    ) -> Interpreter | NotEligible:
        """Return what runs ``script``: ``program`` if configured, else what it says itself.

        ``environ`` is the environment that it will have.
        """
        try:
            status = os.stat(script)
        except OSError as error:
            return NotEligible(f"{error.strerror}: {script}")
        path = environ.get(b"PATH", b"")
        key = (script, program, path, status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._known.get(key)
        now = time.monotonic()
        if known is not None and known[0] > now:
            return known[1]
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        found = _find(script, status, program, os.fsdecode(path))
        self._known[key] = (now + _FRESH_S, found)
        return found


def _find(
    script: str, status: os.stat_result, program: str | None, path: str
) -> Interpreter | NotEligible:
    if not stat.S_ISREG(status.st_mode):
        return NotEligible("it is not a file")
    if program is not None:
        return _checked(Interpreter(program, program, (), is_direct=False))
    try:
        with open(script, "rb", buffering=0) as file:
            head = file.read(_LINE_BYTES)
    except OSError as error:
        return NotEligible(f"it cannot be read: {error.strerror}")
    if not head.startswith(b"#!"):
        return NotEligible("it has no #! line")
    line, end, _ = head[2:].partition(b"\n")
    if not end:
        return NotEligible("its #! line does not end")
    words = os.fsdecode(line).strip(" \t").replace("\t", " ").split(" ", 1)
    argument = words[1].strip(" ") if len(words) > 1 else ""
    if words[0] in _ENV:
        return _by_env(words[0], argument, path)
    return _checked(
        Interpreter(words[0], words[0], (argument,) if argument else (), is_direct=True)
    )


def _by_env(env: str, argument: str, path: str) -> Interpreter | NotEligible:
    """Do as env(1), whose one argument is a program, or with -S, a line of words."""
    words = [argument]
    if argument.startswith("-S"):
        words = argument[2:].split()
    if not words or not all(map(_PLAIN_WORD.fullmatch, words)) or words[0].startswith("-"):
        return NotEligible(f"{env} {argument} is more than a program's name")
    name, *flags = words
    if "=" in name:
        return NotEligible(f"{env} {argument} sets a variable")
    if "/" in name:
        # env does not have it listed under the script's name, and so is told from `is_direct`.
        return NotEligible(f"{env} {name} names no program to be searched")
    for folder in path.split(":"):
        if not folder.startswith("/"):
            return NotEligible("PATH has a relative folder, or none")
        program = f"{folder}/{name}"
        if os.access(program, os.X_OK) and os.path.isfile(program):
            return _checked(Interpreter(program, name, tuple(flags), is_direct=True))
    return NotEligible(f"there is no {name} in PATH, which is {path}")


def _checked(found: Interpreter) -> Interpreter | NotEligible:
    program = found.program
    if not program.startswith("/"):
        return NotEligible(f"its interpreter {program!r} is no absolute path")
    try:
        with open(program, "rb", buffering=0) as file:
            magic = file.read(4)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        return NotEligible(f"its interpreter {program!r}: {error.strerror}")
    if magic != b"\x7fELF":
        return NotEligible(f"its interpreter {program} is itself a script")
    if mode & (stat.S_ISUID | stat.S_ISGID):
        return NotEligible(f"its interpreter {program} is set-uid or set-gid")
    return found
