"""What in a valid configuration will surprise: losses, leaks, things not there yet.

For ``tetrapylon check``. Nothing is imported, started or connected to.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from .config import (
    AsgiSpec,
    BackendSpec,
    CgiSpec,
    Config,
    FastCgiSpec,
    ProxySpec,
    Route,
    StaticSpec,
    WsgiSpec,
)

# What the last words of a path promise.
_STREAM = re.compile(r"(?:^|[/_.-])(?:sse|events?|event-?stream|streams?|live|poll)(?:[/_.-]|$)")
_SOCKET = re.compile(r"(?:^|[/_.-])(?:ws|wss|web-?sockets?|socket\.io)(?:[/_.-]|$)")
_PLENTY_OF_THREADS = 64


def warnings(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (place, text); the place is ``file:line``, or a key where there is no file."""
    used = {route.backend for route in config.routes}
    for name, spec in config.backends.items():
        place = spec.place or f"backends.{name}"
        if name not in used:
            yield place, f"no route leads to backend '{name}'"
        for text in _of_backend(spec, config):
            yield place, text
    for route in config.routes:
        spec = config.backends[route.backend]
        for text in (*_of_path(route, spec), *_of_files(route, spec, config)):
            yield route.place or route.path, text


def _of_backend(spec: BackendSpec, config: Config) -> Iterator[str]:
    if isinstance(spec, CgiSpec) and os.geteuid() == 0:
        yield "run as root, every CGI script is root, too"
    if isinstance(spec, FastCgiSpec | ProxySpec):
        address = spec.address or ""
        if address.startswith("unix:") and not (isinstance(spec, FastCgiSpec) and spec.spawn):
            yield from _of_socket(address.removeprefix("unix:"))
    if isinstance(spec, WsgiSpec | AsgiSpec):
        module = spec.application.partition(":")[0].partition(".")[0]
        if PathFinder.find_spec(module, list(config.import_path)) is None and (
            PathFinder.find_spec(module) is None
        ):
            yield f"there is no module '{module}' in {config.base} or where Python looks"


def _of_socket(path: str) -> Iterator[str]:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        yield f"{path} is not there: is the application running?"
    except OSError as error:
        yield f"{path}: {error.strerror}"
    else:
        if not stat.S_ISSOCK(mode):
            yield f"{path} is not a socket"
        elif not os.access(path, os.W_OK):
            yield f"{path} may not be connected to: the socket's owner or mode forbids it"


def _of_path(route: Route, spec: BackendSpec) -> Iterator[str]:
    path = route.path.lower()
    if _SOCKET.search(path) and not isinstance(spec, AsgiSpec | ProxySpec):
        yield f"'{route.path}' sounds like a WebSocket, of which {spec.kind} knows nothing"
    elif _STREAM.search(path) and isinstance(spec, WsgiSpec) and spec.threads < _PLENTY_OF_THREADS:
        yield (
            f"'{route.path}' sounds like a stream, which holds a thread as long as it is "
            f"watched: with {spec.threads} threads the next client after {spec.threads} waits "
            "(more threads, or ASGI)"
        )
    elif _STREAM.search(path) and isinstance(spec, CgiSpec):
        yield (
            f"'{route.path}' sounds like a stream: each is a process, and ends after "
            f"{spec.timeout_s:g} s ('timeout')"
        )


def _of_files(route: Route, spec: BackendSpec, config: Config) -> Iterator[str]:
    """Warn of what a folder gives away that was not meant to be read."""
    if not isinstance(spec, StaticSpec):
        return
    root = Path(spec.root)
    if Path(config.base).is_relative_to(root) and route.place:
        yield f"the folder of the configuration itself can be read by everyone: {root}"
    for other in config.backends.values():
        if not isinstance(other, CgiSpec) or not Path(other.script).is_relative_to(root):
            continue
        below = Path(other.script).relative_to(root).as_posix()
        prefix = route.path.rstrip("/") if route.mount else ""
        if not _is_routed(f"{prefix}/{below}", config):
            yield f"the sources of CGI scripts can be read under {prefix}/{below}"
    scripts = sorted(file.name for file in root.glob("*.php"))
    if scripts:
        yield f"{scripts[0]} is sent as it is written; PHP is run by a fastcgi backend with 'root'"


def _is_routed(path: str, config: Config) -> bool:
    """Tell whether a route within ``path`` or at it takes it from the files."""
    routes = (
        route.path.rstrip("/")
        for route in config.routes
        if isinstance(config.backends[route.backend], CgiSpec)
    )
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in routes)
