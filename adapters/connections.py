"""The connections to one application: so many at a time, some kept for the next request.

It may have several addresses. A request goes to the one with the fewest
connections in use, for its weight; in turn, where that is the same. Where
connecting fails, nothing was sent, and the next address is tried. What fails
often is left alone for a while (`tetrapylon.adapters.health`), names are looked
up now and then (`tetrapylon.adapters.lookups`). An address that does not belong
any more gets no new connection; those that are in use end in their time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

from .addresses import Address, Found, SocketAddress, SrvAddress, TcpAddress, is_name
from .byte_stream import ByteStream, Exhausted, connect
from .errors import BackendError, BadGateway, Unavailable
from .health import Health
from .lookups import Lookup
from .slots import Slots

logger = logging.getLogger("tetrapylon.adapters")

#: What may be sent again, once, where a kept connection turns out to have been closing:
#: nobody knows whether the application had begun. Anything else goes out on a fresh one.
RESENDABLE_METHODS = frozenset(("GET", "HEAD"))
BREAKER_FAILURES = 5
BREAKER_WINDOW_S = 10.0
RESOLVE_S = 10.0
_FIRST_RETRY_S = 0.005
_LAST_RETRY_S = 0.05


class StaleConnection(Exception):
    """A kept connection ended before a byte of an answer: it was closing already."""


class Target:
    """One address of the application: its health, and how many connections are in use.

    Connections count from before they are made to their `ByteStream.close`, except
    while they are kept.
    """

    __slots__ = ("_drained", "address", "health", "in_use", "is_retired", "priority", "weight")

    def __init__(self, address: SocketAddress, health: Health) -> None:
        self.address = address
        self.health = health
        self.priority = 0
        self.weight = 1
        self.in_use = 0
        self.is_retired = False
        self._drained: list[asyncio.Future[None]] = []

    def release(self) -> None:
        """Count one connection less."""
        self.in_use -= 1
        if not self.in_use and self._drained:
            for waiter in self._drained:
                if not waiter.done():
                    waiter.set_result(None)
            self._drained.clear()

    async def drained(self) -> None:
        """Wait until no connection is in use."""
        while self.in_use:
            waiter = asyncio.get_running_loop().create_future()
            self._drained.append(waiter)
            await waiter


class Connections:
    """Connections to an application; ``async with connections.slots:`` is the right to one.

    Then `take` gives one that was kept, if there is one, and `open` a fresh one.
    What came of it is told by `answered` or `failed`, where it says something about
    the address; a client that leaves, or a script that writes nonsense, does not.
    In the end each is either closed or given to `keep`.

    ``limit`` is how many there are at most, kept ones included; ``queue`` how many
    requests wait for one, for ``queue_wait_s`` seconds. Connecting to an address may
    take ``connect_s`` seconds (0: for ever). A connection is kept for ``idle_s``
    seconds (0: not at all) unless the application closes it first. ``breaker``
    failures within ``breaker_window_s`` put an address out of order (0: never, or
    for ever). Names are looked up again after ``resolve_s`` seconds. ``name`` says in
    messages whose they are.
    """

    def __init__(
        self,
        addresses: Address | Sequence[Address],
        *,
        limit: int,
        queue: int,
        queue_wait_s: float,
        connect_s: float,
        idle_s: float,
        name: str,
        breaker: int = BREAKER_FAILURES,
        breaker_window_s: float = BREAKER_WINDOW_S,
        resolve_s: float = RESOLVE_S,
    ) -> None:
        self.slots = Slots(limit, queue=queue, wait_s=queue_wait_s, name=name)
        #: How many there are at most.
        self.limit = limit
        self._connect_s = connect_s or math.inf
        self._idle_s = idle_s
        self._name = name
        self._breaker = breaker
        self._breaker_window_s = breaker_window_s or math.inf
        self._resolve_s = resolve_s
        self._addresses: tuple[Address, ...] = ()
        self._lookups: dict[Address, Lookup] = {}
        # In the order of their turns. Those that left are there while they are in use.
        self._targets: list[Target] = []
        self._leaving: list[Target] = []
        # Oldest first, with the time by the loop's clock at which each is closed.
        self._kept: dict[ByteStream, tuple[float, Target]] = {}
        self._timer: asyncio.TimerHandle | None = None
        #: Called when an address has left while connections to it were in use.
        self.on_retired: Callable[[], None] | None = None
        self.addresses = addresses if isinstance(addresses, Sequence) else (addresses,)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the application is.

        May be set at any time: what is under way goes on where it is, and `drained`
        tells when that is over.
        """
        return self._addresses

    @addresses.setter
    def addresses(self, addresses: Sequence[Address]) -> None:
        self._addresses = tuple(addresses)
        for address in self._lookups.keys() - set(addresses):
            self._lookups.pop(address).close()
        for address in addresses:
            if not is_name(address) or address in self._lookups:
                continue
            assert isinstance(address, TcpAddress | SrvAddress)
            self._lookups[address] = Lookup(
                address, every_s=self._resolve_s, on_change=self._retarget, name=self._name
            )
        self._retarget()

    # A connection

    async def open(self) -> ByteStream:
        """Connect.

        Raises `BadGateway` if nothing listens at any address. An application that
        answered a moment ago is waited for, as it may be restarting. Raises
        `Unavailable` if no backlog has room, and at once while all are out of order.
        """
        if self._kept and self.slots.taken + len(self._kept) > self.limit:
            self._drop(next(iter(self._kept)))
        if self._lookups:
            await self._look_up()
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        failure: BackendError | None = None
        tried: list[Target] = []
        pause_s = _FIRST_RETRY_S
        while True:
            now = loop.time()
            target = self._best(now, tried)
            if target is not None:
                if target.health.is_open or target.health.is_avoided:
                    target.health.probe(now)
                self._choose(target)
                try:
                    stream = await connect(target.address, timeout_s=self._connect_s)
                except BaseException as error:
                    target.release()
                    if not isinstance(error, BackendError) or isinstance(error, Exhausted):
                        raise
                    failure = error
                    tried.append(target)
                    self._note_refusal(target, error, loop.time())
                else:
                    stream.counter = target
                    if not target.health.is_well:
                        self._note_connection(target, loop.time())
                    return stream
            elif failure is None or all(each.health.is_open for each in self._targets):
                why = "out of order" if self._targets else "there is no address"
                # Who has just tried can say what is wrong with it.
                raise Unavailable(
                    f"{self._name}: {why}" + (f": {failure}" if failure else ""), retry_after_s=1
                )
            else:
                left_s = began_at + self._connect_s - now
                if left_s <= 0 or not any(each.health.is_excused(now) for each in tried):
                    raise failure
                await asyncio.sleep(min(pause_s, left_s))
                pause_s = min(2 * pause_s, _LAST_RETRY_S)
                tried.clear()

    def take(self, *, is_checked: bool = True) -> ByteStream | None:
        """Return the connection that was kept last and is still open, if there is one.

        Of several addresses, only to the one that a fresh one would go to. What has
        closed, or said something, since the loop last looked is found out by a system
        call more; unless ``is_checked``, by who uses it.
        """
        if self._lookups:
            self.refresh()
        while (stream := self._newest()) is not None:
            _, target = self._kept.pop(stream)
            if not is_checked or stream.is_quiet():
                self._choose(target)
                stream.counter = target
                return stream
            stream.close()
        return None

    def keep(self, stream: ByteStream) -> None:
        """Keep a connection on which no answer is outstanding."""
        target = stream.counter
        assert isinstance(target, Target)
        if not self._idle_s or target.is_retired:
            stream.close()
            return
        stream.counter = None
        stream.uses += 1
        target.release()
        ends_at = stream.loop.time() + self._idle_s
        self._kept[stream] = ends_at, target
        # It closes, or says something that nobody asked for.
        stream.watch(self._drop)
        if self._timer is None:
            self._timer = stream.loop.call_at(ends_at, self._sweep)

    def answered(self, stream: ByteStream) -> None:
        """Note that the application has answered there."""
        target = stream.counter
        assert isinstance(target, Target)
        if not target.health.is_well and target.health.answered():
            logger.warning("%s: %s answers again", self._name, target.address)

    def failed(self, stream: ByteStream) -> None:
        """Note an exchange that broke before its answer: closed, no head in time, gibberish."""
        target = stream.counter
        assert isinstance(target, Target)
        # It may be the request's own fault, and where else would the others go?
        if len(self._targets) > 1 and target.health.broke(asyncio.get_running_loop().time()):
            logger.error(
                "%s: %s has not answered %d times in a row; others are asked instead,"
                " it is tried once a second",
                self._name,
                target.address,
                self._breaker,
            )

    def refresh(self) -> None:
        """Have names looked up again whose time has come, without waiting for it."""
        now = asyncio.get_running_loop().time()
        for lookup in self._lookups.values():
            lookup.refresh(now)

    async def drained(self, address: SocketAddress) -> None:
        """Wait until no connection to ``address`` is in use."""
        for target in [*self._targets, *self._leaving]:
            if target.address == address:
                await target.drained()

    def close(self) -> None:
        """Close the kept connections; requests go on as they are."""
        for stream in [*self._kept]:
            self._drop(stream)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for lookup in self._lookups.values():
            lookup.close()

    def _drop(self, stream: ByteStream) -> None:
        if self._kept.pop(stream, None) is not None:
            stream.close()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        for stream, (ends_at, _) in [*self._kept.items()]:
            if ends_at > now:
                self._timer = loop.call_at(ends_at, self._sweep)
                break
            self._drop(stream)

    # Which address

    def _newest(self) -> ByteStream | None:
        """Return what was kept last of the address where the next connection goes."""
        if not self._kept:
            return None
        if len(self._targets) == 1:
            return next(reversed(self._kept))
        best = self._best(asyncio.get_running_loop().time(), ())
        return next((each for each in reversed(self._kept) if self._kept[each][1] is best), None)

    def _best(self, now: float, tried: Sequence[Target]) -> Target | None:
        """Return where the next connection goes, ``tried`` left out; ``None``: nowhere."""
        best: Target | None = None
        avoided: Target | None = None
        probed: Target | None = None
        best_load = 0.0
        for target in self._targets:
            if target in tried:
                continue
            health = target.health
            if health.is_open or health.is_avoided:
                if probed is None and health.is_probe_due(now):
                    probed = target
                elif avoided is None and not health.is_open:
                    avoided = target
                continue
            load = (target.in_use + 1) / target.weight
            if (
                best is None
                or target.priority < best.priority
                or (target.priority == best.priority and load < best_load)
            ):
                best = target
                best_load = load
        # Where better ones are well, those that come after them are not tried.
        if probed is not None and (best is None or probed.priority <= best.priority):
            return probed
        return best or avoided

    def _choose(self, target: Target) -> None:
        target.in_use += 1
        if len(self._targets) > 1 and target in self._targets:
            # The next time it is the last one looked at.
            self._targets.remove(target)
            self._targets.append(target)

    def _note_refusal(self, target: Target, error: BackendError, now: float) -> None:
        if target.health.refused(now):
            logger.error(
                "%s: %s is out of order after %d failures, it is tried once a second; the last: %s",
                self._name,
                target.address,
                self._breaker,
                error,
            )

    def _note_connection(self, target: Target, now: float) -> None:
        if target.health.connected(now):
            logger.warning("%s: %s takes connections again", self._name, target.address)

    # Names

    async def _look_up(self) -> None:
        """Wait until an address is known, no longer than for a connection."""
        self.refresh()
        if not self._knows_an_address():
            loop = asyncio.get_running_loop()
            deadline = loop.time() + self._connect_s
            tasks = {each.task for each in self._lookups.values() if each.task is not None}
            while tasks and not self._knows_an_address():
                left_s = deadline - loop.time()
                done, tasks = await asyncio.wait(
                    tasks,
                    timeout=left_s if left_s < math.inf else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
        if not self._targets:
            reasons = [
                f"{each.address}: {each.failure or 'not looked up in time'}"
                for each in self._lookups.values()
            ]
            raise BadGateway(f"{self._name}: cannot connect to {'; '.join(reasons)}")

    def _knows_an_address(self) -> bool:
        return any(lookup.is_usable for lookup in self._lookups.values()) or any(
            address not in self._lookups for address in self._addresses
        )

    def _retarget(self) -> None:
        """Make the targets anew from the addresses and what names stand for."""
        before = {target.address: target for target in (*self._leaving, *self._targets)}
        found: dict[SocketAddress, Found] = {}
        for address in self._addresses:
            if (lookup := self._lookups.get(address)) is not None:
                for each in lookup.found:
                    found.setdefault(each.address, each)
            else:
                assert not isinstance(address, SrvAddress)
                found.setdefault(address, Found(address))
        self._targets = []
        for each in found.values():
            target = before.pop(each.address, None)
            if target is None:
                target = Target(each.address, Health(self._breaker, self._breaker_window_s))
            target.is_retired = False
            target.priority, target.weight = each.priority, each.weight
            self._targets.append(target)
        for target in before.values():
            target.is_retired = True
        self._leaving = [target for target in before.values() if target.in_use]
        for stream, (_, target) in [*self._kept.items()]:
            if target.is_retired:
                self._drop(stream)
        if self._leaving and self.on_retired is not None:
            self.on_retired()
