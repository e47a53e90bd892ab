from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import demo_app
from wsgiref.validate import validator

import asgiref.wsgi
import bottle
import django.conf
import flask
import pytest
import quart
import sanic
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware

from tetrapylon.adapters.loading import (
    AttributeNotFound,
    LoadFailure,
    ModuleFailed,
    ModuleNotFound,
    UnknownInterface,
    detect_interface,
    load_application,
    single_callable,
)
from tetrapylon.adapters.wsgi_to_asgi import WsgiToAsgi
from tetrapylon.gateway.backends.asgi import AsgiBackend
from tetrapylon.gateway.backends.wsgi import WsgiBackend

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # cgi, pkg_resources
    from pyramid.config import Configurator


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for modules; what is imported from it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    importlib.invalidate_caches()


WSGI = "def {name}(environ, start_response): return []\n"


def write(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def failure(spec: str, folder: Path, kind: type[LoadFailure] = LoadFailure) -> str:
    with pytest.raises(LoadFailure) as raised:
        load_application(spec, path=[str(folder)])
    assert type(raised.value) is kind
    return str(raised.value)


def test_module_and_attribute(folder: Path) -> None:
    write(folder, "shop.py", WSGI.format(name="site") + "class Box: inner = site\n")
    write(folder, "pack/__init__.py", "")
    write(folder, "pack/web.py", WSGI.format(name="app"))
    site: Any = load_application("shop:site", path=[str(folder)])
    assert site(None, None) == []
    assert load_application("shop:Box.inner", path=[str(folder)]) is site
    assert callable(load_application("pack.web:app", path=[str(folder)]))


def test_import_path(folder: Path) -> None:
    write(folder, "one/where.py", "app = 'one'\n")
    write(folder, "two/where.py", "app = 'two'\n")
    write(folder, "two/there.py", "import late_import_target; app = 'there'\n")
    write(folder, "one/late_import_target.py", "")
    path = ["one", str(folder / "two")]
    # The first folder wins, relative ones count from here, and the path stays.
    assert load_application("where", path=path) == "one"
    assert load_application("there", path=path) == "there"
    assert sys.path[:2] == [str(folder / "one"), str(folder / "two")]


def test_factories(folder: Path) -> None:
    write(
        folder,
        "shop.py",
        "made = 0\n"
        "def create_app(name='x'):\n    global made; made += 1; return f'made {name}'\n"
        "def broken():\n    return 1 / 0\n"
        "def nothing(): pass\n"
        "async def later(): pass\n"
        "app = 'plain'\n",
    )
    assert load_application("shop:create_app()", path=[str(folder)]) == "made x"
    message = failure("shop:broken()", folder, ModuleFailed)
    assert "the factory shop:broken() failed: ZeroDivisionError: division by zero" in message
    assert "shop.py, line 5\n    return 1 / 0" in message
    assert "returned nothing" in failure("shop:nothing()", folder)
    assert "coroutine function" in failure("shop:later()", folder)
    assert "leave out the '()'" in failure("shop:app()", folder)


def test_default_attributes(folder: Path) -> None:
    write(folder, "one.py", "app = 1\napplication = 2\n")
    write(folder, "two.py", "application = 2\n")
    write(
        folder,
        "none.py",
        "from wsgiref.simple_server import demo_app\n"
        + WSGI.format(name="site")
        + WSGI.format(name="_private")
        + "async def api(scope, receive, send): pass\n"
        "def create_app(): pass\ndef helper(x): pass\n",
    )
    assert load_application("one", path=[str(folder)]) == 1
    assert load_application("two", path=[str(folder)]) == 2
    message = failure("none", folder, AttributeNotFound)
    assert message.endswith("did you mean 'none:site', 'none:api' or 'none:create_app()'?")
    # The same help where one was guessed.
    message = failure("none:application", folder, AttributeNotFound)
    assert message.endswith("did you mean 'none:site', 'none:api' or 'none:create_app()'?")


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("shpo:app", ModuleNotFound, "no module 'shpo'; did you mean 'shop:app'?"),
        (
            "shop.veiws:app",
            ModuleNotFound,
            "no module 'shop.veiws'; did you mean 'shop.views:app'?",
        ),
        ("shpo.views:app", ModuleNotFound, "did you mean 'shop.views:app'?"),
        ("solo.app", ModuleNotFound, "no module 'solo.app'; did you mean 'solo:app'?"),
        ("qwxyz:app", ModuleNotFound, "there is no module 'qwxyz'"),
        ("solo:ap", AttributeNotFound, "no attribute 'ap'; did you mean 'solo:app'?"),
        ("solo:box.aap", AttributeNotFound, "'solo:box' has no attribute 'aap'"),
        ("solo.py:app", ModuleNotFound, "did you mean 'solo:app'?"),
        ("./shop/views.py:app", LoadFailure, "did you mean 'shop.views:app'?"),
        ("solo:app:x", LoadFailure, "not like 'module:attribute'"),
        ("", LoadFailure, "not like 'module:attribute'"),
        ("solo:", LoadFailure, "not like 'module:attribute'"),
        (":app", LoadFailure, "not like 'module:attribute'"),
        ("solo:app(1)", LoadFailure, "not like 'module:attribute'"),
        ("solo app", LoadFailure, "not like 'module:attribute'"),
    ],
)
def test_mistyped(folder: Path, spec: str, kind: type[LoadFailure], message: str) -> None:
    write(folder, "shop/__init__.py", "")
    write(folder, "shop/views.py", "app = 1\n")
    write(folder, "solo.py", "app = 1\nclass box: pass\n")
    assert message in failure(spec, folder, kind)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "import os\n\nimport flsk\n",
            "cannot import 'shop': ModuleNotFoundError: No module named 'flsk'\n"
            "  shop.py, line 3\n    import flsk",
        ),
        (
            "def settings():\n    return {}['key']\n\nsettings()\n",
            "cannot import 'shop': KeyError: 'key'\n  shop.py, line 2\n    return {}['key']",
        ),
        ("import sys\nsys.exit(3)\n", "it called sys.exit(3)\n  shop.py, line 2"),
        # The line of the user, not that of the library it calls.
        ("import json\n\njson.loads('{')\n", "shop.py, line 3\n    json.loads('{')"),
    ],
)
def test_failures_inside_the_module(folder: Path, text: str, expected: str) -> None:
    write(folder, "shop.py", text)
    message = failure("shop:app", folder, ModuleFailed)
    assert expected in message
    assert "importlib" not in message


def test_syntax_error_shows_its_place(folder: Path) -> None:
    write(folder, "shop.py", "x = 1\ndef app(:\n")
    message = failure("shop:app", folder, ModuleFailed)
    assert 'shop.py", line 2' in message
    assert "def app(:" in message
    assert "SyntaxError" in message


def test_missing_submodule_of_the_modules_own(folder: Path) -> None:
    # Not the module that was asked for: an error in the module.
    write(folder, "shop/__init__.py", "import shop.gone\n")
    message = failure("shop:app", folder, ModuleFailed)
    assert "No module named 'shop.gone'\n  shop/__init__.py, line 1" in message


# Interfaces


async def asgi3(scope: Any, receive: Any, send: Any) -> None: ...


def asgi3_plain(scope: Any, receive: Any, send: Any) -> Any:
    return asgi3(scope, receive, send)


def asgi2(scope: Any) -> Any:
    async def instance(receive: Any, send: Any) -> None:
        await send(scope)

    return instance


class Asgi2:
    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await send(self.scope)


class Asgi3Object:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def method(self, scope: Any, receive: Any, send: Any) -> None: ...


class WsgiClass:
    """The manner of PEP 3333's AppClass."""

    def __init__(self, environ: Any, start_response: Any) -> None: ...

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


class WsgiObject:
    def __call__(self, environ: Any, start_response: Any, more: Any = None) -> list[bytes]:
        return []

    def method(self, environ: Any, start_response: Any) -> list[bytes]:
        return []


def middleware(app: Any) -> Any:
    @functools.wraps(app)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return app(*args, **kwargs)

    return wrapper


def django_applications() -> tuple[Any, Any]:
    if not django.conf.settings.configured:
        django.conf.settings.configure(SECRET_KEY="x", ROOT_URLCONF=__name__)
    return WSGIHandler(), ASGIHandler()


def wsgi_applications() -> dict[str, Any]:
    return {
        "function": demo_app,
        "lambda": lambda environ, start_response: [],
        "class": WsgiClass,
        "object": WsgiObject(),
        "method": WsgiObject().method,
        "partial": functools.partial(lambda db, environ, start_response: [], None),
        "validator": validator(demo_app),
        "wrapper": middleware(demo_app),
        "flask": flask.Flask("x"),
        "flask.wsgi_app": flask.Flask("x").wsgi_app,
        "bottle": bottle.Bottle(),
        "pyramid": Configurator().make_wsgi_app(),
        "django": django_applications()[0],
    }


def asgi_applications() -> dict[str, Any]:
    return {
        "function": asgi3,
        "plain": asgi3_plain,
        "object": Asgi3Object(),
        "method": Asgi3Object().method,
        "partial": functools.partial(lambda db, scope, receive, send: None, None),
        "partial coroutine": functools.partial(asgi3),
        "partial object": functools.partial(Asgi3Object()),
        "wrapper": middleware(asgi3),
        "asgi2": asgi2,
        "Asgi2": Asgi2,
        "sync_to_async": sync_to_async(demo_app),
        "adapter": WsgiToAsgi(demo_app),
        "asgiref": asgiref.wsgi.WsgiToAsgi(demo_app),
        "starlette": Starlette(),
        "starlette middleware": GZipMiddleware(Starlette()),
        "fastapi": FastAPI(),
        "quart": quart.Quart("x"),
        "sanic": sanic.Sanic("detected"),
        "django": django_applications()[1],
        "AsgiBackend": AsgiBackend("x", asgi3),
        "WsgiBackend": WsgiBackend("x", demo_app),
    }


@pytest.mark.parametrize("name", wsgi_applications())
def test_wsgi_is_detected(name: str) -> None:
    assert detect_interface(wsgi_applications()[name]) == "wsgi"


@pytest.fixture(autouse=True)
def _forget_sanic() -> Iterator[None]:
    yield
    with contextlib.suppress(Exception):
        sanic.Sanic._app_registry.clear()


ASGI_NAMES = list(asgi_applications())
sanic.Sanic._app_registry.clear()


@pytest.mark.parametrize("name", ASGI_NAMES)
def test_asgi_is_detected(name: str) -> None:
    assert detect_interface(asgi_applications()[name]) == "asgi"


@pytest.mark.parametrize(
    ("app", "message"),
    [
        (None, "cannot be called"),
        ("shop:app", "object of class builtins.str is not an application"),
        (sys, "the module 'sys' is not an application"),
        (lambda: None, "write 'module:name()', with parentheses"),
        (lambda x: None, "takes neither"),
        (flask.Flask, "takes neither"),
    ],
)
def test_neither(app: Any, message: str) -> None:
    with pytest.raises(UnknownInterface, match=message.replace("(", r"\(").replace(")", r"\)")):
        detect_interface(app)


def test_single_callable() -> None:
    async def call(app: Any) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await single_callable(app)({"type": "http"}, asyncio.Event().wait, send)  # type: ignore[arg-type]
        return sent

    for app in (asgi2, Asgi2):
        assert asyncio.run(call(app)) == [{"type": "http"}]
    for app in (asgi3, asgi3_plain, Asgi3Object()):
        assert single_callable(app) is app
