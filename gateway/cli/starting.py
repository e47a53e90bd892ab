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
from ..users import Names, NobodyFits, missing_users, user_for, with_user
from .exits import EX_CONFIG, EX_NOINPUT, EX_UNAVAILABLE, error_console, fail

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

User: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Started as root: whom scripts and spawned applications run as, if nothing else says.",
    ),
]

DEFAULT_FILE = Path("tetrapylon.toml")


def load_file(file: Path, user: str | None = None) -> Config:
    """Return the configuration in ``file``, with the ``user`` where it has none.

    Exits if there is no file.
    """
    try:
        config = load(file)
        return with_user(config, Names(user)) if user is not None else config
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


def folder_user(folder: Path, user: str | None) -> Names | None:
    """Return whom the scripts of ``folder`` run as: ``user``, or who suits; None: as we do.

    Exits if nobody does.
    """
    if user is not None:
        return Names(user)
    try:
        return user_for(folder)
    except NobodyFits as error:
        fail(EX_CONFIG, f"{error}: say --user root if its scripts are to run as root")


def config_of(
    tables: Mapping[str, object], base: Path, host: str, port: int, names: Names | None = None
) -> Config:
    """Return the configuration of ``tables``, listening on ``host`` and ``port``.

    Scripts run as ``names`` says.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    config = Config.from_dict({**tables, "listen": {"bind": [address]}}, base=base)
    return with_user(config, names) if names is not None else config


def require_users(config: Config) -> None:
    """Exit with all that root must say of whom programs run as, and has not said."""
    missing = [f"{place}: {text}" for place, text in missing_users(config)]
    if missing:
        fail(EX_CONFIG, "\n".join(missing))


def start(
    config: Config, note: str | None = None, *, descriptions: Mapping[str, str] | None = None
) -> NoReturn:
    """Serve until a signal comes, then exit.

    ``note`` stands below the banner, ``descriptions`` in it for backends by name.
    """
    require_users(config)
    # Imported here: the other commands start faster without it.
    from ..server import Server, StartFailure, serve

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("tetrapylon").setLevel(logging.INFO)

    def banner(server: Server) -> None:
        console = error_console()
        print_banner(console, config, addresses=server.addresses, descriptions=descriptions)
        if note:
            console.print(note, soft_wrap=True)
        console.print("Ctrl-C to stop.", style="dim")

    try:
        code = serve(config, banner=banner)
    except StartFailure as error:
        fail(EX_UNAVAILABLE, str(error))
    sys.exit(code)
