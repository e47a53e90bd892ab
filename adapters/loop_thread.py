"""An event loop in a thread of its own, with an application's lifespan around it.

For applications of a synchronous server, which has no loop to lend: threads of the server
start calls, and wait for them by means of their own. The thread starts when it is first
needed, in every process anew, for a server may import the application and then fork. It
ends with the process, before the interpreter takes away what an application needs to shut
down, or when it is told to.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future

from ..protocols.asgi import Application
from .asgi_call import AsgiCall
from .errors import Unavailable
from .event_loops import new_event_loop
from .lifespan import Lifespan, LifespanFailure, Mode

logger = logging.getLogger("tetrapylon.adapters.asgi")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

_LAST_WORDS_S = 1.0


class LoopThread:
    """Runs calls of one application; all methods may be called in any thread.

    ``stop_s`` is how long calls may go on at the end.
    """

    def __init__(
        self,
        app: Application,
        *,
        lifespan: Mode,
        lifespan_s: float,
        stop_s: float,
        loop_factory: LoopFactory | None,
        name: str,
    ) -> None:
        self._app = app
        self._mode: Mode = lifespan
        self._lifespan_s = lifespan_s
        self._stop_s = stop_s
        self._loop_factory = loop_factory or new_event_loop
        self._name = name
        self._lock = threading.Lock()
        self._running: RunningLoop | None = None
        _known.add(self)

    def running(self) -> RunningLoop:
        """Return the loop of this process; start it, and the application, if need be.

        Raises `LifespanFailure` if the application does not start. To try that again
        is for the next request.
        """
        running = self._running
        if running is not None and running.is_ready:
            return running
        with self._lock:
            running = self._running
            if running is None or running.is_over:
                _end_with_the_process()
                running = RunningLoop(
                    self._app,
                    Lifespan(
                        self._app, mode=self._mode, timeout_s=self._lifespan_s, name=self._name
                    ),
                    stop_s=self._stop_s,
                    loop_factory=self._loop_factory,
                    name=self._name,
                )
                self._running = running
        running.started.result()
        return running

    def close(self) -> None:
        """Shut the application down, and wait for that; a later call starts it anew."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.stop()

    def forget(self) -> None:
        """In a forked process: the parent's thread is not here, nor is whoever held the lock."""
        self._lock = threading.Lock()
        self._running = None


class RunningLoop:
    """A loop that runs in a thread from now on, until `stop`."""

    def __init__(
        self,
        app: Application,
        lifespan: Lifespan,
        *,
        stop_s: float,
        loop_factory: LoopFactory,
        name: str,
    ) -> None:
        self._lifespan = lifespan
        self._stop_s = stop_s
        self._name = name
        self._calls: dict[asyncio.Task[None], AsgiCall] = {}
        self._stop = asyncio.Event()
        self.app = app
        #: Done when the application has started; else it has the `LifespanFailure`.
        self.started: Future[None] = Future()
        #: The application has started, and is not to end.
        self.is_ready = False
        self.is_over = False
        self.loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(
            target=self._main, args=(loop_factory,), name=f"event loop of {name}", daemon=True
        )
        _running.add(self)
        self._thread.start()

    @property
    def state(self) -> dict[str, object] | None:
        """What belongs into each scope; ``None`` for applications without lifespan."""
        return self._lifespan.state.copy() if self._lifespan.is_supported else None

    def start(self, call: AsgiCall) -> None:
        """Have the loop run the call, in the context of the calling thread."""
        try:
            self.loop.call_soon_threadsafe(self._begin, call)
        except RuntimeError:
            raise Unavailable(f"{self._name}: the application is shutting down") from None

    def tell(self, callback: Callable[..., object], *arguments: object) -> None:
        """Have the loop call back; nothing happens if it has ended."""
        try:
            self.loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            logger.debug("%s: its event loop has ended", self._name)

    def stop(self) -> None:
        """Let calls end, shut the application down, and wait for that."""
        self.is_over = True
        self.is_ready = False
        if self.started.exception() is None:
            self.tell(self._stop.set)
        if self._thread is not threading.current_thread():
            self._thread.join()

    # In the thread

    def _main(self, loop_factory: LoopFactory) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                self.loop = runner.get_loop()
                runner.run(self._serve())
        except BaseException as error:
            if not self.started.done():
                self.started.set_exception(error)
            else:
                logger.exception("%s: its event loop has failed", self._name)
        finally:
            self.is_over = True
            self.is_ready = False
            _running.discard(self)

    async def _serve(self) -> None:
        async with self._lifespan:
            self.is_ready = not self.is_over
            self.started.set_result(None)
            await self._stop.wait()
            await self._end_calls()

    async def _end_calls(self) -> None:
        if self._calls:
            await asyncio.wait(list(self._calls), timeout=self._stop_s)
        for task in list(self._calls):
            task.cancel()
        if self._calls:
            await asyncio.wait(list(self._calls), timeout=_LAST_WORDS_S)

    def _begin(self, call: AsgiCall) -> None:
        task = self.loop.create_task(call.run())
        self._calls[task] = call
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._calls[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s: a request ended badly", self._name, exc_info=error)

    def cancel(self, call: AsgiCall) -> None:
        """End a call that has taken too long; on the loop."""
        for task, running in self._calls.items():
            if running is call:
                task.cancel()


_known: weakref.WeakSet[LoopThread] = weakref.WeakSet()
#: Those of this process, for its end; whoever started them may be gone by then.
_running: set[RunningLoop] = set()
_left_behind: set[RunningLoop] = set()
_is_exit_known = False


def _end_with_the_process() -> None:
    global _is_exit_known
    if not _is_exit_known:
        _is_exit_known = True
        # atexit comes when executors are shut down, and an application's shutdown may
        # need one: concurrent.futures itself registers here for the same reason.
        register = getattr(threading, "_register_atexit", atexit.register)
        with contextlib.suppress(RuntimeError):  # the process is ending
            register(_stop_all)


def _stop_all() -> None:
    for running in list(_running):
        running.stop()


def _forget_all() -> None:
    # Kept, for to finalise a loop would take its descriptors from the parent.
    _left_behind.update(_running)
    _running.clear()
    for thread in list(_known):
        thread.forget()


os.register_at_fork(after_in_child=_forget_all)

__all__ = ["LifespanFailure", "LoopFactory", "LoopThread", "RunningLoop"]
