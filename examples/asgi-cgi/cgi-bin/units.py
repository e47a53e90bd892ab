#!/usr/bin/env python3
"""Temperatures, in Starlette, as a plain CGI script: what a host of web pages lets one run."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.routing import Route

from tetrapylon.adapters.asgi_to_cgi import AsgiToCgi

TO_CELSIUS = {
    "celsius": lambda degrees: degrees,
    "fahrenheit": lambda degrees: (degrees - 32) / 1.8,
    "kelvin": lambda degrees: degrees - 273.15,
}


async def page(request: Request) -> HTMLResponse:
    # url_for knows where the web server has put the script.
    links = "".join(
        f'<li><a href="{request.url_for("convert", unit=unit, degrees=20)}">20 {unit}</a>\n'
        for unit in TO_CELSIUS
    )
    return HTMLResponse(f"<!doctype html><title>Units</title><h1>Units</h1><ul>\n{links}</ul>\n")


async def convert(request: Request) -> PlainTextResponse:
    unit = request.path_params["unit"]
    if unit not in TO_CELSIUS:
        raise HTTPException(404, f"There is no unit {unit}.\n")
    return PlainTextResponse(f"{TO_CELSIUS[unit](request.path_params['degrees']):.1f} °C\n")


async def mean(request: Request) -> JSONResponse:
    """The mean of many, one on each line, read as they come."""
    count, total, rest = 0, 0.0, b""
    async for piece in request.stream():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            count, total = count + 1, total + float(line)
    if not count:
        raise HTTPException(422, "There is nothing to take the mean of.\n")
    return JSONResponse({"count": count, "mean": total / count})


routes = [
    Route("/", page),
    Route("/mean", mean, methods=["POST"]),
    Route("/{unit}/{degrees:float}", convert, name="convert"),
]
app = Starlette(routes=routes)

if __name__ == "__main__":
    AsgiToCgi(app).run()
