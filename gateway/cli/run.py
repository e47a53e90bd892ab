"""``tetrapylon run``: one application, without a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..config_values import parse_application
from .epilog import examples
from .exits import EX_NOINPUT, EX_SOFTWARE, fail
from .starting import Host, Port, config_of, start

EPILOG = examples(
    ("tetrapylon run shop:app", "app in shop.py: Flask, FastAPI, …"),
    ("tetrapylon run mysite.wsgi:application", "Django"),
    ("tetrapylon run 'shop:create_app()'", "a function that makes it"),
    ("tetrapylon run shop:app --reload", "anew after every change"),
)


def run(
    application: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:APP", help="What to import, and its name there.", show_default=False
        ),
    ],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start anew when a Python file here changes.")
    ] = False,
) -> None:
    """Serve one application, WSGI or ASGI: which it is, is found out."""
    try:
        parse_application(application)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="MODULE:APP") from None
    folder = Path.cwd()
    if reload:
        # Here and below: what only this command needs, and takes its time to import.
        from ..reloading import serve_reloading

        serve_reloading([application, "--host", host, "--port", str(port)], folder)
        return
    from ...adapters.loading import (
        AttributeNotFound,
        LoadFailure,
        ModuleNotFound,
        detect_interface,
        load_application,
    )

    try:
        interface = detect_interface(load_application(application, path=[str(folder)]))
    except (ModuleNotFound, AttributeNotFound) as error:
        fail(EX_NOINPUT, str(error))
    except LoadFailure as error:
        fail(EX_SOFTWARE, str(error))
    tables = {"routes": [{"path": "/", "backend": {interface: application}}]}
    start(config_of(tables, folder, host, port))
