"""Configuration → router and backends: every struct becomes the object it stands for.

Nothing is started here; `Assembly.lifetimes` says what is to be entered, in which
order, before the router is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from ..adapters.lifespan import Lifespan
from ..adapters.loading import LoadFailure, detect_interface, load_application, single_callable
from .backends.asgi import AsgiBackend
from .backends.base import Backend
from .backends.cgi import CgiBackend
from .backends.fastcgi import FastCgiBackend
from .backends.files_first import FilesFirstBackend
from .backends.proxy import ProxyBackend
from .backends.redirect import RedirectBackend
from .backends.sockets import ScgiBackend, SocketBackend, UwsgiBackend
from .backends.static import StaticBackend
from .backends.wsgi import WsgiBackend
from .config import (
    AsgiSpec,
    BackendSpec,
    CgiSpec,
    Config,
    FastCgiSpec,
    ProxySpec,
    RedirectSpec,
    ScgiSpec,
    StaticSpec,
    UwsgiSpec,
    WsgiSpec,
)
from .router import Route, Router
from .sendfile import SentFiles
from .spawn.client import Spawner
from .users import missing_users


class StartFailure(Exception):
    """What keeps the gateway from starting; the message is for the person who starts it."""


@dataclass(slots=True)
class Assembly:
    """The gateway put together, not yet running."""

    router: Router
    backends: dict[str, Backend]
    lifetimes: list[AbstractAsyncContextManager[Any]] = field(default_factory=list)
    #: Among `lifetimes`, if any folder is configured from which backends have files sent.
    sent_files: SentFiles | None = None


def assemble(config: Config) -> Assembly:
    """Build every backend and the router.

    Raises `StartFailure` naming the backend: for one that cannot be built, or
    that would run programs as root and does not say so.
    """
    missing = [f"{place}: {text}" for place, text in missing_users(config)]
    if missing:
        raise StartFailure("\n".join(missing))
    starts_processes = any(spec.starts_processes for spec in config.backends.values())
    spawner = Spawner() if starts_processes and Spawner.is_supported() else None
    makers = _Makers(config, spawner)
    backends = {}
    for name, spec in config.backends.items():
        try:
            backends[name] = makers.make(spec)
        except (StartFailure, LoadFailure, OSError, LookupError, ValueError) as error:
            raise StartFailure(f"{_place(spec)}{error}") from error
    routes = [
        Route(
            path=route.path,
            backend=backends[route.backend],
            hosts=route.hosts,
            mount=route.mount,
            authorizer=makers.authorizers[route.authorizer] if route.authorizer else None,
        )
        for route in config.routes
    ]
    router = Router(
        routes,
        keeps_encoded_slash=config.http.encoded_slash == "keep",
        merges_slashes=config.http.merge_slashes,
    )
    lifetimes: list[AbstractAsyncContextManager[Any]] = []
    if spawner is not None:
        lifetimes.append(spawner)
    lifetimes.extend(makers.shared)
    lifetimes.extend(backends.values())
    sent_files = _sent_files(config)
    if sent_files is not None:
        lifetimes.append(sent_files)
    return Assembly(router, backends, lifetimes, sent_files)


def _sent_files(config: Config) -> SentFiles | None:
    static = config.static
    if not static.sendfile_roots and not static.accel:
        return None
    return SentFiles(
        static.sendfile_roots,
        static.accel,
        ranges=static.ranges,
        symlinks=static.symlinks,
        mime=static.mime,
    )


_ARTICLES = {"asgi": "an ASGI", "wsgi": "a WSGI"}


def _place(spec: BackendSpec) -> str:
    where = f"{spec.place}: " if spec.place else ""
    return f"{where}backend {spec.name}: "


class _Makers:
    """One method for each kind of backend."""

    def __init__(self, config: Config, spawner: Spawner | None) -> None:
        self._config = config
        self._spawner = spawner
        #: Lifetimes that several backends share.
        self.shared: list[Lifespan] = []
        #: What can be one, by its name.
        self.authorizers: dict[str, FastCgiBackend] = {}
        self._applications: dict[str, Any] = {}
        self._lifespans: dict[str, Lifespan] = {}
        self._uses = Counter(
            spec.application for spec in config.backends.values() if isinstance(spec, AsgiSpec)
        )
        self._by_kind: dict[type[BackendSpec], Callable[[Any], Backend]] = {
            AsgiSpec: self._asgi,
            CgiSpec: self._cgi,
            FastCgiSpec: self._fastcgi,
            ProxySpec: self._proxy,
            RedirectSpec: self._redirect,
            ScgiSpec: self._scgi,
            StaticSpec: self._static,
            UwsgiSpec: self._uwsgi,
            WsgiSpec: self._wsgi,
        }

    def make(self, spec: BackendSpec) -> Backend:
        return self._by_kind[type(spec)](spec)

    def _application(self, name: str, interface: str) -> Any:
        """Load an application once, however many backends serve it."""
        if name not in self._applications:
            application = load_application(name, path=self._config.import_path)
            found = detect_interface(application)
            if found != interface:
                raise StartFailure(
                    f"{name} is {_ARTICLES[found]} application; write {found} = {name!r} instead"
                )
            self._applications[name] = application
        return self._applications[name]

    def _asgi(self, spec: AsgiSpec) -> Backend:
        application = self._application(spec.application, "asgi")
        lifespan: Any = spec.lifespan
        if self._uses[spec.application] > 1 and spec.lifespan != "off":
            # One lifespan for one application, behind however many backends.
            lifespan = self._lifespans.get(spec.application)
            if lifespan is None:
                lifespan = Lifespan(
                    single_callable(application),
                    mode=spec.lifespan,
                    timeout_s=self._config.timeouts.graceful_s,
                    name=spec.name,
                )
                self._lifespans[spec.application] = lifespan
                self.shared.append(lifespan)
        return AsgiBackend(
            spec.name,
            application,
            lifespan=lifespan,
            first_byte_s=spec.first_byte_s,
            body_limit_bytes=spec.body_bytes,
            application=spec.application,
        )

    def _wsgi(self, spec: WsgiSpec) -> Backend:
        return WsgiBackend(
            spec.name,
            self._application(spec.application, "wsgi"),
            threads=spec.threads,
            queue=spec.queue,
            queue_wait_s=self._config.limits.queue_wait_s,
            spool=spec.spool,
            body_limit_bytes=spec.body_bytes,
            stop_s=self._config.timeouts.graceful_s,
            application=spec.application,
        )

    def _cgi(self, spec: CgiSpec) -> Backend:
        limits = self._config.limits
        backend = CgiBackend(
            spec.name,
            spec.script,
            spawner=self._spawner,
            timeout_s=spec.timeout_s,
            idle_timeout_s=spec.idle_timeout_s,
            kill_after_s=spec.kill_after_s,
            children=spec.children,
            queue=spec.queue,
            queue_wait_s=limits.queue_wait_s,
            stderr_bytes=spec.stderr_bytes,
            env=spec.env,
            env_pass=spec.env_pass,
            pass_authorization=spec.pass_authorization,
            interpreters=spec.interpreters,
            rlimits=spec.rlimits.by_name(),
            warm=spec.warm,
            user=spec.user,
            group=spec.group,
            body_limit_bytes=spec.body_bytes,
            response_head_bytes=limits.response_headers_bytes,
        )
        backend.local_redirects = spec.redirects
        return backend

    def _fastcgi(self, spec: FastCgiSpec) -> Backend:
        limits = self._config.limits
        scripts = FastCgiBackend(
            spec.name,
            address=spec.addresses,
            spawn=spec.spawn,
            processes=spec.processes,
            env=spec.env,
            cwd=spec.cwd or self._config.base,
            user=spec.user,
            group=spec.group,
            spawner=self._spawner,
            kill_after_s=spec.kill_after_s,
            backoff_s=spec.backoff_s,
            graceful_s=self._config.timeouts.graceful_s,
            max_requests=spec.max_requests,
            max_memory_bytes=spec.max_memory_bytes,
            restart_on_change=spec.restart_on_change,
            touch_reload=spec.touch_reload,
            starts_on_demand=spec.start == "demand",
            stop_idle_s=spec.stop_idle_s,
            root=spec.root,
            index=spec.index,
            split=spec.split,
            check_file=spec.check_file,
            params=spec.params,
            pass_authorization=spec.pass_authorization,
            connect_s=spec.connect_s,
            first_byte_s=spec.first_byte_s,
            output_idle_s=spec.output_idle_s,
            connections=spec.connections,
            queue=spec.queue,
            queue_wait_s=limits.queue_wait_s,
            keep_alive=spec.keep_alive,
            idle_s=spec.idle_s,
            retries=spec.retries,
            multiplex=spec.multiplex,
            breaker=spec.breaker,
            breaker_window_s=spec.breaker_window_s,
            resolve_s=spec.resolve_s,
            body_limit_bytes=spec.body_bytes,
            response_head_bytes=limits.response_headers_bytes,
        )
        self.authorizers[spec.name] = scripts
        if not spec.files or spec.root is None:
            return scripts
        files = StaticBackend(spec.name, spec.root)
        return FilesFirstBackend(scripts, files, split=spec.split)

    def _scgi(self, spec: ScgiSpec) -> Backend:
        return self._socket(ScgiBackend, spec)

    def _uwsgi(self, spec: UwsgiSpec) -> Backend:
        return self._socket(UwsgiBackend, spec, modifier1=spec.modifier1, modifier2=spec.modifier2)

    def _socket(
        self, kind: type[SocketBackend], spec: ScgiSpec | UwsgiSpec, **more: int
    ) -> Backend:
        limits = self._config.limits
        return kind(
            spec.name,
            address=spec.addresses,
            root=spec.root,
            index=spec.index,
            split=spec.split,
            check_file=spec.check_file,
            params=spec.params,
            pass_authorization=spec.pass_authorization,
            connect_s=spec.connect_s,
            first_byte_s=spec.first_byte_s,
            output_idle_s=spec.output_idle_s,
            connections=spec.connections,
            queue=spec.queue,
            queue_wait_s=limits.queue_wait_s,
            breaker=spec.breaker,
            breaker_window_s=spec.breaker_window_s,
            resolve_s=spec.resolve_s,
            body_limit_bytes=spec.body_bytes,
            head_limit_bytes=limits.response_headers_bytes,
            **more,
        )

    def _static(self, spec: StaticSpec) -> Backend:
        return StaticBackend(
            spec.name,
            spec.root,
            index=spec.index,
            dotfiles=spec.dotfiles,
            mime=spec.mime,
            cache_control=spec.cache_control,
            ranges=spec.ranges,
            symlinks=spec.symlinks,
        )

    def _redirect(self, spec: RedirectSpec) -> Backend:
        return RedirectBackend(spec.name, spec.target, status=spec.status)

    def _proxy(self, spec: ProxySpec) -> Backend:
        return ProxyBackend(
            spec.name,
            spec.address,
            connect_s=spec.connect_s,
            first_byte_s=spec.first_byte_s,
            output_idle_s=spec.output_idle_s,
            idle_s=spec.idle_s,
            connections=spec.connections,
            queue=spec.queue,
            breaker=spec.breaker,
            breaker_window_s=spec.breaker_window_s,
            resolve_s=spec.resolve_s,
            preserve_host=spec.preserve_host,
            body_limit_bytes=spec.body_bytes,
        )
