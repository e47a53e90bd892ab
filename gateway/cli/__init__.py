"""The command ``tetrapylon``: what it can be asked, a file for each command.

The commands only turn options into a configuration and hand it on; what they
stand for is done in the modules of `tetrapylon.gateway`.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .. import __version__
from . import cgi, check, demo, init, php, run, serve
from .epilog import examples
from .exits import EX_USAGE, one_line_failures

__all__ = ["app", "main"]

app = typer.Typer(
    name="tetrapylon",
    help="One HTTP listener in front of CGI, FastCGI, WSGI and ASGI applications.",
    epilog=examples(
        ("tetrapylon demo", "all four protocols, side by side"),
        ("tetrapylon run shop:app", "one application, no file"),
        ("tetrapylon cgi .", "a folder with scripts in cgi-bin/"),
        ("tetrapylon init && tetrapylon serve", "a site, from a tetrapylon.toml"),
    ),
    add_completion=False,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_SERVING = "Serve"
_PREPARING = "Prepare"

app.command(rich_help_panel=_SERVING, epilog=serve.EPILOG)(serve.serve)
app.command(rich_help_panel=_SERVING, epilog=run.EPILOG)(run.run)
app.command(rich_help_panel=_SERVING, epilog=cgi.EPILOG)(cgi.cgi)
app.command(rich_help_panel=_SERVING, epilog=php.EPILOG)(php.php)
app.command(rich_help_panel=_SERVING, epilog=demo.EPILOG)(demo.demo)
app.command(rich_help_panel=_PREPARING, epilog=init.EPILOG)(init.init)
app.command(rich_help_panel=_PREPARING, epilog=check.EPILOG)(check.check)


def _print_version(value: bool) -> None:
    if value:
        print(f"tetrapylon {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            callback=_print_version,
            is_eager=True,
            help="Say which version this is.",
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; exit with a code of sysexits.h."""
    with one_line_failures():
        try:
            app()
        except SystemExit as exit_:
            # click's code for a command line that it does not understand
            sys.exit(EX_USAGE if exit_.code == 2 else exit_.code)
