"""``tetrapylon php``: a folder of PHP, with php-fpm or php-cgi found and looked after."""

from __future__ import annotations

from ..php import PhpFailure, describe_php, existing_php, php_tables
from .epilog import examples
from .exits import EX_UNAVAILABLE, fail
from .starting import Folder, Host, Port, User, config_of, existing_folder, folder_user, start

EPILOG = examples(
    ("tetrapylon php .", "http://127.0.0.1:8000/"),
    ("tetrapylon php public --port 8080", ""),
)


def php(directory: Folder, host: Host = "127.0.0.1", port: Port = 8000, user: User = None) -> None:
    """Serve a folder of PHP: scripts run in php-fpm (or php-cgi), other files are sent.

    php-fpm is started for this alone, with a configuration of its own, and
    stopped with it. Uploads may be as large as 64 MiB.

    Started as root, it runs scripts as the folder's owner, or if that is root,
    too, as somebody without rights; [bold]--user[/bold] names another.
    """
    folder = existing_folder(directory)
    names = folder_user(folder, user)
    try:
        program = existing_php()
    except PhpFailure as error:
        fail(EX_UNAVAILABLE, str(error))
    config = config_of(php_tables(folder, program), folder, host, port, names)
    note = f"PHP runs as {names.user}." if names is not None else None
    start(config, note, descriptions=describe_php(folder, program))
