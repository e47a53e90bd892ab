"""ASGI and WSGI: the same application in this gateway and in Python's servers.

Each server has one worker on one core; wrk has another.
"""

from __future__ import annotations

from pathlib import Path

from measuring import Case, Mark
from peers import BIN, OURS, Peer, Place, distribution, start_gateway
from processes import Group

TITLE = "ASGI and WSGI"
HERE = Path(__file__).resolve().parent


def _ours(kind: str) -> Peer:
    def start(group: Group, place: Place) -> None:
        threads = ", threads = 8" if kind == "wsgi" else ""
        python = f'[python]\npath = ["{HERE}"]\n'
        start_gateway(group, place, f'{kind} = "applications:{kind}"{threads}', more=python)

    return Peer(OURS, OURS, distribution(OURS), start)


def _peer(package: str, note: str, *command: str) -> Peer:
    def start(group: Group, place: Place) -> None:
        name, *arguments = (part.format(port=place.port) for part in command)
        group.start(
            [str(BIN / name), *arguments], address=place.port, env={"PYTHONPATH": str(HERE)}
        )

    name = f"{package} ({note})" if note else package
    return Peer(name, f"pip install {package}", distribution(package), start)


def _granian(kind: str, *more: str) -> Peer:
    options = ("--interface", kind, "--port", "{port}", "--no-access-log", *more)
    return _peer("granian", "", "granian", *options, f"applications:{kind.removesuffix('nl')}")


UVICORN = _peer(
    "uvicorn",
    "httptools, uvloop",
    *("uvicorn", "applications:asgi", "--http", "httptools", "--loop", "uvloop"),
    *("--port", "{port}", "--no-access-log", "--log-level", "error", "--lifespan", "off"),
)
HYPERCORN = _peer(
    "hypercorn",
    "uvloop",
    *("hypercorn", "applications:asgi", "-b", "127.0.0.1:{port}", "-k", "uvloop"),
)
GUNICORN = _peer(
    "gunicorn",
    "gthread",
    *("gunicorn", "applications:wsgi", "-k", "gthread", "--threads", "8"),
    *("-b", "127.0.0.1:{port}", "--log-level", "error"),
)
WAITRESS = _peer(
    "waitress",
    "",
    "waitress-serve",
    "--threads=8",
    "--listen=127.0.0.1:{port}",
    "applications:wsgi",
)
ASGI = (_ours("asgi"), UVICORN, HYPERCORN, _granian("asginl"))
WSGI = (_ours("wsgi"), GUNICORN, WAITRESS, _granian("wsgi", "--blocking-threads", "8"))


def _case(name: str, peers: tuple[Peer, ...], mark: Mark, post_bytes: int = 0) -> Case:
    return Case(
        name,
        name,
        peers,
        connections=64,
        marks=(mark,),
        post_bytes=post_bytes,
        is_pinned=True,
    )


CASES = [
    _case("ASGI, GET", ASGI, Mark(1.5, (UVICORN.name,))),
    _case("ASGI, POST of 64 KiB", ASGI, Mark(1.5, (UVICORN.name,)), 65536),
    _case("WSGI, GET, 8 threads", WSGI, Mark(3.0, (GUNICORN.name,))),
]
