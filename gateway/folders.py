"""A folder as a configuration, for ``tetrapylon cgi``."""

from __future__ import annotations

import os
from pathlib import Path

#: Where scripts lie by custom; the second is CERN httpd's name for it.
SCRIPT_FOLDERS = ("cgi-bin", "htbin")


class NoScripts(Exception):
    """There is nothing in the folder that could run; the message says what would."""


def cgi_tables(folder: Path) -> dict[str, object]:
    """Return the configuration's tables: scripts run, other files are sent.

    With ``cgi-bin`` or ``htbin`` in it, the folder is sent as files and scripts
    run in these. Without, a folder that holds executable files is one of
    scripts: its files are never sent, for they would be the scripts' sources.
    Raises `NoScripts` when there are neither.
    """
    # Written as a backend's table is; the key is the file's.
    routes: list[dict[str, object]] = [
        {"path": f"/{name}/", "backend": {"cgi": str(folder / name)}}
        for name in SCRIPT_FOLDERS
        if (folder / name).is_dir()
    ]
    if routes:
        routes.append({"path": "/", "backend": {"static": str(folder)}})
    elif any(is_script(file) for file in folder.iterdir()):
        routes.append({"path": "/", "backend": {"cgi": str(folder)}})
    else:
        files = sorted(file.name for file in folder.iterdir() if has_interpreter(file))
        hint = f"; to make one of {files[0]}: chmod +x {folder / files[0]}" if files else ""
        raise NoScripts(f"{folder}: neither cgi-bin/ nor an executable script in it{hint}")
    return {"routes": routes}


def is_script(file: Path) -> bool:
    """Tell whether the system would run the file."""
    return file.is_file() and not file.name.startswith(".") and os.access(file, os.X_OK)


def has_interpreter(file: Path) -> bool:
    """Tell whether the file begins with ``#!``."""
    if not file.is_file() or file.name.startswith("."):
        return False
    try:
        with file.open("rb") as opened:
            return opened.read(2) == b"#!"
    except OSError:
        return False
