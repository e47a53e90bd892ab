"""An ASGI application as a CGI script.

RFC 3875: the request in the environment and on standard input, the response, with a
Status, on standard output (section 6). One process answers one request, so startup and
shutdown of the application's lifespan happen for each of them.

For asyncio. Lost on this way: WebSocket, trailers, and whatever extensions of ASGI there
are; nor can the web server see that an answer without a length is not whole, but by the
exit status.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
import sys
from collections.abc import Mapping

from ..protocols.asgi import Application, Scope
from .asgi_call import AsgiCall, cgi_head, plain_answer
from .asgi_scope import PathErrors, body_length, http_scope
from .lifespan import Lifespan, LifespanFailure, Mode
from .standard_streams import fill_standard_streams, take_stdin, take_stdout

logger = logging.getLogger("tetrapylon.adapters.cgi")

_READ_BYTES = 64 * 1024
# sysexits.h
_EX_USAGE = 64


class AsgiToCgi:
    """Answers the one request of a CGI script's process.

    >>> AsgiToCgi(app).run()  # doctest: +SKIP

    ``lifespan`` and ``lifespan_s`` are as in `Lifespan`. ``root_path`` is where the
    application is mounted, if not at SCRIPT_NAME: behind a rewriting of URLs.
    ``path_errors`` is what becomes of bytes in a path that are not UTF-8.

    On SIGTERM the application gets ``http.disconnect``, and ``stop_s`` seconds to end.
    """

    def __init__(
        self,
        app: Application,
        *,
        lifespan: Mode = "auto",
        lifespan_s: float = 30.0,
        stop_s: float = 1.0,
        root_path: str | None = None,
        path_errors: PathErrors = "replace",
    ) -> None:
        self._app = app
        self._lifespan: Mode = lifespan
        self._lifespan_s = lifespan_s
        self._stop_s = stop_s
        self._root_path = root_path
        self._path_errors: PathErrors = path_errors

    def run(self) -> None:
        """Answer the request, and return when the application is through.

        From now on standard output is where standard error is: nothing but the response
        goes to the web server. Raises `SystemExit` if the application failed.
        """
        variables = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in os.environb.items()
        }
        if "REQUEST_METHOD" not in variables:
            print(
                f"{sys.argv[0]}: this is a CGI script, for a web server to run: in its"
                " environment there is no REQUEST_METHOD (RFC 3875)",
                file=sys.stderr,
            )
            raise SystemExit(_EX_USAGE)
        # Python's own urllib minds httpoxy (CVE-2016-5385); what an application starts may not.
        os.environ.pop("HTTP_PROXY", None)
        fill_standard_streams()
        stdin, stdout = take_stdin(), take_stdout()
        with asyncio.Runner() as runner:
            is_answered = runner.run(self.answer(variables, stdin, stdout))
        if not is_answered:
            raise SystemExit(1)

    async def answer(self, variables: Mapping[str, str], stdin: int, stdout: int) -> bool:
        """Answer the request that the variables and the descriptors bring, and close them.

        Returns whether the application did so, or its client had left. ``stdout`` becomes
        non-blocking if it is a pipe or socket of its own.
        """
        output = _Output(stdout)
        try:
            try:
                body_bytes = body_length(variables)
            except ValueError as error:
                logger.error("%s", error)
                await output.answer(400, variables["REQUEST_METHOD"])
                return False
            scope = http_scope(variables, root_path=self._root_path, path_errors=self._path_errors)
            lifespan = Lifespan(
                self._app, mode=self._lifespan, timeout_s=self._lifespan_s, name="cgi"
            )
            try:
                await lifespan.__aenter__()
            except LifespanFailure as failure:
                logger.error("%s", failure)
                await output.answer(500, scope["method"])
                return False
            try:
                if lifespan.is_supported:
                    scope["state"] = lifespan.state.copy()
                # RFC 3875 §4.2: without a length there is no body.
                call = _Call(self._app, scope, body_bytes or 0, stdin, output)
                await self._run(call)
                return not call.has_failed
            finally:
                await lifespan.__aexit__(None, None, None)
                # Not before: lighttpd sends it behind the response, and the shutdown
                # is to be complete.
                asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        finally:
            output.close()
            os.close(stdin)

    async def _run(self, call: _Call) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(call.run())

        def stop() -> None:
            call.leave()
            loop.call_later(self._stop_s, task.cancel)

        loop.add_signal_handler(signal.SIGTERM, stop)
        call.output.watch(call)
        try:
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        finally:
            call.stop_reading()


class _Call(AsgiCall):
    __slots__ = ("_fd", "_is_head_sent", "_is_reading", "_left", "has_failed", "output")

    def __init__(
        self, app: Application, scope: Scope, body_bytes: int, fd: int, output: _Output
    ) -> None:
        super().__init__(app, scope, body_bytes)
        self._left = body_bytes
        self._fd = fd
        self._is_reading = False
        self._is_head_sent = False
        self.output = output
        self.has_failed = False

    def want_body(self) -> None:
        if self._is_reading:
            return
        self._is_reading = True
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(self._fd, self._read)
        except PermissionError:
            # A file: it cannot be waited for, and need not.
            loop.call_soon(self._read)

    def stop_reading(self) -> None:
        """Read no more."""
        if self._is_reading:
            self._is_reading = False
            asyncio.get_running_loop().remove_reader(self._fd)

    def _read(self) -> None:
        if not self._is_reading:
            return
        self.stop_reading()
        try:
            # RFC 3875 §4.2: never beyond CONTENT_LENGTH.
            data = os.read(self._fd, min(self._left, _READ_BYTES))
        except BlockingIOError:
            self.want_body()
            return
        except OSError as error:
            logger.info("standard input failed: %s", error)
            data = b""
        if data:
            self._left -= len(data)
            self.feed(data)
        else:
            self.hang_up()

    async def put(self, data: bytes, *, is_last: bool) -> None:
        if not self._is_head_sent:
            self._is_head_sent = True
            data = cgi_head(self.response.status, self.response.fields) + data
        await self.output.write(data, self)
        if is_last:
            # The web server waits for this, and the application may have more to do.
            self.output.close()

    async def fail(self, error: BaseException) -> None:
        self.has_failed = True
        if not self._is_head_sent:
            await self.output.answer(500, self.scope["method"])


class _Output:
    """The descriptor that the response goes to."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_open = True
        self._is_watched = False
        self._lock = asyncio.Lock()
        mode = os.fstat(fd).st_mode
        self._is_pipe = stat.S_ISFIFO(mode)
        # What is shared with standard error, or somebody's terminal, is left as it is.
        if (self._is_pipe or stat.S_ISSOCK(mode)) and not _is_same(fd, 2):
            os.set_blocking(fd, False)

    def watch(self, call: AsgiCall) -> None:
        """Have the call told when the web server closes its end; only pipes tell."""
        if self._is_pipe:
            self._is_watched = True
            asyncio.get_running_loop().add_reader(self._fd, self._gone, call)

    def _gone(self, call: AsgiCall) -> None:
        self._unwatch()
        call.leave()

    def _unwatch(self) -> None:
        if self._is_watched:
            self._is_watched = False
            asyncio.get_running_loop().remove_reader(self._fd)

    async def write(self, data: bytes, call: AsgiCall | None = None) -> None:
        """Write all of it; raises `OSError` when nobody reads."""
        view = memoryview(data)
        # Tasks of the application may send at the same time.
        async with self._lock:
            while view:
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    await self._is_writable(call)
                except OSError:
                    if call is not None:
                        call.leave()
                    raise

    async def _is_writable(self, call: AsgiCall | None) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_writer(self._fd, _set, ready)
        try:
            await ready
        finally:
            loop.remove_writer(self._fd)
        if call is not None and call.is_departed:
            raise BrokenPipeError("the client has left")

    async def answer(self, status: int, method: str) -> None:
        """Write an answer that says its status and nothing else."""
        fields, body = plain_answer(status)
        try:
            await self.write(cgi_head(status, fields) + (b"" if method == "HEAD" else body))
        except OSError as error:
            logger.info("the failure cannot be answered: %s", error)

    def close(self) -> None:
        """Let the web server see the end; a second time does nothing."""
        if self._is_open:
            self._unwatch()
            self._is_open = False
            os.close(self._fd)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _is_same(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False
