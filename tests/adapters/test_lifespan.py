from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from tetrapylon.adapters.lifespan import Lifespan, LifespanFailure

WAIT_S = 10.0
Notes = list[str]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await main()
        # Nothing is left running.
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())


def good(notes: Notes) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"  # ASGI-LS-TYPE
        assert scope["asgi"] == {"version": "3.0", "spec_version": "2.0"}
        assert scope["state"] == {}  # ASGI-LS-STATE
        assert await receive() == {"type": "lifespan.startup"}
        scope["state"]["pool"] = "the pool"
        notes.append("up")
        await send({"type": "lifespan.startup.complete"})
        assert await receive() == {"type": "lifespan.shutdown"}
        notes.append("down")
        await send({"type": "lifespan.shutdown.complete"})
        notes.append("through")

    return app


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_startup_and_shutdown(mode: Any, caplog: pytest.LogCaptureFixture) -> None:
    notes: Notes = []

    async def main() -> None:
        # ASGI-LS-STARTUP, ASGI-LS-COMPLETE, ASGI-LS-SHUTDOWN, ASGI-LS-SHUTDOWN-WAIT
        async with Lifespan(good(notes), mode=mode) as lifespan:
            assert notes == ["up"]
            assert lifespan.is_supported
            assert lifespan.state == {"pool": "the pool"}
        assert notes == ["up", "down", "through"]

    run(main)
    assert not caplog.records


def test_off_does_not_ask() -> None:
    async def main() -> None:
        notes: Notes = []
        async with Lifespan(good(notes), mode="off") as lifespan:
            assert not lifespan.is_supported
        assert notes == []

    run(main)


async def raises_at_once(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"


async def knows_http_only(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def returns_at_once(scope: Any, receive: Any, send: Any) -> None:
    pass


async def raises_at_startup(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    raise ConnectionError("no database")


@pytest.mark.parametrize("app", [raises_at_once, knows_http_only, returns_at_once])
def test_unsupported(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    # ASGI-LS-UNSUPPORTED
    caplog.set_level(logging.DEBUG, "tetrapylon")

    async def main() -> None:
        async with Lifespan(app) as lifespan:
            assert not lifespan.is_supported
        with pytest.raises(LifespanFailure, match="before its startup was complete"):
            async with Lifespan(app, mode="on"):
                raise AssertionError

    run(main)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_failure_that_may_be_a_startup_is_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Lifespan(raises_at_startup):
            pass
        with pytest.raises(LifespanFailure, match="ConnectionError: no database"):
            await Lifespan(raises_at_startup, mode="on").__aenter__()

    run(main)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "no database" in record.getMessage()


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize("raises", [False, True])
def test_startup_failed(mode: Any, raises: bool) -> None:
    # ASGI-LS-FAILED, G4
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        if raises:
            raise ConnectionError

    async def main() -> None:
        with pytest.raises(LifespanFailure, match="shop: no database"):
            async with Lifespan(app, mode=mode, name="shop"):
                raise AssertionError

    run(main)


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_application_that_exits(mode: Any) -> None:
    # Out of a task SystemExit would end the loop; here it is a failure to start.
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        sys.exit("no settings")

    async def main() -> None:
        with pytest.raises(LifespanFailure, match="no settings"):
            await Lifespan(app, mode=mode).__aenter__()

    run(main)


def test_startup_that_hangs() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.Event().wait()

    async def main() -> None:
        with pytest.raises(LifespanFailure, match=r"not complete after 0\.05 s"):
            await Lifespan(app, timeout_s=0.05).__aenter__()

    run(main)


def test_cancelled_startup_leaves_nothing_behind() -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            asked.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(Lifespan(app).__aenter__())
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


def test_shutdown_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.Event().wait()

    async def main() -> None:
        async with Lifespan(app, timeout_s=0.05):
            pass

    began = time.monotonic()
    run(main)
    assert time.monotonic() - began < WAIT_S / 2
    assert "shutdown was not complete" in caplog.text


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("lifespan.shutdown.failed", "shutdown failed: the disk is full"),
        ("raise", "at shutdown the application raised OSError"),
    ],
)
def test_shutdown_that_fails_is_logged(
    last: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    # ASGI-LS-SHUTDOWN-FAILED
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if last == "raise":
            raise OSError
        await send({"type": last, "message": "the disk is full"})

    async def main() -> None:
        async with Lifespan(app):
            pass

    run(main)
    assert expected in caplog.text


def test_application_that_lingers_after_shutdown_is_cancelled() -> None:
    cancelled: Notes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        try:
            await receive()  # there is no third message
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("cancelled")
            raise

    async def main() -> None:
        async with Lifespan(app):
            pass

    run(main)
    assert cancelled


def test_lifespan_that_ends_early(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise KeyError("later")

    async def main() -> None:
        async with Lifespan(app) as lifespan:
            assert lifespan.is_supported
            while not caplog.records:
                await asyncio.sleep(0)

    run(main)
    assert "ended early: it raised KeyError" in caplog.text


def test_messages_out_of_place_raise() -> None:
    # ASGI-UNKNOWN-EVENT
    refused: Notes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def refuse(kind: str) -> None:
            with pytest.raises(RuntimeError, match="no place"):
                await send({"type": kind})
            refused.append(kind)

        await receive()
        await refuse("lifespan.shutdown.complete")
        await refuse("lifespan.startup.finished")
        await send({"type": "lifespan.startup.complete"})
        await refuse("lifespan.startup.complete")
        await refuse("lifespan.startup.failed")
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        await refuse("lifespan.shutdown.complete")

    async def main() -> None:
        async with Lifespan(app, mode="on"):
            pass

    run(main)
    assert len(refused) == 5


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
def test_frameworks(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    notes: Notes = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, str]]:
        notes.append("up")
        yield {"pool": "the pool"}
        notes.append("down")

    @contextlib.asynccontextmanager
    async def failing(app: Any) -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    async def main() -> None:
        async with Lifespan(kind(lifespan=lifespan)) as entered:
            assert entered.state == {"pool": "the pool"}
        assert notes == ["up", "down"]
        with pytest.raises(LifespanFailure, match="ConnectionError: no database"):
            await Lifespan(kind(lifespan=failing)).__aenter__()

    run(main)
    assert not caplog.records
