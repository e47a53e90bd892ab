"""A WSGI application for uWSGI, in the Python that uWSGI is made for."""

import hashlib
import json
import os
import signal


def application(environ, start_response):
    page = environ["PATH_INFO"].rpartition("/")[2]
    text = [("Content-Type", "text/plain")]
    if page == "stream":
        start_response("200 OK", text)
        return (b"x" * 50_000 for _ in range(int(environ["QUERY_STRING"]) // 50_000))
    if page == "early":
        start_response("202 Accepted", text)
        return [b"I have not read it"]
    if page == "short":
        start_response("200 OK", [*text, ("Content-Length", "10")])
        return [b"short"]
    if page == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if page == "die-later":
        return die_later(start_response)
    if page == "none":
        raise LookupError("there is none")
    if page == "moved":
        start_response("302 Found", [("Location", "/elsewhere"), ("Set-Cookie", "a=1")])
        return [b""]
    digest = hashlib.sha256()
    length = 0
    while piece := environ["wsgi.input"].read(65536):
        digest.update(piece)
        length += len(piece)
    variables = {name: value for name, value in environ.items() if isinstance(value, str)}
    answer = {"environ": variables, "length": length, "sha256": digest.hexdigest()}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]


def die_later(start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "100")])
    yield b"some"
    os.kill(os.getpid(), signal.SIGKILL)
