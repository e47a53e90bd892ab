"""A post office in Sanic: JSON, errors, streaming, listeners."""

import asyncio

from sanic import Sanic
from sanic.exceptions import NotFound, SanicException
from sanic.request import Request
from sanic.response import HTTPResponse, ResponseStream, html, json

app = Sanic("post_office")
app.config.FALLBACK_ERROR_FORMAT = "json"


@app.before_server_start
async def open_office(app: Sanic) -> None:
    app.ctx.letters = {}


@app.get("/")
async def counter(request: Request) -> HTTPResponse:
    waiting = sum(map(len, request.app.ctx.letters.values()))
    return html(f"<!doctype html><title>Post office</title><h1>{waiting} letters wait</h1>\n")


@app.post("/letters")
async def send(request: Request) -> HTTPResponse:
    letter = request.json
    if not isinstance(letter, dict) or not letter.get("to"):
        raise SanicException("To whom?", status_code=422)
    request.app.ctx.letters.setdefault(str(letter["to"]), []).append(str(letter.get("text", "")))
    return json({"accepted": True}, status=202)


@app.get("/letters/<name:str>")
async def collect(request: Request, name: str) -> HTTPResponse:
    letters = request.app.ctx.letters.pop(name, None)
    if letters is None:
        raise NotFound(f"Nothing for {name}.")
    return json({"letters": letters})


@app.get("/bell")
async def bell(request: Request) -> ResponseStream:
    async def ring(response: ResponseStream) -> None:
        for _ in range(3):
            await response.write("ding\n")
            await asyncio.sleep(0.1)

    return ResponseStream(ring, content_type="text/plain")
