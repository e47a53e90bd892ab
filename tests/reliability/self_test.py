"""Checks of the checks: each must fail where what it looks for is really wrong.

The gateway is given a wrong configuration, a probe misbehaves behind its back, or a
careless server takes the gateway's place.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ground import Ground
from verdicts import CHECKS, Failure


@dataclass(frozen=True)
class Sabotage:
    """A check, and what must make it fail with ``because`` in its words."""

    check: str
    what: str
    because: str
    tables: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    stand_in: bool = False


def _careless(check: str) -> Sabotage:
    return Sabotage(check, "a careless server", "cases", stand_in=True)


SABOTAGES = (
    *map(_careless, ("A1", "A2", "A3", "A4", "A6", "A7", "A8")),
    Sabotage("A5", "chunk_overhead = 64MiB", "answered", {"limits": {"chunk_overhead": "64MiB"}}),
    Sabotage("A9", "header_names = refuse", "", {"http": {"header_names": "refuse"}}),
    Sabotage("A10", "trailers = 1MiB", "trailers", {"limits": {"trailers": "1MiB"}}),
    Sabotage("A11", "read_ahead = 64MiB", "RSS", {"limits": {"read_ahead": "64MiB"}}),
    Sabotage("B1", "headers = 64KiB", "instead of 431", {"limits": {"headers": "64KiB"}}),
    Sabotage("B2", "headers = 1MiB", "408", {"limits": {"headers": "1MiB"}}),
    Sabotage("B3", "body = 32MiB", "", {"limits": {"body": "32MiB"}}),
    Sabotage("B4", "header = 1m", "open after", {"timeouts": {"header": "1m"}}),
    Sabotage("B5", "first_byte = 1m", "open after", {"timeouts": {"first_byte": "1m"}}),
    Sabotage("B7", "send_buffer = 8MiB", "buffered", {"limits": {"send_buffer": "8MiB"}}),
    Sabotage("C1", "HTTP_PROXY in env", "HTTP_PROXY", {"cgi": {"env": {"HTTP_PROXY": "evil"}}}),
    Sabotage("C1", "descriptors leak", "descriptors", environ={"RELIABILITY_LEAK": "descriptors"}),
    Sabotage("C1", "a file is left", "temporary", environ={"RELIABILITY_LEAK": "file"}),
    Sabotage("C1", "a zombie is left", "children", environ={"RELIABILITY_LEAK": "zombie"}),
    Sabotage("C1", "the process dies", "closed", environ={"RELIABILITY_LEAK": "death"}),
    Sabotage("C2", "REMOTE_USER in env", "REMOTE_USER", {"cgi": {"env": {"REMOTE_USER": "evil"}}}),
    Sabotage("C5", "env_pass = CANARY", "nobody asked for", {"cgi": {"env_pass": ["CANARY"]}}),
    Sabotage(
        "D1", "dotfiles = true", "left the root", {"backends": {"static": {"dotfiles": True}}}
    ),
    Sabotage("D2", "merge_slashes = false", "was given", {"http": {"merge_slashes": False}}),
    Sabotage("D5", "check_file = false", "", {"fastcgi": {"check_file": False}}),
    Sabotage("D6", "sendfile_roots = /", "sendfile: 200", {"static": {"sendfile_roots": ["/"]}}),
    Sabotage("E1", "timeout = 5s", "answered after", {"cgi": {"timeout": "5s"}}),
    Sabotage("E3", "response_headers = 4MiB", "big-head", {"limits": {"response_headers": "4MiB"}}),
    Sabotage("E4", "redirects = 20", "21 runs", {"cgi": {"redirects": 20}}),
    Sabotage("E10", "children = 64", "of 500 at once", {"cgi": {"children": 64}}),
    Sabotage("F1", "connect = 8s", "after 8", {"fastcgi": {"connect": "8s"}}),
    Sabotage("F2", "connect = 50ms", "when it was", {"fastcgi": {"connect": "50ms"}}),
    Sabotage("F3", "breaker = 0", "did not open", {"fastcgi": {"breaker": 0}}),
    Sabotage("F6", "connections = 16", "not all of it", {"fastcgi": {"connections": 16}}),
    Sabotage("G1", "threads = 16", "16 of", {"wsgi": {"threads": 16}}),
    Sabotage("G3", "body_buffer = 1MiB", "read ahead", {"limits": {"body_buffer": "1MiB"}}),
    Sabotage(
        "S2", "a script stops the helper", "still there", {"cgi": {"env": {"SABOTAGE": "helper"}}}
    ),
    Sabotage("S6", "graceful = 1s", "", {"timeouts": {"graceful": "1s"}}),
    Sabotage("S11", "user = root", "", {"cgi": {"user": "root"}}),
)


def _notice(sabotage: Sabotage) -> tuple[bool, str]:
    """Run the check on broken ground; tell whether it failed for the right reason."""
    ground = Ground(sabotage.tables, environ=sabotage.environ, stand_in=sabotage.stand_in)
    what = f"{sabotage.check} ({sabotage.what})"
    try:
        CHECKS[sabotage.check](ground)
        ground.close()
    except Failure as failure:
        said = " ".join(str(failure).split())[:110]
        if sabotage.because in str(failure):
            return True, f"PASS self-test {what} fails: {said}"
        return False, f"FAIL self-test {what} fails for another reason: {said}"
    except Exception as error:
        return False, f"FAIL self-test {what} breaks: {error!r}"
    return False, f"FAIL self-test {what}: the check did not notice"


def main(ids: Collection[str]) -> int:
    """Run the self-tests of ``ids``, or all; return the exit code."""
    chosen = [sabotage for sabotage in SABOTAGES if not ids or sabotage.check in ids]
    good = 0
    with ThreadPoolExecutor(3) as pool:
        for is_noticed, line in pool.map(_notice, chosen):
            good += is_noticed
            print(line, flush=True)
    print(f"{good} passed, {len(chosen) - good} failed")
    return 0 if good == len(chosen) else 1
