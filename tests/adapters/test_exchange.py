from __future__ import annotations

import asyncio
import io
import itertools
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.adapters import exchange as module
from tetrapylon.adapters.errors import (
    BadGateway,
    ClientDisconnected,
    ContentTooLarge,
    InsufficientStorage,
    LocalRedirect,
    Truncated,
)
from tetrapylon.adapters.exchange import (
    Departure,
    ResponseRelay,
    SpooledBody,
    TaskDeparture,
    spool_body,
)
from tetrapylon.protocols.asgi import GATEWAY_EXTENSION, Message, Receive

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def receiver(*parts: bytes, end: str = "complete") -> Receive:
    """Give the parts as the messages of a body; `end` is complete, disconnect or wait."""
    messages: list[Message] = [
        {"type": "http.request", "body": part, "more_body": True} for part in parts
    ]
    if end == "complete":
        messages = messages or [{"type": "http.request"}]
        messages[-1]["more_body"] = False
    elif end == "disconnect":
        messages.append({"type": "http.disconnect"})

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        assert end == "wait", "receive() called after the end of the body"
        return await asyncio.get_running_loop().create_future()

    return receive


async def read(body: SpooledBody, size_bytes: int = 65536) -> bytes:
    chunks = [chunk async for chunk in body.chunks(size_bytes)]
    assert all(0 < len(chunk) <= size_bytes for chunk in chunks)
    return b"".join(chunks)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[io.FileIO]:
    """Every temporary file that was made."""
    made: list[io.FileIO] = []
    real = tempfile.TemporaryFile

    def make(**options: Any) -> io.FileIO:
        file: io.FileIO = real(**options)
        made.append(file)
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", make)
    return made


class TestSpool:
    @pytest.mark.parametrize(
        "parts", [(), (b"",), (b"hello",), (b"he", b"", b"llo"), (b"a" * 65536,)]
    )
    async def test_small_stays_in_memory(
        self, parts: tuple[bytes, ...], files: list[io.FileIO]
    ) -> None:
        async with await spool_body(receiver(*parts)) as body:
            assert body.data == b"".join(parts)
            assert body.length == len(body.data)
            assert body.file is None
            assert await read(body) == body.data
            assert await read(body, 2 if len(parts) > 1 else 40000) == body.data
        assert not files

    async def test_one_message_is_not_copied(self) -> None:
        data = bytes(1000)
        assert (await spool_body(receiver(data))).data is data

    async def test_missing_keys_have_defaults(self) -> None:
        async def receive() -> Message:
            return {"type": "http.request"}

        assert (await spool_body(receive)).length == 0

    @pytest.mark.parametrize(
        "parts",
        [
            (b"a" * 65537,),
            (b"a" * 65536, b"b"),
            tuple(bytes([i]) * 50000 for i in range(20)),
            (b"x" * 1_000_003, b"", b"y" * 3),
        ],
        ids=["one", "just over", "many", "large"],
    )
    async def test_large_goes_to_a_file(self, parts: tuple[bytes, ...]) -> None:
        whole = b"".join(parts)
        async with await spool_body(receiver(*parts)) as body:
            assert body.length == len(whole)
            assert body.data == b""
            assert body.file is not None
            status = os.fstat(body.file.fileno())
            assert status.st_nlink == 0  # no name
            assert status.st_mode & 0o777 == 0o600
            assert status.st_size == len(whole)
            for size in (65535, 65536, 1000, 2_000_000):
                assert await read(body, size) == whole
            # At its start all the while, as a child or wsgi.input needs it.
            assert body.file.tell() == 0
            assert os.lseek(body.file.fileno(), 0, os.SEEK_CUR) == 0
            assert body.file.read() == whole
        assert body.file.closed

    async def test_closed_by_with_and_twice(self) -> None:
        with await spool_body(receiver(b"abc"), memory_bytes=1) as body:
            assert body.file is not None
            assert body.file.readline() == b"abc"
        assert body.file.closed
        body.close()
        await body.aclose()

    async def test_closed_even_when_cancelled(self) -> None:
        body = await spool_body(receiver(b"abc"), memory_bytes=1)
        with anyio.CancelScope() as cancel_scope:
            async with body:
                cancel_scope.cancel()
                await anyio.sleep_forever()
        assert body.file is not None
        assert body.file.closed

    async def test_no_file_is_touched_on_the_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        threads = set()

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                threads.add(threading.get_ident())
                # As a file may: less than asked for.
                return super().write(memoryview(data)[:1000])

            def close(self) -> None:
                threads.add(threading.get_ident())
                super().close()

        def make(**options: Any) -> io.FileIO:
            threads.add(threading.get_ident())
            return File(os.memfd_create("spool"), "w+b")

        monkeypatch.setattr(tempfile, "TemporaryFile", make)
        whole = os.urandom(10_000)
        parts = [whole[i : i + 700] for i in range(0, len(whole), 700)]
        async with await spool_body(receiver(*parts), memory_bytes=1000) as body:
            assert await read(body, 999) == whole
        assert threads
        assert threading.get_ident() not in threads

    async def test_writes_come_in_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = []
        write = module._SpoolFile._write

        def counted(self: Any, chunks: list[bytes], is_last: bool) -> None:
            sizes.append(sum(map(len, chunks)))
            write(self, chunks, is_last)

        monkeypatch.setattr(module._SpoolFile, "_write", counted)
        parts = [bytes(100)] * 100
        async with await spool_body(receiver(*parts), memory_bytes=1000) as body:
            assert body.length == 10_000
        assert len(sizes) <= 11
        assert max(sizes) <= 1100

    @pytest.mark.parametrize("parts", [(), (b"a",), (b"a" * 70000,), (b"a" * 70000, b"b")])
    async def test_client_leaves_before_the_end(
        self, parts: tuple[bytes, ...], files: list[io.FileIO]
    ) -> None:
        with pytest.raises(ClientDisconnected):
            await spool_body(receiver(*parts, end="disconnect"))
        assert all(file.closed for file in files)
        assert len(files) == (len(b"".join(parts)) > 65536)

    @pytest.mark.parametrize("memory_bytes", [1, 1000])
    async def test_limit(self, memory_bytes: int, files: list[io.FileIO]) -> None:  # B3
        for parts in ((b"a" * 10,), (b"a" * 5, b"b" * 5), (b"a",) * 10):
            receive = receiver(*parts)
            async with await spool_body(receive, memory_bytes=memory_bytes, limit_bytes=10) as body:
                assert body.length == 10
            receive = receiver(*parts, b"b", end="wait")
            with pytest.raises(ContentTooLarge):
                await spool_body(receive, memory_bytes=memory_bytes, limit_bytes=10)
        assert all(file.closed for file in files)

    async def test_disk_full(self, monkeypatch: pytest.MonkeyPatch) -> None:  # S9
        files = []

        def make(**options: Any) -> io.FileIO:
            files.append(io.FileIO("/dev/full", "r+b"))
            return files[-1]

        monkeypatch.setattr(tempfile, "TemporaryFile", make)
        with pytest.raises(InsufficientStorage, match="No space left"):
            await spool_body(receiver(b"a" * 100, b"b"), memory_bytes=10)
        with pytest.raises(InsufficientStorage):
            await spool_body(receiver(b"a" * 11), memory_bytes=10)
        assert len(files) == 2
        assert all(file.closed for file in files)

    async def test_directory_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:  # S9
        monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
        with pytest.raises(InsufficientStorage, match="nonexistent"):
            await spool_body(receiver(b"a" * 100), memory_bytes=10)
        assert (await spool_body(receiver(b"a" * 10), memory_bytes=10)).length == 10

    async def test_errors_of_receive_are_its_own(self, files: list[io.FileIO]) -> None:
        messages: list[Message] = [{"type": "http.request", "body": b"abc", "more_body": True}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            raise OSError("the server's own")

        with pytest.raises(OSError, match="the server's own"):
            await spool_body(receive, memory_bytes=1)
        assert [file.closed for file in files] == [True]

    async def test_cancelled_while_waiting(self, files: list[io.FileIO]) -> None:
        with anyio.move_on_after(0.05) as cancel_scope:
            await spool_body(receiver(b"abc", end="wait"), memory_bytes=1)
        assert cancel_scope.cancelled_caught
        assert [file.closed for file in files] == [True]

    @pytest.mark.parametrize("fails", [False, True])
    @pytest.mark.parametrize("held", [b"abc", b"d"], ids=["a part", "the last part"])
    async def test_task_cancelled_while_a_thread_writes(
        self, held: bytes, fails: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = asyncio.get_running_loop()
        writing, closed = asyncio.Event(), asyncio.Event()
        go_on = threading.Event()
        events: list[str] = []

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                if data == held:
                    loop.call_soon_threadsafe(writing.set)
                    assert go_on.wait(10)
                    events.append("written")
                    if fails:
                        raise OSError("disk full")
                return super().write(data)

            def close(self) -> None:
                if not self.closed:
                    events.append("closed")
                    loop.call_soon_threadsafe(closed.set)
                super().close()

        def make(**options: Any) -> io.FileIO:
            return File(os.memfd_create("spool"), "w+b")

        monkeypatch.setattr(tempfile, "TemporaryFile", make)
        task = asyncio.create_task(spool_body(receiver(b"abc", b"d"), memory_bytes=2))
        await writing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # Not under the write: its descriptor might be another's by then.
        assert events == []
        go_on.set()
        await asyncio.wait_for(closed.wait(), 10)
        assert events == ["written", "closed"]

    @settings(max_examples=25, deadline=None)
    @given(
        parts=st.lists(st.binary(max_size=40), max_size=8),
        memory_bytes=st.integers(0, 100),
        size_bytes=st.integers(1, 50),
    )
    def test_what_goes_in_comes_out(
        self, parts: list[bytes], memory_bytes: int, size_bytes: int
    ) -> None:
        async def run() -> None:
            async with await spool_body(receiver(*parts), memory_bytes=memory_bytes) as body:
                assert await read(body, size_bytes) == b"".join(parts)
                assert (body.file is not None) == (body.length > memory_bytes)

        asyncio.run(run())


class FakeExchange:
    """The connection driver's side of the extension."""

    def __init__(self) -> None:
        self.is_departed = False
        self.on_departure: Callable[[], None] | None = None

    def leave(self) -> None:
        self.is_departed = True
        if self.on_departure is not None:
            self.on_departure()


class Client:
    """A client that can leave, under our gateway or another server."""

    def __init__(self, server: str) -> None:
        self.exchange = FakeExchange() if server == "gateway" else None
        self.scope: dict[str, Any] = {"type": "http"}
        if self.exchange is not None:
            self.scope["extensions"] = {GATEWAY_EXTENSION: self.exchange}
        self._has_left = asyncio.Event()
        self.receiving = 0

    async def receive(self) -> Message:
        assert self.exchange is None, "under the gateway a disconnect may be a half-close"
        self.receiving += 1
        try:
            await self._has_left.wait()
        finally:
            self.receiving -= 1
        return {"type": "http.disconnect"}

    def leave(self) -> None:
        if self.exchange is not None:
            self.exchange.leave()
        else:
            self._has_left.set()

    def departure(self) -> Departure:
        return Departure(self.scope, self.receive)

    def assert_let_go(self) -> None:
        assert self.receiving == 0
        assert self.exchange is None or self.exchange.on_departure is None


@pytest.fixture(params=["gateway", "other server"])
async def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.param)


class TestDeparture:
    @pytest.fixture(autouse=True)
    async def nothing_is_left(self, client: Client) -> Any:
        yield
        client.assert_let_go()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    async def test_block_runs_through(self, client: Client) -> None:
        async with client.departure():
            await anyio.sleep(0)
        client.assert_let_go()
        client.leave()
        await anyio.sleep(0)

    async def test_leaving_ends_the_block(self, client: Client) -> None:
        cleaned_up = False
        with pytest.raises(ClientDisconnected):
            async with client.departure():
                asyncio.get_running_loop().call_soon(client.leave)
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(0.01)
                        cleaned_up = True
        assert cleaned_up
        await anyio.sleep(0)
        await asyncio.sleep(0.001)

    async def test_leaving_ends_plain_asyncio_waits(self, client: Client) -> None:
        with pytest.raises(ClientDisconnected):
            async with client.departure():
                asyncio.get_running_loop().call_soon(client.leave)
                await asyncio.Event().wait()

    async def test_leaving_ends_the_tasks_of_the_block(self, client: Client) -> None:
        ended = []

        async def work() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(1)

        with pytest.raises(ClientDisconnected):
            async with client.departure(), anyio.create_task_group() as group:
                group.start_soon(work)
                group.start_soon(work)
                asyncio.get_running_loop().call_soon(client.leave)
        assert len(ended) == 2

    async def test_leaving_when_the_block_is_through_changes_nothing(self, client: Client) -> None:
        async with client.departure():
            client.leave()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)

    @pytest.mark.parametrize("error", [BadGateway("x"), OSError("x"), KeyError("x"), SystemExit()])
    async def test_errors_of_the_block_are_themselves(
        self, client: Client, error: BaseException
    ) -> None:
        with pytest.raises(type(error)) as raised:
            async with client.departure():
                await anyio.sleep(0)
                raise error
        assert raised.value is error

    async def test_groups_of_errors_are_themselves(self, client: Client) -> None:
        group = ExceptionGroup("mine", [BadGateway("x"), OSError("y")])
        with pytest.raises(ExceptionGroup) as raised:
            async with client.departure():
                raise group
        assert raised.value is group

    async def test_failing_send_after_leaving(self, client: Client) -> None:
        async def send() -> None:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            raise BrokenPipeError

        with pytest.raises(ClientDisconnected) as raised:
            async with client.departure():
                client.leave()
                await send()
        assert isinstance(raised.value.__cause__, BrokenPipeError)

    async def test_failing_send_in_a_task_after_leaving(self, client: Client) -> None:
        async def send() -> None:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            raise BrokenPipeError

        with pytest.raises(ClientDisconnected):
            async with client.departure(), anyio.create_task_group() as group:
                group.start_soon(send)
                client.leave()

    async def test_another_error_after_leaving_is_itself(self, client: Client) -> None:
        with pytest.raises(BadGateway):
            async with client.departure():
                client.leave()
                try:
                    await anyio.sleep_forever()
                finally:
                    raise BadGateway("of the cleanup")

    @pytest.mark.parametrize("has_left", [False, True])
    async def test_task_cancelled_from_outside(self, client: Client, has_left: bool) -> None:
        started = asyncio.Event()
        outcome: list[object] = []

        async def work() -> None:
            try:
                async with client.departure():
                    started.set()
                    await anyio.sleep_forever()
            except BaseException as error:
                outcome.append(type(error))
                raise

        task = asyncio.create_task(work())
        await started.wait()
        await anyio.sleep(0)
        if has_left:
            # In one turn of the loop asyncio makes one CancelledError of the two.
            client.leave()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert outcome == [asyncio.CancelledError]
        assert task.cancelled()
        client.assert_let_go()

    async def test_task_cancelled_during_the_cleanup_after_leaving(self, client: Client) -> None:
        cleaning = asyncio.Event()

        async def work() -> None:
            async with client.departure():
                try:
                    await anyio.sleep_forever()
                finally:
                    cleaning.set()
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep_forever()

        task = asyncio.create_task(work())
        await anyio.wait_all_tasks_blocked()
        client.leave()
        await cleaning.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_outer_scope_cancelled(self, client: Client) -> None:
        with anyio.CancelScope() as outer:
            async with client.departure():
                asyncio.get_running_loop().call_soon(outer.cancel)
                await anyio.sleep_forever()
        assert outer.cancelled_caught

    async def test_outer_scope_cancelled_and_client_left(self, client: Client) -> None:
        with anyio.CancelScope() as outer:
            async with client.departure():
                client.leave()
                outer.cancel()
                await anyio.sleep_forever()
        assert outer.cancelled_caught

    async def test_deadline_outside(self, client: Client) -> None:
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.02):
                async with client.departure():
                    await anyio.sleep_forever()

    async def test_deadline_inside(self, client: Client) -> None:
        async with client.departure():
            with pytest.raises(TimeoutError):
                with anyio.fail_after(0.02):
                    await anyio.sleep_forever()
            with anyio.move_on_after(0.02) as inner:
                await anyio.sleep_forever()
            assert inner.cancelled_caught
            await anyio.sleep(0)

    async def test_deadline_inside_is_not_what_ended_the_block(self, client: Client) -> None:
        with pytest.raises(ClientDisconnected):
            async with client.departure():
                with anyio.fail_after(10):
                    asyncio.get_running_loop().call_soon(client.leave)
                    await anyio.sleep_forever()

    async def test_asyncio_deadlines(self, client: Client) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), client.departure():
                await asyncio.sleep(10)
        async with client.departure():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await asyncio.sleep(10)
            await asyncio.sleep(0)
        with pytest.raises(ClientDisconnected):
            async with client.departure(), asyncio.timeout(10):
                asyncio.get_running_loop().call_soon(client.leave)
                await asyncio.sleep(10)

    async def test_one_after_the_other(self, client: Client) -> None:
        for _ in range(3):
            async with client.departure():
                await anyio.sleep(0)
        with pytest.raises(ClientDisconnected):
            async with client.departure():
                client.leave()
                await anyio.sleep_forever()


class TestTaskDeparture:
    """What of the above holds where nothing is shielded."""

    @pytest.fixture(autouse=True)
    async def nothing_is_left(self, client: Client) -> Any:
        yield
        client.assert_let_go()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    def departure(self, client: Client) -> TaskDeparture:
        return TaskDeparture(client.scope, client.receive)

    async def test_block_runs_through(self, client: Client) -> None:
        async with self.departure(client):
            await anyio.sleep(0)
        client.assert_let_go()
        client.leave()
        await anyio.sleep(0)

    async def test_leaving_ends_the_block(self, client: Client) -> None:
        cleaned_up = False
        with pytest.raises(ClientDisconnected):
            async with self.departure(client):
                asyncio.get_running_loop().call_soon(client.leave)
                try:
                    await asyncio.Event().wait()
                finally:
                    cleaned_up = True
        assert cleaned_up
        await asyncio.sleep(0.001)

    async def test_leaving_in_the_last_moment(self, client: Client) -> None:
        """What waits is done, and the task is to run: it hears of the departure all the same."""
        done = asyncio.get_running_loop().create_future()
        with pytest.raises(ClientDisconnected):
            async with self.departure(client):
                asyncio.get_running_loop().call_soon(done.set_result, None)
                asyncio.get_running_loop().call_soon(client.leave)
                await done
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        await asyncio.sleep(0.001)

    async def test_leaving_when_the_block_is_through_changes_nothing(self, client: Client) -> None:
        async with self.departure(client):
            client.leave()
        for _ in range(3):
            await asyncio.sleep(0)

    async def test_leaving_by_what_the_block_does(self, client: Client) -> None:
        with pytest.raises(ClientDisconnected):
            async with self.departure(client):
                client.leave()
                await asyncio.Event().wait()
        await asyncio.sleep(0)

    async def test_failing_send_after_leaving(self, client: Client) -> None:
        with pytest.raises(ClientDisconnected):
            async with self.departure(client):
                client.leave()
                if client.exchange is None:
                    await asyncio.Event().wait()
                raise BrokenPipeError

    async def test_another_error_after_leaving_is_itself(self, client: Client) -> None:
        with pytest.raises(BadGateway):
            async with self.departure(client):
                client.leave()
                try:
                    await asyncio.Event().wait()
                finally:
                    raise BadGateway("of the cleanup")

    @pytest.mark.parametrize("error", [BadGateway("x"), OSError("x"), KeyError("x")])
    async def test_errors_of_the_block_are_themselves(
        self, client: Client, error: BaseException
    ) -> None:
        with pytest.raises(type(error)) as raised:
            async with self.departure(client):
                await asyncio.sleep(0)
                raise error
        assert raised.value is error

    @pytest.mark.parametrize("has_left", [False, True])
    async def test_task_cancelled_from_outside(self, client: Client, has_left: bool) -> None:
        started = asyncio.Event()

        async def work() -> None:
            async with self.departure(client):
                started.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await started.wait()
        await asyncio.sleep(0)
        if has_left:
            client.leave()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    async def test_deadlines(self, client: Client) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), self.departure(client):
                await asyncio.sleep(10)
        async with self.departure(client):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await asyncio.sleep(10)
        with pytest.raises(ClientDisconnected):
            async with self.departure(client), asyncio.timeout(10):
                asyncio.get_running_loop().call_soon(client.leave)
                await asyncio.sleep(10)

    async def test_left_before_the_block(self, client: Client) -> None:
        client.leave()
        with pytest.raises(ClientDisconnected):
            async with self.departure(client):
                await asyncio.Event().wait()


class TestDepartureUnderTheGateway:
    async def test_left_before_the_block(self) -> None:
        client = Client("gateway")
        client.leave()
        with pytest.raises(ClientDisconnected):
            async with client.departure():
                pytest.fail("there is nobody to work for")
        client.assert_let_go()

    async def test_no_task_is_made(self) -> None:
        client = Client("gateway")
        tasks = asyncio.all_tasks()
        async with client.departure():
            await anyio.sleep(0)
            assert asyncio.all_tasks() == tasks


class TestDepartureUnderOtherServers:
    async def test_what_is_not_a_disconnect_is_passed_over(self) -> None:
        messages: list[Message] = [
            {"type": "http.request", "body": b""},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Message:
            await anyio.sleep(0)
            return messages.pop(0)

        with pytest.raises(ClientDisconnected):
            async with Departure({"type": "http", "extensions": {}}, receive):
                await anyio.sleep_forever()
        assert not messages

    async def test_failing_receive(self) -> None:
        error = RuntimeError("no more messages")

        async def receive() -> Message:
            raise error

        with pytest.raises(RuntimeError) as raised:
            async with Departure({"type": "http", "extensions": None}, receive):
                await anyio.sleep_forever()
        assert raised.value is error


class Sent(list[Message]):
    """Collects the messages; fails from the one of number `fails_at` on."""

    fails_at = 1000

    async def send(self, message: Message) -> None:
        if len(self) >= self.fails_at:
            raise BrokenPipeError
        self.append(message)

    def start(self) -> Message:
        assert self[0]["type"] == "http.response.start"
        return self[0]

    def body(self) -> bytes:
        assert {message["type"] for message in self[1:]} == {"http.response.body"}
        assert [message["more_body"] for message in self[1:-1]] == [True] * (len(self) - 2)
        return b"".join(message["body"] for message in self[1:])

    def is_complete(self) -> bool:
        return len(self) > 1 and self[-1]["more_body"] is False


async def relay_of(
    outputs: Iterable[bytes], *, method: str = "GET", ends: bool = True
) -> tuple[Sent, ResponseRelay]:
    sent = Sent()
    relay = ResponseRelay(sent.send, method=method)
    for output in outputs:
        await relay.feed(output)
    if ends:
        await relay.end()
    return sent, relay


HEAD = b"Status: 201 Created\nContent-Type: text/plain\nSet-Cookie: a\nSet-Cookie: b\n\n"
FIELDS = [(b"content-type", b"text/plain"), (b"set-cookie", b"a"), (b"set-cookie", b"b")]


class TestRelay:
    async def test_streams(self) -> None:
        sent, relay = await relay_of([HEAD[:10]], ends=False)
        assert sent == []
        assert not relay.is_started
        await relay.feed(HEAD[10:] + b"one")
        assert sent == [
            {"type": "http.response.start", "status": 201, "headers": FIELDS},
            {"type": "http.response.body", "body": b"one", "more_body": True},
        ]
        assert relay.is_started
        await relay.feed(b"two")
        assert sent[2:] == [{"type": "http.response.body", "body": b"two", "more_body": True}]
        assert not relay.is_complete
        await relay.end()
        assert sent[3:] == [{"type": "http.response.body", "body": b"", "more_body": False}]
        assert relay.is_complete
        await relay.end()
        assert len(sent) == 4

    async def test_head_alone_is_sent_at_once(self) -> None:
        sent, relay = await relay_of([HEAD], ends=False)
        assert sent == [
            {"type": "http.response.start", "status": 201, "headers": FIELDS},
            {"type": "http.response.body", "body": b"", "more_body": True},
        ]
        assert relay.is_started

    async def test_whole_response_gets_its_length(self) -> None:
        sent = Sent()
        await ResponseRelay(sent.send, method="GET").feed(HEAD + b"hello", is_last=True)
        assert sent == [
            {
                "type": "http.response.start",
                "status": 201,
                "headers": [*FIELDS, (b"content-length", b"5")],
            },
            {"type": "http.response.body", "body": b"hello", "more_body": False},
        ]

    @pytest.mark.parametrize(
        ("method", "output"),
        [
            ("HEAD", b"Content-Type: a/b\n\nhello"),
            ("GET", b"Status: 304\n\nhello"),
            ("GET", b"Status: 204\n\nhello"),
        ],
    )
    async def test_no_length_where_no_body_may_be(self, method: str, output: bytes) -> None:
        for outputs in ([output], [output[i : i + 1] for i in range(len(output))]):
            sent, _ = await relay_of(outputs, method=method)
            assert sent.body() == b""
            assert sent.is_complete()
            assert b"content-length" not in dict(sent.start()["headers"])
        sent = Sent()
        await ResponseRelay(sent.send, method=method).feed(output, is_last=True)
        assert sent.is_complete()
        assert b"content-length" not in dict(sent.start()["headers"])

    async def test_ends_with_the_content_length(self) -> None:  # E8
        output = b"Content-Type: a/b\nContent-Length: 5\n\nhello and more"
        sent, relay = await relay_of([output], ends=False)
        assert sent[1:] == [{"type": "http.response.body", "body": b"hello", "more_body": False}]
        assert relay.is_complete
        await relay.feed(b"and more")
        await relay.end()
        assert len(sent) == 2
        assert dict(sent.start()["headers"])[b"content-length"] == b"5"

    @pytest.mark.parametrize(
        "output", [b"", b"nonsense", b"no: type\n\n", b"Status: 99999\n\n", b"Status: 200\n"]
    )
    async def test_not_a_response(self, output: bytes) -> None:  # E2, E3
        sent = Sent()
        relay = ResponseRelay(sent.send, method="GET")
        with pytest.raises(BadGateway):
            await relay.feed(output)
            await relay.end()
        assert sent == []
        assert not relay.is_started

    async def test_head_limit(self) -> None:  # E3
        sent = Sent()
        relay = ResponseRelay(sent.send, method="GET", head_limit_bytes=100)
        with pytest.raises(BadGateway, match="larger than 100 bytes"):
            await relay.feed(b"Content-Type: a/b\nX: " + b"a" * 100)
        relay = ResponseRelay(sent.send, method="GET")
        await relay.feed(b"Content-Type: a/b\nX: " + b"a" * 60000 + b"\n\n")
        relay = ResponseRelay(sent.send, method="GET")
        with pytest.raises(BadGateway):
            await relay.feed(b"Content-Type: a/b\nX: " + b"a" * 70000 + b"\n\n")

    async def test_too_short(self) -> None:  # E8
        output = b"Content-Type: a/b\nContent-Length: 6\n\nhello"
        sent, relay = await relay_of([output], ends=False)
        with pytest.raises(Truncated, match="1 bytes before"):
            await relay.end()
        assert sent.body() == b"hello"
        assert not sent.is_complete()
        # Nothing was sent yet: then the client gets a proper answer.
        sent = Sent()
        with pytest.raises(BadGateway):
            await ResponseRelay(sent.send, method="GET").feed(output, is_last=True)
        assert sent == []

    async def test_local_redirect_waits_for_the_end(self) -> None:  # CGI-6.2.2
        sent, relay = await relay_of([b"Location: /x?y\n", b"\n", b"dropped"], ends=False)
        assert not relay.is_started
        with pytest.raises(LocalRedirect) as raised:
            await relay.end()
        assert raised.value.target == b"/x?y"
        assert sent == []
        with pytest.raises(LocalRedirect):
            await ResponseRelay(sent.send, method="GET").feed(b"Location: /\n\n", is_last=True)

    @pytest.mark.parametrize("fails_at", [0, 1, 2])
    async def test_failing_send_is_not_the_scripts_fault(self, fails_at: int) -> None:
        sent = Sent()
        sent.fails_at = fails_at
        relay = ResponseRelay(sent.send, method="GET")
        with pytest.raises(BrokenPipeError):
            await relay.feed(HEAD + b"a")
            await relay.feed(b"b")
        # A head that the server refuses leaves room for another answer (D6).
        assert relay.is_started == (fails_at > 0)

    @settings(max_examples=40, deadline=None)
    @given(
        body=st.binary(max_size=30),
        has_length=st.booleans(),
        cuts=st.lists(st.integers(0, 120), max_size=5),
    )
    def test_any_cut_sends_the_same(self, body: bytes, has_length: bool, cuts: list[int]) -> None:
        head = b"Content-Type: a/b\n"
        if has_length:
            head += b"Content-Length: %d\n" % len(body)
        output = head + b"\n" + body
        places = sorted({0, len(output), *(cut % (len(output) + 1) for cut in cuts)})
        outputs = [output[a:b] for a, b in itertools.pairwise(places)]
        sent, relay = asyncio.run(relay_of(outputs))
        assert sent.body() == body
        assert sent.is_complete()
        assert relay.is_complete
        assert sent.start()["status"] == 200
