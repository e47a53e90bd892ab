"""``run --reload``: a child serves, this process watches the sources and replaces it.

The child is a fresh interpreter each time, so that nothing of the old code stays.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text
from watchfiles import Change, PythonFilter, run_process

#: How long the child may finish its requests before it is killed.
STOP_S = 5


def serve_reloading(arguments: Sequence[str], folder: Path) -> None:
    """Run ``tetrapylon run`` with ``arguments``, anew after every change beneath ``folder``.

    Returns after Ctrl-C or SIGTERM, when the child has ended.
    """
    console = Console(stderr=True, highlight=False)

    def say(changes: set[tuple[Change, str]]) -> None:
        names = sorted({str(_relative(Path(path), folder)) for _, path in changes})
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        console.print(Text(f"{', '.join(names[:3])}{more} changed: starting anew"), style="yellow")

    # -P: what lies in this folder must not shadow the standard library in the child.
    command = [sys.executable, "-P", "-m", "tetrapylon.gateway", "run", *arguments]
    # It would tell of the signal that ends it.
    logging.getLogger("watchfiles").setLevel(logging.ERROR)
    run_process(
        folder,
        target=shlex.join(command),
        target_type="command",
        callback=say,
        watch_filter=PythonFilter(),
        sigint_timeout=STOP_S,
    )


def _relative(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path
