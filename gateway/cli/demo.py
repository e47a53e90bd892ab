"""``tetrapylon demo``: one application four times, once for each protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..demo import copy_demo, demo_config
from .epilog import examples
from .exits import EX_CANTCREAT, error_console, fail
from .starting import Host, Port, start

EPILOG = examples(
    ("tetrapylon demo", "http://127.0.0.1:8000/"),
    ("tetrapylon demo --copy mirror", "its files, to play with"),
)


def demo(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    copy: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the demonstration's files there, and stop."),
    ] = None,
) -> None:
    """Serve the demonstration: CGI, FastCGI, WSGI and ASGI behind one listener."""
    if copy is None:
        start(demo_config(port=port, host=host))
    try:
        file = copy_demo(copy)
    except OSError as error:
        fail(EX_CANTCREAT, str(error))
    error_console().print(f"Written. Next: [cyan]tetrapylon serve -c {file}[/cyan]")
