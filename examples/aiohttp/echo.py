"""An aiohttp application, on aiohttp's own server: page, JSON, errors, streaming."""

import argparse
import json

from aiohttp import web

routes = web.RouteTableDef()


@routes.get("/")
async def page(request: web.Request) -> web.Response:
    # Who asked is in the fields that the gateway adds; aiohttp itself sees the gateway.
    asker = request.headers.get("X-Forwarded-For", request.remote)
    body = f"<!doctype html><title>aiohttp</title><p>Hello, {asker}.</p>\n"
    return web.Response(text=body, content_type="text/html")


@routes.post("/json")
async def answer_json(request: web.Request) -> web.Response:
    try:
        return web.json_response({"you sent": await request.json()})
    except json.JSONDecodeError as error:
        return web.json_response({"error": str(error)}, status=422)


@routes.post("/echo")
async def echo(request: web.Request) -> web.StreamResponse:
    """Send the body back as it comes."""
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    await response.prepare(request)
    async for piece in request.content.iter_any():
        await response.write(piece)
    await response.write_eof()
    return response


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--path", help="a unix socket to listen on instead")
    options = parser.parse_args()
    app = web.Application(client_max_size=1024**3)
    app.add_routes(routes)
    if options.path:
        web.run_app(app, path=options.path)
    else:
        web.run_app(app, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
