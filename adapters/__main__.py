"""``python -m tetrapylon.adapters``: any application as a responder of another protocol."""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import typer

from .lifespan import LifespanFailure
from .loading import (
    AttributeNotFound,
    LoadFailure,
    ModuleNotFound,
    detect_interface,
    load_application,
    single_callable,
)

# sysexits.h
EX_USAGE = 64
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70


class Kind(StrEnum):
    """What the application becomes."""

    CGI = "cgi"
    FASTCGI = "fastcgi"
    SCGI = "scgi"


class LifespanMode(StrEnum):
    """Whether an ASGI application is asked for its lifespan."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


_EPILOG = """[bold]Examples[/bold]
[cyan]python -m tetrapylon.adapters shop:app --as fastcgi --bind unix:/run/shop.sock[/cyan]
[cyan]spawn-fcgi -n -s /run/shop.sock -- /usr/bin/python3 -m tetrapylon.adapters shop:app --as fastcgi[/cyan]
[cyan]exec python3 -m tetrapylon.adapters 'shop:create_app()' --as cgi[/cyan]   in a script of cgi-bin/"""  # noqa: E501

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(name="tetrapylon.adapters", epilog=_EPILOG, no_args_is_help=True)
def respond(
    application: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:APP",
            help="What to import, and its name there; WSGI or ASGI is found out.",
            show_default=False,
        ),
    ],
    kind: Annotated[Kind, typer.Option("--as", help="What to make of it.", show_default=False)],
    bind: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="unix:/path or host:port to listen on; without it, the socket on file"
            " descriptor 0, where web servers and spawn-fcgi put it. (Not for cgi.)",
        ),
    ] = None,
    socket_mode: Annotated[
        str | None,
        typer.Option(metavar="OCTAL", help="Permissions of the unix socket, such as 660."),
    ] = None,
    root_path: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where it is mounted, if SCRIPT_NAME does not say so."),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="For a WSGI application: requests at a time.")
    ] = 8,
    requests: Annotated[
        int, typer.Option(min=1, help="For an ASGI application: requests at a time.")
    ] = 128,
    lifespan: Annotated[
        LifespanMode, typer.Option(help="For an ASGI application: its startup and shutdown.")
    ] = LifespanMode.AUTO,
    path: Annotated[str, typer.Option(metavar="DIR", help="Where to import from, first.")] = ".",
) -> None:
    """Answer requests of a web server by an application, as CGI, FastCGI or SCGI.

    FastCGI and SCGI run until SIGTERM or SIGUSR1, and then finish what they have begun.
    """
    if kind is Kind.CGI and (bind is not None or socket_mode is not None):
        raise typer.BadParameter("a CGI script has no socket", param_hint="--bind")
    mode = _permissions(socket_mode)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    loaded = _load(application, path)
    try:
        interface = detect_interface(loaded)
    except LoadFailure as error:
        _fail(EX_SOFTWARE, str(error))
    # Here: what the other kinds need takes its time to import, and CGI does so each time.
    from .asgi_to_cgi import AsgiToCgi
    from .asgi_to_fastcgi import AsgiToFastCgi
    from .asgi_to_scgi import AsgiToScgi
    from .compositions import WsgiToCgi, WsgiToFastCgi, WsgiToScgi

    options: dict[str, Any] = {"root_path": root_path}
    if kind is not Kind.CGI:
        options |= {"bind": bind, "socket_mode": mode, "requests": requests, "name": application}
    responder: AsgiToCgi | AsgiToFastCgi | AsgiToScgi
    with _failures(bind):
        if interface == "wsgi":
            wsgi_app: Any = loaded
            if kind is Kind.CGI:
                responder = WsgiToCgi(wsgi_app, **options)
            else:
                wsgi_kind = WsgiToFastCgi if kind is Kind.FASTCGI else WsgiToScgi
                responder = wsgi_kind(wsgi_app, threads=threads, **options)
        else:
            asgi_app = single_callable(loaded)
            options["lifespan"] = lifespan.value
            if kind is Kind.CGI:
                responder = AsgiToCgi(asgi_app, **options)
            elif kind is Kind.FASTCGI:
                responder = AsgiToFastCgi(asgi_app, **options)
            else:
                responder = AsgiToScgi(asgi_app, **options)
        responder.run()


def _permissions(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise typer.BadParameter(f"{text!r} is not like 660", param_hint="--socket-mode")
    return mode


def _load(application: str, path: str) -> object:
    try:
        return load_application(application, path=[path])
    except (ModuleNotFound, AttributeNotFound) as error:
        _fail(EX_NOINPUT, str(error))
    except LoadFailure as error:
        _fail(EX_SOFTWARE, str(error))


@contextlib.contextmanager
def _failures(bind: str | None) -> Iterator[None]:
    """Say what is wrong in a line, where it is the user's to mend."""
    try:
        yield
    except LifespanFailure as failure:
        _fail(EX_SOFTWARE, str(failure))
    except ValueError as error:
        _fail(EX_USAGE, str(error))
    except OSError as error:
        text = error.strerror or str(error)
        if error.errno == errno.ENOTSOCK:
            _fail(EX_USAGE, f"{text}, by --bind")
        _fail(EX_UNAVAILABLE, f"cannot listen on {bind or 'file descriptor 0'}: {text}")


def _fail(code: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)


def main() -> None:
    """Run the command line; exit with a code of sysexits.h."""
    try:
        app(prog_name="python -m tetrapylon.adapters")
    except SystemExit as exit_:
        # click's code for a command line that it does not understand
        sys.exit(EX_USAGE if exit_.code == 2 else exit_.code)


if __name__ == "__main__":
    main()
