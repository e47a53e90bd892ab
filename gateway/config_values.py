"""Sizes, times and addresses as a configuration writes them.

Text in, bytes, seconds and endpoints out; `ValueError` says what is wrong with
a hint, on one line. The types of keys (`gateway.config_types`) build on it.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

#: Bytes or counts where the file says ``0`` for "no limit": more than any
#: Content-Length that is let through.
UNLIMITED = 2**63 - 1
#: Seconds where the file says ``0`` for "no limit"; it adds and compares as a time.
FOREVER_S = math.inf

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_SIZE_UNITS = {"": 1, "b": 1} | {
    letter + ending: base**power
    for power, letter in enumerate("kmgt", 1)
    for ending, base in (("ib", 1024), ("b", 1000))
}
_TIME_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|min|s|m|h|d)\s*")
_TIME_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_APPLICATION = re.compile(rf"{_DOTTED}(?::{_DOTTED}(?:\(\))?)?")
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")


class Endpoint(NamedTuple):
    """A place to listen or to connect: TCP (``host``, ``port``) or a unix socket (``path``)."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def quoted(value: object) -> str:
    """Show a value in a message as TOML would, on one line, not too long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "…"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'threads'?`` when a known name is near, else ``""``."""
    known = sorted(known)
    lowered = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), lowered, 1, 0.6)
    return f"; did you mean '{lowered[found[0]]}'?" if found else ""


def parse_size(value: object) -> int:
    """Return bytes from ``"64KiB"``, ``"1.5MiB"``, ``"10MB"`` or a plain integer.

    ``KiB MiB GiB TiB`` are powers of 1024, ``kB MB GB TB`` of 1000.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"a size cannot be negative: {value}")
        return _bounded(value, value)
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{quoted(value)} is not a size; write it like "64KiB" or 65536')
    factor = _SIZE_UNITS.get(match[2].lower())
    if factor is None:
        unit = match[2][:1].upper()
        hint = f'; did you mean "{match[1]}{unit}iB"?' if unit in "KMGT" else ""
        raise ValueError(f"{quoted(value)} has no unit of size (B, KiB, MiB, GiB){hint}")
    number = match[1]
    size: int = round(float(number) * factor) if "." in number else int(number) * factor
    return _bounded(size, value)


def _bounded(size: int, value: object) -> int:
    if size > UNLIMITED:
        raise ValueError(f"{quoted(value)} is more than 8 EiB")
    return size


def parse_time(value: object) -> float:
    """Return seconds from ``"10s"``, ``"500ms"``, ``"1h"``, ``"1m30s"`` or ``0``."""
    if value == "0" or (value == 0 and not isinstance(value, bool)):
        return 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f'{quoted(value)} has no unit; write "{value}s" or "{value}ms"')
    if isinstance(value, str):
        text = value.strip()
        parts = _TIME_PART.findall(text)
        if parts and not _TIME_PART.sub("", text):
            return math.fsum(float(number) * _TIME_UNITS_S[unit] for number, unit in parts)
        if re.fullmatch(r"\d+(\.\d+)?", text):
            raise ValueError(f'{quoted(value)} has no unit; write "{text}s" or "{text}ms"')
    raise ValueError(f'{quoted(value)} is not a time; write it like "10s", "500ms" or "1h"')


def parse_endpoint(text: str, *, base: Path | None = None, lowest_port: int = 1) -> Endpoint:
    """Return the place that ``"host:port"``, ``"[::1]:port"`` or ``"unix:/path"`` names.

    A relative path of a socket starts at ``base``.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise ValueError(f'{quoted(text)} names no socket; write it like "unix:/run/app.sock"')
        if base is not None:
            path = os.path.normpath(base / path)
        # struct sockaddr_un, with its closing NUL (macOS: 104)
        if len(os.fsencode(path)) > 103:
            raise ValueError(f"{quoted(text)} is longer than a unix socket's path can be (103)")
        return Endpoint("", 0, path)
    if text.startswith("/"):
        raise ValueError(f'{quoted(text)} has no kind; did you mean "unix:{text}"?')
    host, colon, digits = text.rpartition(":")
    if not colon:
        if re.fullmatch(r"[0-9]+", text):
            raise ValueError(f'{quoted(text)} has no host; did you mean "127.0.0.1:{text}"?')
        raise ValueError(f'{quoted(text)} has no port; write it like "127.0.0.1:8000"')
    if not re.fullmatch(r"[0-9]{1,5}", digits) or not lowest_port <= int(digits) <= 65535:
        raise ValueError(f"{quoted(text)}: the port must be {lowest_port} to 65535")
    if not host or host == "*":
        raise ValueError(
            f'{quoted(text)} has no host; "127.0.0.1:{digits}" is this machine alone, '
            f'"0.0.0.0:{digits}" everyone'
        )
    try:
        return Endpoint(_parse_host(host), int(digits))
    except ValueError as error:
        hint = f'; in brackets: "[{host}]:{digits}"' if host.count(":") > 1 else ""
        raise ValueError(f"{quoted(text)}: {error}{hint}") from None


def parse_application(text: str) -> str:
    """Return ``"module:attribute"``, ``"module:factory()"`` or ``"module"`` as it is."""
    module, _, attribute = text.partition(":")
    if not _APPLICATION.fullmatch(text) or module.endswith(".py"):
        module = module.removesuffix(".py").replace("/", ".").strip(".")
        is_near = _APPLICATION.fullmatch(f"{module}:{attribute or 'app'}")
        hint = f"; did you mean '{module}:{attribute or 'app'}'?" if is_near else ""
        raise ValueError(f"{quoted(text)} is not like 'module:application'{hint}")
    return text


def parse_host_pattern(text: str) -> str:
    """Return the normal form of a route's host: ``example.com``, ``*.example.com``, ``[::1]``."""
    host = text.lower().removesuffix(".")
    if "/" in host:
        raise ValueError(f"{quoted(text)}: only the host's name, without scheme and path")
    if ":" in host and not host.endswith("]"):
        raise ValueError(f"{quoted(text)}: only the host's name; routes do not look at the port")
    wild_card, name = ("*.", host[2:]) if host.startswith("*.") else ("", host)
    try:
        name = name if name.isascii() else name.encode("idna").decode()
        name = _parse_host(name)
    except ValueError as error:
        hint = '; a wild card stands for the first labels: "*.example.com"' if "*" in name else ""
        raise ValueError(f"{error}{hint}") from None
    return wild_card + (f"[{name}]" if ":" in name else name)


def _parse_host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError(f"{quoted(host[1:-1])} is no IPv6 address") from None
    if re.fullmatch(r"[0-9]+(\.[0-9]*)*", host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError(f"{quoted(host)} is no IPv4 address") from None
    if not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{quoted(host)} is no host name")
    return host
