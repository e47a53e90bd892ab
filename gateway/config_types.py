"""The types a key of the configuration can have, each with its reader.

The structs of `gateway.config` say the type of a key with the aliases at the
end; `gateway.config_reading` finds the `Reader` in the alias. A reader gets the
value as TOML gives it and the folder that relative paths start from; it returns
the attribute's value (bytes, seconds, absolute paths) or raises `ValueError`
with what is wrong and a hint.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from ..adapters.addresses import parse_addresses
from .backends.redirect import STATUSES, parse_target
from .config_values import (
    FOREVER_S,
    UNLIMITED,
    Endpoint,
    nearest,
    parse_application,
    parse_endpoint,
    parse_host_pattern,
    parse_size,
    parse_time,
    quoted,
)

_FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns a TOML value into an attribute's value; raises `ValueError`."""

    read: Callable[[Any, Path], Any]


def _text(value: object, base: Path) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text in quotes, got {quoted(value)}")
    if "\0" in value:
        raise ValueError("a text cannot hold NUL")
    return value


def _flag(value: object, base: Path) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {quoted(value)}")
    return value


def _integer(value: object, lowest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected a whole number, got {quoted(value)}")
    if not lowest <= value <= UNLIMITED:
        raise ValueError(f"expected {lowest} or more, got {value}")
    return value


def _count(value: object, base: Path) -> int:
    return _integer(value, 1)


def _count_or_none(value: object, base: Path) -> int:
    return _integer(value, 0)


def _octet(value: object, base: Path) -> int:
    number = _integer(value, 0)
    if number > 255:
        raise ValueError(f"expected 255 at the most, got {number}")
    return number


def _count_limit(value: object, base: Path) -> int:
    return _integer(value, 0) or UNLIMITED


def _size(value: object, base: Path) -> int:
    size = parse_size(value)
    if size == 0:
        raise ValueError("a limit of 0 bytes lets nothing through")
    return size


def _size_or_none(value: object, base: Path) -> int:
    return parse_size(value)


def _size_limit(value: object, base: Path) -> int:
    return parse_size(value) or UNLIMITED


def _time(value: object, base: Path) -> float:
    return parse_time(value)


def _time_limit(value: object, base: Path) -> float:
    return parse_time(value) or FOREVER_S


def _texts(value: object, base: Path) -> tuple[str, ...]:
    # A list of one may be written without its brackets.
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(item, str) for item in values):
        raise ValueError(f"expected a list of texts, got {quoted(value)}")
    return tuple(_text(item, base) for item in values)


def _text_table(value: object, base: Path) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a table of texts, got {quoted(value)}")
    for name, item in value.items():
        if not isinstance(item, str):
            raise ValueError(f"{quoted(name)}: expected a text in quotes, got {quoted(item)}")
        if not name or "\0" in name + item:
            raise ValueError(f"{quoted(name)}: no empty names and no NUL")
    return dict(value)


def _variables(value: object, base: Path) -> dict[str, str]:
    table = _text_table(value, base)
    for name in table:
        if "=" in name:
            raise ValueError(f"{quoted(name)} is no variable's name")
    return table


def _command(value: object, base: Path) -> tuple[str, ...]:
    if isinstance(value, str):
        words = ", ".join(f'"{word}"' for word in value.split())
        raise ValueError(f"expected a list of words (no shell reads it); write [{words}]")
    words_read = _texts(value, base)
    if not words_read or not words_read[0]:
        raise ValueError("expected a program and its arguments, got an empty list")
    program, *arguments = words_read
    # As a shell: a bare name is looked up in PATH, a path is a path.
    return (_path(program, base) if "/" in program else program, *arguments)


def _path(value: object, base: Path) -> str:
    text = _text(value, base)
    if not text:
        raise ValueError("expected a path, got an empty text")
    return os.path.normpath(base / Path(text).expanduser())


def _folder(value: object, base: Path) -> str:
    path = _path(value, base)
    if not os.path.exists(path):
        raise ValueError(f"no such folder: {_shown(path)}")
    if not os.path.isdir(path):
        raise ValueError(f"not a folder: {_shown(path)}")
    return path


def _folders(value: object, base: Path) -> tuple[str, ...]:
    return tuple(_folder(item, base) for item in _texts(value, base))


def _folders_by_path(value: object, base: Path) -> dict[str, str]:
    folders = {}
    for path, folder in _text_table(value, base).items():
        try:
            folders[_route_path(path, base)] = _folder(folder, base)
        except ValueError as error:
            raise ValueError(f"{quoted(path)}: {error}") from None
    return folders


def _folder_or_program(value: object, base: Path) -> str:
    path = _path(value, base)
    if not os.path.exists(path):
        raise ValueError(f"no such folder or program: {_shown(path)}")
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise ValueError(f"neither a folder nor a program: {_shown(path)}")
    return path


def _watched(value: object, base: Path) -> tuple[str, ...] | None:
    if value is True or value is False:
        return () if value else None
    if not isinstance(value, str | list | tuple):
        raise ValueError(f"expected true, false or a list of paths, got {quoted(value)}")
    paths = tuple(_path(text, base) for text in _texts(value, base))
    for path in paths:
        if not os.path.exists(path):
            raise ValueError(f"no such file or folder: {_shown(path)}")
    return paths


def _log_file(value: object, base: Path) -> str:
    if value == "-":
        return "-"
    path = _path(value, base)
    if os.path.isdir(path):
        raise ValueError(f"a folder, not a file: {_shown(path)}")
    if not os.path.isdir(os.path.dirname(path)):
        raise ValueError(f"no such folder: {_shown(os.path.dirname(path))}")
    return path


def _shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)


def _endpoints_to_bind(value: object, base: Path) -> tuple[Endpoint, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    endpoints = [
        parse_endpoint(text, base=base, lowest_port=0)  # 0: the system chooses one
        for text in _texts(value, base)
    ]
    if not endpoints:
        raise ValueError('nothing to listen on; write ["127.0.0.1:8000"]')
    for endpoint in endpoints:
        if endpoint.path and not os.path.isdir(os.path.dirname(endpoint.path)):
            raise ValueError(f"no such folder: {_shown(os.path.dirname(endpoint.path))}")
        if endpoints.count(endpoint) > 1 and endpoint.port:
            raise ValueError(f'"{endpoint}" is given twice')
    return tuple(endpoints)


def _address(value: object, base: Path) -> str:
    text = _text(value, base)
    for scheme in ("tcp://", "tcp:", "fcgi://", "scgi://", "uwsgi://"):
        if text.startswith(scheme):
            raise ValueError(f'write the address as "{text.removeprefix(scheme)}"')
    return str(parse_endpoint(text, base=base))


def _addresses(value: object, base: Path) -> tuple[str, ...]:
    addresses = []
    for text in _texts(value, base):
        if text.startswith("srv:"):
            parse_addresses(text)
            address = text
        else:
            address = _address(text, base)
        if address in addresses:
            raise ValueError(f"{quoted(text)} is given twice")
        addresses.append(address)
    if not addresses:
        raise ValueError("expected an address, got an empty list")
    return tuple(addresses)


def _origin(value: object, base: Path) -> str:
    text = _text(value, base)
    if text.startswith("unix:"):
        return str(parse_endpoint(text, base=base))
    if text.startswith("https://"):
        raise ValueError(f"{quoted(text)}: only http:// is spoken to an upstream")
    if not text.startswith("http://"):
        hint = f'; did you mean "http://{text}"?' if "/" not in text else ""
        raise ValueError(f'{quoted(text)} is not like "http://127.0.0.1:8080"{hint}')
    authority = text.removeprefix("http://").removesuffix("/")
    if "/" in authority or "?" in authority or "@" in authority:
        raise ValueError(f"{quoted(text)}: only a host and a port; the path is the request's own")
    has_port = re.search(r":\d*\Z", authority) is not None
    return f"http://{parse_endpoint(authority if has_port else authority + ':80')}"


def _application(value: object, base: Path) -> str:
    return parse_application(_text(value, base))


def _redirect_target(value: object, base: Path) -> str:
    text = _text(value, base)
    try:
        parse_target(text)
    except ValueError as error:
        is_host = re.fullmatch(r"[\w-]+(\.[\w-]+)+(/.*)?", text)
        hint = f"; did you mean 'https://{text}'?" if is_host else ""
        raise ValueError(f"{error}{hint}") from None
    return text


def _redirect_status(value: object, base: Path) -> int:
    if value not in STATUSES or isinstance(value, bool):
        raise ValueError(f"expected one of {', '.join(map(str, STATUSES))}, got {quoted(value)}")
    assert isinstance(value, int)
    return value


def _suffix_table(value: object, base: Path) -> dict[str, str]:
    table = _text_table(value, base)
    for suffix in table:
        if not suffix.startswith(".") or "/" in suffix or len(suffix) < 2:
            raise ValueError(f'{quoted(suffix)} is not the end of a name, such as ".py"')
    return table


def _programs(value: object, base: Path) -> dict[str, str]:
    programs = {}
    for suffix, name in _suffix_table(value, base).items():
        program = shutil.which(_path(name, base) if "/" in name else name)
        if program is None:
            raise ValueError(f"{quoted(suffix)}: no such program: {_shown(name)}")
        programs[suffix] = program
    return programs


def _user(value: object, base: Path) -> str:
    name = _account(value, "user")
    try:
        return pwd.getpwnam(name).pw_name if not name.isdecimal() else name
    except KeyError:
        hint = nearest(name, (entry.pw_name for entry in pwd.getpwall()))
        raise ValueError(f"no such user: {_shown(name)}{hint}") from None


def _group(value: object, base: Path) -> str:
    name = _account(value, "group")
    try:
        return grp.getgrnam(name).gr_name if not name.isdecimal() else name
    except KeyError:
        hint = nearest(name, (entry.gr_name for entry in grp.getgrall()))
        raise ValueError(f"no such group: {_shown(name)}{hint}") from None


def _account(value: object, what: str) -> str:
    """Return a name, or a number as text: who is called by a number need not have a name."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    text = _text(value, Path()) if isinstance(value, str) else ""
    if not text:
        raise ValueError(f"expected a {what}'s name in quotes, got {quoted(value)}")
    return text


def _field_value(value: object, base: Path) -> str:
    text = _text(value, base)
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"{quoted(text)} cannot be a header's value")
    return text


def _media_types(value: object, base: Path) -> dict[str, str]:
    table = _suffix_table(value, base)
    for suffix, media_type in table.items():
        kind, slash, rest = _field_value(media_type, base).partition("/")
        subtype = rest.partition(";")[0].strip()
        if not slash or not _FIELD_NAME.fullmatch(kind) or not _FIELD_NAME.fullmatch(subtype):
            raise ValueError(f'{quoted(suffix)}: {quoted(media_type)} is not like "text/plain"')
    return table


def _file_names(value: object, base: Path) -> tuple[str, ...]:
    names = _texts(value, base)
    for name in names:
        if not name or "/" in name or name in (".", ".."):
            raise ValueError(f"{quoted(name)} is not a file's name")
    return names


def _suffixes(value: object, base: Path) -> tuple[str, ...]:
    suffixes = _texts(value, base)
    for suffix in suffixes:
        if not suffix.startswith(".") or "/" in suffix or len(suffix) < 2:
            raise ValueError(f'{quoted(suffix)} is not the end of a name, such as ".php"')
    return suffixes


def _route_path(value: object, base: Path) -> str:
    text = _text(value, base)
    if not text.startswith("/"):
        raise ValueError(f'a path begins with "/"; did you mean "/{text}"?')
    if re.search(r"%[0-9A-Fa-f]{2}", text):
        raise ValueError(f"{quoted(text)}: write the path as it reads, not percent-encoded")
    if re.search(r"[?#*\\\x00-\x1f\x7f]", text):
        raise ValueError(f"{quoted(text)}: a path without query, fragment or wild cards")
    segments = text.strip("/").split("/")
    if "//" in text or any(segment in (".", "..") for segment in segments):
        raise ValueError(f"{quoted(text)}: requests never have such a path; no '//', '.' or '..'")
    return text


def _hosts(value: object, base: Path) -> tuple[str, ...]:
    return tuple(parse_host_pattern(host) for host in _texts(value, base))


Flag: TypeAlias = Annotated[bool, Reader(_flag)]
#: At least 1.
Count: TypeAlias = Annotated[int, Reader(_count)]
#: 0 or more, 0 being none of them.
CountOrNone: TypeAlias = Annotated[int, Reader(_count_or_none)]
#: 0 to 255.
Octet: TypeAlias = Annotated[int, Reader(_octet)]
#: ``0`` in the file is `UNLIMITED` in the attribute.
CountLimit: TypeAlias = Annotated[int, Reader(_count_limit)]
Size: TypeAlias = Annotated[int, Reader(_size)]
SizeOrNone: TypeAlias = Annotated[int, Reader(_size_or_none)]
#: ``0`` in the file is `UNLIMITED` in the attribute.
SizeLimit: TypeAlias = Annotated[int, Reader(_size_limit)]
#: A wait where 0 is no waiting.
Time: TypeAlias = Annotated[float, Reader(_time)]
#: ``0`` in the file is `FOREVER_S` in the attribute.
TimeLimit: TypeAlias = Annotated[float, Reader(_time_limit)]
#: Whether there is such a backend is seen once all are read.
BackendName: TypeAlias = Annotated[str, Reader(_text)]
Texts: TypeAlias = Annotated[tuple[str, ...], Reader(_texts)]
TextTable: TypeAlias = Annotated[dict[str, str], Reader(_text_table)]
Variables: TypeAlias = Annotated[dict[str, str], Reader(_variables)]
Command: TypeAlias = Annotated[tuple[str, ...], Reader(_command)]
#: Absolute, as all paths below; of these the file or folder is there.
AbsolutePath: TypeAlias = Annotated[str, Reader(_path)]
Folder: TypeAlias = Annotated[str, Reader(_folder)]
#: Files and folders; ``true`` is none of them, and ``false`` stands for None.
Watched: TypeAlias = Annotated[tuple[str, ...], Reader(_watched)]
Folders: TypeAlias = Annotated[tuple[str, ...], Reader(_folders)]
#: By prefixes of URL paths.
FoldersByPath: TypeAlias = Annotated[dict[str, str], Reader(_folders_by_path)]
FolderOrProgram: TypeAlias = Annotated[str, Reader(_folder_or_program)]
LogFile: TypeAlias = Annotated[str, Reader(_log_file)]
Programs: TypeAlias = Annotated[dict[str, str], Reader(_programs)]
Endpoints: TypeAlias = Annotated[tuple[Endpoint, ...], Reader(_endpoints_to_bind)]
Address: TypeAlias = Annotated[str, Reader(_address)]
#: Of one application; SRV names (``srv:…``) are taken, too.
Addresses: TypeAlias = Annotated[tuple[str, ...], Reader(_addresses)]
Origin: TypeAlias = Annotated[str, Reader(_origin)]
ApplicationName: TypeAlias = Annotated[str, Reader(_application)]
RedirectTarget: TypeAlias = Annotated[str, Reader(_redirect_target)]
RedirectStatus: TypeAlias = Annotated[int, Reader(_redirect_status)]
UserName: TypeAlias = Annotated[str, Reader(_user)]
GroupName: TypeAlias = Annotated[str, Reader(_group)]
MediaTypes: TypeAlias = Annotated[dict[str, str], Reader(_media_types)]
FieldValue: TypeAlias = Annotated[str, Reader(_field_value)]
FileNames: TypeAlias = Annotated[tuple[str, ...], Reader(_file_names)]
Suffixes: TypeAlias = Annotated[tuple[str, ...], Reader(_suffixes)]
RoutePath: TypeAlias = Annotated[str, Reader(_route_path)]
Hosts: TypeAlias = Annotated[tuple[str, ...], Reader(_hosts)]
