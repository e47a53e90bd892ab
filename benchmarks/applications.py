"""Hello, world: the same answer as ASGI and as WSGI, and a POST that is read."""

from __future__ import annotations

HELLO = b"Hello, world!"


async def asgi(scope, receive, send):
    """Answer a GET with HELLO, a POST with the size of its body."""
    if scope["type"] != "http":
        raise RuntimeError(f"no {scope['type']} here")
    answer = HELLO
    if scope["method"] == "POST":
        size = 0
        while True:
            message = await receive()
            size += len(message["body"])
            if not message["more_body"]:
                break
        answer = b"%d" % size
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def wsgi(environ, start_response):
    """Answer a GET with HELLO, a POST with the size of its body."""
    answer = HELLO
    if environ["REQUEST_METHOD"] == "POST":
        answer = b"%d" % len(environ["wsgi.input"].read())
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))]
    start_response("200 OK", headers)
    return [answer]
