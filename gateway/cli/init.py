"""``tetrapylon init``: a first configuration from what lies in the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..starter import look_around, starter_text
from .epilog import examples
from .exits import EX_CANTCREAT, error_console, fail
from .starting import DEFAULT_FILE, existing_folder

EPILOG = examples(
    ("tetrapylon init && tetrapylon check", ""),
    note=(
        "It looks for cgi-bin/, *.php and php-fpm's socket, manage.py, wsgi.py, asgi.py, "
        "app.py, static/ and public/. Sources are read, never run."
    ),
)


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder.")] = Path(),
) -> None:
    """Write a commented [bold]tetrapylon.toml[/bold] for what is found in a folder."""
    folder = existing_folder(directory)
    file = directory / DEFAULT_FILE
    finds = look_around(folder)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(starter_text(finds))
    except FileExistsError:
        fail(EX_CANTCREAT, f"{file}: is there already, and stays as it is")
    except OSError as error:
        fail(EX_CANTCREAT, f"{file}: {error.strerror}")
    console = error_console()
    for find in finds:
        console.print(Text.assemble("  ", (find.path, "bold"), f"  {find.reason}"), soft_wrap=True)
    if finds:
        console.print(f"Written to {file}. Next: [cyan]tetrapylon check[/cyan]")
    else:
        console.print(f"Nothing was found to serve; {file} says how to name it.")
