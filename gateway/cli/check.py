"""``tetrapylon check``: is the configuration right, and what does it come to."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from ..banner import routes_table
from ..config_warnings import warnings
from ..warm_report import legacy_hints, warm_scripts
from .epilog import examples
from .starting import DEFAULT_FILE, ConfigFile, User, load_file, require_users

EPILOG = examples(
    ("tetrapylon check", ""),
    ("tetrapylon check -c new.toml", ""),
    note="Exits with 78 when there are errors; every one is shown, with its line.",
)


def check(config: ConfigFile = DEFAULT_FILE, user: User = None) -> None:
    """Read the configuration, show its routes, and warn of what may surprise.

    Nothing is started and no application is imported; the interpreters of scripts are
    asked what they can do.
    """
    loaded = load_file(config, user)
    require_users(loaded)
    console = Console(highlight=False)
    console.print(Text.assemble((str(config), "bold"), " is right. It serves:\n"))
    for endpoint in loaded.listen.bind:
        console.print(Text(f"  {endpoint}", style="bold cyan"), soft_wrap=True)
    console.print()
    console.print(routes_table(loaded))
    for scripts in warm_scripts(loaded):
        what = "1 script runs" if scripts.warm == 1 else f"{scripts.warm or 'no'} scripts run"
        text = f"{scripts.place}: {what} warm in {scripts.name}"
        console.print(Text.assemble(("\nwarm ", "bold cyan"), text), soft_wrap=True)
        for script, reason in scripts.plain:
            console.print(Text(f"  {script} runs plain: {reason}"), soft_wrap=True)
    for place, text in (*warnings(loaded), *legacy_hints(loaded)):
        console.print(
            Text.assemble(("\nwarning ", "bold yellow"), f"{place}: {text}"), soft_wrap=True
        )
