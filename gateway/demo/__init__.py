"""The demonstration: the mirror, one small application written for all four protocols.

`mirror_cgi`, `mirror_fastcgi`, `mirror_wsgi` and `mirror_asgi` are each the
textbook example of its protocol and import nothing of this package;
``site/index.html`` compares their answers, ``tetrapylon.toml`` puts them behind
one listener. `tetrapylon demo` serves them from here, or gives the user a copy.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tomllib
from pathlib import Path

from ..config import Config
from ..users import Names, with_user

_FOLDER = Path(__file__).parent
_FILES = (
    "mirror_cgi.py",
    "mirror_fastcgi.py",
    "mirror_wsgi.py",
    "mirror_asgi.py",
    "site/index.html",
)
_CONFIGURATION = "tetrapylon.toml"


def demo_config(
    *, host: str = "127.0.0.1", port: int = 8000, unix: str | os.PathLike[str] | None = None
) -> Config:
    """Return the configuration that serves the demonstration where it is installed.

    ``unix`` is the path of a socket to listen on in place of ``host`` and
    ``port``. Raises `ConfigError` for an address that is none.
    """
    if unix is not None:
        address = f"unix:{Path(unix).absolute()}"
    else:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    tables = tomllib.loads(_configuration_text())
    tables["listen"]["bind"] = [address]
    config = Config.from_dict(tables, base=_FOLDER)
    # Its scripts are our own, and as trustworthy as we are.
    return with_user(config, Names("root")) if os.geteuid() == 0 else config


def copy_demo(folder: str | os.PathLike[str]) -> Path:
    """Write the demonstration into ``folder``; return the path of its ``tetrapylon.toml``.

    The folder is made if there is none. Raises `FileExistsError`, before
    anything is written, if a file of the demonstration is in it already.
    """
    target = Path(folder)
    for name in (_CONFIGURATION, *_FILES):
        if os.path.lexists(target / name):
            raise FileExistsError(f"{target / name} is there already")
    for name in _FILES:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_FOLDER / name, target / name)
    # A wheel may have lost the permission that a CGI program needs elsewhere.
    (target / "mirror_cgi.py").chmod(0o755)
    configuration = target / _CONFIGURATION
    configuration.write_text(_configuration_text() + _user_text(), encoding="utf-8")
    return configuration


def _user_text() -> str:
    """Return what root must say of the programs, which are our own."""
    if os.geteuid() != 0:
        return ""
    return (
        "\n# Only root has to say whom programs run as. Better somebody who can do less,\n"
        "# and can read this folder and run the interpreter above.\n\n"
        '[cgi]\nuser = "root"\n\n[fastcgi]\nuser = "root"\n'
    )


def _configuration_text() -> str:
    """Return the file's text with this interpreter, which has flup, for ``python3``."""
    text = (_FOLDER / _CONFIGURATION).read_text(encoding="utf-8")
    # A JSON string is a TOML string.
    return text.replace('"python3"', json.dumps(sys.executable, ensure_ascii=False))
