"""A FastCGI application as an ASGI application.

FastCGI Specification 1.0, the Responder role (section 6.2). One request: the
script is found (`tetrapylon.adapters.scripts`), the body read to its end, for a
length has to be sent first; a slot and a connection are taken; meta-variables
and body go out as PARAMS and STDIN while STDOUT comes back, through the CGI
response parser, as an ASGI response (`tetrapylon.adapters.exchange`).

A connection carries one request, and by default only that one. Multiplexing is
not for php-fpm, which resets the connection, nor for libfcgi, which refuses;
and each idle kept connection holds a worker of php-fpm.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence

from ..protocols.asgi import Receive, Scope, Send
from ..protocols.cgi.meta_variables import meta_variables
from ..protocols.target import mounted_prefix, slash_location, strip_prefix, to_bytes
from .byte_stream import ByteStream, parse_address
from .connections import RESENDABLE_METHODS, Connections, StaleConnection
from .errors import NotFound, answered
from .exchange import Departure, ResponseRelay, SpooledBody, spool_body
from .fastcgi_exchange import FastCgiExchange
from .log_lines import LogLines
from .scripts import Script, SlashMissing, find_script

logger = logging.getLogger("tetrapylon.adapters.fastcgi")


class FastCgiToAsgi:
    """The FastCGI application at ``address``: ``"unix:/path"``, ``"host:port"``, ``"[::1]:port"``.

    Without ``root`` it is one application, mounted where the scope says:
    SCRIPT_NAME is ``script_name`` or else the scope's ``root_path``, PATH_INFO
    the rest of the path. With ``root`` it runs the scripts beneath that
    directory: the first segment of the path that ends with one of ``split``
    names the script, ``index`` stands for a directory. ``check_file=False``
    leaves the look-up to the application, whose file system may be another.

    ``params`` adds to the meta-variables or overrides them. Times are seconds;
    0 means none: ``connect_s``; ``first_byte_s``, from the request to the
    response's head, counted anew while a large body is being taken;
    ``output_idle_s``, between two pieces of output. At most ``connections``
    requests are with the application, at most ``queue`` wait, for ``queue_wait_s``.
    Bodies over ``spool_memory_bytes`` wait in a file.

    ``keep_alive`` keeps connections for ``idle_s``, for GET and HEAD, which are
    sent again (``retries`` times) on a fresh one if the kept one was closing.
    Each kept connection occupies a worker of applications like php-fpm. ``name``
    stands in the log and in messages, in place of the address.

    Raises `ValueError` for an address or parameters that cannot be.
    """

    def __init__(
        self,
        address: str,
        *,
        root: str | os.PathLike[str] | None = None,
        index: str | Sequence[str] = ("index.php",),
        split: str | Sequence[str] = (".php",),
        check_file: bool = True,
        script_name: str | None = None,
        params: Mapping[str, str] | None = None,
        pass_authorization: bool = True,
        connect_s: float = 2.0,
        first_byte_s: float = 30.0,
        output_idle_s: float = 60.0,
        connections: int = 32,
        queue: int = 64,
        queue_wait_s: float = 5.0,
        keep_alive: bool = False,
        idle_s: float = 5.0,
        retries: int = 1,
        body_limit_bytes: int | None = None,
        spool_memory_bytes: int = 64 * 1024,
        head_limit_bytes: int = 64 * 1024,
        stderr_limit_bytes: int = 64 * 1024,
        server_software: str = "tetrapylon",
        name: str | None = None,
    ) -> None:
        where = parse_address(address)
        self._name = name if name is not None else str(where)
        self._root = os.path.abspath(root) if root is not None else None
        self._index = (index,) if isinstance(index, str) else tuple(index)
        self._split = (split,) if isinstance(split, str) else tuple(split)
        self._suffixes = tuple(map(os.fsencode, self._split))
        self._check_file = check_file
        self._script_name = script_name.rstrip("/") if script_name is not None else None
        self._params = _checked_params(params or {})
        self._pass_authorization = pass_authorization
        self._first_byte_s = first_byte_s or math.inf
        self._output_idle_s = output_idle_s or math.inf
        #: Their ``address`` is where the application is.
        self.connections = Connections(
            where,
            limit=connections,
            queue=queue,
            queue_wait_s=queue_wait_s,
            connect_s=connect_s,
            idle_s=idle_s,
            name=self._name,
        )
        self._keep_alive = keep_alive
        self._retries = retries
        self._body_limit_bytes = body_limit_bytes
        self._spool_memory_bytes = spool_memory_bytes
        self._head_limit_bytes = head_limit_bytes
        self._stderr_limit_bytes = stderr_limit_bytes
        self._server_software = server_software

    @answered
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request; take part in the lifespan protocol to close kept connections.

        Raises `ValueError` for other scopes, and what `tetrapylon.adapters.errors` lists.
        """
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"FastCGI does not serve {scope['type']!r}")
        try:
            script, prefix, path_info = self._place(scope)
        except SlashMissing:
            await _redirect_to_slash(scope, send)
            return
        async with await spool_body(
            receive, memory_bytes=self._spool_memory_bytes, limit_bytes=self._body_limit_bytes
        ) as body:
            params = self._meta_variables(scope, script, prefix, path_info, body.length)
            async with Departure(scope, receive):
                async with self.connections.slots:
                    await self._answer(scope["method"], params, body, send)

    def close(self) -> None:
        """Close the kept connections; requests go on as they are."""
        self.connections.close()

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    # Which script

    def _place(self, scope: Scope) -> tuple[Script | None, bytes, bytes]:
        """Return the script, if there are scripts, and SCRIPT_NAME and PATH_INFO."""
        mount = mounted_prefix(scope) if self._script_name is None else self._script_name
        prefix = to_bytes(mount)
        below = to_bytes(strip_prefix(scope["path"], mount))
        if self._root is None:
            return None, prefix, below
        if self._check_file:
            script = find_script(
                self._root, below, prefix=prefix, split=self._split, index=self._index
            )
        else:
            script = self._split_path(below, prefix)
        return script, script.script_name, script.path_info

    def _split_path(self, path: bytes, prefix: bytes) -> Script:
        """Return the script that ``path`` names, without a look at the file system."""
        assert self._root is not None
        end = 0
        for segment in path.split(b"/")[1:]:
            if segment.startswith(b".") or b"\0" in segment or b"\\" in segment:
                raise NotFound(f"no script may have a name as in {path!r}")
            end += 1 + len(segment)
            if segment.endswith(self._suffixes):
                break
        else:
            if not self._index or path[-1:] not in (b"", b"/"):
                raise NotFound(f"no script in {path!r}")
            path = path.rstrip(b"/") + b"/" + os.fsencode(self._index[0])
            end = len(path)
        name, path_info = path[:end], path[end:]
        if b".." in path_info.split(b"/"):
            raise NotFound(f"dot segments in {path!r}")
        return Script(self._root + os.fsdecode(name), prefix + name, path_info, self._root)

    def _meta_variables(
        self, scope: Scope, script: Script | None, script_name: bytes, path_info: bytes, length: int
    ) -> dict[str, str]:
        variables = meta_variables(
            scope,
            server_software=self._server_software,
            script_name=script_name,
            path_info=path_info,
            content_length=length,
            pass_authorization=self._pass_authorization,
        )
        if script is not None:
            root = os.fsencode(script.root).decode("latin-1")
            info = path_info.decode("latin-1")
            variables["DOCUMENT_ROOT"] = root
            variables["DOCUMENT_URI"] = script_name.decode("latin-1") + info
            variables["SCRIPT_FILENAME"] = os.fsencode(script.filename).decode("latin-1")
            if info:
                # RFC 3875 §4.1.6: PATH_INFO, mapped as if it were a path of its own.
                variables["PATH_TRANSLATED"] = root + info
            # php-cgi runs nothing without it (cgi.force_redirect).
            variables["REDIRECT_STATUS"] = "200"
        variables.update(self._params)
        return variables

    # The exchange

    async def _answer(
        self, method: str, params: Mapping[str, str], body: SpooledBody, send: Send
    ) -> None:
        relay = ResponseRelay(send, method=method, head_limit_bytes=self._head_limit_bytes)
        retries = self._retries if method in RESENDABLE_METHODS else 0
        while retries and (kept := self.connections.take()) is not None:
            retries -= 1
            try:
                await self._exchange(kept, params, body, relay, is_kept=True)
            except StaleConnection:
                continue
            return
        stream = await self.connections.open()
        await self._exchange(stream, params, body, relay, is_kept=False)

    async def _exchange(
        self,
        stream: ByteStream,
        params: Mapping[str, str],
        body: SpooledBody,
        relay: ResponseRelay,
        *,
        is_kept: bool,
    ) -> None:
        exchange = FastCgiExchange(stream, self._name, is_kept=is_kept)
        stderr = LogLines(self._log_stderr, limit_bytes=self._stderr_limit_bytes)
        try:
            await exchange.run(
                params,
                body,
                relay,
                stderr,
                keep=self._keep_alive,
                first_byte_s=self._first_byte_s,
                output_idle_s=self._output_idle_s,
            )
        finally:
            stderr.finish()
            if exchange.is_reusable:
                self.connections.keep(stream)
            else:
                stream.close()

    def _log_stderr(self, line: str) -> None:
        logger.warning("%s: %s", self._name, line)


def _checked_params(params: Mapping[str, str]) -> dict[str, str]:
    checked = {}
    for name, value in params.items():
        if not name or not name.isascii() or "\0" in name + value:
            raise ValueError(f"not a FastCGI parameter: {name!r} = {value!r}")
        # A latin-1 string that stands for bytes, as all of them (PEP 3333).
        checked[name] = value.encode("utf-8", "surrogateescape").decode("latin-1")
    return checked


async def _redirect_to_slash(scope: Scope, send: Send) -> None:
    fields = [(b"location", slash_location(scope)), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 301, "headers": fields})
    await send({"type": "http.response.body", "body": b""})
