"""CGI scripts as an ASGI application (RFC 3875).

The way of a request: `find_script` says which file it is; `spool_body` reads the
body to its end, for a script must know its length before it starts (§4.1.2);
only then is the child started, with all of its stdin in place. Its stdout goes
through `ResponseRelay`, and is read as fast as the client reads; its stderr goes
to the log. The answer ends with the child's output.

Where §4.4 would make arguments of a query without ``=``, this does not: the
script's arguments are the administrator's (php-cgi took ``?-s`` for an option).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial

from ..protocols.asgi import Receive, Scope, Send
from ..protocols.cgi.meta_variables import meta_variables
from ..protocols.target import mounted_prefix, path_below, to_bytes
from .errors import (
    EXHAUSTED,
    BackendError,
    BadGateway,
    BadRequest,
    GatewayTimeout,
    LocalRedirect,
    Truncated,
    Unavailable,
    answered,
)
from .exchange import Departure, ResponseRelay, SpooledBody, spool_body
from .log_lines import LogLines, escape
from .pipes import READ_BYTES, Drain, OutputPipe
from .processes import (
    Child,
    ChildCommand,
    Spawn,
    explain_exit,
    explain_failure,
    spawn_process,
)
from .scripts import Script, find_script

logger = logging.getLogger("tetrapylon.adapters.cgi")

_KIB = 1024
# For the exit code that says whether the output was whole: it comes with the end of
# the output, or not soon.
_EXIT_S = 0.2
# Nobody waits for what a script does when its client has left.
_DEPARTED_KILL_AFTER_S = 1.0


class CgiToAsgi:
    """Runs a script for each request.

    ``script`` is a program that answers for the whole mount, or a directory of
    scripts, in which the path finds one. A script whose name ends with one of
    ``interpreters`` is run by that program (``{".py": sys.executable}``) and needs
    no execute bit. ``arguments`` follow the script's name.

    The environment is that of RFC 3875 and nothing of the server's own, but for
    the names in ``env_pass``; ``env`` adds or overrides.

    ``timeout_s`` is how long a child may take, not counting what its client
    takes to read; 0 is no limit. Then it gets SIGTERM, and ``kill_after_s``
    later SIGKILL, it and its process group. Sizes are bytes:
    ``stderr_limit_bytes`` per request reach the log, the rest is dropped;
    ``spool_memory_bytes`` of a body stay in memory.

    Raises `FileNotFoundError` if there is no such ``script``.
    """

    def __init__(
        self,
        script: str | os.PathLike[str],
        *,
        interpreters: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        env_pass: Sequence[str] = (),
        pass_authorization: bool = False,
        timeout_s: float = 30.0,
        kill_after_s: float = 2.0,
        stderr_limit_bytes: int = 64 * _KIB,
        head_limit_bytes: int = 64 * _KIB,
        body_limit_bytes: int | None = None,
        spool_memory_bytes: int = 64 * _KIB,
        spawn: Spawn | None = None,
    ) -> None:
        self._path = os.path.abspath(script)
        if not os.path.exists(self._path):
            raise FileNotFoundError(errno.ENOENT, "no such program or directory", self._path)
        self._is_directory = os.path.isdir(self._path)
        self._interpreters = dict(interpreters or {})
        self._arguments = tuple(arguments)
        self._defaults = {b"PATH": b"/usr/bin:/bin", b"LANG": b"C.UTF-8"}
        for name in env_pass:
            value = os.environb.get(os.fsencode(name))
            if value is not None:
                self._defaults[os.fsencode(name)] = value
        self._overrides = {
            os.fsencode(name): os.fsencode(value) for name, value in (env or {}).items()
        }
        self._pass_authorization = pass_authorization
        self._timeout_s = timeout_s or math.inf
        self._kill_after_s = kill_after_s
        self._stderr_limit_bytes = stderr_limit_bytes
        self._head_limit_bytes = head_limit_bytes
        self._body_limit_bytes = body_limit_bytes
        self._spool_memory_bytes = spool_memory_bytes
        self._spawn = spawn or spawn_process
        # Pipes of children whose answer is over.
        self._drains: set[Drain] = set()

    @answered
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise NotImplementedError(f"CGI has no {scope['type']!r} connections")
        script = self._find(scope)
        relay = ResponseRelay(send, method=scope["method"], head_limit_bytes=self._head_limit_bytes)
        body = await spool_body(
            receive, memory_bytes=self._spool_memory_bytes, limit_bytes=self._body_limit_bytes
        )
        async with body:
            command = self._command(scope, script, body)
            async with Departure(scope, receive):
                child = await self._start(command)
                await self._exchange(child, relay, escape(script.script_name))

    def close(self) -> None:
        """Let go of the output of children that outlived their answer.

        Whoever provided ``spawn`` ends the children.
        """
        for drain in tuple(self._drains):
            drain.close()

    def _find(self, scope: Scope) -> Script:
        prefix = to_bytes(mounted_prefix(scope))
        below = path_below(scope)
        if self._is_directory:
            return find_script(self._path, below, prefix=prefix)
        if not below and not prefix:
            below = b"/"  # RFC 9110 §4.2.3
        return Script(self._path, prefix, below, os.path.dirname(self._path))

    def _command(self, scope: Scope, script: Script, body: SpooledBody) -> ChildCommand:
        variables = meta_variables(
            scope,
            script_name=script.script_name,
            path_info=script.path_info,
            content_length=body.length,
            pass_authorization=self._pass_authorization,
        )
        environ = self._defaults | {
            name.encode("ascii"): value.encode("latin-1") for name, value in variables.items()
        }
        root = os.fsencode(script.root)
        environ[b"SCRIPT_FILENAME"] = os.fsencode(script.filename)
        environ[b"DOCUMENT_ROOT"] = root
        # §4.1.6. A foreign server may leave dot segments in a path; no file is named by one.
        if script.path_info and b".." not in script.path_info.split(b"/"):
            environ[b"PATH_TRANSLATED"] = root.rstrip(b"/") + script.path_info
        environ.update(self._overrides)
        if any(b"\0" in value for value in environ.values()):
            # A foreign server may let it through, and no environment can hold it.
            raise BadRequest("a NUL in the request")
        interpreter = next(
            (
                (program,)
                for ending, program in self._interpreters.items()
                if script.filename.endswith(ending)
            ),
            (),
        )
        return ChildCommand(
            argv=(*interpreter, script.filename, *self._arguments),
            environ=environ,
            # §7.2: the working directory is that of the script.
            cwd=os.path.dirname(script.filename),
            stdin=body,
        )

    async def _start(self, command: ChildCommand) -> Child:
        try:
            return await self._spawn(command)
        except OSError as error:
            reason = explain_failure(command, error)
            if error.errno in EXHAUSTED:
                raise Unavailable(reason, retry_after_s=1) from error
            raise BadGateway(reason) from error

    async def _exchange(self, child: Child, relay: ResponseRelay, name: str) -> None:
        """Relay the child's output, and have the child ended, now or in time."""
        loop = asyncio.get_running_loop()
        drains = self._drains
        stderr = LogLines(
            partial(logger.warning, "%s: %s", name), limit_bytes=self._stderr_limit_bytes
        )
        drains.add(Drain(child.stderr, stderr, drains.discard))
        after_s = 0.0
        kill_after_s = self._kill_after_s
        with OutputPipe(child.stdout, loop.time() + self._timeout_s) as stdout:
            child.exited.add_done_callback(lambda _: stdout.expect_end())
            try:
                is_at_end = await self._relay(child, stdout, relay, name)
                # Whatever it still does without an answer, it has the rest of its time for.
                after_s = max(0.0, stdout.deadline - loop.time())
                if not is_at_end:
                    drains.add(Drain(stdout.detach(), None, drains.discard))
            except LocalRedirect:
                after_s = max(0.0, stdout.deadline - loop.time())
                raise
            except asyncio.CancelledError:
                kill_after_s = min(kill_after_s, _DEPARTED_KILL_AFTER_S)
                raise
            finally:
                child.end(after_s, kill_after_s=kill_after_s)

    async def _relay(
        self, child: Child, stdout: OutputPipe, relay: ResponseRelay, name: str
    ) -> bool:
        """Relay output until the response is complete; true if that is all of the output."""
        loop = asyncio.get_running_loop()
        is_last = False
        while not (is_last or relay.is_complete):
            try:
                data = await stdout.read()
            except TimeoutError:
                raise _failure(relay, GatewayTimeout, f"{name}: not done in time") from None
            is_last = not data
            if data and len(data) < READ_BYTES:
                # Most scripts write once, and are gone: then the length is known.
                more = stdout.read_now(READ_BYTES - len(data))
                if more is not None:
                    data += more
                    is_last = not more
            code = await _exit_code(child) if is_last else None
            is_killed = code is not None and code < 0
            started_at = loop.time()
            try:
                # Of a script that crashed, nobody knows whether that was all.
                await relay.feed(data, is_last=is_last and not is_killed)
            except (BadGateway, Truncated) as error:
                message = f"{name}: {error}"
                if code is not None:
                    message += f"; the script {explain_exit(code)}"
                raise type(error)(message) from error
            if code is not None and is_killed and not relay.is_complete:
                raise _failure(relay, BadGateway, f"{name}: the script {explain_exit(code)}")
            # A slow client does not use up the script's time.
            stdout.postpone(loop.time() - started_at)
            if not is_last:
                # Where both sides are fast, neither ever waits: others have their turn.
                await asyncio.sleep(0)
        return is_last


def _failure(relay: ResponseRelay, early: type[BackendError], message: str) -> Exception:
    """Return what to raise: an error to be answered, or a cut when it is too late for that."""
    return Truncated(message) if relay.is_started else early(message)


async def _exit_code(child: Child) -> int | None:
    """Return how the child ended; None if its output ended before it did."""
    if not child.exited.done():
        await asyncio.wait((child.exited,), timeout=_EXIT_S)
    return child.exited.result() if child.exited.done() else None
