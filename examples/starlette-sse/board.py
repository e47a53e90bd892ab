"""A blackboard in Starlette: Server-Sent Events to all who watch."""

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

PAGE = """<!doctype html>
<html lang="en"><title>Blackboard</title><h1>Blackboard</h1>
<form><input name="text" aria-label="Text" autofocus> <button>Write</button></form><ol></ol>
<script type="module">
new EventSource("events").onmessage = (event) => {
  const line = document.createElement("li");
  line.textContent = JSON.parse(event.data).text;
  document.querySelector("ol").append(line);
};
document.querySelector("form").onsubmit = async (event) => {
  event.preventDefault();
  await fetch("", { method: "POST", body: new URLSearchParams(new FormData(event.target)) });
  event.target.reset();
};
</script></html>
"""
KEEP_ALIVE_S = 15

watchers: set[asyncio.Queue[str]] = set()


async def page(request: Request) -> HTMLResponse:
    return HTMLResponse(PAGE)


async def write(request: Request) -> PlainTextResponse:
    async with request.form(max_fields=1, max_files=0) as form:
        text = str(form.get("text", "")).strip()
    if not text:
        raise HTTPException(422, "Nothing to write.\n")
    for queue in watchers:
        if queue.full():  # a watcher that cannot keep up misses the oldest lines
            queue.get_nowait()
        queue.put_nowait(text)
    return PlainTextResponse(f"Seen by {len(watchers)}.\n", status_code=202)


async def events(request: Request) -> StreamingResponse:
    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(watch(), media_type="text/event-stream", headers=headers)


async def watch() -> AsyncIterator[str]:
    queue: asyncio.Queue[str] = asyncio.Queue(maxsize=100)
    watchers.add(queue)
    try:
        yield ": welcome\n\n"
        while True:
            try:
                text = await asyncio.wait_for(queue.get(), KEEP_ALIVE_S)
                yield f"data: {json.dumps({'text': text})}\n\n"
            except TimeoutError:
                yield ": still here\n\n"
    finally:
        watchers.discard(queue)  # the client has left, and the task was cancelled


async def count(request: Request) -> JSONResponse:
    return JSONResponse({"watchers": len(watchers)})


app = Starlette(
    routes=[
        Route("/", page),
        Route("/", write, methods=["POST"]),
        Route("/events", events),
        Route("/watchers", count),
    ]
)
