"""How a command ends: codes of sysexits.h, and a failure told in a line, not a traceback."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from ..config import ConfigError

EX_USAGE = 64
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_CANTCREAT = 73
EX_CONFIG = 78


def error_console() -> Console:
    """Return a console on standard error: for all that is not a command's result."""
    return Console(stderr=True, highlight=False)


def fail(code: int, message: str) -> NoReturn:
    """Say what is wrong, on standard error, and exit."""
    console = error_console()
    for line in message.splitlines():
        console.print(Text(line), soft_wrap=True)
    sys.exit(code)


@contextlib.contextmanager
def one_line_failures() -> Iterator[None]:
    """Exit as sysexits.h says for what went wrong inside."""
    try:
        yield
    except ConfigError as error:
        count = len(error.problems)
        fail(EX_CONFIG, f"{error}\n{count} {'error' if count == 1 else 'errors'}")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        # Our own defect: the one case where a traceback is of use.
        traceback.print_exc()
        sys.exit(EX_SOFTWARE)
