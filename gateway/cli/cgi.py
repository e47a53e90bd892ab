"""``tetrapylon cgi``: a folder with CGI scripts, as ``python -m http.server --cgi`` served it."""

from __future__ import annotations

from ..folders import NoScripts, cgi_tables
from .epilog import examples
from .exits import EX_NOINPUT, fail
from .starting import Folder, Host, Port, User, config_of, existing_folder, folder_user, start

EPILOG = examples(
    ("tetrapylon cgi .", "./cgi-bin runs, the rest is sent"),
    ("tetrapylon cgi ~/scripts", "a folder of scripts: each of them runs"),
)


def cgi(directory: Folder, host: Host = "127.0.0.1", port: Port = 8000, user: User = None) -> None:
    """Serve a folder: scripts in [bold]cgi-bin/[/bold] run, other files are sent.

    The successor of Python's [bold]http.server --cgi[/bold]; [bold]htbin/[/bold] is as
    good a name. Without either, a folder that holds executable files is one of
    scripts: all of it runs, and nothing in it is sent as a file.

    Started as root, it runs scripts as the folder's owner, or if that is root,
    too, as somebody without rights; [bold]--user[/bold] names another.
    """
    folder = existing_folder(directory)
    try:
        tables = cgi_tables(folder)
    except NoScripts as error:
        fail(EX_NOINPUT, str(error))
    names = folder_user(folder, user)
    note = f"Scripts run as {names.user}." if names is not None else None
    start(config_of(tables, folder, host, port, names), note)
