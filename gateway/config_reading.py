"""Tables of the configuration into structs, noting all that is wrong on the way.

It knows msgspec's structs and the types of `gateway.config_types`, not what the
tables mean: that is `gateway.config`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from .config_source import KeyPath, Problem, Source
from .config_types import Reader
from .config_values import nearest, quoted

_UNITS = ("_bytes_per_s", "_bytes", "_s")


def key_of(attribute: str) -> str:
    """Return the key of an attribute: its name without the unit that the value brings."""
    for unit in _UNITS:
        if attribute.endswith(unit):
            return attribute.removesuffix(unit)
    return attribute


class Table(msgspec.Struct, frozen=True, kw_only=True, rename=key_of):
    """A table of the file: frozen, its keys named after its attributes."""


class Reading:
    """One reading of a configuration: what is wrong so far, and where relative paths start."""

    def __init__(self, source: Source, base: Path) -> None:
        self.source = source
        self.base = base
        self.problems: list[Problem] = []

    def report(self, key: KeyPath, message: str) -> None:
        """Note one thing that is wrong."""
        self.problems.append(self.source.problem(key, message))

    def table(self, value: object, key: KeyPath) -> dict[str, Any]:
        """Return the table at ``key``; an empty one, reported, for anything else."""
        if isinstance(value, dict):
            return value
        self.report(key, f"expected a table, got {quoted(value)}")
        return {}

    def attributes(
        self,
        kind: type[msgspec.Struct],
        table: dict[str, Any],
        key: KeyPath,
        *,
        also: Collection[str] = (),
        defaults: msgspec.Struct | None = None,
    ) -> dict[str, Any]:
        """Return the attributes of ``kind`` that the table gives rightly.

        Every other key is reported, except those in ``also``. A table within the
        table adds to the one that ``defaults`` has under the same key.
        """
        fields = fields_of(kind)
        values = {}
        for name, value in table.items():
            if name in fields:
                attribute, annotation = fields[name]
                try:
                    default = getattr(defaults, attribute, None)
                    values[attribute] = self._value(annotation, value, (*key, name), default)
                except ValueError as error:
                    self.report((*key, name), str(error))
            elif name not in also:
                self.report((*key, name), f"unknown key{nearest(name, {*fields, *also})}")
        return values

    # `default` is whatever the struct of the defaults holds under this key.
    def _value(self, annotation: Any, value: object, key: KeyPath, default: Any) -> object:
        if _is_struct(annotation):
            table = self.table(value, key)
            struct: msgspec.Struct = annotation() if default is None else default
            own = self.attributes(annotation, table, key, defaults=struct)
            return msgspec.structs.replace(struct, **own)
        read = read_value(annotation, value, self.base)
        return {**default, **read} if isinstance(read, dict) and default else read


def read_value(annotation: Any, value: object, base: Path) -> object:
    """Return the attribute's value for a value of the file; raises `ValueError`."""
    reader = _reader(annotation)
    if reader is not None:
        return reader.read(value, base)
    assert get_origin(annotation) is Literal, f"no reader for {annotation!r}"
    choices = get_args(annotation)
    if value not in choices:
        wanted = ", ".join(f'"{choice}"' for choice in choices)
        hint = nearest(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"expected one of {wanted}, got {quoted(value)}{hint}")
    return value


def _reader(annotation: Any) -> Reader | None:
    # `Size | None`: None is only ever the default.
    for candidate in (annotation, *get_args(annotation)):
        for mark in getattr(candidate, "__metadata__", ()):
            if isinstance(mark, Reader):
                return mark
    return None


@functools.cache
def fields_of(kind: type[msgspec.Struct]) -> dict[str, tuple[str, Any]]:
    """Return, by key, the attribute and its type; without what is not in the file."""
    return {
        field.encode_name: (field.name, field.type)
        for field in msgspec.structs.fields(kind)
        if _is_key(field.type)
    }


def key_of_attribute(kind: type[msgspec.Struct], attribute: str) -> str:
    """Return the key that gives ``kind`` its attribute."""
    return next(key for key, (name, _) in fields_of(kind).items() if name == attribute)


def _is_key(annotation: Any) -> bool:
    is_literal = get_origin(annotation) is Literal
    return is_literal or _is_struct(annotation) or _reader(annotation) is not None


def _is_struct(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, msgspec.Struct)
