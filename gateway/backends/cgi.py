"""CGI scripts as a backend: how many run at once, who waits, and under what limits.

What a script is told and how it is answered is `CgiToAsgi`'s; here is the place
for a child. It is taken only when the request is complete, and kept until the
child has been reaped, so that children that outlive their answer count too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Mapping, Sequence
from types import TracebackType
from typing import Self

from ...adapters.cgi_to_asgi import CgiToAsgi
from ...adapters.processes import Child, ChildCommand, spawn_process
from ...adapters.slots import Slots
from ...protocols.asgi import Receive, Scope, Send
from .. import limits as default
from ..spawn.client import Spawner, Warm
from ..spawn.confinement import RLIMITS, Confinement, child_user
from ..spawn.interpreters import Eligible
from ..spawn.warm import examine
from .base import Backend

logger = logging.getLogger("tetrapylon.gateway")


class CgiBackend(Backend):
    """A directory of scripts, or one program for the whole route.

    The router has to give it the route's prefix as ``root_path``, which is the
    script's SCRIPT_NAME or the beginning of it.

    At most ``children`` run at once; ``queue`` more requests wait for a place, for
    ``queue_wait_s`` at most (0: for ever). ``rlimits`` (see `Confinement`) change
    single ones of the safe defaults; with ``warm`` scripts of interpreters that can be
    kept ready are run by such (see `warm`); ``user`` and ``group`` are whom the scripts
    run as, if not whom the gateway runs as; for others it must be root. All other
    arguments are `CgiToAsgi`'s.

    ``spawner`` is the server's, entered before and left after this backend;
    without one, children are started in threads, and have no limits.

    Raises `FileNotFoundError` if there is no ``script``, `LookupError` for an
    unknown user or group, `ValueError` for one that only root could choose and for
    limits that nothing can run under.
    """

    kind = "cgi"

    def __init__(
        self,
        name: str,
        script: str | os.PathLike[str],
        *,
        spawner: Spawner | None,
        timeout_s: float = default.CGI_TIME_S,
        idle_timeout_s: float = default.CGI_IDLE_S,
        kill_after_s: float = default.CGI_KILL_AFTER_S,
        children: int = default.CGI_CHILDREN,
        queue: int = default.QUEUE,
        queue_wait_s: float = default.QUEUE_WAIT_S,
        stderr_bytes: int = default.CGI_STDERR_BYTES,
        env: Mapping[str, str] | None = None,
        env_pass: Sequence[str] = (),
        pass_authorization: bool = False,
        interpreters: Mapping[str, str] | None = None,
        rlimits: Mapping[str, int] | None = None,
        umask: int = 0o077,
        warm: bool = False,
        user: str | None = None,
        group: str | None = None,
        body_limit_bytes: int | None = None,
        spool_bytes: int = default.SPOOL_MEMORY_BYTES,
        response_head_bytes: int = default.RESPONSE_HEADERS_BYTES,
    ) -> None:
        super().__init__(name, body_limit_bytes=body_limit_bytes)
        self._script = os.path.abspath(script)
        self._spawner = spawner
        self._confinement = Confinement(
            rlimits=tuple({**RLIMITS, **(rlimits or {})}.items()),
            umask=umask,
            user=child_user(user, group),
        )
        self._is_warm = warm
        self._programs = frozenset((interpreters or {}).values())
        self._slots = Slots(children, queue=queue, wait_s=queue_wait_s, name=name)
        self._app = CgiToAsgi(
            script,
            interpreters=interpreters,
            env=env,
            env_pass=env_pass,
            pass_authorization=pass_authorization,
            timeout_s=timeout_s,
            idle_timeout_s=idle_timeout_s,
            kill_after_s=kill_after_s,
            stderr_limit_bytes=stderr_bytes,
            head_limit_bytes=response_head_bytes,
            body_limit_bytes=body_limit_bytes,
            spool_memory_bytes=spool_bytes,
            spawn=self._spawn,
        )

    async def __aenter__(self) -> Self:
        if self._spawner is not None:
            # A helper waits for each child's exec, about as long as a core is busy with it.
            helpers = min(default.CGI_HELPERS, os.cpu_count() or 1)
            await self._spawner.prepare(self._confinement, helpers=helpers)
        elif self._confinement.user is not None:
            raise OSError("scripts can run as another user on Linux only")
        else:
            logger.warning("%s: no resource limits for CGI scripts on this system", self.name)
            if self._is_warm:
                logger.warning("%s: scripts run warm on Linux only; here all run plain", self.name)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._app.close()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request by a run of a script."""
        return self._app(scope, receive, send)

    def describe(self) -> str:
        """Say in a few words what is served."""
        what = "CGI scripts in" if os.path.isdir(self._script) else "CGI program"
        return f"{what} {self._script}"

    async def _spawn(self, command: ChildCommand) -> Child:
        await self._slots.acquire()
        try:
            if self._spawner is None:
                child = await spawn_process(command)
                child.when_exited(self._slots.release)
                return child
            warm = self._warm(command) if self._is_warm else None
            asked = self._spawner.spawn(command, self._confinement, warm)
        except BaseException:
            self._slots.release()
            raise
        asked.when_exited(self._slots.release)
        return asked

    def _warm(self, command: ChildCommand) -> Warm | None:
        """Say which warm process is to run a script, if any can."""
        program = command.argv[0] if command.argv[0] in self._programs else None
        script_at = 0 if program is None else 1
        template = examine(command.argv[script_at], program, command.environ)
        return Warm(template, script_at) if isinstance(template, Eligible) else None
