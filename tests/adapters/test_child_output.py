"""What a child writes, by a stand-in for the child: pipes whose other ends are the test's."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tetrapylon.adapters import child_output
from tetrapylon.adapters.child_output import ChildOutput
from tetrapylon.adapters.errors import BadGateway, Unavailable
from tetrapylon.adapters.log_lines import LogLines
from tetrapylon.adapters.pipe_watcher import EpollWatcher, PipeWatcher, pipe_watcher
from tetrapylon.adapters.pipes import READ_BYTES, Drain

Runner = Callable[[Coroutine[Any, Any, None]], None]

WATCHERS = [PipeWatcher, *([EpollWatcher] if hasattr(__import__("select"), "epoll") else [])]


class Child:
    """A child that does what the test says."""

    pid = 0

    def __init__(self) -> None:
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.failure: Exception | None = None
        self.has_descendants = False
        self.stdout, self.out = os.pipe()
        self.stderr, self.err = os.pipe()
        os.set_blocking(self.stdout, False)
        os.set_blocking(self.stderr, False)

    def say(self, data: bytes) -> None:
        os.write(self.out, data)

    def close(self) -> None:
        """Let go of both pipes."""
        for fd in (self.out, self.err):
            os.close(fd)

    def exit(self, code: int = 0) -> None:
        self.close()
        self.exited.set_result(code)

    def when_exited(self, callback: Callable[[], object]) -> None:
        self.exited.add_done_callback(lambda _: callback())

    def end(self, after_s: float = 0.0, *, kill_after_s: float) -> None:
        raise AssertionError("that is the adapter's affair")


class Ground:
    """A watcher, and what the outputs of a test share."""

    def __init__(self, watcher: PipeWatcher) -> None:
        self.watcher = watcher
        self.logged: list[str] = []
        self.drains: set[Drain] = set()

    def output(self, child: Child, **options: Any) -> ChildOutput:
        return ChildOutput(
            child,
            self.watcher,
            log=lambda: LogLines(self.logged.append),
            drains=self.drains,
            **{"timeout_s": math.inf, "idle_s": math.inf, "is_brief": False, **options},
        )


@pytest.fixture(params=WATCHERS)
def ground(request: pytest.FixtureRequest, run: Any, first_loop: None) -> Any:
    """Run a test's coroutine with a `Ground`; no descriptor is left."""

    def on(main: Callable[[Ground], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            it = Ground(request.param())
            try:
                await main(it)
            finally:
                for drain in tuple(it.drains):
                    drain.close()
                it.watcher.close()

        before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
        run(whole())
        if before:
            assert len(os.listdir("/proc/self/fd")) <= before

    return on


async def until(condition: Callable[[], object], turns: int = 2000) -> None:
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError


@pytest.mark.parametrize("is_brief", [False, True])
def test_output_and_exit(ground: Any, is_brief: bool) -> None:
    async def main(it: Ground) -> None:
        child = Child()
        with it.output(child, is_brief=is_brief) as output:
            child.say(b"one ")
            os.write(child.err, b"a word\nand another")
            child.say(b"two")
            child.exit(3)
            data = await output.read()
            assert data == b"one two"
            assert await output.read() == b""
            assert await output.exit_code(5) == 3
        await until(lambda: it.logged == ["a word", "and another"])
        assert output.is_brief

    ground(main)


def test_pieces_come_as_they_are_written(ground: Any) -> None:
    async def main(it: Ground) -> None:
        child = Child()
        with it.output(child) as output:
            for piece in (b"1", b"2", b"3"):
                reading = asyncio.ensure_future(output.read())
                await asyncio.sleep(0)
                child.say(piece)
                assert await reading == piece
                assert output.read_now() is None
            child.exit()
            assert await output.read() == b""

    ground(main)


def test_a_brief_one_that_is_not(ground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left alone for a moment, then watched; the next time it is watched at once."""
    monkeypatch.setattr(child_output, "_BRIEF_S", 0.03)

    async def main(it: Ground) -> None:
        child = Child()
        with it.output(child, is_brief=True) as output:
            os.write(child.err, b"loud\n" * 1000)
            child.say(b"head")
            began = asyncio.get_running_loop().time()
            assert await output.read() == b"head"
            assert asyncio.get_running_loop().time() - began > 0.02
            await until(lambda: len(it.logged) == 1000)
            child.say(b"body")
            assert await output.read() == b"body"
            child.exit()
            assert await output.read() == b""
            assert await output.exit_code(5) == 0
        assert not output.is_brief

    ground(main)


def test_much_output_is_not_brief(ground: Any) -> None:
    async def main(it: Ground) -> None:
        child = Child()
        with it.output(child) as output:
            child.say(bytes(child_output._BRIEF_BYTES))
            child.exit()
            assert len(await output.read()) == child_output._BRIEF_BYTES
        assert not output.is_brief

    ground(main)


def test_who_has_descendants_is_not_brief(ground: Any) -> None:
    """They may write to stderr as long as they like."""

    async def main(it: Ground) -> None:
        child = Child()
        child.has_descendants = True
        with it.output(child) as output:
            child.say(b"out")
            assert await output.read() == b"out"
            child.exited.set_result(0)
            assert await output.exit_code(5) == 0
        assert not output.is_brief
        os.write(child.err, b"late\n")
        await until(lambda: it.logged == ["late"])
        child.close()
        await until(lambda: not it.drains)

    ground(main)


def test_descendants_do_not_hold_the_answer(ground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """E7: what the child itself has written is read, however late; then it is over."""
    monkeypatch.setattr(child_output, "_LINGER_S", 0.05)

    async def main(it: Ground) -> None:
        child = Child()
        child.has_descendants = True
        with it.output(child) as output:
            child.say(bytes(50_000))
            child.exited.set_result(0)
            await asyncio.sleep(0.1)
            child.say(b"more")
            assert len(await output.read()) >= 50_000
            assert await output.read() in (b"", b"more")
            assert await output.read() == b""
        child.close()

    ground(main)


def test_times(ground: Any) -> None:
    async def main(it: Ground) -> None:
        child = Child()
        with it.output(child, timeout_s=0.05) as output:
            with pytest.raises(TimeoutError, match="not done in time"):
                await output.read()
            output.postpone(10)
            child.say(b"there")
            assert await output.read() == b"there"
        child.close()
        child = Child()
        with it.output(child, idle_s=0.05) as output:
            child.say(b"there")
            assert await output.read() == b"there"
            with pytest.raises(TimeoutError, match=r"nothing for 0\.05 s"):
                await output.read()
        child.close()

    ground(main)


def test_an_exit_that_does_not_come(ground: Any) -> None:
    async def main(it: Ground) -> None:
        child = Child()
        with it.output(child) as output:
            child.close()
            assert await output.read() == b""
            assert await output.exit_code(0.03) is None

    ground(main)


@pytest.mark.parametrize("failure", [OSError(2, "no such file"), Unavailable("no helper"), None])
def test_a_child_that_never_ran(ground: Any, failure: Exception | None) -> None:
    async def main(it: Ground) -> None:
        child = Child()
        with it.output(child, is_brief=True) as output:
            child.close()
            child.failure = failure
            child.exited.cancel()
            assert await output.read() == b""
            with pytest.raises(type(failure) if failure is not None else BadGateway):
                await output.exit_code(5)

    ground(main)


def test_what_nobody_wants(ground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(it: Ground) -> None:
        child = Child()
        os.set_blocking(child.out, False)
        with it.output(child) as output:
            child.say(b"answer")
            assert await output.read() == b"answer"
            output.drain()
        monkeypatch.setattr(child_output, "_UNWANTED_S", 0.05)
        written = 0
        with pytest.raises(BrokenPipeError):
            for _ in range(10_000):
                try:
                    written += os.write(child.out, bytes(READ_BYTES))
                except BlockingIOError:
                    await asyncio.sleep(0.001)
        assert child_output._UNWANTED_BYTES <= written < 3 * child_output._UNWANTED_BYTES
        child.close()

        child = Child()
        with it.output(child) as output:
            output.drain()
        await until(lambda: len(it.drains) == 1)  # stderr's
        with pytest.raises(BrokenPipeError):
            child.say(b"x")
        child.close()

    ground(main)


def test_nobody_is_called_sooner_than_asked_for(run: Any) -> None:
    async def main() -> None:
        watcher = pipe_watcher()
        clock = watcher.loop.time
        called: list[tuple[int, float]] = []

        def ask(number: int) -> None:
            at = clock() + 0.03
            watcher.defer(0.03, lambda: called.append((number, clock() - at)))

        ask(1)
        await asyncio.sleep(0.02)
        ask(2)
        await until(lambda: len(called) == 1)
        ask(3)
        await until(lambda: len(called) == 3)
        assert [number for number, _ in called] == [1, 2, 3]
        # A loop's clock may be that of its turn's beginning.
        assert all(late_s > -0.005 for _, late_s in called)
        ask(4)
        watcher.close()
        await asyncio.sleep(0.05)
        assert len(called) == 3

    run(main())


def test_the_watcher_of_this_system(run: Any) -> None:
    async def main() -> None:
        watcher = pipe_watcher()
        assert type(watcher) is WATCHERS[-1]
        watcher.close()
        watcher.close()

    run(main())
