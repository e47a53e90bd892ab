"""A board to write on and to wait at, in Starlette, as a FastCGI application: `python board.py`.

Whoever asks for /next waits until somebody writes: several requests at a time, in one
process and one thread.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tetrapylon.adapters.asgi_to_fastcgi import AsgiToFastCgi

MOST_CHARACTERS = 200
MOST_LINES = 1000
LONGEST_WAIT_S = 25


@dataclass
class Board:
    lines: list[str] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Board]]:
    # Once for the process, and in the state of every request.
    yield {"board": Board()}


async def read(request: Request) -> PlainTextResponse:
    return PlainTextResponse("".join(line + "\n" for line in request.state.board.lines))


async def write(request: Request) -> PlainTextResponse:
    line = (await request.body()).decode("utf-8", "replace").strip()
    if not line or len(line) > MOST_CHARACTERS or not line.isprintable():
        raise HTTPException(422, "One line, please, and a short one.\n")
    board = request.state.board
    async with board.news:
        board.lines = [*board.lines[1 - MOST_LINES :], line]
        board.news.notify_all()
    return PlainTextResponse(f"{line}\n", status_code=201)


async def wait(request: Request) -> PlainTextResponse:
    board = request.state.board
    try:
        async with asyncio.timeout(LONGEST_WAIT_S), board.news:
            await board.news.wait()
            return PlainTextResponse(board.lines[-1] + "\n")
    except TimeoutError:
        return PlainTextResponse("", status_code=204)


routes = [
    Route("/", read, methods=["GET"]),
    Route("/", write, methods=["POST"]),
    Route("/next", wait),
]
app = Starlette(routes=routes, lifespan=lifespan)

if __name__ == "__main__":
    # Without an address: the socket that whoever started this has put on descriptor 0.
    AsgiToFastCgi(app, bind=sys.argv[1] if len(sys.argv) > 1 else None).run()
