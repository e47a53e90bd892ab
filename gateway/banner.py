"""What a start says to the person who made it: what is served, and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import __version__
from .config import Config


def print_banner(
    console: Console,
    config: Config,
    *,
    addresses: Iterable[str],
    descriptions: Mapping[str, str] | None = None,
) -> None:
    """Print the addresses and every route with what answers there.

    ``descriptions`` are by the backend's name; without, the configuration's own.
    """
    heading = Text.assemble(("Tetrapylon", "bold"), f" {__version__} ", "is serving")
    console.print()
    console.print(heading)
    for address in addresses:
        console.print(Text.assemble("  ", (address, "bold cyan")), soft_wrap=True)
    console.print()
    console.print(routes_table(config, descriptions or {}))
    console.print()


def routes_table(config: Config, descriptions: Mapping[str, str] | None = None) -> Table:
    """Return a table of the routes, in the order of the configuration."""
    table = Table(box=None, padding=(0, 2), show_header=False, highlight=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for route in config.routes:
        spec = config.backends[route.backend]
        said = (descriptions or {}).get(route.backend) or spec.describe()
        if route.authorizer is not None:
            said += f"; asks '{route.authorizer}' first"
        # Text, not str: nothing in a path is markup.
        where = Text(" ".join(route.hosts) + (" " if route.hosts else "") + route.path)
        table.add_row(where, Text(spec.kind), Text(said.replace(f"{config.base}/", "")))
    return table
