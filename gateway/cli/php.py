"""``tetrapylon php``: a folder of PHP, with php-fpm or php-cgi found and looked after."""

from __future__ import annotations

import signal
import sys

from ..php import PhpFailure, running_php
from .epilog import examples
from .exits import EX_UNAVAILABLE, fail
from .starting import Folder, Host, Port, config_of, existing_folder, start

EPILOG = examples(
    ("tetrapylon php .", "http://127.0.0.1:8000/"),
    ("tetrapylon php public --port 8080", ""),
)


def php(directory: Folder, host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Serve a folder of PHP: scripts run in php-fpm (or php-cgi), other files are sent.

    php-fpm is started for this alone, with a configuration of its own, and
    stopped with it. Uploads may be as large as 64 MiB.
    """
    folder = existing_folder(directory)
    # Until the server takes the signal over: php-fpm must not be left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with running_php(folder) as tables:
            start(config_of(tables, folder, host, port))
    except PhpFailure as error:
        fail(EX_UNAVAILABLE, str(error))
