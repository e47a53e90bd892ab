"""CGI scripts as an ASGI application (RFC 3875).

The way of a request: `find_script` says which file it is; `spool_body` reads the
body to its end, for a script must know its length before it starts (§4.1.2);
only then is the child started, with all of its stdin in place. Its stdout goes
through `ResponseRelay`, and is read as fast as the client reads; its stderr goes
to the log. The answer ends with the child's output, or when it is complete: what is
written after that is not taken for long.

A script whose name begins with ``nph-`` writes a whole HTTP response (§5).

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
from typing import NamedTuple

from ..protocols.asgi import Receive, Scope, Send
from ..protocols.cgi.meta_variables import meta_variables
from ..protocols.cgi.nph import NphResponseParser, is_nph
from ..protocols.target import mounted_prefix, path_below, to_bytes
from .child_output import ChildOutput
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
from .exchange import ResponseRelay, SpooledBody, TaskDeparture, spool_body
from .lifespan import close_at_shutdown
from .log_lines import LogLines, escape
from .pipe_watcher import PipeWatcher, pipe_watcher
from .pipes import READ_BYTES, Drain
from .processes import (
    ChildCommand,
    Spawn,
    explain_exit,
    explain_failure,
    spawn_process,
)
from .scripts import Script, find_script

logger = logging.getLogger("tetrapylon.adapters.cgi")

_KIB = 1024
_REMEMBERED = 1024
# For the exit code that says whether the output was whole: it comes with the end of
# the output, or not soon.
_EXIT_S = 0.2
# Nobody waits for what a script does when its client has left.
_DEPARTED_KILL_AFTER_S = 1.0


class _Names(dict[str, bytes]):
    """Variable name → the same in bytes, remembered."""

    def __missing__(self, name: str) -> bytes:
        encoded = name.encode("ascii")
        if len(self) >= _REMEMBERED:
            # A client chooses its field names.
            self.clear()
        self[name] = encoded
        return encoded


_names = _Names()


class _Place(NamedTuple):
    """What does not change from one run of a script to the next."""

    filename: bytes
    argv: tuple[str, ...]
    #: §7.2: the working directory is that of the script.
    cwd: str


class _Places(dict[str, _Place]):
    """Script's filename → how it is run, remembered."""

    def __init__(self, interpreters: Mapping[str, str], arguments: tuple[str, ...]) -> None:
        super().__init__()
        self._interpreters = interpreters
        self._arguments = arguments

    def __missing__(self, filename: str) -> _Place:
        interpreter = tuple(
            program for ending, program in self._interpreters.items() if filename.endswith(ending)
        )[:1]
        place = _Place(
            os.fsencode(filename),
            (*interpreter, filename, *self._arguments),
            os.path.dirname(filename),
        )
        if len(self) >= _REMEMBERED:
            self.clear()
        self[filename] = place
        return place


class CgiToAsgi:
    """Runs a script for each request.

    ``script`` is a program that answers for the whole mount, or a directory of
    scripts, in which the path finds one. A script whose name ends with one of
    ``interpreters`` is run by that program (``{".py": sys.executable}``) and needs
    no execute bit. ``arguments`` follow the script's name.

    The environment is that of RFC 3875 and nothing of the server's own, but for
    the names in ``env_pass``; ``env`` adds or overrides.

    ``timeout_s`` is how long a child may take, ``idle_timeout_s`` how long it may
    write nothing, neither counting what its client takes to read; 0 is no limit.
    Then it gets SIGTERM, and ``kill_after_s`` later SIGKILL, it and its process
    group. Sizes are bytes:
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
        idle_timeout_s: float = 0.0,
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
        self._places = _Places(dict(interpreters or {}), tuple(arguments))
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
        self._idle_timeout_s = idle_timeout_s or math.inf
        self._kill_after_s = kill_after_s
        self._stderr_limit_bytes = stderr_limit_bytes
        self._head_limit_bytes = head_limit_bytes
        self._body_limit_bytes = body_limit_bytes
        self._spool_memory_bytes = spool_memory_bytes
        self._spawn = spawn or spawn_process
        self._watcher: PipeWatcher | None = None
        # Scripts that were done quickly the last time.
        self._brief: set[str] = set()
        # Pipes of children whose answer is over.
        self._drains: set[Drain] = set()

    @answered
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; take part in the lifespan protocol to let go of all at its end.

        Raises `NotImplementedError` for other scopes.
        """
        if scope["type"] == "lifespan":
            await close_at_shutdown(receive, send, self.close)
            return
        if scope["type"] != "http":
            raise NotImplementedError(f"CGI has no {scope['type']!r} connections")
        script = self._find(scope)
        body = await spool_body(
            receive, memory_bytes=self._spool_memory_bytes, limit_bytes=self._body_limit_bytes
        )
        try:
            command = self._command(scope, script, body)
            async with TaskDeparture(scope, receive):
                await self._run(command, script, scope["method"], send)
        finally:
            if body.file is not None:
                await body.aclose()

    def close(self) -> None:
        """Let go of the output of children that outlived their answer.

        Whoever provided ``spawn`` ends the children.
        """
        for drain in tuple(self._drains):
            drain.close()
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

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
        environ = self._defaults.copy()
        names = _names
        for name, value in variables.items():
            environ[names[name]] = value.encode("latin-1")
        place = self._places[script.filename]
        root = os.fsencode(script.root)
        environ[b"SCRIPT_FILENAME"] = place.filename
        environ[b"DOCUMENT_ROOT"] = root
        # §4.1.6. A foreign server may leave dot segments in a path; no file is named by one.
        if script.path_info and b".." not in script.path_info.split(b"/"):
            environ[b"PATH_TRANSLATED"] = root.rstrip(b"/") + script.path_info
        environ.update(self._overrides)
        if b"\0" in b"".join(environ.values()):
            # A foreign server may let it through, and no environment can hold it.
            raise BadRequest("a NUL in the request")
        return ChildCommand(place.argv, environ, place.cwd, body)

    async def _run(self, command: ChildCommand, script: Script, method: str, send: Send) -> None:
        """Run the script, relay its output, and have the child ended, now or in time."""
        try:
            child = await self._spawn(command)
        except OSError as error:
            raise _start_failure(command, error) from error
        watcher = self._watcher
        if watcher is None or watcher.loop is not asyncio.get_running_loop():
            watcher = self._watch_anew()
        relay = ResponseRelay(
            send,
            method=method,
            head_limit_bytes=self._head_limit_bytes,
            parser=NphResponseParser(method=method, head_limit_bytes=self._head_limit_bytes)
            if is_nph(script.filename)
            else None,
        )
        loop = watcher.loop
        after_s = 0.0
        kill_after_s = self._kill_after_s
        with ChildOutput(
            child,
            watcher,
            timeout_s=self._timeout_s,
            idle_s=self._idle_timeout_s,
            log=partial(self._log_lines, script),
            drains=self._drains,
            is_brief=script.filename in self._brief,
        ) as output:
            try:
                is_at_end = await self._relay(command, script, output, relay)
                # Whatever it still does without an answer, it has the rest of its time for.
                after_s = max(0.0, output.deadline - loop.time())
                if not is_at_end:
                    output.drain()
            except LocalRedirect:
                after_s = max(0.0, output.deadline - loop.time())
                raise
            except asyncio.CancelledError:
                kill_after_s = min(kill_after_s, _DEPARTED_KILL_AFTER_S)
                raise
            finally:
                child.end(after_s, kill_after_s=kill_after_s)
        if output.is_brief:
            if len(self._brief) < _REMEMBERED:
                self._brief.add(script.filename)
        else:
            self._brief.discard(script.filename)

    def _log_lines(self, script: Script) -> LogLines:
        name = escape(script.script_name)
        log = partial(logger.warning, "%s: %s", name)
        return LogLines(log, limit_bytes=self._stderr_limit_bytes)

    def _watch_anew(self) -> PipeWatcher:
        """Return a watcher for the running loop, which is the first or another than before."""
        if self._watcher is not None:
            self._watcher.close()
        self._watcher = pipe_watcher()
        return self._watcher

    async def _relay(
        self, command: ChildCommand, script: Script, output: ChildOutput, relay: ResponseRelay
    ) -> bool:
        """Relay output until the response is complete; true if that is all of the output."""
        loop = output.loop
        is_last = False
        while not (is_last or relay.is_complete):
            try:
                data = await output.read()
            except TimeoutError as error:
                message = f"{escape(script.script_name)}: {error}"
                raise _failure(relay, GatewayTimeout(message)) from None
            is_last = not data
            if data and len(data) < READ_BYTES:
                # It may have been all. If not, it has one turn of the loop to become all,
                # before a head is sent that cannot tell the length.
                more = output.read_now(READ_BYTES - len(data))
                if more is None and not relay.is_started:
                    await asyncio.sleep(0)
                    more = output.read_now(READ_BYTES - len(data))
                if more is not None:
                    data += more
                    is_last = not more
            code = None
            if is_last:
                try:
                    code = await output.exit_code(_EXIT_S)
                except OSError as error:
                    raise _failure(relay, _start_failure(command, error)) from error
                except BackendError as error:
                    raise _failure(relay, error) from error
            is_killed = code is not None and code < 0
            started_at = loop.time()
            try:
                # Of a script that crashed, nobody knows whether that was all.
                await relay.feed(data, is_last=is_last and not is_killed)
            except (BadGateway, Truncated) as error:
                message = f"{escape(script.script_name)}: {error}"
                if code is not None:
                    message += f"; the script {explain_exit(code)}"
                raise type(error)(message) from error
            if code is not None and is_killed and not relay.is_complete:
                message = f"{escape(script.script_name)}: the script {explain_exit(code)}"
                raise _failure(relay, BadGateway(message))
            if not is_last:
                # A slow client does not use up the script's time.
                output.postpone(loop.time() - started_at)
                # Where both sides are fast, neither ever waits: others have their turn.
                await asyncio.sleep(0)
        return is_last


def _failure(relay: ResponseRelay, error: BackendError) -> Exception:
    """Return what to raise: an error to be answered, or a cut when it is too late for that."""
    return Truncated(str(error)) if relay.is_started else error


def _start_failure(command: ChildCommand, error: OSError) -> BackendError:
    reason = explain_failure(command, error)
    if error.errno in EXHAUSTED:
        return Unavailable(reason, retry_after_s=1)
    return BadGateway(reason)
