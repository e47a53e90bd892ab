"""Several FastCGI requests at a time over one connection, for applications that can.

FastCGI Specification 1.0, sections 3.3 and 4.1. Hardly any application can: php-fpm
answers one request at a time, libfcgi too. flup's threaded server, and a few of other
languages, do it. So an application is asked first (GET_VALUES, FCGI_MPXS_CONNS and
FCGI_MAX_REQS); one that says no, or nothing, gets one request for each connection, as
without this, and likewise one that refuses a second request after all
(CANT_MPX_CONN), for then nothing of that request has run. An answer that leaves the
name out is no refusal (section 4.1): flup on Python 3 leaves out all.

The protocol has no flow control of its own, which is the price of it: what is not
read of one answer stands in the way of all others on its connection. The rule here:

- What a client has not taken of its answer waits in memory, `SHARE_BYTES` at most
  and the last read beside it.
- Beyond that nothing is read from the connection, and no new request goes to it.
- If others are on it and it stays so for `STALL_S`, the answer that nobody takes is
  cut and its request aborted. No slow client stops the others for longer.

A request whose client has left, or whose time is over, is aborted with ABORT_REQUEST
(section 5.4), for the connection is not its own to close; what still comes for it
is dropped, and its id stays taken until the application has ended it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence

from ..protocols.errors import RemoteProtocolError
from ..protocols.fastcgi import (
    NEED_DATA,
    AbortRequest,
    BeginRequest,
    Connection,
    ConnectionClosed,
    EndRequest,
    Event,
    GetValues,
    GetValuesResult,
    Output,
    Params,
    Role,
    Side,
    Stderr,
    Stdin,
    Stdout,
    encode_request,
)
from .byte_stream import ByteStream
from .connections import Connections, StaleConnection
from .errors import BackendError, BadGateway

logger = logging.getLogger("tetrapylon.adapters.fastcgi")

#: How much of an answer is read ahead of its client.
SHARE_BYTES = 256 * 1024
#: How long an answer that nobody takes may stand in the way of others.
STALL_S = 5.0
# An application that knows GET_VALUES answers at once.
_ASK_S = 1.0
# One that cannot multiplex may be replaced by one that can.
_ASK_AGAIN_S = 60.0
_MAX_REQUESTS = "FCGI_MAX_REQS"
_MULTIPLEXES = "FCGI_MPXS_CONNS"


class Multiplexer:
    """The shared connections of an application, with ``limit`` requests each at the most.

    They are opened by ``connections``, whose slots bound the requests; each is closed
    after ``idle_s`` seconds without one. ``name`` says whose they are.
    """

    def __init__(self, connections: Connections, *, limit: int, idle_s: float, name: str) -> None:
        self._connections = connections
        self._limit = limit
        self._idle_s = idle_s
        self._name = name
        self._shared: list[SharedConnection] = []
        self._opening = asyncio.Lock()
        self._failures = 0
        self._failure: BackendError | None = None
        self._single_until = -math.inf
        connections.on_retired = self._on_retired

    async def share(self, *, is_resendable: bool) -> Share | None:
        """Return a link for one request; ``None`` if it has to have a connection of its own.

        What may not be sent again gets no connection that has been idle, for that may
        be closing. Raises as `Connections.open`.
        """
        self._connections.refresh()
        failures = self._failures
        if (share := self._find(is_resendable)) is not None:
            return share
        # One after the other: whoever comes next may find room on what was opened.
        async with self._opening:
            if (share := self._find(is_resendable)) is not None:
                return share
            if asyncio.get_running_loop().time() < self._single_until:
                return None
            if self._failure is not None and self._failures != failures:
                raise type(self._failure)(
                    str(self._failure), retry_after_s=self._failure.retry_after_s
                )
            try:
                stream = await self._connections.open()
            except BackendError as error:
                self._failures += 1
                self._failure = error
                raise
            try:
                limit = await self._ask(stream)
            except BaseException:
                stream.close()
                raise
            if limit < 2:
                stream.close()
                self.give_up("as it answers GET_VALUES")
                return None
            for each in [*self._shared]:
                if each.is_idle and len(self._shared) >= self._connections.limit:
                    each.close()
            shared = SharedConnection(stream, self, limit=limit, idle_s=self._idle_s)
            self._shared.append(shared)
            return shared.begin()

    def give_up(self, why: str) -> None:
        """Take note that the application takes one request at a time."""
        now = asyncio.get_running_loop().time()
        if now >= self._single_until:
            logger.warning(
                "%s: the application does not multiplex (%s): each request gets a connection",
                self._name,
                why,
            )
        self._single_until = now + _ASK_AGAIN_S

    def broke(self, shared: SharedConnection) -> None:
        """Take note that a shared connection broke."""
        self._connections.failed(shared.stream)

    def closed(self, shared: SharedConnection) -> None:
        """Take note that a shared connection was closed."""
        if shared in self._shared:
            self._shared.remove(shared)

    def close(self) -> None:
        """Close the idle connections; those in use close when their requests have ended."""
        for shared in [*self._shared]:
            shared.retire()

    def _on_retired(self) -> None:
        for shared in [*self._shared]:
            if shared.is_retired:
                shared.retire()

    def _find(self, is_resendable: bool) -> Share | None:
        # The fullest first, so that those which are not needed get idle.
        rooms = [each for each in self._shared if each.has_room]
        for shared in sorted(rooms, key=lambda each: -each.requests):
            if is_resendable or not shared.is_idle:
                return shared.begin()
        return None

    async def _ask(self, stream: ByteStream) -> int:
        """Return how many requests the application takes on a connection; 1 if it is silent."""
        codec = Connection(Side.CLIENT)
        stream.expect(_ASK_S)
        try:
            await stream.send(codec.send(GetValues((_MAX_REQUESTS, _MULTIPLEXES))))
            while True:
                codec.receive_data(await stream.receive())
                event = codec.next_event()
                if isinstance(event, GetValuesResult) and not codec.has_pending:
                    return self._most(event.values)
                if event is not NEED_DATA:
                    return 1
        except (OSError, RemoteProtocolError):  # TimeoutError among them
            return 1
        finally:
            stream.expect(math.inf)  # each share has its own time

    def _most(self, values: Mapping[str, str]) -> int:
        if values.get(_MULTIPLEXES, "1") != "1":
            return 1
        most = values.get(_MAX_REQUESTS, "")
        return min(self._limit, int(most)) if most.isascii() and most.isdigit() else self._limit


class SharedConnection:
    """A connection with several requests on it; a task reads, and hands out what comes."""

    def __init__(
        self, stream: ByteStream, owner: Multiplexer, *, limit: int, idle_s: float
    ) -> None:
        self.stream = stream
        self._owner = owner
        self._limit = limit
        self._idle_s = idle_s
        self._codec = Connection(Side.CLIENT, max_requests=limit)
        self._shares: dict[int, Share] = {}
        # Ids of requests that nobody waits for, which the application has not ended yet.
        self._aborted: set[int] = set()
        self._outgoing: list[bytes | memoryview] = []
        self._flusher: asyncio.Task[None] | None = None
        self._drained = asyncio.Event()
        self._drained.set()
        self._has_room_again = asyncio.Event()
        self._is_paused = False
        self._is_closing = False
        self._idle_timer: asyncio.TimerHandle | None = None
        self._reader = asyncio.get_running_loop().create_task(self._read())

    @property
    def requests(self) -> int:
        """How many requests are on it that somebody waits for."""
        return len(self._shares)

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for anything from it."""
        return not self._shares

    @property
    def is_retired(self) -> bool:
        """Whether it is to close when the last request has ended; likewise if its address left."""
        counter = self.stream.counter
        return self._is_closing or (counter is not None and counter.is_retired)

    @property
    def has_room(self) -> bool:
        """Whether another request may be begun."""
        return (
            not self.is_retired
            and not self._is_paused
            and len(self._shares) + len(self._aborted) < self._limit
        )

    @property
    def is_drained(self) -> bool:
        """Whether all that was written has left."""
        return not self._outgoing and self._flusher is None

    def begin(self) -> Share:
        """Return the link for another request, under the smallest id that is free."""
        request_id = next(
            number
            for number in range(1, self._limit + 1)
            if number not in self._shares and number not in self._aborted
        )
        share = Share(self, request_id, may_be_stale=self.is_idle and self.stream.uses > 0)
        self._shares[request_id] = share
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self.stream.uses += 1
        return share

    def retire(self) -> None:
        """Begin no more requests, and close when the last has ended."""
        self._is_closing = True
        if not self._shares:
            self.close()

    def close(self) -> None:
        """Close it, whatever the application still has to say."""
        self._is_closing = True
        for task in (self._reader, self._flusher):
            # Not oneself: this is called where an error was met, too.
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self.stream.close()
        self._owner.closed(self)

    # What a share says

    def say(self, event: Event) -> None:
        """Send one event."""
        self.write(self._codec.send(event))

    def say_begun(self, request: bytes, share: Share, role: Role, *, is_whole: bool) -> None:
        """Send a request that was encoded already."""
        request_id = share.request_id
        self._codec.send(BeginRequest(request_id, role, keep_conn=True))
        share.is_begun = True
        self._codec.send(Params(request_id, {}))
        if is_whole and role is not Role.AUTHORIZER:
            self._codec.send(Stdin(request_id, b""))
        self.write(request)

    def write(self, data: bytes) -> None:
        """Send bytes in one piece, behind what waits already; raise `OSError` if that is over."""
        if self._flusher is None:
            rest = self.stream.send_some(data)
            if rest:
                self._outgoing.append(rest)
                self._drained.clear()
                self._flusher = asyncio.get_running_loop().create_task(self._flush())
        else:
            # A record that was begun is sent to its end, even if its request has ended.
            self._outgoing.append(data)

    async def drain(self) -> None:
        """Wait until all that was written has left."""
        await self._drained.wait()

    def taken(self) -> None:
        """Take note that a share's output was taken."""
        self._has_room_again.set()

    def end(self, share: Share) -> None:
        """Let go of a request; it is aborted if the application has not ended it."""
        request_id = share.request_id
        if self._shares.get(request_id) is not share:
            return
        del self._shares[request_id]
        if share.is_begun and not self.stream.is_closed:
            self._aborted.add(request_id)
            try:
                self.say(AbortRequest(request_id))
            except OSError:
                pass  # it reads no more, and will close
        self._has_room_again.set()
        self._rest_if_idle()

    # What comes

    async def _read(self) -> None:
        codec = self._codec
        failure: RemoteProtocolError | None = None
        try:
            while True:
                codec.receive_data(await self.stream.receive())
                while (event := codec.next_event()) is not NEED_DATA:
                    if isinstance(event, ConnectionClosed):
                        return
                    self._deliver(event)
                await self._await_takers()
        except OSError:
            pass  # it was closed here
        except RemoteProtocolError as error:
            failure = error
        finally:
            shares = [*self._shares.values()]
            self._shares.clear()
            if failure is not None and any(not share.is_stale for share in shares):
                self._owner.broke(self)
            for share in shares:
                share.break_off(failure)
            self.close()

    def _deliver(self, event: Event) -> None:
        if isinstance(event, Stdout | Stderr | EndRequest):
            share = self._shares.get(event.request_id)
            if share is not None:
                share.put(event)
            if isinstance(event, EndRequest):
                self._shares.pop(event.request_id, None)
                self._aborted.discard(event.request_id)
                self._rest_if_idle()

    async def _await_takers(self) -> None:
        """Wait while too much of an answer is not taken, but not for ever."""
        while slow := [s for s in self._shares.values() if s.waiting_bytes > SHARE_BYTES]:
            self._is_paused = True
            self._has_room_again.clear()
            # Who is alone here may take all the time that its client has.
            is_alone = len(self._shares) == len(slow) == 1
            try:
                async with asyncio.timeout(None if is_alone else STALL_S):
                    await self._has_room_again.wait()
            except TimeoutError:
                for share in slow:
                    if share.waiting_bytes > SHARE_BYTES:
                        share.break_off(
                            BadGateway("its client is too slow for a connection that others share")
                        )
                        self.end(share)
        self._is_paused = False

    def _rest_if_idle(self) -> None:
        if self._shares or self._idle_timer is not None or self.stream.is_closed:
            return
        if self.is_retired:
            self.close()
        else:
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_later(self._idle_s, self.close)

    async def _flush(self) -> None:
        try:
            while self._outgoing:
                data = b"".join(self._outgoing)
                self._outgoing.clear()
                await self.stream.send(data)
        except OSError:
            self._outgoing.clear()  # what it wrote before may be answers
        finally:
            self._flusher = None
            self._drained.set()


class Share:
    """One request on a shared connection; a `Link`."""

    __slots__ = (
        "_connection",
        "_deadline",
        "_end",
        "_failure",
        "_has_output",
        "_may_be_stale",
        "_stderr",
        "_stdout",
        "_timeout",
        "_waiter",
        "is_begun",
        "request_id",
        "waiting_bytes",
    )

    def __init__(
        self, connection: SharedConnection, request_id: int, *, may_be_stale: bool
    ) -> None:
        self._connection = connection
        self._may_be_stale = may_be_stale
        self._has_output = False
        self._stdout: list[bytes] = []
        self._stderr: list[bytes] = []
        self._end: EndRequest | None = None
        self._failure: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline: float | None = None
        self._timeout: asyncio.Timeout | None = None
        self.request_id = request_id
        #: BEGIN_REQUEST was said.
        self.is_begun = False
        #: What has come and was not taken.
        self.waiting_bytes = 0

    @property
    def is_stale(self) -> bool:
        """Whether the connection may have been closing before the request was sent."""
        return self._may_be_stale and not self._has_output

    @property
    def stream(self) -> ByteStream:
        """The connection's."""
        return self._connection.stream

    def close(self) -> None:
        """Let the request go; it is aborted if it has not ended."""
        self._connection.end(self)

    # As a link

    def begin(self, params: Sequence[bytes], stdin: bytes | None, role: Role) -> bool:
        """See `Link`."""
        request = encode_request(self.request_id, params, stdin, role=role, keep_conn=True)
        self._connection.say_begun(request, self, role, is_whole=stdin is not None)
        return stdin is not None and self._connection.is_drained

    async def flush(self) -> None:
        """See `Link`."""
        await self._connection.drain()

    async def feed(self, data: bytes) -> None:
        """See `Link`."""
        self._connection.say(Stdin(self.request_id, data))
        await self._connection.drain()

    async def receive(self) -> bytes:
        """See `Link`."""
        while not (self._stdout or self._stderr or self._end):
            if self._failure is not None:
                if self.is_stale and isinstance(self._failure, RemoteProtocolError):
                    raise StaleConnection
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout_at(self._deadline) as self._timeout:
                    await self._waiter
            finally:
                self._waiter = self._timeout = None
        return b""  # it has been handed out to this share already

    def take(self, data: bytes) -> Output:
        """See `Link`."""
        output = Output(b"".join(self._stdout), b"".join(self._stderr), self._end)
        self._stdout.clear()
        self._stderr.clear()
        self.waiting_bytes = 0
        self._connection.taken()
        return output

    def expect(self, within_s: float) -> None:
        """See `Link`."""
        is_limited = within_s < math.inf
        self._deadline = asyncio.get_running_loop().time() + within_s if is_limited else None
        if self._timeout is not None:
            self._timeout.reschedule(self._deadline)

    def fail(self, error: BaseException) -> None:
        """See `Link`."""
        self._failure = error
        self._wake()

    # What the connection brings

    def put(self, event: Stdout | Stderr | EndRequest) -> None:
        """Take what came for this request."""
        self._has_output = True
        if isinstance(event, EndRequest):
            self._end = event
        else:
            (self._stdout if isinstance(event, Stdout) else self._stderr).append(event.data)
            self.waiting_bytes += len(event.data)
        self._wake()

    def break_off(self, error: Exception | None) -> None:
        """Take note that nothing more will come; what came and was not taken is dropped."""
        self._stdout.clear()
        self._stderr.clear()
        self.waiting_bytes = 0
        self.fail(
            error or RemoteProtocolError("the connection was closed meanwhile", status_hint=502)
        )

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
