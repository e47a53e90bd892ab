"""Which scripts are run by a warm process, and why others are not.

A command names its interpreter, or the script does in its first line (`interpreters`);
the interpreter's *family* says what process is to be kept warm for it. On the worker's
side; the helper's is `templates`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from . import templates, warm_perl, warm_python
from .interpreters import Eligible, Interpreter, Interpreters, NotEligible

Family: TypeAlias = Callable[[Interpreter, str, Mapping[bytes, bytes]], Eligible | NotEligible]

#: By the program's name. A family may raise `OSError` where there is no such file.
FAMILIES: tuple[tuple[re.Pattern[str], Family], ...] = (
    (re.compile(r"python(\d+(\.\d+)*)?"), warm_python.examine),
    (re.compile(r"perl(\d+(\.\d+)*)?"), warm_perl.examine),
)

_REFUSALS = {
    errno.ENOEXEC: "it does not compile",
    errno.EEXIST: "a module beside it has the name of one that is kept ready",
    errno.ENOTSUP: "it does what would show that it is warm",
}

_interpreters = Interpreters()


def examine(
    script: str, program: str | None, environ: Mapping[bytes, bytes]
) -> Eligible | NotEligible:
    """Say which process runs ``script`` warm, or why it runs plain.

    ``program`` is its interpreter if the configuration names one, ``environ`` the
    environment of the run.
    """
    interpreter = _interpreters.find(script, program, environ)
    if isinstance(interpreter, NotEligible):
        return interpreter
    name = os.path.basename(interpreter.program)
    for pattern, family in FAMILIES:
        if pattern.fullmatch(name):
            try:
                return family(interpreter, script, environ)
            except OSError as error:
                return NotEligible(f"{error.strerror}: {error.filename}")
    return NotEligible(f"{name} is neither Python nor Perl")


def explain_trouble(reason: int, value: int, text: str = "") -> str:
    """Say for the log what a template did, which itself says ``text``; see `templates`."""
    if text:
        return text
    if reason == templates.REFUSED:
        return _REFUSALS.get(value) or os.strerror(value)
    if reason == templates.DIED:
        how = f" by signal {-value}" if value < 0 else f" with {value}" if value else ""
        return f"its warm interpreter has ended{how}; another will be started"
    if reason == templates.SILENT:
        return "its warm interpreter did not answer, and was killed"
    if reason == templates.FALSE:
        return "its warm interpreter named a process that is none of its own, and was killed"
    return f"its warm interpreter cannot be started: {_REFUSALS.get(value) or os.strerror(value)}"
