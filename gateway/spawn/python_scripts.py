"""Which scripts a warm Python runs, their code, and whether it is itself still up to date.

A part of the program that begins in `python_importlib_bootstrap`.
"""

from __future__ import annotations

import errno
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType
    from typing import Any, NoReturn

    from .python_imports import Imports, Recording

_SCRIPTS = 256
# Half a second to compile, in which other scripts wait.
_SOURCE_BYTES = 512 * 1024
# What was written just now may be written again within the same tick of the file system.
_SETTLED_NS = 2_000_000_000
_FRESH_S = 0.5

# Whoever looks below a script's first frame, or at all that the interpreter holds, sees
# what is ours.
_REVEALING = frozenset(
    (
        *("_getframe", "_current_frames", "currentframe", "f_back", "getouterframes"),
        *("print_stack", "format_stack", "extract_stack", "walk_stack"),
        *("dump_traceback", "dump_traceback_later", "tracemalloc", "getallocatedblocks"),
        *("get_objects", "get_referrers", "get_stats", "get_count", "get_freeze_count"),
        *("unfreeze", "_ncallbacks", "_debugmallocstats"),
    )
)


class Refusal(Exception):
    """Why a script, or any, does not run here; the helper runs it plain then.

    ``errno`` is ENOEXEC (it does not compile), EEXIST (a module beside it shadows one
    that is ready), ENOTSUP (it would see a difference), ESTALE (this template is out
    of date), or the system's.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = number
        self.reason = reason


class Script:
    """A script's code, and what goes with it."""

    def __init__(self, filename: str, folder: str, code: CodeType, warnings: list[Any]) -> None:
        self.filename = filename
        self.name = os.fsencode(os.path.basename(filename))
        self.folder = folder
        self.code = code
        self.warnings = warnings


class Scripts:
    """Compiled scripts by name, as long as their files stay as they are."""

    def __init__(self, imports: Imports, recording: Recording) -> None:
        self._shadows = imports.shadows
        self._recording = recording
        # name → (what stat said, the script or why it is none)
        self._known: dict[str, tuple[Any, Script | Refusal]] = {}
        self._folders: dict[str, tuple[Any, str | None]] = {}

    def find(self, filename: str) -> Script:
        """Return a script, compiled now or earlier; raises `Refusal` or `OSError`."""
        identity = _identity(os.stat(filename))
        known = self._known.get(filename)
        if known is None or known[0] != identity:
            if len(self._known) >= _SCRIPTS:
                self._known.pop(next(iter(self._known)))
            known = (identity, self._compile(filename))
            if _is_settled(identity):
                self._known[filename] = known
            else:
                self._known.pop(filename, None)
        script = known[1]
        if isinstance(script, Refusal):
            raise script
        self._check_folder(script.folder)
        return script

    def _compile(self, filename: str) -> Script | Refusal:
        with open(filename, "rb") as file:
            source = file.read(_SOURCE_BYTES + 1)
        if len(source) > _SOURCE_BYTES:
            reason = f"its {os.stat(filename).st_size} bytes take too long to compile"
            return Refusal(errno.ENOTSUP, reason)
        try:
            with self._recording as warned:
                code = compile(source, filename, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError) as error:
            return Refusal(errno.ENOEXEC, f"it does not compile: {error}")
        if warned and sys.warnoptions:
            return Refusal(errno.ENOTSUP, "it compiles with warnings, for which there are options")
        names = set(_names(code))
        shown = names & _REVEALING or ("inspect" in names and names & {"stack"})
        if shown:
            return Refusal(errno.ENOTSUP, f"it uses {min(shown)}, which would show that it is warm")
        folder = os.path.dirname(os.path.realpath(filename))
        return Script(
            filename, folder, code, [(it.message, it.category, it.lineno) for it in warned]
        )

    def _check_folder(self, folder: str) -> None:
        stat = os.stat(folder)
        identity = (stat.st_mtime_ns, stat.st_ino, stat.st_dev)
        known = self._folders.get(folder)
        if known is None or known[0] != identity:
            if len(self._folders) >= _SCRIPTS:
                self._folders.pop(next(iter(self._folders)))
            known = (identity, self._shadows(folder))
            if _is_settled(identity):
                self._folders[folder] = known
        if known[1] is not None:
            raise Refusal(errno.EEXIST, f"there is a module {known[1]!r} beside it, as in Python")


def examine(scripts: Scripts) -> NoReturn:
    """Answer on stdout why each script whose name comes from stdin does not run warm."""
    for name in sys.stdin.buffer.read().split(b"\0")[:-1]:
        reason = ""
        try:
            scripts.find(os.fsdecode(name))
        except Refusal as error:
            reason = error.reason
        except OSError as error:
            reason = error.strerror or str(error)
        sys.stdout.buffer.write(reason.encode(errors="replace") + b"\0")
    sys.stdout.flush()
    os._exit(0)


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_dev, stat.st_ctime_ns)


def _is_settled(identity: tuple[int, ...]) -> bool:
    return abs(time.time_ns() - max(identity[0], identity[-1])) > _SETTLED_NS


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            yield from _names(constant)


class Surroundings:
    """The files that this interpreter was started from, and whether they are as they were."""

    def __init__(self) -> None:
        site = sys.modules.get("site")
        folders: list[str] = []
        if site is not None and not sys.flags.no_site:
            folders += site.getsitepackages()
            if site.ENABLE_USER_SITE:
                folders.append(site.getusersitepackages())
        home = os.path.dirname(sys.executable)
        files = [sys.executable, os.path.realpath("/proc/self/exe"), os.__file__, "/etc/localtime"]
        files += [f"{home}/pyvenv.cfg", f"{os.path.dirname(home)}/pyvenv.cfg"]
        for folder in folders:
            try:
                files += [f"{folder}/{n}" for n in os.listdir(folder) if n.endswith(".pth")]
            except OSError:
                pass
        for name in ("sitecustomize", "usercustomize"):
            files.append(getattr(sys.modules.get(name), "__file__", None) or "")
        self._paths = [path for path in (*folders, *files) if path]
        self._stats = self._stat()
        self._next_look = 0.0

    def are_same(self) -> bool:
        """Look now and then; false once anything has changed."""
        now = time.monotonic()
        if now < self._next_look:
            return True
        self._next_look = now + _FRESH_S
        return self._stat() == self._stats

    def _stat(self) -> list[Any]:
        found: list[Any] = []
        for path in self._paths:
            try:
                stat = os.stat(path)
                found.append((stat.st_mtime_ns, stat.st_ino, stat.st_dev))
            except OSError:
                found.append(None)
        return found
