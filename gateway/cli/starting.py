"""From a configuration to a gateway that runs: shared by the commands that serve."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NoReturn, TypeAlias

import typer

from ..banner import print_banner
from ..config import Config, load
from .exits import EX_NOINPUT, EX_UNAVAILABLE, error_console, fail

ConfigFile: TypeAlias = Annotated[
    Path,
    typer.Option("--config", "-c", metavar="FILE", help="The configuration.", dir_okay=False),
]
Host: TypeAlias = Annotated[
    str,
    typer.Option(metavar="ADDRESS", help="Where to listen; [cyan]0.0.0.0[/cyan] is for everyone."),
]
Port: TypeAlias = Annotated[
    int,
    typer.Option(min=0, max=65535, metavar="PORT", help="The port; 0: one that is free."),
]
Folder: TypeAlias = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder.", show_default=False)
]

DEFAULT_FILE = Path("tetrapylon.toml")


def load_file(file: Path) -> Config:
    """Return the configuration in ``file``; exit if there is none."""
    try:
        return load(file)
    except FileNotFoundError:
        hint = "; tetrapylon init writes one" if file == DEFAULT_FILE else ""
        fail(EX_NOINPUT, f"{file}: no such file{hint}")
    except OSError as error:
        fail(EX_NOINPUT, f"{file}: {error.strerror}")


def existing_folder(folder: Path) -> Path:
    """Return the folder's absolute path; exit if there is none."""
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        fail(EX_NOINPUT, f"{folder}: {what}")
    return folder.resolve()


def config_of(tables: Mapping[str, object], base: Path, host: str, port: int) -> Config:
    """Return the configuration of ``tables``, listening on ``host`` and ``port``."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Config.from_dict({**tables, "listen": {"bind": [address]}}, base=base)


def start(config: Config, note: str | None = None) -> NoReturn:
    """Serve until a signal comes, then exit; ``note`` stands below the banner."""
    # Imported here: the other commands start faster without it.
    from ..server import Server, StartFailure, serve

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("tetrapylon").setLevel(logging.INFO)

    def banner(server: Server) -> None:
        console = error_console()
        print_banner(console, config, addresses=server.addresses)
        if note:
            console.print(note, soft_wrap=True)
        console.print("Ctrl-C to stop.", style="dim")

    try:
        code = serve(config, banner=banner)
    except StartFailure as error:
        fail(EX_UNAVAILABLE, str(error))
    sys.exit(code)
