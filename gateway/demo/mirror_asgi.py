"""The mirror as an ASGI application (ASGI 3.0), without a framework.

The server imports this module and awaits `application` once for each request,
all of them on one event loop and one thread. The facts of the request are in
`scope`; the body comes in messages from `receive`, and the answer leaves in
messages to `send`, which waits while the client is slow. One more call, of the
type "lifespan", lasts as long as the server and tells of its start and its end.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import parse_qs

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

ABOUT = """\
The mirror, as an ASGI application: a task for each request, all on one event loop.

  GET|POST mirror               what reached this program, as JSON
  GET stream?bytes=N&chunk=M    N bytes, M at a time
  GET clock                     the time, once a second (Server-Sent Events)
"""
PLAIN = "text/plain; charset=utf-8"
PIECE = 64 * 1024
MOST_BYTES = 1 << 40
MOST_CHUNK = 1 << 20
# These fields are between client and server: RFC 9110, section 7.6.1.
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}

requests_served = 0
requests_served_lock = threading.Lock()  # a server may run an event loop in each of its threads


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Live through the server's start and end, or answer a request."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "http":
        # Since ASGI 2.4 a send to a client that has left may say so.
        with contextlib.suppress(OSError):
            await answer(scope, receive, send)
    else:
        raise NotImplementedError(f"The mirror does not speak {scope['type']}.")


async def lifespan(receive: Receive, send: Send) -> None:
    """Start and stop with the server: the place to open and close a database."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Choose the page by the path below `root_path`, which CGI calls PATH_INFO."""
    global requests_served
    with requests_served_lock:
        requests_served += 1
        number_of_this = requests_served
    path = path_info(scope) or "/"
    allowed = ["GET", "HEAD", "POST"] if path == "/mirror" else ["GET", "HEAD"]
    if path not in ("/", "/mirror", "/stream", "/clock"):
        await begin(send, 404, PLAIN)
        await end(send, b"No such page.\n")
    elif scope["method"] not in allowed:
        await begin(send, 405, PLAIN, allow=", ".join(allowed))
        await end(send, b"Not by this method.\n")
    elif path == "/mirror":
        await mirror(scope, receive, send, number_of_this)
    elif path == "/stream":
        await stream(scope, send)
    elif path == "/clock":
        await clock(scope, receive, send)
    else:
        await begin(send, 200, PLAIN)
        await end(send, ABOUT.encode())


async def mirror(scope: Scope, receive: Receive, send: Send, number_of_this: int) -> None:
    """Show the request as it arrived."""
    body_length = 0
    body_hash = hashlib.sha256()
    async for piece in body(receive):
        body_length += len(piece)
        body_hash.update(piece)
    answer = {
        "protocol": "ASGI",
        "method": scope["method"],
        "script_name": scope.get("root_path", ""),
        "path_info": path_info(scope),
        "query_string": scope["query_string"].decode("latin-1"),
        "headers": headers(scope),
        "body_length": body_length,
        "body_sha256": body_hash.hexdigest(),
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
        "requests_served": number_of_this,
    }
    await begin(send, 200, "application/json")
    await end(send, json.dumps(answer, indent=2).encode() + b"\n")


async def stream(scope: Scope, send: Send) -> None:
    """Send as many bytes as asked for, never holding more than a chunk."""
    try:
        left = number(scope, "bytes", 1 << 20, 0, MOST_BYTES)
        chunk = bytes(number(scope, "chunk", PIECE, 1, MOST_CHUNK))
    except ValueError as error:
        await begin(send, 400, PLAIN)
        await end(send, f"{error}\n".encode())
        return
    await begin(send, 200, "application/octet-stream", content_length=str(left))
    while left and scope["method"] != "HEAD":
        piece = chunk[:left]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        left -= len(piece)
    await end(send)


async def clock(scope: Scope, receive: Receive, send: Send) -> None:
    """Tell the time until the client leaves: `receive` then gives "http.disconnect"."""
    await begin(send, 200, "text/event-stream", cache_control="no-store")
    leaving = asyncio.create_task(until_disconnect(receive))
    try:
        while scope["method"] != "HEAD" and not leaving.done():
            now = time.strftime("data: %Y-%m-%dT%H:%M:%SZ\n\n", time.gmtime())
            await send({"type": "http.response.body", "body": now.encode(), "more_body": True})
            await asyncio.wait([leaving], timeout=1)
    finally:
        leaving.cancel()
    await end(send)


async def until_disconnect(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def path_info(scope: Scope) -> str:
    """Return the path below the place where the application is mounted."""
    path, root_path = str(scope["path"]), str(scope.get("root_path", ""))
    # Servers differ: to some `path` is the whole path, to others what is below.
    if path == root_path or path.startswith(root_path + "/"):
        return path.removeprefix(root_path)
    return path


def headers(scope: Scope) -> dict[str, str]:
    """Return the request's header fields; those that came more than once are joined."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        comma = "; " if name == "cookie" else ", "
        fields[name] = fields[name] + comma + value if name in fields else value
    return {name: fields[name] for name in sorted(fields) if name not in HOP_BY_HOP}


async def body(receive: Receive) -> AsyncIterator[bytes]:
    """Give the request's body in pieces, as they arrive."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("The client left before its request was complete.")
        yield message.get("body", b"")
        more = message.get("more_body", False)


def number(scope: Scope, name: str, default: int, least: int, most: int) -> int:
    """Return a number from the query; raise `ValueError` with a sentence for the client."""
    query = parse_qs(scope["query_string"].decode("latin-1"))
    value = query.get(name, [str(default)])[-1]
    digits = value.isascii() and value.isdigit() and len(value) <= len(str(most))
    if not digits or not least <= int(value) <= most:
        raise ValueError(f"{name} must be a number from {least} to {most}.")
    return int(value)


async def begin(send: Send, status: int, content_type: str, **fields: str) -> None:
    """Send the status and the fields of the answer."""
    headers = [(b"content-type", content_type.encode())]
    headers += [(k.replace("_", "-").encode(), v.encode()) for k, v in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def end(send: Send, last: bytes = b"") -> None:
    """Send the last bytes of the answer."""
    await send({"type": "http.response.body", "body": last})
