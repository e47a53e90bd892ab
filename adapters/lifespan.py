"""An application's lifespan, entered and left by ``async with``.

ASGI specification, "Lifespan Protocol" 2.0: one call of the application with a
scope of type ``lifespan`` lasts from start to stop in a task of its own, and two
messages each way say when it is ready and when it is through.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

from ..protocols.asgi import LIFESPAN_VERSIONS, Application, Message, Receive, Scope, Send

logger = logging.getLogger("tetrapylon.adapters.lifespan")

Mode = Literal["auto", "on", "off"]

# How long an application may go on after it was told to stop, or said that it has.
_LAST_WORDS_S = 1.0


class LifespanFailure(Exception):
    """The application did not start; the message says what it said of that."""


class _Refused(RuntimeError):
    """Raised out of ``send``: the message has no place in the lifespan protocol."""


class Lifespan:
    """One application's lifespan on the running event loop.

    ``mode``: with ``"on"`` an application that does not know the protocol is a
    failure, with ``"auto"`` it simply goes without, with ``"off"`` it is not
    asked. ``timeout_s`` is how long the start, and then the stop, may take.

    Entering raises `LifespanFailure`. Leaving never fails for what the
    application does: by then there is only the log to tell.
    """

    def __init__(
        self, app: Application, *, mode: Mode = "auto", timeout_s: float = 60.0, name: str = "asgi"
    ) -> None:
        self._app = app
        self._mode = mode
        self._timeout_s = timeout_s
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._phase: Literal["new", "starting", "started", "failed", "stopping", "stopped"] = "new"
        self._message = ""
        self._has_changed = asyncio.Event()
        self._stop = asyncio.Event()
        #: Of the application; a shallow copy of it belongs into each scope's ``state``.
        self.state: dict[str, Any] = {}
        #: Whether the application follows the protocol; known once entered.
        self.is_supported = False

    async def __aenter__(self) -> Self:
        if self._mode == "off":
            return self
        self._task = asyncio.create_task(self._run(), name=f"lifespan of {self._name}")
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._has_changed.wait()
        except TimeoutError:
            await self._end()
            raise LifespanFailure(
                f"{self._name}: its startup was not complete after {self._timeout_s:g} s"
            ) from None
        except BaseException:
            await self._end()
            raise
        if self._phase == "failed":
            await self._end()
            raise LifespanFailure(f"{self._name}: {self._message}")
        self.is_supported = self._phase == "started"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.is_supported or self._task is None:
            return
        if not self._task.done():
            self._phase = "stopping"
            self._has_changed.clear()
            self._stop.set()
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._has_changed.wait()
            except TimeoutError:
                logger.error(
                    "%s: its shutdown was not complete after %g s", self._name, self._timeout_s
                )
            finally:
                await self._end()

    async def _run(self) -> None:
        scope: Scope = {
            "type": "lifespan",
            "asgi": dict(LIFESPAN_VERSIONS),
            "state": self.state,
        }
        error: BaseException | None = None
        try:
            await self._app(scope, self._receive, self._send)
        except asyncio.CancelledError:
            raise
        except BaseException as raised:
            # SystemExit too: out of a task it would end the event loop in mid-flight.
            error = raised
        self._ended(error)
        self._has_changed.set()

    def _ended(self, error: BaseException | None) -> None:
        """Take note that the application's call has returned, or raised ``error``."""
        how = "returned" if error is None else f"raised {type(error).__name__}: {error}"
        if self._phase in ("new", "starting"):
            was_asked = self._phase == "starting"
            if self._mode == "on" or isinstance(error, SystemExit | KeyboardInterrupt):
                self._phase = "failed"
                self._message = f"the application {how} before its startup was complete"
            elif was_asked and error is not None and not isinstance(error, _Refused):
                # The specification has us go on. But this may be a startup that failed.
                logger.warning(
                    "%s: taken for an application without lifespan, for it %s", self._name, how
                )
            else:
                logger.debug("%s: no lifespan, for the application %s", self._name, how)
        elif self._phase == "started":
            level = logging.DEBUG if error is None else logging.ERROR
            logger.log(level, "%s: its lifespan ended early: it %s", self._name, how)
        elif self._phase == "stopping":
            self._phase = "stopped"
            if error is not None:
                logger.error("%s: at shutdown the application %s", self._name, how)
        elif error is not None and self._phase == "stopped":
            logger.error("%s: after shutdown the application %s", self._name, how)

    async def _end(self) -> None:
        """See the task to its end; cancel it if it does not come to it by itself."""
        task = self._task
        assert task is not None
        if not task.done() and self._phase in ("failed", "stopped"):
            await asyncio.wait({task}, timeout=_LAST_WORDS_S)
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_LAST_WORDS_S)
        if not task.done():
            logger.error("%s: its lifespan does not end; left behind", self._name)

    async def _receive(self) -> Message:
        if self._phase == "new":
            self._phase = "starting"
            return {"type": "lifespan.startup"}
        await self._stop.wait()
        if self._phase != "stopping":
            # It was told; there is nothing more to come.
            await asyncio.get_running_loop().create_future()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete" and self._phase in ("new", "starting"):
            self._phase = "started"
        elif kind == "lifespan.startup.failed" and self._phase in ("new", "starting"):
            self._phase = "failed"
            self._message = message.get("message", "") or "the application's startup failed"
        elif kind == "lifespan.shutdown.complete" and self._phase == "stopping":
            self._phase = "stopped"
        elif kind == "lifespan.shutdown.failed" and self._phase == "stopping":
            self._phase = "stopped"
            logger.error(
                "%s: shutdown failed: %s", self._name, message.get("message", "") or "(no message)"
            )
        else:
            raise _Refused(f"{kind!r} has no place in a lifespan that is {self._phase}")
        self._has_changed.set()


async def close_at_shutdown(receive: Receive, send: Send, close: Callable[[], object]) -> None:
    """Take part in the lifespan protocol as an application that has only to ``close`` at its end.

    ``receive`` and ``send`` are those of its call with the scope ``lifespan``.
    """
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    close()
    await send({"type": "lifespan.shutdown.complete"})
