"""The configuration: a TOML file (or a dictionary) into frozen structs, checked whole.

Every table of the file is a struct here; an attribute is named as its key, with
the unit that the value brings (`timeout = "30s"` is ``timeout_s = 30.0``). Bytes
and counts without a limit are `UNLIMITED`, times `FOREVER_S`, so that they
compare like any other. Paths are absolute. ``docs/configuration.md`` says what
each key is for, and a test holds the two together. Defaults: `gateway.limits`.

`load` and `Config.from_dict` report everything that is wrong at once, as a
`ConfigError`; what they return needs no further checks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import msgspec

from . import limits as default
from .config_backends import (
    KINDS,
    Asgi,
    AsgiSpec,
    BackendSpec,
    Cgi,
    CgiSpec,
    FastCgi,
    FastCgiSpec,
    Proxy,
    ProxySpec,
    RedirectSpec,
    Scgi,
    ScgiSpec,
    StaticSpec,
    StaticTable,
    Uwsgi,
    UwsgiSpec,
    Wsgi,
    WsgiSpec,
)
from .config_reading import Reading, Table, key_of_attribute
from .config_source import ConfigError, KeyPath, Problem, Source, read_toml, render_key
from .config_types import (
    BackendName,
    Count,
    CountLimit,
    Endpoints,
    Flag,
    Folders,
    Hosts,
    LogFile,
    RoutePath,
    Size,
    SizeLimit,
    SizeOrNone,
    Time,
    TimeLimit,
)
from .config_values import FOREVER_S, UNLIMITED, Endpoint, nearest, quoted

__all__ = [
    "FOREVER_S",
    "UNLIMITED",
    "AsgiSpec",
    "BackendSpec",
    "CgiSpec",
    "Config",
    "ConfigError",
    "Endpoint",
    "FastCgiSpec",
    "Problem",
    "ProxySpec",
    "RedirectSpec",
    "Route",
    "ScgiSpec",
    "StaticSpec",
    "UwsgiSpec",
    "WsgiSpec",
    "load",
]


_ConfigT = TypeVar("_ConfigT", bound="Config")


class Listen(Table, frozen=True, kw_only=True):
    """``[listen]``: where connections come in."""

    bind: Endpoints = (Endpoint("127.0.0.1", 8000),)
    backlog: Count = default.BACKLOG


class Http(Table, frozen=True, kw_only=True):
    """``[http]``: how requests are read."""

    engine: Literal["auto", "httptools", "h11"] = "auto"
    header_names: Literal["drop", "refuse"] = "drop"
    encoded_slash: Literal["reject", "keep"] = "reject"
    merge_slashes: Flag = True


class Limits(Table, frozen=True, kw_only=True):
    """``[limits]``: how much of anything there may be."""

    request_line_bytes: Size = default.REQUEST_LINE_BYTES
    headers_bytes: Size = default.HEADERS_BYTES
    header_count: Count = default.HEADER_COUNT
    trailers_bytes: SizeOrNone = default.TRAILERS_BYTES
    body_bytes: SizeLimit = default.BODY_BYTES
    body_rate_bytes_per_s: SizeOrNone = default.BODY_RATE_BYTES_PER_S
    chunk_line_bytes: Size = default.CHUNK_LINE_BYTES
    chunk_overhead_bytes: Size = default.CHUNK_OVERHEAD_BYTES
    drain_bytes: SizeOrNone = default.DRAIN_BYTES
    body_buffer_bytes: Size = default.BODY_BUFFER_BYTES
    read_ahead_bytes: Size = default.READ_AHEAD_BYTES
    send_buffer_bytes: Size = default.SEND_BUFFER_BYTES
    response_headers_bytes: Size = default.RESPONSE_HEADERS_BYTES
    requests_per_connection: CountLimit = default.REQUESTS_PER_CONNECTION
    connection_age_s: TimeLimit = default.CONNECTION_AGE_S
    queue_wait_s: TimeLimit = default.QUEUE_WAIT_S


class Timeouts(Table, frozen=True, kw_only=True):
    """``[timeouts]``: how long a connection may make the gateway wait."""

    header_s: TimeLimit = default.HEADER_S
    first_byte_s: TimeLimit = default.FIRST_BYTE_S
    body_idle_s: TimeLimit = default.BODY_IDLE_S
    send_idle_s: TimeLimit = default.SEND_IDLE_S
    keep_alive_s: TimeLimit = default.KEEP_ALIVE_S
    half_close_s: Time = default.HALF_CLOSE_S
    linger_s: Time = default.LINGER_S
    graceful_s: Time = default.GRACEFUL_S


class AccessLog(Table, frozen=True, kw_only=True):
    """``[access_log]``: one line for each request."""

    enabled: Flag = True
    format: Literal["combined", "json"] = "combined"
    file: LogFile = "-"


class Python(Table, frozen=True, kw_only=True):
    """``[python]``: where WSGI and ASGI applications are imported from."""

    path: Folders = ()


class Route(Table, frozen=True, kw_only=True):
    """Which requests go to which backend: by host (none: any) and by path.

    ``backend`` is a name in `Config.backends`; ``mount`` is whether the path is
    the backend's own root, as the file says or else as the kind is wont to;
    ``authorizer`` is the name of a FastCGI backend that is asked before; ``place`` is
    no key.
    """

    path: RoutePath = "/"
    hosts: Hosts = msgspec.field(default=(), name="host")
    backend: str
    mount: Flag = False
    authorizer: BackendName | None = None
    place: str = ""


class Config(Table, frozen=True, kw_only=True):
    """The whole configuration. ``base`` is the folder that relative paths start from."""

    listen: Listen = Listen()
    http: Http = Http()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    access_log: AccessLog = AccessLog()
    python: Python = Python()
    cgi: Cgi = Cgi()
    fastcgi: FastCgi = FastCgi()
    scgi: Scgi = Scgi()
    uwsgi: Uwsgi = Uwsgi()
    wsgi: Wsgi = Wsgi()
    asgi: Asgi = Asgi()
    static: StaticTable = StaticTable()
    proxy: Proxy = Proxy()
    backends: dict[str, BackendSpec]
    routes: tuple[Route, ...]
    base: str

    @property
    def import_path(self) -> tuple[str, ...]:
        """The folders that applications are imported from, before the interpreter's own."""
        return (self.base, *self.python.path)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, base: Path | str = ".", source: Source | None = None
    ) -> Self:
        """Return the configuration that ``data``, shaped as the file, says.

        Raises `ConfigError` with everything that is wrong.
        """
        folder = Path(base).absolute()
        reading = Reading(source or Source(), folder)
        config = _read(cls, dict(data), reading)
        if reading.problems:
            raise ConfigError(sorted(reading.problems, key=lambda problem: problem.line or 0))
        return config


def load(path: Path | str) -> Config:
    """Return the configuration in a TOML file.

    Raises `ConfigError` with everything that is wrong in it, and `OSError` when
    it cannot be read.
    """
    file = Path(path)
    data, source = read_toml(file)
    return Config.from_dict(data, base=file.absolute().parent, source=source)


# From here on: what is more than one table's own affair.

_BACKEND_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_KIND_OF = {key: kind for kind in KINDS for key in kind.protocol_keys}


def _read(cls: type[_ConfigT], data: dict[str, Any], reading: Reading) -> _ConfigT:
    tables = reading.attributes(cls, data, (), also=("backends", "routes"))
    defaults = {kind: tables.get(kind.kind, kind.__mro__[1]()) for kind in KINDS}
    backends = _Backends(reading, defaults)
    backends.read(data.get("backends", {}))
    routes = _read_routes(data.get("routes", []), backends, reading)
    return cls(**tables, backends=backends.specs, routes=routes, base=str(reading.base))


class _Backends:
    """The backends read so far; ``names`` also holds those that were wrong."""

    def __init__(self, reading: Reading, defaults: dict[type[BackendSpec], BackendSpec]) -> None:
        self.reading = reading
        self.defaults = defaults
        self.specs: dict[str, BackendSpec] = {}
        self.names: set[str] = set()

    def read(self, value: object) -> None:
        for name, table in self.reading.table(value, ("backends",)).items():
            if not _BACKEND_NAME.fullmatch(name):
                message = "the name of a backend is made of letters, digits, '-', '_' and '.'"
                self.reading.report(("backends", name), message)
            self.add(name, table, ("backends", name))

    def add(self, name: str, value: object, key: KeyPath) -> None:
        self.names.add(name)
        table = self.reading.table(value, key)
        if table is not value:
            return
        protocols = [given for given in table if given in _KIND_OF]
        kinds = {_KIND_OF[protocol] for protocol in protocols}
        if len(kinds) == 1:
            self._add_of_kind(kinds.pop(), name, table, key)
        elif kinds:
            given = " and ".join(f"'{protocol}'" for protocol in protocols)
            self.reading.report((*key, protocols[1]), f"a backend has one protocol, not {given}")
        else:
            hints = (nearest(given, _KIND_OF) for given in table)
            message = f"no protocol; one of these keys is needed: {', '.join(_KIND_OF)}"
            self.reading.report(key, message + next(filter(None, hints), ""))

    def _add_of_kind(
        self, kind: type[BackendSpec], name: str, table: dict[str, Any], key: KeyPath
    ) -> None:
        errors_before = len(self.reading.problems)
        defaults = self.defaults[kind]
        own = self.reading.attributes(kind, table, key, defaults=defaults)
        if len(self.reading.problems) > errors_before:
            return
        # A kind's table may say more than each of its backends can.
        shared = kind.__struct_fields__
        attributes = {
            attribute: value
            for attribute, value in msgspec.structs.asdict(defaults).items()
            if attribute in shared
        } | own
        attributes |= {"name": name, "place": self.reading.source.place_of(key)}
        spec = kind(**attributes)
        for attribute, message in spec.faults(own):
            self.reading.report((*key, key_of_attribute(kind, attribute)), message)
        self.specs[name] = spec


def _read_routes(value: object, backends: _Backends, reading: Reading) -> tuple[Route, ...]:
    if isinstance(value, dict):
        reading.report(("routes",), "one of several: write [[routes]]")
        return ()
    if not isinstance(value, list | tuple):
        reading.report(("routes",), f"expected tables, got {quoted(value)}; write [[routes]]")
        return ()
    if not value:
        hint = 'add [[routes]] with path = "/" and a backend'
        reading.report(("routes",), f"nothing would be served; {hint}")
    routes = []
    first: dict[tuple[str, str], KeyPath] = {}
    authorizers: dict[KeyPath, str] = {}
    for index, item in enumerate(value):
        key: KeyPath = ("routes", index)
        table = reading.table(item, key)
        if table is not item:
            continue
        own = reading.attributes(Route, table, key, also=("backend",))
        route = Route(**own, backend="", place=reading.source.place_of(key))
        name = _backend_of(route, table, key, backends, reading)
        spec = backends.specs.get(name)
        if "mount" not in own and spec is not None:
            route = msgspec.structs.replace(route, mount=spec.is_mounted)
        routes.append(msgspec.structs.replace(route, backend=name))
        if route.authorizer is not None:
            authorizers[*key, "authorizer"] = route.authorizer
        if "path" in table and "path" not in own:
            continue
        for host in route.hosts or ("",):
            other = first.setdefault((host, route.path.rstrip("/")), key)
            if other != key:
                _report_duplicate(route, host, key, other, reading)
    # At last, for they may be the inline backends of later routes.
    for key, name in authorizers.items():
        _check_authorizer(name, key, backends, reading)
    return tuple(routes)


def _backend_of(
    route: Route, table: dict[str, Any], key: KeyPath, backends: _Backends, reading: Reading
) -> str:
    """Return the backend's name; an inline one is added under the route's host and path."""
    backend = table.get("backend")
    if isinstance(backend, dict):
        name = route.path
        if name in backends.names:
            name = ",".join(route.hosts) + route.path
        backends.add(name, backend, (*key, "backend"))
        return name
    if isinstance(backend, str):
        if backend not in backends.names:
            hint = nearest(backend, backends.names)
            reading.report((*key, "backend"), f"no backend is named {quoted(backend)}{hint}")
        return backend
    if backend is None:
        hint = 'name one of [backends], or write one inline: backend = { static = "public" }'
        reading.report(key, f"no backend; {hint}")
    else:
        message = f"expected the name of a backend or a table, got {quoted(backend)}"
        reading.report((*key, "backend"), message)
    return ""


def _check_authorizer(name: str, key: KeyPath, backends: _Backends, reading: Reading) -> None:
    if name not in backends.names:
        hint = nearest(name, backends.names)
        reading.report(key, f"no backend is named {quoted(name)}{hint}")
        return
    spec = backends.specs.get(name)
    if spec is not None and not isinstance(spec, FastCgiSpec):
        reading.report(
            key, f"{quoted(name)} is a backend of the kind {spec.kind}; authorizers speak FastCGI"
        )


def _report_duplicate(
    route: Route, host: str, key: KeyPath, other: KeyPath, reading: Reading
) -> None:
    line = reading.source.line_of(other)
    where = f"{render_key(other)}, line {line}" if line else render_key(other)
    what = f"'{route.path}' of host '{host}'" if host else f"'{route.path}'"
    reading.report((*key, "path"), f"{what} is already routed ({where})")
