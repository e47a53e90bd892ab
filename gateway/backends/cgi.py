"""CGI scripts as a backend: how many run at once, who waits, and under what limits.

What a script is told and how it is answered is `CgiToAsgi`'s; here is the place
for a child. It is taken only when the request is complete, and kept until the
child has been reaped, so that children that outlive their answer count too.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from ...adapters.cgi_to_asgi import CgiToAsgi
from ...adapters.processes import Child, ChildCommand, spawn_process
from ...adapters.slots import Slots
from ...protocols.asgi import Receive, Scope, Send
from .. import limits as default
from ..spawn.client import Spawner
from ..spawn.confinement import RLIMITS, Confinement, User
from .base import Backend

logger = logging.getLogger("tetrapylon.gateway")


class CgiBackend(Backend):
    """A directory of scripts, or one program for the whole route.

    The router has to give it the route's prefix as ``root_path``, which is the
    script's SCRIPT_NAME or the beginning of it.

    At most ``children`` run at once; ``queue`` more requests wait for a place, for
    ``queue_wait_s`` at most (0: for ever). ``rlimits`` (see `Confinement`) change
    single ones of the safe defaults; ``user`` and ``group`` are whom the scripts
    run as, where the gateway is root. All other arguments are `CgiToAsgi`'s.

    ``spawner`` is the server's, entered before and left after this backend;
    without one, children are started in threads, and have no limits.

    Raises `FileNotFoundError` if there is no ``script``, `LookupError` for an
    unknown user or group, `ValueError` for limits that nothing can run under.
    """

    kind = "cgi"

    def __init__(
        self,
        name: str,
        script: str | os.PathLike[str],
        *,
        spawner: Spawner | None,
        timeout_s: float = default.CGI_TIME_S,
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
            user=User.find(user, group) if user is not None else None,
        )
        self._slots = Slots(children, queue=queue, wait_s=queue_wait_s, name=name)
        self._app = CgiToAsgi(
            script,
            interpreters=interpreters,
            env=env,
            env_pass=env_pass,
            pass_authorization=pass_authorization,
            timeout_s=timeout_s,
            kill_after_s=kill_after_s,
            stderr_limit_bytes=stderr_bytes,
            head_limit_bytes=response_head_bytes,
            body_limit_bytes=body_limit_bytes,
            spool_memory_bytes=spool_bytes,
            spawn=self._spawn,
        )

    async def __aenter__(self) -> Self:
        if self._spawner is not None:
            await self._spawner.prepare(self._confinement)
        elif self._confinement.user is not None:
            raise OSError("scripts can run as another user on Linux only")
        else:
            logger.warning("%s: no resource limits for CGI scripts on this system", self.name)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._app.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request by a run of a script."""
        await self._app(scope, receive, send)

    def describe(self) -> str:
        """Say in a few words what is served."""
        what = "CGI scripts in" if os.path.isdir(self._script) else "CGI program"
        return f"{what} {self._script}"

    async def _spawn(self, command: ChildCommand) -> Child:
        await self._slots.acquire()
        try:
            if self._spawner is None:
                child = await spawn_process(command)
                child.exited.add_done_callback(self._on_exit)
                return child
            asked = self._spawner.spawn(command, self._confinement)
        except BaseException:
            self._slots.release()
            raise
        asked.exited.add_done_callback(self._on_exit)
        return await asked.started()

    def _on_exit(self, _: asyncio.Future[int]) -> None:
        self._slots.release()
