"""The text of a first ``tetrapylon.toml``, from what lies in a folder.

For ``tetrapylon init``. Sources are parsed, never run: an application is known
by the names it assigns and the framework it imports.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .users import NobodyFits, user_for

_ASGI_FRAMEWORKS = frozenset(
    ("fastapi", "starlette", "quart", "sanic", "litestar", "blacksheep", "falcon.asgi")
)
_MODULES = ("asgi", "wsgi", "app", "main", "application")
_APPLICATIONS = ("application", "app", "api")
_FACTORIES = ("create_app", "make_app", "get_app")

#: Where distributions let php-fpm listen.
_PHP_SOCKETS = (
    "/run/php/php-fpm.sock",
    "/run/php/php*-fpm.sock",
    "/run/php-fpm/www.sock",
    "/run/php-fpm/php-fpm.sock",
    "/run/php-fpm.sock",
)

_HEAD = """\
# What is served here, and where. Paths are relative to this file.
#
#   tetrapylon check    reads this file, says what is wrong, shows the routes
#   tetrapylon serve    serves it

[listen]
bind = ["127.0.0.1:8000"]      # this machine alone; "0.0.0.0:8000" is for everyone

[access_log]
format = "combined"            # or "json"
file = "-"                     # standard output; or a path

# [limits]
# body = "16MiB"               # the largest request body; a backend may have its own

"""

_NOTHING = """\
# Nothing was found here that could be served. A route says which paths go where:
#
# [[routes]]
# path = "/"
# backend = { wsgi = "shop:app", threads = 8 }
#
# Other backends: { asgi = "api.main:app" }, { cgi = "cgi-bin" },
# { fastcgi = "unix:/run/php/php-fpm.sock", root = "site" }, { static = "public" },
# { proxy = "http://127.0.0.1:8080" }, { redirect = "https://example.com{path}" }
"""


@dataclass(frozen=True, slots=True)
class Find:
    """Something that can be served: its route, and why it is believed to be that."""

    path: str
    backend: dict[str, object]
    reason: str


@dataclass(frozen=True, slots=True)
class _Application:
    interface: Literal["wsgi", "asgi"]
    name: str  # module:attribute
    reason: str


def look_around(folder: Path, *, php_sockets: tuple[str, ...] = _PHP_SOCKETS) -> list[Find]:
    """Return what can be served from ``folder``, the route ``/`` last; each path once."""
    finds = [
        Find(f"/{name}/", {"cgi": name, **_user(folder / name)}, f"CGI scripts in {name}/")
        for name in ("cgi-bin", "htbin")
        if (folder / name).is_dir()
    ]
    if (folder / "static").is_dir():
        finds.append(Find("/static/", {"static": "static"}, "files in static/"))
    application = _find_application(folder)
    if application is not None:
        if (folder / "public").is_dir():
            finds.append(Find("/public/", {"static": "public"}, "files in public/"))
        backend: dict[str, object] = {application.interface: application.name}
        if application.interface == "wsgi":
            backend["threads"] = 8
        finds.append(Find("/", backend, application.reason))
        return finds
    for root in (folder / "public", folder):
        if next(root.glob("*.php"), None) is not None:
            name = root.relative_to(folder).as_posix()
            return [*finds, _php(name, php_sockets)]
    if (folder / "public").is_dir():
        finds.append(Find("/", {"static": "public"}, "files in public/"))
    return finds


def starter_text(finds: list[Find]) -> str:
    """Return a commented configuration that serves ``finds``; TOML, and valid as it is."""
    routes = [
        f"# {find.reason}\n[[routes]]\npath = {_toml(find.path)}\nbackend = {_toml(find.backend)}\n"
        for find in finds
    ]
    return _HEAD + ("\n".join(routes) if routes else _NOTHING)


def _user(folder: Path) -> dict[str, object]:
    """Return the keys that say whom scripts run as: root's gateway needs them."""
    try:
        names = user_for(folder)
    except NobodyFits:
        return {}  # whoever serves it is told, and decides
    if names is None:
        return {}
    return {key: value for key, value in names._asdict().items() if value is not None}


def _php(root: str, sockets: tuple[str, ...]) -> Find:
    found = [path for pattern in sockets for path in sorted(Path("/").glob(pattern[1:]))]
    address = f"unix:{found[-1]}" if found else "127.0.0.1:9000"
    reason = f"PHP in {'this folder' if root == '.' else root + '/'}"
    reason += "" if found else "; no socket of php-fpm was found, so this is its usual port"
    return Find("/", {"fastcgi": address, "root": root, "files": True}, reason)


def _find_application(folder: Path) -> _Application | None:
    if (folder / "manage.py").is_file():
        for file in sorted(folder.glob("*/wsgi.py")):
            name = f"{file.parent.name}.wsgi:application"
            return _Application("wsgi", name, f"Django project {file.parent.name}")
    for module in _MODULES:
        file = folder / f"{module}.py"
        if file.is_file():
            application = _read_application(file)
            if application is not None:
                return application
    return None


def _read_application(file: Path) -> _Application | None:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return None
    imported, assigned = set(), set()
    functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
            assigned |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            assigned |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assigned.add(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions[node.name] = node
    for name in (*_APPLICATIONS, *_FACTORIES):
        is_factory = name in _FACTORIES
        if name in functions or (name in assigned and not is_factory):
            interface = _interface(file.stem, imported, functions.get(name), is_factory)
            spec = f"{file.stem}:{name}{'()' if is_factory else ''}"
            return _Application(interface, spec, f"{interface.upper()} application in {file.name}")
    return None


def _interface(
    module: str,
    imported: set[str],
    function: ast.FunctionDef | ast.AsyncFunctionDef | None,
    is_factory: bool,
) -> Literal["wsgi", "asgi"]:
    if module == "asgi" or module == "wsgi":
        return "asgi" if module == "asgi" else "wsgi"
    if function is not None and not is_factory:
        return "asgi" if isinstance(function, ast.AsyncFunctionDef) else "wsgi"
    packages = imported | {name.partition(".")[0] for name in imported}
    if packages & _ASGI_FRAMEWORKS:
        return "asgi"
    return "wsgi"


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    # A JSON string, number or boolean is one of TOML.
    return json.dumps(value, ensure_ascii=False)
