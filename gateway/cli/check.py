"""``tetrapylon check``: is the configuration right, and what does it come to."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from ..banner import routes_table
from ..config_warnings import warnings
from .epilog import examples
from .starting import DEFAULT_FILE, ConfigFile, load_file

EPILOG = examples(
    ("tetrapylon check", ""),
    ("tetrapylon check -c new.toml", ""),
    note="Exits with 78 when there are errors; every one is shown, with its line.",
)


def check(config: ConfigFile = DEFAULT_FILE) -> None:
    """Read the configuration, show its routes, and warn of what may surprise.

    Nothing is started and no application is imported.
    """
    loaded = load_file(config)
    console = Console(highlight=False)
    console.print(Text.assemble((str(config), "bold"), " is right. It serves:\n"))
    for endpoint in loaded.listen.bind:
        console.print(Text(f"  {endpoint}", style="bold cyan"), soft_wrap=True)
    console.print()
    console.print(routes_table(loaded))
    for place, text in warnings(loaded):
        console.print(
            Text.assemble(("\nwarning ", "bold yellow"), f"{place}: {text}"), soft_wrap=True
        )
