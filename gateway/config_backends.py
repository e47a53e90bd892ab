"""The kinds of backend as structs: what a backend's table can say, and its kind's.

Part of `gateway.config`, which says how attributes are named after keys.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec

from . import limits as default
from .config_reading import Table
from .config_types import (
    AbsolutePath,
    Addresses,
    ApplicationName,
    Command,
    Count,
    CountOrNone,
    FieldValue,
    FileNames,
    Flag,
    Folder,
    FolderOrProgram,
    Folders,
    FoldersByPath,
    GroupName,
    MediaTypes,
    Octet,
    Origin,
    Programs,
    RedirectStatus,
    RedirectTarget,
    SizeLimit,
    SizeOrNone,
    Suffixes,
    Texts,
    TextTable,
    Time,
    TimeLimit,
    UserName,
    Variables,
    Watched,
)
from .spawn.confinement import Confinement


class ResourceLimits(Table, frozen=True, kw_only=True):
    """``rlimits`` of a CGI backend (setrlimit(2)); 0 leaves as it is, except ``core``."""

    cpu_s: Time = default.CGI_CPU_S
    as_bytes: SizeOrNone = default.CGI_ADDRESS_SPACE_BYTES
    nofile: CountOrNone = default.CGI_OPEN_FILES
    nproc: CountOrNone = default.CGI_PROCESSES
    fsize_bytes: SizeOrNone = default.CGI_FILE_BYTES
    core_bytes: SizeOrNone = default.CGI_CORE_BYTES

    def by_name(self) -> dict[str, int]:
        """Return the limits by setrlimit's names, in its units."""
        return {
            # Part of a second must not become 0, which is no limit.
            "cpu": math.ceil(self.cpu_s),
            "as": self.as_bytes,
            "nofile": self.nofile,
            "nproc": self.nproc,
            "fsize": self.fsize_bytes,
            "core": self.core_bytes,
        }


class BackendSpec(Table, frozen=True, kw_only=True):
    """One backend as configured; the subclass is its kind.

    ``name`` is that of its table, or the route's path for an inline backend;
    ``place`` is ``file:line``, or ``""``. Neither is a key.
    """

    kind: ClassVar[str] = ""
    protocol_keys: ClassVar[tuple[str, ...]] = ()
    #: Whether a route's path is the backend's own root unless the route says otherwise.
    is_mounted: ClassVar[bool] = False

    name: str = ""
    place: str = ""

    @property
    def starts_processes(self) -> bool:
        """Whether the gateway starts programs for it."""
        return False

    def describe(self) -> str:
        """Say in a few words what is served."""
        raise NotImplementedError

    def faults(self, own: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield (attribute, message) for what is wrong between attributes.

        ``own`` has those that the backend's own table gave.
        """
        return iter(())


# What the table of a kind, such as [cgi], and each of its backends can both say.


class Cgi(BackendSpec, frozen=True, kw_only=True):
    """``[cgi]``: the defaults of all CGI backends."""

    timeout_s: TimeLimit = default.CGI_TIME_S
    idle_timeout_s: TimeLimit = default.CGI_IDLE_S
    kill_after_s: Time = default.CGI_KILL_AFTER_S
    children: Count = default.CGI_CHILDREN
    queue: CountOrNone = default.QUEUE
    stderr_bytes: SizeOrNone = default.CGI_STDERR_BYTES
    env: Variables = msgspec.field(default_factory=dict)
    env_pass: Texts = ()
    pass_authorization: Flag = msgspec.field(default=False, name="pass_auth")
    interpreters: Programs = msgspec.field(default_factory=dict)
    redirects: CountOrNone = default.LOCAL_REDIRECTS
    body_bytes: SizeLimit | None = None
    rlimits: ResourceLimits = ResourceLimits()
    warm: Flag = False
    user: UserName | None = None
    group: GroupName | None = None


class FastCgi(BackendSpec, frozen=True, kw_only=True):
    """``[fastcgi]``: the defaults of all FastCGI backends."""

    processes: Count = 1
    root: AbsolutePath | None = None
    index: FileNames = ("index.php",)
    split: Suffixes = (".php",)
    params: TextTable = msgspec.field(default_factory=dict)
    connect_s: TimeLimit = default.FASTCGI_CONNECT_S
    first_byte_s: TimeLimit = default.FASTCGI_FIRST_BYTE_S
    output_idle_s: TimeLimit = default.OUTPUT_IDLE_S
    idle_s: Time = default.FASTCGI_IDLE_S
    connections: Count | None = None
    queue: CountOrNone = default.QUEUE
    retries: CountOrNone = default.FASTCGI_RETRIES
    multiplex: Count = 1
    breaker: CountOrNone = default.FASTCGI_BREAKER
    breaker_window_s: TimeLimit = default.FASTCGI_BREAKER_WINDOW_S
    resolve_s: TimeLimit = default.FASTCGI_RESOLVE_S
    check_file: Flag = True
    files: Flag = False
    pass_authorization: Flag = msgspec.field(default=True, name="pass_auth")
    keep_alive: Flag = False
    body_bytes: SizeLimit | None = None
    env: Variables = msgspec.field(default_factory=dict)
    cwd: Folder | None = None
    user: UserName | None = None
    group: GroupName | None = None
    start: Literal["now", "demand"] = "now"
    stop_idle_s: Time = 0.0
    max_requests: CountOrNone = 0
    max_memory_bytes: SizeOrNone = 0
    restart_on_change: Watched | None = None
    touch_reload: AbsolutePath | None = None
    kill_after_s: Time = default.FASTCGI_KILL_AFTER_S
    backoff_s: Time = default.FASTCGI_BACKOFF_S


class SocketApplication(BackendSpec, frozen=True, kw_only=True):
    """What SCGI and uwsgi have in common: an application that somebody else runs."""

    is_mounted = True
    root: AbsolutePath | None = None
    index: FileNames = ("index.php",)
    split: Suffixes = (".php",)
    check_file: Flag = True
    params: TextTable = msgspec.field(default_factory=dict)
    pass_authorization: Flag = msgspec.field(default=True, name="pass_auth")
    connect_s: TimeLimit = default.SOCKET_CONNECT_S
    first_byte_s: TimeLimit = default.SOCKET_FIRST_BYTE_S
    output_idle_s: TimeLimit = default.OUTPUT_IDLE_S
    connections: Count = default.SOCKET_CONNECTIONS
    queue: CountOrNone = default.QUEUE
    breaker: CountOrNone = default.SOCKET_BREAKER
    breaker_window_s: TimeLimit = default.SOCKET_BREAKER_WINDOW_S
    resolve_s: TimeLimit = default.SOCKET_RESOLVE_S
    body_bytes: SizeLimit | None = None

    def faults(self, own: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Keys that have no effect, and a folder that is not there."""
        yield from _faults_of_root(self.root, own, is_looked_into=self.check_file)


class Scgi(SocketApplication, frozen=True, kw_only=True):
    """``[scgi]``: the defaults of all SCGI backends."""


class Uwsgi(SocketApplication, frozen=True, kw_only=True):
    """``[uwsgi]``: the defaults of all uwsgi backends."""

    modifier1: Octet = 0
    modifier2: Octet = 0


class Wsgi(BackendSpec, frozen=True, kw_only=True):
    """``[wsgi]``: the defaults of all WSGI backends."""

    threads: Count = default.WSGI_THREADS
    queue: CountOrNone = default.QUEUE
    spool: Flag = True
    body_bytes: SizeLimit | None = None


class Asgi(BackendSpec, frozen=True, kw_only=True):
    """``[asgi]``: the defaults of all ASGI backends."""

    lifespan: Literal["auto", "on", "off"] = "auto"
    first_byte_s: TimeLimit = default.ASGI_FIRST_BYTE_S
    body_bytes: SizeLimit | None = None


class Static(BackendSpec, frozen=True, kw_only=True):
    """``[static]``: the defaults of all backends that serve files."""

    index: FileNames = ("index.html",)
    dotfiles: Flag = False
    mime: MediaTypes = msgspec.field(default_factory=dict)
    cache_control: FieldValue = ""
    ranges: CountOrNone = default.STATIC_RANGES
    symlinks: Literal["inside", "never"] = "inside"


class StaticTable(Static, frozen=True, kw_only=True):
    """``[static]`` itself: also the folders from which other backends may have files sent."""

    sendfile_roots: Folders = ()
    accel: FoldersByPath = msgspec.field(default_factory=dict)


class Proxy(BackendSpec, frozen=True, kw_only=True):
    """``[proxy]``: the defaults of all proxy backends."""

    connect_s: TimeLimit = default.PROXY_CONNECT_S
    first_byte_s: TimeLimit = default.PROXY_FIRST_BYTE_S
    output_idle_s: TimeLimit = default.OUTPUT_IDLE_S
    idle_s: Time = default.PROXY_IDLE_S
    connections: Count = default.PROXY_CONNECTIONS
    queue: CountOrNone = default.QUEUE
    breaker: CountOrNone = default.PROXY_BREAKER
    breaker_window_s: TimeLimit = default.PROXY_BREAKER_WINDOW_S
    resolve_s: TimeLimit = default.PROXY_RESOLVE_S
    preserve_host: Flag = True
    body_bytes: SizeLimit | None = None


class CgiSpec(Cgi, frozen=True, kw_only=True):
    """A folder of scripts, or one program."""

    kind = "cgi"
    is_mounted = True
    protocol_keys = ("cgi",)
    script: FolderOrProgram = msgspec.field(name="cgi")

    @property
    def starts_processes(self) -> bool:
        """Whether the gateway starts programs for it."""
        return True

    def describe(self) -> str:
        """Say in a few words what is served."""
        what = "CGI scripts in" if Path(self.script).is_dir() else "CGI program"
        return f"{what} {self.script}"

    def faults(self, own: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Limits must let something run; a single program must be one that can be."""
        try:
            Confinement(rlimits=tuple(self.rlimits.by_name().items()))
        except ValueError as error:
            yield "rlimits", str(error)
        if self.group is not None and self.user is None:
            yield "group", "has an effect only with 'user'"
        program = Path(self.script)
        if program.is_dir() or program.suffix in self.interpreters:
            return
        if not os.access(program, os.X_OK):
            hint = f"chmod +x {program}, or name its interpreter in 'interpreters'"
            yield "script", f"not executable: {program}; {hint}"


class FastCgiSpec(FastCgi, frozen=True, kw_only=True):
    """An application at an address, or processes that the gateway starts, or both."""

    kind = "fastcgi"
    is_mounted = True
    protocol_keys = ("fastcgi", "spawn")
    addresses: Addresses = msgspec.field(default=(), name="fastcgi")
    spawn: Command = ()

    @property
    def starts_processes(self) -> bool:
        """Whether the gateway starts programs for it."""
        return bool(self.spawn)

    def describe(self) -> str:
        """Say in a few words what is served."""
        if self.spawn:
            # The interpreter's path says little; the script's name says it.
            names = " ".join(os.path.basename(w) if os.path.isabs(w) else w for w in self.spawn)
            where = f"by {names}" + (f", {self.processes} processes" if self.processes > 1 else "")
            where += ", on demand" if self.start == "demand" else ""
        else:
            where = "at " + ", ".join(self.addresses)
        return f"FastCGI {where}" + (f", scripts in {self.root}" if self.root else "")

    def faults(self, own: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Keys that have no effect, and a program that is not there."""
        if self.spawn:
            program = self.spawn[0]
            path = self.env.get("PATH") or os.environ.get("PATH") or os.defpath
            if shutil.which(program, path=path) is None:
                yield "spawn", f"no such program: {program}"
            if len(self.addresses) > 1 or any(a.startswith("srv:") for a in self.addresses):
                yield "addresses", "with 'spawn' there is one socket: write one address"
        else:
            for attribute in (
                "processes",
                "env",
                "cwd",
                "user",
                "group",
                "start",
                "stop_idle_s",
                "max_requests",
                "max_memory_bytes",
                "restart_on_change",
                "touch_reload",
                "kill_after_s",
                "backoff_s",
            ):
                if attribute in own:
                    yield attribute, "has an effect only with 'spawn'"
        if self.group is not None and self.user is None:
            yield "group", "has an effect only with 'user'"
        yield from _faults_of_root(self.root, own, is_looked_into=self.check_file or self.files)


def _faults_of_root(
    root: str | None, own: Mapping[str, Any], *, is_looked_into: bool
) -> Iterator[tuple[str, str]]:
    if root is None:
        for attribute in ("index", "split", "check_file", "files"):
            if attribute in own:
                yield attribute, "has an effect only with 'root'"
    elif is_looked_into and not os.path.isdir(root):
        # Without the check the scripts may lie where only the application sees them.
        yield "root", f"no such folder: {root}; is it elsewhere? check_file = false"


class ScgiSpec(Scgi, frozen=True, kw_only=True):
    """An SCGI application at an address."""

    kind = "scgi"
    protocol_keys = ("scgi",)
    addresses: Addresses = msgspec.field(name="scgi")

    def describe(self) -> str:
        """Say in a few words what is served."""
        return _at("SCGI", self.addresses, self.root)


class UwsgiSpec(Uwsgi, frozen=True, kw_only=True):
    """A uWSGI server at an address, by its own protocol."""

    kind = "uwsgi"
    protocol_keys = ("uwsgi",)
    addresses: Addresses = msgspec.field(name="uwsgi")

    def describe(self) -> str:
        """Say in a few words what is served."""
        return _at("uwsgi", self.addresses, self.root)


def _at(protocol: str, addresses: tuple[str, ...], root: str | None) -> str:
    return f"{protocol} at {', '.join(addresses)}" + (f", scripts in {root}" if root else "")


class WsgiSpec(Wsgi, frozen=True, kw_only=True):
    """A WSGI application, ``module:attribute``."""

    kind = "wsgi"
    protocol_keys = ("wsgi",)
    application: ApplicationName = msgspec.field(name="wsgi")

    def describe(self) -> str:
        """Say in a few words what is served."""
        return f"WSGI application {self.application}, {self.threads} threads"


class AsgiSpec(Asgi, frozen=True, kw_only=True):
    """An ASGI application, ``module:attribute``."""

    kind = "asgi"
    protocol_keys = ("asgi",)
    application: ApplicationName = msgspec.field(name="asgi")

    def describe(self) -> str:
        """Say in a few words what is served."""
        return f"ASGI application {self.application}"


class StaticSpec(Static, frozen=True, kw_only=True):
    """The files beneath a folder."""

    kind = "static"
    is_mounted = True
    protocol_keys = ("static",)
    root: Folder = msgspec.field(name="static")

    def describe(self) -> str:
        """Say in a few words what is served."""
        return f"files in {self.root}"


class RedirectSpec(BackendSpec, frozen=True, kw_only=True):
    """A redirect; ``{path}``, ``{query}`` and ``{host}`` of the request go into the target."""

    kind = "redirect"
    protocol_keys = ("redirect",)
    target: RedirectTarget = msgspec.field(name="redirect")
    status: RedirectStatus = 308

    def describe(self) -> str:
        """Say in a few words what is served."""
        return f"redirect to {self.target}"


class ProxySpec(Proxy, frozen=True, kw_only=True):
    """An HTTP/1.1 server, ``http://host:port`` or ``unix:/path``."""

    kind = "proxy"
    protocol_keys = ("proxy",)
    address: Origin = msgspec.field(name="proxy")

    def describe(self) -> str:
        """Say in a few words what is served."""
        return f"proxy to {self.address}"


#: Every kind of backend.
KINDS: tuple[type[BackendSpec], ...] = (
    CgiSpec,
    FastCgiSpec,
    ScgiSpec,
    UwsgiSpec,
    WsgiSpec,
    AsgiSpec,
    StaticSpec,
    RedirectSpec,
    ProxySpec,
)
