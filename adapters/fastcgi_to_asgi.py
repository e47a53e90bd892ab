"""A FastCGI application as an ASGI application.

FastCGI Specification 1.0, the Responder role (section 6.2). One request: the
script is found (`tetrapylon.adapters.scripts`), the body read to its end, for a
length has to be sent first; a slot and a connection are taken; meta-variables
and body go out as PARAMS and STDIN while STDOUT comes back, through the CGI
response parser, as an ASGI response (`tetrapylon.adapters.exchange`).

A connection carries one request, and by default only that one: each idle kept
connection holds a worker of php-fpm. Applications that can take several at a time
(`tetrapylon.adapters.fastcgi_multiplexing`) do so if they are meant to.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from ..protocols.asgi import Receive, Scope, Send
from ..protocols.fastcgi import Role
from .addresses import parse_addresses
from .byte_stream import ByteStream
from .connections import (
    BREAKER_FAILURES,
    BREAKER_WINDOW_S,
    RESENDABLE_METHODS,
    RESOLVE_S,
    Connections,
    StaleConnection,
)
from .errors import BadGateway, answered
from .exchange import ResponseRelay, SpooledBody, TaskDeparture, spool_body
from .fastcgi_exchange import ExchangeTerms, FastCgiExchange, NotMultiplexed
from .fastcgi_link import OwnConnection
from .fastcgi_multiplexing import Multiplexer
from .fastcgi_params import FastCgiParams
from .lifespan import close_at_shutdown
from .request_params import Place, RequestParams, redirect_to_slash
from .scripts import SlashMissing


class FastCgiToAsgi:
    """The FastCGI application at ``address``: ``"unix:/path"``, ``"host:port"``, ``"[::1]:port"``.

    It may have several, and ``"srv:_service._proto.name"``, see `parse_addresses`: each
    request goes to the one that has the fewest, for its weight. ``breaker`` failures
    within ``breaker_window_s`` put an address out of order for a while (0: never); names
    are looked up again after ``resolve_s``.

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
    Each kept connection occupies a worker of applications like php-fpm. With
    ``multiplex`` so many requests share a connection, if the application can. ``name``
    stands in the log and in messages, in place of the address.

    Raises `ValueError` for an address or parameters that cannot be.
    """

    def __init__(
        self,
        address: str | Sequence[str],
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
        multiplex: int = 1,
        breaker: int = BREAKER_FAILURES,
        breaker_window_s: float = BREAKER_WINDOW_S,
        resolve_s: float = RESOLVE_S,
        body_limit_bytes: int | None = None,
        spool_memory_bytes: int = 64 * 1024,
        head_limit_bytes: int = 64 * 1024,
        stderr_limit_bytes: int = 64 * 1024,
        server_software: str = "tetrapylon",
        name: str | None = None,
    ) -> None:
        addresses = parse_addresses(address)
        self._name = name if name is not None else ", ".join(map(str, addresses))
        #: What it is told of a request.
        self.params = RequestParams(
            root=root,
            index=index,
            split=split,
            check_file=check_file,
            script_name=script_name,
            params=params,
            pass_authorization=pass_authorization,
            server_software=server_software,
        )
        #: How that is written.
        self.encoder = FastCgiParams(self.params, name=self._name)
        self._terms = ExchangeTerms(
            self._name,
            first_byte_s=first_byte_s or math.inf,
            output_idle_s=output_idle_s or math.inf,
            stderr_limit_bytes=stderr_limit_bytes,
        )
        #: Their ``addresses`` are where the application is.
        self.connections = Connections(
            addresses,
            limit=connections,
            queue=queue,
            queue_wait_s=queue_wait_s,
            connect_s=connect_s,
            idle_s=idle_s,
            name=self._name,
            breaker=breaker,
            breaker_window_s=breaker_window_s,
            resolve_s=resolve_s,
        )
        self._multiplexer: Multiplexer | None = None
        if multiplex > 1:
            self._multiplexer = Multiplexer(
                self.connections, limit=multiplex, idle_s=idle_s, name=self._name
            )
        self._keep_alive = keep_alive
        self._retries = retries
        self._body_limit_bytes = body_limit_bytes
        self._spool_memory_bytes = spool_memory_bytes
        self._head_limit_bytes = head_limit_bytes

    @answered
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request; take part in the lifespan protocol to close kept connections.

        Raises `ValueError` for other scopes, and what `tetrapylon.adapters.errors` lists.
        """
        if scope["type"] == "lifespan":
            await close_at_shutdown(receive, send, self.close)
            return
        if scope["type"] != "http":
            raise ValueError(f"FastCGI does not serve {scope['type']!r}")
        await self.answer(scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request, under our gateway; raises as calling this does."""
        place: Place | None = None
        known = self.encoder.recall(scope)
        if known is None:
            try:
                place = self.params.place(scope)
            except SlashMissing:
                await redirect_to_slash(scope, send)
                return
        body = await spool_body(
            receive, memory_bytes=self._spool_memory_bytes, limit_bytes=self._body_limit_bytes
        )
        try:
            params: Sequence[bytes]
            if known is not None and not body.length:
                params = (known,)
            else:
                place = place or self.params.place(scope)
                params = self.encoder.encode(scope, place, body.length)
            async with TaskDeparture(scope, receive):
                await self.exchange(scope["method"], params, body, send)
        finally:
            if body.file is not None:
                await body.aclose()

    def close(self) -> None:
        """Close the kept connections; requests go on as they are."""
        self.connections.close()
        if self._multiplexer is not None:
            self._multiplexer.close()

    # The exchange

    async def exchange(
        self,
        method: str,
        params: Sequence[bytes],
        body: SpooledBody,
        send: Send,
        *,
        role: Role = Role.RESPONDER,
    ) -> None:
        """Put one request to the application, once there is a slot, and send its answer on.

        ``params`` are as the `encoder` writes them. An authorizer gets no ``body``.
        Raises what `tetrapylon.adapters.errors` lists.
        """
        connections = self.connections
        slots = connections.slots
        if not slots.acquire_at_once():
            await slots.acquire()
        try:
            relay = ResponseRelay(send, method=method, head_limit_bytes=self._head_limit_bytes)
            if self._multiplexer is not None and await self._answer_by_share(
                self._multiplexer, method, params, body, relay, role
            ):
                return
            retries = self._retries if method in RESENDABLE_METHODS else 0
            while True:
                # One that has closed this very moment comes as a `StaleConnection`.
                kept = connections.take(is_checked=False) if retries else None
                try:
                    await self._exchange(
                        kept or await connections.open(), params, body, relay, role
                    )
                    return
                except StaleConnection:
                    retries -= 1
        finally:
            slots.release()

    async def _answer_by_share(
        self,
        multiplexer: Multiplexer,
        method: str,
        params: Sequence[bytes],
        body: SpooledBody,
        relay: ResponseRelay,
        role: Role,
    ) -> bool:
        """Answer over a shared connection; return false if the request needs one of its own."""
        is_resendable = self._retries > 0 and method in RESENDABLE_METHODS
        while (share := await multiplexer.share(is_resendable=is_resendable)) is not None:
            exchange = FastCgiExchange(share, self._terms)
            try:
                await exchange.run(params, body, relay, role)
            except StaleConnection:
                is_resendable = False  # the next one is fresh, or others are on it
            except NotMultiplexed:
                multiplexer.give_up("CANT_MPX_CONN")
                return False
            else:
                return True
            finally:
                if relay.is_started:
                    self.connections.answered(share.stream)
                share.close()
        return False

    async def _exchange(
        self,
        stream: ByteStream,
        params: Sequence[bytes],
        body: SpooledBody,
        relay: ResponseRelay,
        role: Role,
    ) -> None:
        link = OwnConnection(stream, keep=self._keep_alive)
        exchange = FastCgiExchange(link, self._terms)
        is_reusable = False
        try:
            await exchange.run(params, body, relay, role)
            is_reusable = self._keep_alive and exchange.is_sent and link.is_clean
        except NotMultiplexed as error:
            raise BadGateway(f"{self._name}: CANT_MPX_CONN to a request alone") from error
        finally:
            if exchange.is_broken:
                self.connections.failed(stream)
            elif relay.is_started:
                self.connections.answered(stream)
            if is_reusable:
                self.connections.keep(stream)
            else:
                stream.close()
