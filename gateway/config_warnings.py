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
    ScgiSpec,
    StaticSpec,
    UwsgiSpec,
    WsgiSpec,
)

# What the last words of a path promise.
_STREAM = re.compile(r"(?:^|[/_.-])(?:sse|events?|event-?stream|streams?|live|poll)(?:[/_.-]|$)")
_SOCKET = re.compile(r"(?:^|[/_.-])(?:ws|wss|web-?sockets?|socket\.io)(?:[/_.-]|$)")
_PLENTY_OF_THREADS = 64


def warnings(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (place, text); the place is ``file:line``, or a key where there is no file."""
    used = {route.backend for route in config.routes}
    used |= {route.authorizer for route in config.routes if route.authorizer is not None}
    for name, spec in config.backends.items():
        place = spec.place or f"backends.{name}"
        if name not in used:
            yield place, f"no route leads to backend '{name}'"
        for text in _of_backend(spec, config):
            yield place, text
    for route in config.routes:
        spec = config.backends[route.backend]
        for text in (
            *_of_path(route, spec),
            *_of_files(route, spec, config),
            *_of_authorizer(route, spec, config),
            *_of_slashes(route, config),
        ):
            yield route.place or route.path, text


def _of_backend(spec: BackendSpec, config: Config) -> Iterator[str]:
    for address in _addresses(spec):
        if address.startswith("unix:"):
            yield from _of_socket(address.removeprefix("unix:"))
    if isinstance(spec, FastCgiSpec) and spec.spawn:
        yield from _of_restarts(spec, config)
    if isinstance(spec, WsgiSpec | AsgiSpec):
        module = spec.application.partition(":")[0].partition(".")[0]
        if PathFinder.find_spec(module, list(config.import_path)) is None and (
            PathFinder.find_spec(module) is None
        ):
            yield f"there is no module '{module}' in {config.base} or where Python looks"


def _of_restarts(spec: FastCgiSpec, config: Config) -> Iterator[str]:
    """Warn of restarts that never come, and of requests that one loses."""
    program, *arguments = spec.spawn
    name = os.path.basename(program)
    if spec.restart_on_change == () and arguments:
        folder = spec.cwd or config.base
        if not any(os.path.isfile(os.path.join(folder, word)) for word in arguments):
            yield (
                f"'restart_on_change = true' looks at {name} alone, for no argument of 'spawn' "
                "names a file: write a list of the files"
            )
    own = spec.env.get("PHP_FCGI_MAX_REQUESTS") or os.environ.get("PHP_FCGI_MAX_REQUESTS", "500")
    is_php = name.startswith("php") and "cgi" in name and own.isdecimal()
    if is_php and 0 < int(own) <= spec.max_requests:
        yield (
            f"{name} ends by itself after {own} requests (PHP_FCGI_MAX_REQUESTS), and so "
            f"never comes to 'max_requests = {spec.max_requests}'"
        )
    is_tcp = any(not address.startswith("unix:") for address in spec.addresses)
    is_exchanged = spec.restart_on_change is not None or spec.touch_reload is not None
    if is_tcp and (is_exchanged or spec.max_requests or spec.max_memory_bytes or spec.stop_idle_s):
        yield (
            f"at {spec.addresses[0]} old and new processes share one socket: requests that an "
            "old one has in hand are lost if SIGTERM ends it at once; none is without 'fastcgi', "
            "or at a unix socket"
        )


def _addresses(spec: BackendSpec) -> tuple[str, ...]:
    """Return where somebody else's application has to be running."""
    if isinstance(spec, ScgiSpec | UwsgiSpec) or (isinstance(spec, FastCgiSpec) and not spec.spawn):
        return spec.addresses
    return (spec.address,) if isinstance(spec, ProxySpec) else ()


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


def _of_authorizer(route: Route, spec: BackendSpec, config: Config) -> Iterator[str]:
    """Warn of a way round it: the same files by another route that has none."""
    root = _root_of_files(spec)
    if route.authorizer is None or root is None:
        return
    for other in config.routes:
        files = _root_of_files(config.backends[other.backend])
        if other.authorizer is not None or files is None or not root.is_relative_to(files):
            continue
        below = root.relative_to(files).as_posix()
        path = other.path.rstrip("/") if other.mount else ""
        if below != ".":
            path += f"/{below}"
        # A guard without a host comes after every route of the request's own host, and
        # one with a host guards no other.
        guarded = (
            each.path.rstrip("/")
            for each in config.routes
            if each.authorizer is not None and set(other.hosts or ("",)) <= set(each.hosts or ("",))
        )
        if not any(path == prefix or path.startswith(f"{prefix}/") for prefix in guarded):
            yield f"without asking '{route.authorizer}' these files can be read under {path or '/'}"


def _of_slashes(route: Route, config: Config) -> Iterator[str]:
    """Warn of a way round an authorizer by a path that means the same to many."""
    if route.authorizer is not None and route.path != "/" and not config.http.merge_slashes:
        yield (
            f"'/{route.path}' is another path with 'merge_slashes = false', for which "
            f"'{route.authorizer}' is not asked, and applications may take it for '{route.path}'"
        )


def _root_of_files(spec: BackendSpec) -> Path | None:
    """Return the folder whose files are sent as they are, if there is one."""
    if isinstance(spec, StaticSpec):
        return Path(spec.root)
    return Path(spec.root) if isinstance(spec, FastCgiSpec) and spec.root and spec.files else None


def _is_routed(path: str, config: Config) -> bool:
    """Tell whether a route within ``path`` or at it takes it from the files."""
    routes = (
        route.path.rstrip("/")
        for route in config.routes
        if isinstance(config.backends[route.backend], CgiSpec)
    )
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in routes)
