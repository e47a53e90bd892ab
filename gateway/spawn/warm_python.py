"""Python as a family of warm interpreters: which flags and settings can be kept.

The process itself is the program that begins in `python_importlib_bootstrap`.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from .confinement import User
from .interpreters import Eligible, Interpreter, NotEligible

#: What a warm Python runs.
PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "python_importlib_bootstrap.py")

_ASK_S = 20.0
_FAILURES = {
    errno.EEXIST: "PYTHONPATH has a module with the name of one of Python's own",
    errno.ENOTSUP: "its interpreter is not CPython 3.9 or later",
}

# What the interpreter or its C library looks at when it starts.
_AT_START = (b"PYTHON", b"LANG", b"LC_", b"LD_", b"MALLOC_", b"GLIBC_", b"OPENSSL_", b"LOCPATH")
_NAMES = (b"PATH", b"HOME")

# Without a value, and such as work in a warm process as in a cold one.
_FLAGS = frozenset("bBEIOPqRsSu")
_TAKE_VALUE = frozenset("WX")
# Settings that are read at the start, and show what the interpreter does for itself.
_OPTIONS = frozenset(("importtime", "tracemalloc", "perf", "perf_jit", "showrefcount", "presite"))
_PATHS = (b"PYTHONPATH", b"PYTHONHOME", b"PYTHONPYCACHEPREFIX", b"PYTHONUSERBASE")
_VARIABLES = (
    b"PYTHONINSPECT",
    b"PYTHONVERBOSE",
    b"PYTHONPROFILEIMPORTTIME",
    b"PYTHONTRACEMALLOC",
    b"PYTHONMALLOCSTATS",
    b"PYTHONDUMPREFS",
    b"PYTHONDUMPREFSFILE",
    b"PYTHONPERFSUPPORT",
    b"PYTHON_PERF_JIT_SUPPORT",
    b"PYTHON_PRESITE",
)


def examine(
    interpreter: Interpreter, script: str, environ: Mapping[bytes, bytes]
) -> Eligible | NotEligible:
    """Say which process runs ``script`` warm, or why none does; what it contains is not read."""
    reason = _flags_reason(interpreter.flags)
    if reason is not None:
        return NotEligible(reason)
    settings = []
    for pair in environ.items():
        name = pair[0]
        if name.startswith(_AT_START) or name in _NAMES:
            if name in _VARIABLES and pair[1]:
                return NotEligible(f"{os.fsdecode(name)} shows what the interpreter itself does")
            if name in _PATHS and not _is_absolute(pair[1]):
                return NotEligible(f"{os.fsdecode(name)} is relative to each run's folder")
            settings.append(pair)
    settings.sort()
    kind = "direct" if interpreter.names_process else "called"
    return Eligible(
        argv=(interpreter.name, *interpreter.flags, PROGRAM, kind),
        program=interpreter.program,
        environ=tuple(settings),
    )


def ask(
    template: Eligible, scripts: Sequence[str], *, user: User | None, timeout_s: float = _ASK_S
) -> list[str]:
    """Return for each script why it would not run warm, ``""`` for those that would.

    The interpreter itself is asked, in a process of its own, as ``user`` if that is
    another; nothing of the scripts is run. Raises `OSError` if it does not answer.
    """
    names = b"".join(os.fsencode(script) + b"\0" for script in scripts)
    try:
        answer: subprocess.CompletedProcess[bytes] = subprocess.run(
            [*template.argv[:-1], "examine"],
            executable=template.program,
            env=dict(template.environ),
            input=names,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            timeout=timeout_s,
            **identity(user),
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(errno.ETIMEDOUT, "no answer", template.program) from None
    reasons = answer.stdout.decode(errors="replace").split("\0")[:-1]
    if answer.returncode in _FAILURES:
        return [_FAILURES[answer.returncode]] * len(scripts)
    if answer.returncode != 0 or len(reasons) != len(scripts):
        raise OSError(errno.EIO, "it cannot be kept ready", template.program)
    return reasons


def identity(user: User | None) -> dict[str, Any]:
    """Return the arguments of `subprocess` that make a child a user's own."""
    if user is None:
        return {}
    return {"user": user.uid, "group": user.gid, "extra_groups": user.groups}


def _is_absolute(path: bytes) -> bool:
    return all(folder.startswith(b"/") for folder in path.split(b":")) or not path


def _flags_reason(words: tuple[str, ...]) -> str | None:
    """Return what keeps a Python with these flags from being warm."""
    values = iter(words)
    for word in values:
        if len(word) < 2 or word[0] != "-":
            return f"{word!r} stands before the script"
        for place, flag in enumerate(word[1:], 2):
            if flag in _TAKE_VALUE:
                value = word[place:] or next(values, "")
                if not value:
                    return f"the flag -{flag} has no value"
                if flag == "X" and value.startswith("pycache_prefix") and "=/" not in value:
                    return f"the flag -X {value} is relative to each run's folder"
                if flag == "X" and value.partition("=")[0] in _OPTIONS:
                    return f"the flag -X {value} shows what the interpreter itself does"
                break
            if flag not in _FLAGS:
                return f"the flag -{flag}"
    return None
