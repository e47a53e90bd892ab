"""An ASGI application as a WSGI application.

PEP 3333 around the ASGI specification's HTTP part. The application runs on an event loop
in a thread of its own (`tetrapylon.adapters.loop_thread`), one for each process. The
thread that the WSGI server calls in waits for what the application says, and is the one
that reads ``wsgi.input``, when the application asks for it: the two take turns, and what
has not been taken yet is bounded on both ways.

Under any WSGI server with real threads or processes, such as gunicorn's sync and gthread
workers, mod_wsgi, uWSGI, waitress, wsgiref. Lost on this way: WebSocket, trailers, and
whatever extensions of ASGI there are; a head without a body behind it, for PEP 3333 sends
none before the first byte; and a departure is learnt only when the server closes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Final, Literal, Self

from ..protocols.asgi import Application, Fields, Scope
from ..protocols.wsgi import Environ, StartResponse
from .asgi_call import AsgiCall, phrase, plain_answer
from .asgi_scope import PathErrors, body_length, http_scope
from .errors import BackendError, BadRequest, GatewayTimeout, InternalError
from .lifespan import Mode
from .loop_thread import LoopFactory, LoopThread, RunningLoop

logger = logging.getLogger("tetrapylon.adapters.asgi")

_READ_BYTES = 64 * 1024
# PEP 3333, "Other HTTP Features": what wsgiref's own list has beside ours.
_SERVERS_OWN = frozenset((b"proxy-authenticate", b"proxy-authorization", b"trailers"))
_WANT_BODY: Final = "body"
_END: Final = None


class AsgiToWsgi:
    """Answers each request of a WSGI server by the ASGI application.

    >>> application = AsgiToWsgi(app)  # doctest: +SKIP

    The event loop, and the application's lifespan, start with the first request of a
    process, or with `start`; they end with the process, with ``with``, or with `close`.
    ``lifespan`` and ``lifespan_s`` are as in `Lifespan`; what still runs at the end gets
    ``stop_s`` seconds.

    An application that has not begun its response after ``first_byte_s`` seconds, counted
    anew with each piece of the body that is read, is cancelled and answered with 504 (0:
    it may take for ever). It may be ``ahead_bytes`` ahead of its client. ``root_path`` is
    where it is mounted, if not at SCRIPT_NAME. ``path_errors`` is what becomes of bytes in
    a path that are not UTF-8. ``loop_factory`` makes another loop than uvloop's.

    What the application raises before its response has begun, the WSGI server gets; later,
    ``start_response`` gets it as exc_info, and then the server, for it to cut the response.
    """

    def __init__(
        self,
        app: Application,
        *,
        lifespan: Mode = "auto",
        lifespan_s: float = 60.0,
        first_byte_s: float = 30.0,
        stop_s: float = 5.0,
        ahead_bytes: int = 64 * 1024,
        root_path: str | None = None,
        path_errors: PathErrors = "replace",
        loop_factory: LoopFactory | None = None,
        name: str = "asgi",
    ) -> None:
        self._first_byte_s = first_byte_s
        self._ahead_bytes = ahead_bytes
        self._root_path = root_path
        self._path_errors: PathErrors = path_errors
        self._thread = LoopThread(
            app,
            lifespan=lifespan,
            lifespan_s=lifespan_s,
            stop_s=stop_s,
            loop_factory=loop_factory,
            name=name,
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request (PEP 3333, "The Application/Framework Side")."""
        try:
            return self._answer(environ, start_response)
        except BackendError as error:
            logger.error("%s %r: %s", environ["REQUEST_METHOD"], environ.get("PATH_INFO"), error)
            fields, body = plain_answer(error.status)
            _start(start_response, error.status, fields)
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        running = self._thread.running()
        scope = http_scope(
            environ,
            scheme=environ["wsgi.url_scheme"],
            root_path=self._root_path,
            path_errors=self._path_errors,
        )
        # The server closes when it cannot write, and not before: to wait for that by
        # `receive`, as up to 2.3, would only take the body from whoever reads it.
        scope["asgi"]["spec_version"] = "2.4"
        state = running.state
        if state is not None:
            scope["state"] = state
        try:
            body_bytes = body_length(environ)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        if body_bytes is None and not environ.get("wsgi.input_terminated"):
            # Nothing says where the body would end, so there is none to be read.
            body_bytes = 0
        call = _Call(running, scope, body_bytes, environ, self._ahead_bytes)
        running.start(call)
        try:
            block = call.first_block(self._first_byte_s)
            _start(start_response, call.response.status, call.response.fields)
        except BaseException:
            # Also what a signal handler of the server raises here.
            call.close()
            raise
        if call.is_ended:
            # One block is a length that the server may tell (PEP 3333).
            return [block] if block else []
        return _Blocks(call, block, start_response)

    def start(self) -> None:
        """Start the application now, if it does not run in this process yet.

        Raises `LifespanFailure` if it does not start.
        """
        self._thread.running()

    def close(self) -> None:
        """Shut the application down, and wait for that."""
        self._thread.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Blocks:
    """The iterable of a response that is still being made."""

    def __init__(self, call: _Call, first: bytes, start_response: StartResponse) -> None:
        self._call = call
        self._first = first
        self._start_response = start_response

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        first, self._first = self._first, b""
        if first:
            return first
        call = self._call
        if call.is_ended:
            raise StopIteration
        try:
            return call.next_block()
        except StopIteration:
            raise
        except Exception as error:
            call.is_ended = True
            # PEP 3333, "Error Handling": if the head has not been sent, this replaces it;
            # else the server raises the exception, and cuts the response by that.
            fields, body = plain_answer(500)
            _start(self._start_response, 500, fields, error)
            return b"" if call.scope["method"] == "HEAD" else body

    def close(self) -> None:
        """Tell the application that nobody reads any more (PEP 3333)."""
        self._call.close()


def _start(
    start_response: StartResponse,
    status: int,
    fields: Fields,
    error: Exception | None = None,
) -> None:
    line = f"{status} {phrase(status)}"
    headers = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in fields
        if name not in _SERVERS_OWN
    ]
    if error is None:
        start_response(line, headers)
    else:
        start_response(line, headers, (type(error), error, error.__traceback__))


# What the loop puts into the queue: a piece of the body of the response, the last piece of
# it (in a tuple), the end, a failure, or the wish for a piece of the request's body.
_Item = bytes | tuple[bytes] | None | BaseException | Literal["body"]


class _Call(AsgiCall):
    """One request: what the loop's thread and the server's thread share.

    The queue leads from the loop to the thread; what the thread has to say, it has the
    loop call. The two counters of bytes have one writer each.
    """

    __slots__ = (
        "_ahead_bytes",
        "_given_bytes",
        "_input",
        "_is_blocked",
        "_is_wanted",
        "_items",
        "_left",
        "_read_some",
        "_running",
        "_taken_bytes",
        "is_ended",
    )

    def __init__(
        self,
        running: RunningLoop,
        scope: Scope,
        body_bytes: int | None,
        environ: Environ,
        ahead_bytes: int,
    ) -> None:
        super().__init__(running.app, scope, body_bytes)
        self._running = running
        self._items: SimpleQueue[_Item] = SimpleQueue()
        self._ahead_bytes = ahead_bytes
        # The loop's
        self._given_bytes = 0
        self._is_blocked = False
        self._is_wanted = False
        # The thread's
        self._taken_bytes = 0
        self._input = environ.get("wsgi.input")
        # Beyond PEP 3333: what is there, without waiting for all that was asked for.
        self._read_some = getattr(self._input, "read1", None) or getattr(self._input, "read", None)
        self._left = body_bytes
        #: The thread has seen the end.
        self.is_ended = False

    # On the loop

    def want_body(self) -> None:
        if not self._is_wanted:
            self._is_wanted = True
            self._items.put(_WANT_BODY)

    def _fed(self, data: bytes, is_end: bool) -> None:
        self._is_wanted = False
        if data:
            self.feed(data)
        if is_end:
            self.feed_end()

    async def put(self, data: bytes, *, is_last: bool) -> None:
        if is_last:
            self._items.put((data,))
            return
        if not data:
            return
        self._items.put(data)
        self._given_bytes += len(data)
        while self._given_bytes - self._taken_bytes >= self._ahead_bytes:
            # Said before it is looked at: the thread does so the other way round.
            self._is_blocked = True
            if self._given_bytes - self._taken_bytes < self._ahead_bytes:
                break
            await self.news()
            if self.is_departed:
                raise BrokenPipeError("the client has left")
        self._is_blocked = False

    def report(self, error: BaseException) -> None:
        """Leave that to the WSGI server, which gets it."""

    async def fail(self, error: BaseException) -> None:
        self._items.put(error)

    # In the server's thread

    def first_block(self, within_s: float) -> bytes:
        """Wait for the response to begin; return what is there of its body.

        Raises what the application raised, `GatewayTimeout` after so many seconds.
        """
        while True:
            try:
                item = self._items.get(timeout=within_s or None)
            except Empty:
                self._running.tell(self._running.cancel, self)
                raise GatewayTimeout(f"no response within {within_s:g} s") from None
            if item is not _WANT_BODY:
                return self._take(item)
            self._read_body()

    def next_block(self) -> bytes:
        """Return the next block; raises `StopIteration`, or what the application raised."""
        while (item := self._items.get()) is _WANT_BODY:
            self._read_body()
        block = self._take(item)
        if not block:
            raise StopIteration
        return block

    def _take(self, item: _Item) -> bytes:
        if isinstance(item, bytes):
            self._taken_bytes += len(item)
            if self._is_blocked:
                self._running.tell(self.wake)
            return item
        self.is_ended = True
        if isinstance(item, tuple):
            return item[0]
        if isinstance(item, Exception):
            raise item
        assert isinstance(item, BaseException)
        # SystemExit: it would end the server's thread, or process.
        raise InternalError(f"the application raised {item!r}") from item

    def _read_body(self) -> None:
        """Read what is there of ``wsgi.input``, never beyond its end, for the application."""
        size = _READ_BYTES if self._left is None else min(self._left, _READ_BYTES)
        try:
            data = self._read_some(size) if self._read_some is not None else b""
        except Exception as error:
            logger.info("wsgi.input failed: %r", error)
            self._running.tell(self.hang_up)
            return
        if self._left is None:
            is_end = not data
        else:
            self._left -= len(data)
            is_end = not data or self._left == 0
        self._running.tell(self._fed, data, is_end)

    def close(self) -> None:
        """Tell the application that its client has left, unless it has answered."""
        if not self.is_ended:
            self.is_ended = True
            self._running.tell(self.leave)
