"""``tetrapylon serve``: what the configuration says."""

from __future__ import annotations

from .epilog import examples
from .starting import DEFAULT_FILE, ConfigFile, User, load_file, start

EPILOG = examples(
    ("tetrapylon serve", "what ./tetrapylon.toml says"),
    ("tetrapylon serve -c /etc/shop.toml", ""),
)


def serve(config: ConfigFile = DEFAULT_FILE, user: User = None) -> None:
    """Serve what [bold]tetrapylon.toml[/bold] says, until Ctrl-C or SIGTERM.

    Requests in flight are answered before it stops; a second signal cuts them.
    """
    start(load_file(config, user))
