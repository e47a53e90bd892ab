"""FastCGI: php-fpm behind this gateway and its peers.

Each gateway is one process (Apache's with threads) on one core; php-fpm, one for
each gateway, and wrk share another. All keep their connections to it but Caddy,
which cannot; php-fpm has a child for each connection, for a kept one holds it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from measuring import Case, Mark
from peers import FASTCGI_OURS
from processes import Group
from web_servers import (
    FASTCGI_APACHE,
    FASTCGI_APACHE_KEPT,
    FASTCGI_CADDY,
    FASTCGI_NGINX,
    php_version,
    start_php,
)

TITLE = "FastCGI"
HERE = Path(__file__).resolve().parent


def write_php(scripts: Path) -> None:
    """Copy the script."""
    shutil.copy(HERE / "scripts" / "hello.php", scripts)


def _application(group: Group, folder: Path, connections: int) -> Path:
    return start_php(group, folder, children=connections)


CASES = [
    Case(
        f"fastcgi {connections}",
        f"php-fpm, {connections} connections",
        (FASTCGI_OURS, FASTCGI_NGINX, FASTCGI_APACHE, FASTCGI_APACHE_KEPT, FASTCGI_CADDY),
        path="/hello.php",
        connections=connections,
        marks=(
            Mark(0.8, (FASTCGI_NGINX.name,)),
            Mark(1.2, (FASTCGI_APACHE.name,)),
            Mark(2.0, (FASTCGI_CADDY.name,)),
            Mark(1.0, (FASTCGI_NGINX.name,), is_p99=True),
        ),
        prepare=write_php,
        application=_application,
        needs=lambda: None if php_version() else "needs php-fpm (Debian: php-fpm)",
        is_pinned=True,
    )
    for connections in (16, 64)
]
