"""The ASGI application under test: echoes, and misbehaves on demand.

The last segments of the path say what it does. Whatever calls it, and whatever
of a body it was given as complete, is written down (`record`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

RECORD = os.environ.get("RELIABILITY_RECORD", os.devnull)
# What the loop did between two ticks is what others had to wait for.
_TICK_S = 0.002
# One for all: what the application holds itself is not the gateway's.
BLOCK = bytes(65536)


def record(**what: Any) -> None:
    fd = os.open(RECORD, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, json.dumps(what).encode() + b"\n")
    finally:
        os.close(fd)


class Clock:
    """The longest pause of the loop since the last look, on the wall."""

    worst_s = 0.0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(_TICK_S)
            self.worst_s = max(self.worst_s, loop.time() - before - _TICK_S)

    def take(self) -> float:
        worst, self.worst_s = self.worst_s, 0.0
        return worst


clock = Clock()
# For `--self-test`: what the closing conditions of every check are there to find.
leak = os.environ.get("RELIABILITY_LEAK", "")
leaked: list[Any] = []


def leak_something() -> None:
    if leak == "descriptors":
        leaked.extend(open(os.devnull) for _ in range(10))  # noqa: SIM115
    elif leak == "file":
        leaked.append(tempfile.mkstemp())
    elif leak == "zombie":
        leaked.append(subprocess.Popen(["/bin/true"]))
    elif leak == "death":
        os._exit(1)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    below = scope["path"].removeprefix(scope["root_path"])
    word, _, argument = below.lstrip("/").partition("/")
    action = ACTIONS.get(word, echo)
    if action is not ok:
        record(app="asgi", event="call", path=scope["path"], root_path=scope["root_path"])
    await action(scope, receive, send, argument)


async def live(receive: Any, send: Any) -> None:
    if os.environ.get("RELIABILITY_STARTUP_FAILS"):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the database is not there"})
        return
    task = asyncio.create_task(clock.run())
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            task.cancel()
            return


async def answer(
    send: Any, body: bytes, status: int = 200, headers: Any = None, *, more: bool = False
) -> None:
    if headers is None:
        headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def read(receive: Any) -> tuple[int, str, bool]:
    """Read the body; return its length, its digest, and whether it was complete."""
    length, digest = 0, hashlib.sha256()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return length, digest.hexdigest(), False
        length += len(message["body"])
        digest.update(message["body"])
        if not message["more_body"]:
            return length, digest.hexdigest(), True


async def ok(scope: Any, receive: Any, send: Any, argument: str) -> None:
    await answer(send, b"ok")


async def echo(scope: Any, receive: Any, send: Any, argument: str) -> None:
    length, digest, is_complete = await read(receive)
    if leak:
        leak_something()
    if is_complete:
        record(app="asgi", event="body", path=scope["path"], length=length)
    said = {
        "method": scope["method"],
        "path": scope["path"],
        "root_path": scope["root_path"],
        "scheme": scope["scheme"],
        "client": scope["client"],
        "query": scope["query_string"].decode("latin-1"),
        "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in scope["headers"]],
        "body_length": length,
        "body_sha256": digest,
    }
    await answer(send, json.dumps(said).encode())


async def lag(scope: Any, receive: Any, send: Any, argument: str) -> None:
    await answer(send, json.dumps({"lag_ms": clock.take() * 1000}).encode())


async def sleep(scope: Any, receive: Any, send: Any, argument: str) -> None:
    await asyncio.sleep(float(argument))
    await answer(send, b"slept")


async def block(scope: Any, receive: Any, send: Any, argument: str) -> None:
    time.sleep(float(argument))
    await answer(send, b"blocked")


async def unread(scope: Any, receive: Any, send: Any, argument: str) -> None:
    await answer(send, b"not read")


async def deaf(scope: Any, receive: Any, send: Any, argument: str) -> None:
    """Answer after a while and never ask for the body."""
    await asyncio.sleep(float(argument))
    await answer(send, b"deaf")


async def mute(scope: Any, receive: Any, send: Any, argument: str) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        record(app="asgi", event="cancelled")
        raise


async def stream(scope: Any, receive: Any, send: Any, argument: str) -> None:
    """Send blocks for ever, or as many bytes as the argument says."""
    left = int(argument) if argument else sys.maxsize
    await send({"type": "http.response.start", "status": 200, "headers": []})
    try:
        while left > 0:
            await send({"type": "http.response.body", "body": BLOCK[:left], "more_body": True})
            left -= len(BLOCK)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except OSError:
        record(app="asgi", event="stream-ended")
        raise


async def after_disconnect(scope: Any, receive: Any, send: Any, argument: str) -> None:
    """Wait for the client to leave, then send all the same."""
    await read(receive)
    while (await receive())["type"] != "http.disconnect":
        pass
    await asyncio.sleep(0.2)
    seen = []
    for _ in range(2):
        try:
            await answer(send, b"too late")
            seen.append("nothing")
        except BaseException as error:
            seen.append(f"{type(error).__name__} is OSError: {isinstance(error, OSError)}")
    record(app="asgi", event="sent-late", seen=seen)


async def return_early(scope: Any, receive: Any, send: Any, argument: str) -> None:
    if argument == "started":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def raise_(scope: Any, receive: Any, send: Any, argument: str) -> None:
    if argument == "late":
        await answer(send, b"half", headers=[], more=True)
    raise RuntimeError("canary of a traceback")


async def head(scope: Any, receive: Any, send: Any, argument: str) -> None:
    """Answer with what an application must not answer with."""
    status, headers = 200, [(b"content-length", b"4")]
    if argument == "cr":
        headers.append((b"x-bad", b"a\rSet-Cookie: b"))
    elif argument == "lf":
        headers.append((b"x-bad", b"a\nSet-Cookie: b"))
    elif argument == "nul":
        headers.append((b"x-bad", b"a\0b"))
    elif argument == "name":
        headers.append((b"x bad", b"a"))
    elif argument == "hop":
        headers += [
            (b"connection", b"x-hop"),
            (b"keep-alive", b"timeout=1000"),
            (b"transfer-encoding", b"chunked"),
            (b"upgrade", b"h2c"),
            (b"proxy-connection", b"keep-alive"),
        ]
    elif argument.isdigit():
        status = int(argument)
    elif argument == "sendfile-asked":
        headers.append((b"x-sendfile", scope["query_string"]))
    elif argument.startswith("sendfile"):
        headers.append((b"x-sendfile", SENDFILES[argument]))
    await answer(send, b"body", status, headers)


SENDFILES = {
    "sendfile": b"/etc/passwd",
    "sendfile-dots": b"../../../../etc/passwd",
    "sendfile-link": b"files/link-out",
}

ACTIONS = {
    "ok": ok,
    "lag": lag,
    "sleep": sleep,
    "block": block,
    "unread": unread,
    "deaf": deaf,
    "mute": mute,
    "stream": stream,
    "after-disconnect": after_disconnect,
    "return-early": return_early,
    "raise": raise_,
    "head": head,
}
