"""Old rooms in a new house: CGI scripts, PHP and Flask, mounted inside of FastAPI.

The house is an ASGI application like any other: `uvicorn house:app` runs it, too.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from flask import Flask, request

from tetrapylon.adapters import CgiToAsgi, FastCgiToAsgi, WsgiToAsgi

HERE = Path(__file__).parent
PHP_FPM = os.environ.get("PHP_FPM", "unix:/run/php/php-fpm.sock")

# A WSGI application beside the ASGI routes, in threads of its own.
shop = Flask("shop")


@shop.get("/")
def shelves() -> str:
    return f"The shop is at {request.script_root}.\n"


@shop.post("/count")
def count() -> dict[str, int]:
    return {"bytes": sum(len(block) for block in iter(lambda: request.stream.read(4096), b""))}


@shop.get("/receipt")
def receipt() -> object:
    return (f"{number} tea\n" for number in range(3)), {"Content-Type": "text/plain"}


in_threads = WsgiToAsgi(shop, threads=8)
scripts = CgiToAsgi(HERE / "cgi-bin", timeout_s=10)
php = FastCgiToAsgi(PHP_FPM, root=HERE / "php")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with in_threads:
        yield
    scripts.close()
    php.close()


app = FastAPI(title="House", lifespan=lifespan)


@app.get("/")
async def hall() -> dict[str, list[str]]:
    return {"rooms": ["/cgi-bin/date.sh", "/php/", "/shop/", "/docs"]}


app.mount("/cgi-bin", scripts)
app.mount("/php", php)
app.mount("/shop", in_threads)
