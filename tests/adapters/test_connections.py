"""Connections to one application: where to, which are kept, and what if there is nobody."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tetrapylon.adapters.addresses import Address, Found, SrvAddress, TcpAddress, UnixAddress
from tetrapylon.adapters.byte_stream import ByteStream, Exhausted
from tetrapylon.adapters.connections import Connections, Target
from tetrapylon.adapters.errors import BadGateway, Unavailable

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

WITHIN_S = 10.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def connections_to(listener: socket.socket, *, limit: int = 2, idle_s: float = 60.0) -> Connections:
    return Connections(
        TcpAddress(*listener.getsockname()),
        limit=limit,
        queue=0,
        queue_wait_s=0.0,
        connect_s=WITHIN_S,
        idle_s=idle_s,
        name="app",
    )


async def until_closed(accepted: socket.socket) -> None:
    accepted.setblocking(False)
    read = asyncio.get_running_loop().sock_recv(accepted, 1)
    assert await asyncio.wait_for(read, WITHIN_S) == b""


def test_the_last_one_kept_is_taken_first(listener: socket.socket) -> None:
    async def main() -> None:
        connections = connections_to(listener)
        first, second = await connections.open(), await connections.open()
        connections.keep(first)
        connections.keep(second)
        assert connections.take() is second
        assert connections.take() is first
        assert connections.take() is None
        first.close()
        second.close()

    asyncio.run(main())


def test_one_that_the_application_closes_is_not_taken(listener: socket.socket) -> None:
    async def main() -> None:
        connections = connections_to(listener)
        stream = await connections.open()
        accepted, _ = listener.accept()
        connections.keep(stream)
        accepted.close()
        assert connections.take() is None
        assert stream.is_closed
        connections.close()

    asyncio.run(main())


@pytest.mark.parametrize("is_reset", [False, True])
def test_one_that_closed_since_the_loop_looked_is_found_out_by_its_use(
    run: Run[Any], listener: socket.socket, is_reset: bool
) -> None:
    async def main() -> None:
        connections = connections_to(listener)
        stream = await connections.open()
        accepted, _ = listener.accept()
        accepted.sendall(b"answer")
        assert await stream.receive() == b"answer"
        connections.keep(stream)
        if is_reset:
            stream.send_some(b"never read")
        accepted.close()
        assert connections.take(is_checked=False) is stream
        stream.expect(WITHIN_S)
        with pytest.raises(OSError):
            for _ in range(3):
                stream.send_some(b"request")
        assert await stream.receive() == b""
        stream.close()
        connections.close()

    run(main())


@pytest.mark.parametrize("idle_s", [0.0, 0.02])
def test_one_that_nobody_takes_is_closed_in_time(listener: socket.socket, idle_s: float) -> None:
    async def main() -> None:
        connections = connections_to(listener, idle_s=idle_s)
        stream = await connections.open()
        accepted, _ = listener.accept()
        connections.keep(stream)
        with accepted:
            await until_closed(accepted)
        assert stream.is_closed
        connections.close()

    asyncio.run(main())


def test_kept_ones_count(listener: socket.socket) -> None:
    async def main() -> None:
        connections = connections_to(listener, limit=2)
        async with connections.slots:
            oldest, other = await connections.open(), await connections.open()
            connections.keep(oldest)
            connections.keep(other)
            fresh = await connections.open()
            assert oldest.is_closed
            assert not other.is_closed
            fresh.close()
        connections.close()
        assert other.is_closed

    asyncio.run(main())


# Several addresses


def listen(folder: Path, name: str = "app") -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / name))
    listener.listen(1024)
    return listener


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:  # short enough for sockets
        yield Path(path)


def pool(*addresses: Address, connect_s: float = WITHIN_S, **options: Any) -> Connections:
    return Connections(
        addresses,
        **{
            "limit": 64,
            "queue": 0,
            "queue_wait_s": 0.0,
            "connect_s": connect_s,
            "idle_s": 60.0,
            "name": "app",
            **options,
        },
    )


def at(folder: Path, name: str = "app") -> UnixAddress:
    return UnixAddress(str(folder / name))


def peer(stream: ByteStream) -> str:
    assert isinstance(stream.counter, Target)
    address = stream.counter.address
    return Path(address.path).name if isinstance(address, UnixAddress) else str(address)


def test_requests_go_where_the_fewest_are_and_else_in_turn(run: Run[Any], folder: Path) -> None:
    async def main() -> None:
        connections = pool(*(at(folder, name) for name in "abc"))
        streams = [await connections.open() for _ in range(6)]
        assert sorted(map(peer, streams)) == ["a", "a", "b", "b", "c", "c"]
        ended = next(stream for stream in streams if peer(stream) == "b")
        ended.close()
        fresh = await connections.open()
        assert peer(fresh) == "b"
        for stream in (*streams, fresh):
            stream.close()
        in_turn = []
        for _ in range(6):
            stream = await connections.open()
            in_turn.append(peer(stream))
            stream.close()
        assert sorted(in_turn[:3]) == ["a", "b", "c"]
        assert in_turn[3:] == in_turn[:3]

    with contextlib.ExitStack() as stack:
        for name in "abc":
            stack.enter_context(listen(folder, name))
        run(main())


def test_kept_ones_do_not_count_and_are_taken_where_the_fewest_are(
    run: Run[Any], folder: Path
) -> None:
    async def main() -> None:
        connections = pool(at(folder, "a"), at(folder, "b"))
        first, second = await connections.open(), await connections.open()
        kept = {peer(first): first, peer(second): second}
        connections.keep(first)
        connections.keep(second)
        one = connections.take()
        other = connections.take()
        assert one is not None
        assert other is not None
        assert {peer(one), peer(other)} == {"a", "b"}
        assert connections.take() is None
        connections.keep(kept["a"])
        # "b" has one in use, "a" has none; a fresh one goes to the latter, and so does a kept one.
        assert connections.take() is kept["a"]
        for stream in kept.values():
            stream.close()
        connections.close()

    with listen(folder, "a"), listen(folder, "b"):
        run(main())


def test_a_kept_one_elsewhere_is_no_reason_to_go_there(run: Run[Any], folder: Path) -> None:
    async def main() -> None:
        connections = pool(at(folder, "a"), at(folder, "b"))
        kept, busy = await connections.open(), await connections.open()
        connections.keep(kept)
        more = await connections.open()
        assert (peer(busy), peer(more)) == ("b", "a")
        # Now both have one in use. The kept one's turn comes after the other's.
        assert connections.take() is None
        busy.close()
        more.close()
        connections.close()

    with listen(folder, "a"), listen(folder, "b"):
        run(main())


def test_weights_and_priorities(run: Run[Any], folder: Path, looked_up: LookedUp) -> None:
    name = SrvAddress("_fcgi._tcp.app.test")
    looked_up[name] = [
        Found(at(folder, "a"), 10, 3),
        Found(at(folder, "b"), 10, 1),
        Found(at(folder, "spare"), 20, 1),
    ]

    async def main() -> None:
        connections = pool(name, breaker=2)
        streams = [await connections.open() for _ in range(8)]
        assert sorted(map(peer, streams)) == [*"aaaaaabb"]
        for stream in streams:
            stream.close()
        listeners["a"].close()
        listeners["b"].close()
        # Those of a higher priority are tried first, and left alone once out of order.
        for _ in range(4):
            stream = await connections.open()
            assert peer(stream) == "spare"
            stream.close()

    listeners = {name: listen(folder, name) for name in ("a", "b", "spare")}
    with contextlib.ExitStack() as stack:
        for listener in listeners.values():
            stack.enter_context(listener)
        run(main())


# Failures


def test_the_next_address_is_tried_at_once(run: Run[Any], folder: Path) -> None:  # F2
    async def main() -> None:
        connections = pool(at(folder, "gone"), at(folder, "here"))
        for _ in range(20):
            stream = await connections.open()
            assert peer(stream) == "here"
            stream.close()

    with listen(folder, "here"):
        run(main())


def test_an_address_that_was_never_there_is_502_at_once(run: Run[Any], folder: Path) -> None:  # F1
    async def main() -> None:
        connections = pool(at(folder))
        for _ in range(4):
            with pytest.raises(BadGateway, match="No such file"):
                await connections.open()
        with pytest.raises(Unavailable):  # the fifth
            await connections.open()

    run(asyncio.wait_for(main(), 1))


def test_all_out_of_order_is_503_at_once(
    run: Run[Any], folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:  # F3
    monkeypatch.setattr("tetrapylon.adapters.health.PROBE_S", 0.3)

    async def main() -> None:
        connections = pool(at(folder, "a"), at(folder, "b"), breaker=3)
        for _ in range(3):
            with pytest.raises((BadGateway, Unavailable)):
                await connections.open()
        began = time.perf_counter()
        for _ in range(100):
            with pytest.raises(Unavailable, match="out of order") as refused:
                await connections.open()
            assert refused.value.retry_after_s == 1
        assert time.perf_counter() - began < 0.5
        with listen(folder, "a"):
            await until(lambda: is_open(connections))
            for _ in range(10):
                (await connections.open()).close()

    run(main())
    said = [record.message for record in caplog.records]
    assert sum("out of order" in line for line in said) == 2
    assert [line for line in said if "again" in line] == [
        f"app: unix:{folder}/a takes connections again"
    ]


async def is_open(connections: Connections) -> bool:
    try:
        (await connections.open()).close()
    except (BadGateway, Unavailable):
        return False
    return True


async def until(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.01)


def test_one_probe_a_second(run: Run[Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[float] = []

    async def refuse(address: object, *, timeout_s: float) -> ByteStream:
        attempts.append(asyncio.get_running_loop().time())
        raise BadGateway("refused")

    monkeypatch.setattr("tetrapylon.adapters.connections.connect", refuse)
    monkeypatch.setattr("tetrapylon.adapters.health.PROBE_S", 0.2)

    async def main() -> None:
        connections = pool(at(folder))
        deadline = asyncio.get_running_loop().time() + 0.6
        while asyncio.get_running_loop().time() < deadline:
            with pytest.raises((BadGateway, Unavailable)):
                await connections.open()
            await asyncio.sleep(0.01)

    run(main())
    assert 5 + 2 <= len(attempts) <= 5 + 3
    assert all(0.15 < after - before < 0.3 for before, after in itertools.pairwise(attempts[4:]))


@pytest.mark.parametrize("kind", ["absent", "refusing"])
def test_a_restart_is_waited_for(run: Run[Any], folder: Path, kind: str) -> None:  # F2
    async def main() -> None:
        connections = pool(at(folder))
        with listen(folder):
            (await connections.open()).close()
        if kind == "absent":
            os.unlink(folder / "app")
        waiting = [asyncio.create_task(connections.open()) for _ in range(32)]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in waiting)
        (folder / "app").unlink(missing_ok=True)
        with listen(folder):
            for stream in await asyncio.gather(*waiting):
                stream.close()
        assert sum(target.in_use for target in connections._targets) == 0

    run(main())


def test_it_is_not_waited_for_longer_than_connecting_may_take(run: Run[Any], folder: Path) -> None:
    async def main() -> None:
        connections = pool(at(folder), connect_s=0.1)
        with listen(folder):
            (await connections.open()).close()
        began = time.perf_counter()
        with pytest.raises(BadGateway):
            await connections.open()
        assert 0.09 < time.perf_counter() - began < 1

    run(main())


def test_those_that_wait_give_up_when_the_breaker_opens(
    run: Run[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tetrapylon.adapters.health.RESTART_S", 0.3)

    async def main() -> None:
        connections = pool(at(folder))
        with listen(folder):
            (await connections.open()).close()
        began = time.perf_counter()
        outcomes = await asyncio.gather(
            *(connections.open() for _ in range(40)), return_exceptions=True
        )
        assert 0.29 < time.perf_counter() - began < 1
        assert all(isinstance(outcome, BadGateway | Unavailable) for outcome in outcomes)
        assert any(isinstance(outcome, Unavailable) for outcome in outcomes)
        began = time.perf_counter()
        with pytest.raises(Unavailable):
            await connections.open()
        assert time.perf_counter() - began < 0.1

    run(main())


def test_a_process_without_descriptors_is_not_the_applications_fault(
    run: Run[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def exhausted(address: object, *, timeout_s: float) -> ByteStream:
        raise Exhausted("no descriptor left")

    async def main() -> None:
        connections = pool(at(folder))
        monkeypatch.setattr("tetrapylon.adapters.connections.connect", exhausted)
        for _ in range(10):
            with pytest.raises(Exhausted):
                await connections.open()
        monkeypatch.undo()
        (await connections.open()).close()

    with listen(folder):
        run(main())


def test_who_does_not_answer_is_avoided(
    run: Run[Any], folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tetrapylon.adapters.health.PROBE_S", 0.2)

    async def main() -> None:
        connections = pool(at(folder, "bad"), at(folder, "good"))
        for _ in range(10):
            stream = await connections.open()
            (connections.failed if peer(stream) == "bad" else connections.answered)(stream)
            stream.close()
        for _ in range(10):
            stream = await connections.open()
            assert peer(stream) == "good"
            stream.close()
        probes = []
        while not probes:
            stream = await connections.open()
            if peer(stream) == "bad":
                probes.append(stream)
            else:
                stream.close()
            await asyncio.sleep(0.01)
        connections.answered(probes[0])
        probes[0].close()
        streams = [await connections.open() for _ in range(4)]
        assert sorted(map(peer, streams)) == ["bad", "bad", "good", "good"]
        for stream in streams:
            stream.close()

    with listen(folder, "bad"), listen(folder, "good"):
        run(main())
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_the_only_address_is_never_avoided(run: Run[Any], folder: Path) -> None:
    """A script that crashes takes nothing from the others."""

    async def main() -> None:
        connections = pool(at(folder))
        for _ in range(20):
            stream = await connections.open()
            connections.failed(stream)
            stream.close()

    with listen(folder):
        run(main())


def test_the_last_that_can_be_connected_to_is_used(run: Run[Any], folder: Path) -> None:
    async def main() -> None:
        connections = pool(at(folder, "bad"), at(folder, "gone"))
        for _ in range(20):
            stream = await connections.open()
            assert peer(stream) == "bad"
            connections.failed(stream)
            stream.close()

    with listen(folder, "bad"):
        run(main())


def test_a_cancelled_attempt_is_not_counted(run: Run[Any], folder: Path) -> None:
    async def main() -> None:
        connections = pool(at(folder))
        with listen(folder):
            (await connections.open()).close()
        waiting = asyncio.create_task(connections.open())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [target.in_use for target in connections._targets] == [0]

    run(main())


# Addresses that come and go


def test_an_address_that_leaves_is_drained(run: Run[Any], folder: Path) -> None:
    async def main() -> None:
        old, new = at(folder, "old"), at(folder, "new")
        connections = pool(old)
        kept, first, second = [await connections.open() for _ in range(3)]
        connections.keep(kept)
        connections.addresses = (new,)
        assert kept.is_closed
        fresh = await connections.open()
        assert peer(fresh) == "new"
        drained = asyncio.create_task(connections.drained(old))
        first.close()
        await asyncio.sleep(0)
        assert not drained.done()
        connections.keep(second)
        assert second.is_closed, "its address is no longer asked"
        await drained
        await connections.drained(old)
        await connections.drained(at(folder, "unheard-of"))
        fresh.close()

    with listen(folder, "old"), listen(folder, "new"):
        run(main())


def test_an_address_that_comes_back_is_the_same(run: Run[Any], folder: Path) -> None:
    async def main() -> None:
        one, two = at(folder, "one"), at(folder, "two")
        connections = pool(one)
        stream = await connections.open()
        connections.addresses = (two,)
        connections.addresses = (one, two)
        other = await connections.open()
        assert peer(other) == "two", "one has one in use"
        connections.keep(stream)
        assert not stream.is_closed
        other.close()
        connections.close()

    with listen(folder, "one"), listen(folder, "two"):
        run(main())


# Names

LookedUp = dict[Address, list[Found] | OSError]


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> LookedUp:
    """What the resolver says, by name."""
    answers: LookedUp = {}

    async def look_up(address: Address) -> tuple[Found, ...]:
        await asyncio.sleep(0)
        answer = answers[address]
        if isinstance(answer, OSError):
            raise answer
        return tuple(answer)

    monkeypatch.setattr("tetrapylon.adapters.lookups.look_up", look_up)
    return answers


NAME = TcpAddress("app.test", 9000)


def test_a_name_is_looked_up_again(run: Run[Any], folder: Path, looked_up: LookedUp) -> None:
    async def main() -> None:
        looked_up[NAME] = [Found(at(folder, "a"))]
        connections = pool(NAME, resolve_s=0.02)
        stream = await connections.open()
        assert peer(stream) == "a"
        connections.keep(stream)
        looked_up[NAME] = [Found(at(folder, "b"))]
        while peer(fresh := await connections.open()) == "a":
            fresh.close()
            await asyncio.sleep(0.005)
        assert stream.is_closed, "it was kept, and its address has left"
        fresh.close()
        # Nobody asked for long: the answer is too old even for once more.
        await asyncio.sleep(0.05)
        looked_up[NAME] = [Found(at(folder, "a"))]
        fresh = await connections.open()
        assert peer(fresh) == "a"
        fresh.close()
        connections.close()

    with listen(folder, "a"), listen(folder, "b"):
        run(main())


def test_a_lookup_that_fails_leaves_the_last_answer(
    run: Run[Any], folder: Path, looked_up: LookedUp, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        looked_up[NAME] = [Found(at(folder, "a"))]
        connections = pool(NAME, resolve_s=0.01)
        (await connections.open()).close()
        looked_up[NAME] = OSError("no name server")
        for _ in range(10):
            await asyncio.sleep(0.01)
            (await connections.open()).close()
        connections.close()

    with listen(folder, "a"):
        run(main())
    assert len(caplog.records) == 1
    assert "no name server" in caplog.text


def test_an_unknown_name_is_502_and_not_asked_for_at_each_request(
    run: Run[Any], monkeypatch: pytest.MonkeyPatch
) -> None:  # F1
    asked = 0

    async def look_up(address: Address) -> tuple[Found, ...]:
        nonlocal asked
        asked += 1
        raise OSError("unknown name")

    monkeypatch.setattr("tetrapylon.adapters.lookups.look_up", look_up)

    async def main() -> None:
        connections = pool(NAME)
        for _ in range(10):
            with pytest.raises(BadGateway, match=r"app\.test:9000: unknown name"):
                await connections.open()
        assert asked == 1

    run(main())


def test_a_resolver_that_is_silent_is_waited_for_as_a_connection_is(
    run: Run[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_up(address: Address) -> tuple[Found, ...]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("tetrapylon.adapters.lookups.look_up", look_up)

    async def main() -> None:
        connections = pool(NAME, connect_s=0.05)
        with pytest.raises(BadGateway, match="not looked up in time"):
            await connections.open()
        connections.close()

    run(main())


def test_a_resolver_that_is_silent_keeps_nobody_from_what_is_known(
    run: Run[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = TcpAddress("other.test", 9000)

    async def look_up(address: Address) -> tuple[Found, ...]:
        if address == NAME:
            await asyncio.Event().wait()
        return (Found(at(folder, "b")),)

    monkeypatch.setattr("tetrapylon.adapters.lookups.look_up", look_up)

    async def main() -> None:
        for addresses in ((NAME, at(folder, "b")), (NAME, other)):
            connections = pool(*addresses, connect_s=10 * WITHIN_S)
            async with asyncio.timeout(WITHIN_S):
                (await connections.open()).close()
            connections.close()

    with listen(folder, "b"):
        run(main())


def test_an_outage_of_the_resolver_keeps_nobody_waiting(
    run: Run[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_out = asked = False

    async def look_up(address: Address) -> tuple[Found, ...]:
        nonlocal asked
        if is_out:
            asked = True
            # It fails, late, and then is silent.
            await asyncio.sleep(0.02)
            if connections._lookups[NAME].failure is not None:
                await asyncio.Event().wait()
            raise OSError("no name server")
        return (Found(at(folder, "a")),)

    monkeypatch.setattr("tetrapylon.adapters.lookups.look_up", look_up)
    monkeypatch.setattr("tetrapylon.adapters.lookups._RETRY_S", 0.01)
    connections = pool(NAME, connect_s=10 * WITHIN_S, resolve_s=0.05)

    async def main() -> None:
        nonlocal is_out
        (await connections.open()).close()
        is_out = True
        async with asyncio.timeout(WITHIN_S):
            for _ in range(30):
                await asyncio.sleep(0.01)
                (await connections.open()).close()
        assert asked
        connections.close()

    with listen(folder, "a"):
        run(main())


def test_a_name_is_looked_up_again_while_kept_connections_serve(
    run: Run[Any], folder: Path, looked_up: LookedUp
) -> None:
    async def main() -> None:
        looked_up[NAME] = [Found(at(folder, "a"))]
        connections = pool(NAME, resolve_s=0.01)
        stream: ByteStream | None = await connections.open()
        looked_up[NAME] = [Found(at(folder, "b"))]
        async with asyncio.timeout(WITHIN_S):
            while stream is not None:
                connections.keep(stream)
                await asyncio.sleep(0.005)
                stream = connections.take()
        stream = await connections.open()
        assert peer(stream) == "b"
        stream.close()
        connections.close()

    with listen(folder, "a"), listen(folder, "b"):
        run(main())


def test_names_and_numbers_side_by_side(run: Run[Any], folder: Path, looked_up: LookedUp) -> None:
    async def main() -> None:
        looked_up[NAME] = [Found(at(folder, "a")), Found(at(folder, "b"))]
        connections = pool(NAME, at(folder, "b"), at(folder, "c"))
        connections.refresh()
        await asyncio.gather(*(each.task for each in connections._lookups.values()))
        streams = [await connections.open() for _ in range(6)]
        assert sorted(map(peer, streams)) == [*"aabbcc"]
        for stream in streams:
            stream.close()
        connections.addresses = (at(folder, "c"),)
        stream = await connections.open()
        assert peer(stream) == "c"
        stream.close()

    with listen(folder, "a"), listen(folder, "b"), listen(folder, "c"):
        run(main())
