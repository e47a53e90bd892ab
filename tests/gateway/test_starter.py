"""What is found in a folder, and the configuration that is made of it."""

import tomllib
from pathlib import Path

import pytest

from tetrapylon.gateway.config import Config
from tetrapylon.gateway.starter import look_around, starter_text

FLASK = "from flask import Flask\napp = Flask(__name__)\n"
FASTAPI = "import fastapi\napp: fastapi.FastAPI = fastapi.FastAPI()\n"


def lay(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        if name.endswith("/"):
            file.mkdir(parents=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return folder


def routes(folder: Path) -> dict[str, dict[str, object]]:
    return {find.path: find.backend for find in look_around(folder, php_sockets=())}


@pytest.mark.parametrize(
    ("files", "backend"),
    [
        ({"app.py": FLASK}, {"wsgi": "app:app", "threads": 8}),
        ({"main.py": FASTAPI}, {"asgi": "main:app"}),
        ({"wsgi.py": "from x import application"}, {"wsgi": "wsgi:application", "threads": 8}),
        ({"asgi.py": "from x import app as application"}, {"asgi": "asgi:application"}),
        ({"wsgi.py": FLASK, "app.py": FASTAPI}, {"wsgi": "wsgi:app", "threads": 8}),
        ({"app.py": "async def app(scope, receive, send): ..."}, {"asgi": "app:app"}),
        ({"app.py": "def application(e, s): ..."}, {"wsgi": "app:application", "threads": 8}),
        (
            {"app.py": "import flask\ndef create_app(): ..."},
            {"wsgi": "app:create_app()", "threads": 8},
        ),
        (
            {"app.py": "from sanic import Sanic\ndef create_app(): ..."},
            {"asgi": "app:create_app()"},
        ),
        (
            {"manage.py": "", "mysite/wsgi.py": "", "mysite/asgi.py": ""},
            {"wsgi": "mysite.wsgi:application", "threads": 8},
        ),
        ({"public/": ""}, {"static": "public"}),
        (
            {"index.php": "<?php", "static/": ""},
            {"fastcgi": "127.0.0.1:9000", "root": ".", "files": True},
        ),
        (
            {"public/index.php": "<?php"},
            {"fastcgi": "127.0.0.1:9000", "root": "public", "files": True},
        ),
    ],
)
def test_what_takes_the_root(tmp_path, files, backend) -> None:
    assert routes(lay(tmp_path, files))["/"] == backend


def test_all_that_lies_side_by_side_has_its_route(tmp_path) -> None:
    lay(tmp_path, {"cgi-bin/": "", "static/": "", "public/": "", "app.py": FLASK})
    assert list(routes(tmp_path)) == ["/cgi-bin/", "/static/", "/public/", "/"]


@pytest.mark.parametrize(
    "files",
    [{}, {"app.py": "app = ("}, {"app.py": "print('no application here')"}, {"app.py": "\0"}],
)
def test_what_cannot_be_served_is_not_made_up(tmp_path, files) -> None:
    assert routes(lay(tmp_path, files)) == {}


def test_nothing_is_run(tmp_path) -> None:
    lay(tmp_path, {"app.py": f"open({str(tmp_path / 'ran')!r}, 'w')\n{FLASK}"})
    assert routes(tmp_path)["/"]["wsgi"] == "app:app"
    assert not (tmp_path / "ran").exists()


def test_the_socket_of_php_fpm_is_found(tmp_path) -> None:
    lay(tmp_path, {"run/php8.1-fpm.sock": "", "run/php8.2-fpm.sock": "", "index.php": ""})
    (find,) = look_around(tmp_path, php_sockets=(f"{tmp_path}/run/php*-fpm.sock",))
    assert find.backend["fastcgi"] == f"unix:{tmp_path}/run/php8.2-fpm.sock"


def test_the_text_is_a_configuration_as_it_is(tmp_path) -> None:
    lay(tmp_path, {"cgi-bin/": "", "static/": "", "public/": "", "app.py": FLASK})
    text = starter_text(look_around(tmp_path))
    config = Config.from_dict(tomllib.loads(text), base=tmp_path)
    assert len(config.routes) == 4
    assert config == Config.from_dict({"routes": tomllib.loads(text)["routes"]}, base=tmp_path), (
        "what is written out are the defaults"
    )


def test_the_text_for_nothing_shows_how_and_its_example_is_right() -> None:
    text = starter_text([])
    example = text.partition("# [[routes]]")[2].partition("#\n")[0]
    route = tomllib.loads("\n".join(line[2:] for line in f"# {example}".splitlines()))
    assert Config.from_dict({"routes": [route]}).backends["/"].kind == "wsgi"
