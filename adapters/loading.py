"""``module:attribute`` to an application, with errors that help.

What a person mistypes is answered with what is there; what fails inside their
module is shown at their line, without the frames of the import machinery.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import pkgutil
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, Literal

from asgiref.compatibility import guarantee_single_callable

from ..protocols import asgi

#: What a module's application is called when nobody says it.
DEFAULT_ATTRIBUTES = ("app", "application")

_IDENTIFIERS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*\Z")
_SITE_FOLDERS = tuple(
    {folder for key in ("purelib", "platlib", "stdlib") if (folder := sysconfig.get_path(key))}
)


class LoadFailure(Exception):
    """There is no application under that name; the message says why and what to do."""


class ModuleNotFound(LoadFailure):
    """No such module on the import path."""


class AttributeNotFound(LoadFailure):
    """The module has no such attribute."""


class ModuleFailed(LoadFailure):
    """The module, or a factory in it, raised; ``__cause__`` has the whole traceback."""


class UnknownInterface(LoadFailure):
    """The object is neither a WSGI nor an ASGI application."""


def load_application(spec: str, *, path: Sequence[str] = ()) -> object:
    """Return the application that ``"module:attribute"`` names.

    ``"module:factory()"`` is called without arguments; with ``"module"`` alone
    the application is its ``app`` or ``application``. The folders of ``path``
    are put at the start of `sys.path`, where they stay: applications import as
    they run. Raises `LoadFailure`.
    """
    module_name, colon, attribute = spec.partition(":")
    is_factory = attribute.endswith("()")
    attribute = attribute.removesuffix("()")
    if not _IDENTIFIERS.match(module_name) or (colon and not _IDENTIFIERS.match(attribute)):
        raise LoadFailure(
            f"{spec!r} is not like 'module:attribute'{_did_you_mean(_repaired(spec))}"
        )
    for folder in reversed([os.path.abspath(folder) for folder in path]):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    importlib.invalidate_caches()
    module = _import(spec, module_name)
    if not colon:
        return _default_attribute(module)
    found = _attribute(module, attribute)
    return _made(f"{module_name}:{attribute}", found) if is_factory else found


def _import(spec: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise _failed(f"cannot import {name!r}", error) from error
        similar = _similar(spec, missing) or _repaired(spec)
        raise ModuleNotFound(f"there is no module {missing!r}{_did_you_mean(similar)}") from None
    except (Exception, SystemExit) as error:
        raise _failed(f"cannot import {name!r}", error) from error


def _similar(spec: str, missing: str) -> list[str]:
    """Return what ``spec`` may have meant, with other modules in place of the ``missing`` one."""
    parent, _, last = missing.rpartition(".")
    folders: Iterable[str] | None = None
    if parent:
        folders = getattr(sys.modules.get(parent), "__path__", None)
        if folders is None:
            # `shop.app` for `shop:app`
            return [f"{parent}:{last}"] if hasattr(sys.modules.get(parent), last) else []
    else:
        # The standard library's names would drown what is the user's own.
        folders = [folder for folder in sys.path if not _is_library(folder) or "site-" in folder]
    candidates = {module.name for module in pkgutil.iter_modules(folders)}
    rest = spec.removeprefix(missing)
    close = difflib.get_close_matches(last, candidates, n=3)
    return [(f"{parent}." if parent else "") + candidate + rest for candidate in close]


def _attribute(module: ModuleType, path: str) -> object:
    found: object = module
    at = module.__name__ + ":"
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [name for name in dir(found) if not name.startswith("__")]
            close = difflib.get_close_matches(part, names, n=3)
            separator = "" if at.endswith(":") else "."
            similar = [f"{at}{separator}{name}" for name in close]
            if not similar and found is module:
                similar = _applications(module)
            where = "module" if found is module else "object"
            raise AttributeNotFound(
                f"{where} {at.rstrip(':')!r} has no attribute {part!r}{_did_you_mean(similar)}"
            ) from None
        at += ("" if at.endswith(":") else ".") + part
    return found


def _default_attribute(module: ModuleType) -> object:
    for name in DEFAULT_ATTRIBUTES:
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeNotFound(
        f"module {module.__name__!r} has neither 'app' nor 'application': say which it is, as in"
        f" '{module.__name__}:name'{_did_you_mean(_applications(module))}"
    )


def _applications(module: ModuleType) -> list[str]:
    """Return ``module:name`` of what looks like an application or makes one."""
    found = []
    for name, value in vars(module).items():
        if name.startswith("_") or inspect.isclass(value) or not callable(value):
            continue
        if inspect.isfunction(value) and value.__module__ != module.__name__:
            continue
        if _flavour(value) is not None:
            found.append(f"{module.__name__}:{name}")
        elif name.startswith(("create_", "make_", "get_")) and _takes(value, 0):
            found.append(f"{module.__name__}:{name}()")
    return found[:3]


@functools.cache
def _made(name: str, factory: object) -> object:
    """Call a factory; once, however often its application is asked for by name."""
    if not callable(factory):
        raise LoadFailure(f"{name!r} is {_described(factory)}: not a factory, leave out the '()'")
    try:
        made: object = factory()
    except (Exception, SystemExit) as error:
        raise _failed(f"the factory {name}() failed", error) from error
    if inspect.iscoroutine(made):
        made.close()
        raise LoadFailure(f"the factory {name}() is a coroutine function; it must be a plain one")
    if made is None:
        raise LoadFailure(f"the factory {name}() returned nothing")
    return made


def _did_you_mean(names: Sequence[str]) -> str:
    if not names:
        return ""
    *others, last = [repr(name) for name in names]
    return f"; did you mean {', '.join(others) + ' or ' if others else ''}{last}?"


def _repaired(spec: str) -> list[str]:
    """Return what a path such as ``./shop/wsgi.py:app`` says in dots."""
    module_name, colon, attribute = spec.partition(":")
    name = module_name.removeprefix("./").removesuffix(".py").strip("/").replace("/", ".")
    repaired = name + colon + attribute
    if repaired != spec and _IDENTIFIERS.match(name):
        return [repaired]
    return []


# What failed in the user's own code


def _failed(what: str, error: BaseException) -> ModuleFailed:
    text = "".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, SyntaxError):
        # Its text shows file, line and column by itself.
        return ModuleFailed(f"{what}:\n{_indented(text)}")
    frame = _own_frame(error)
    if isinstance(error, SystemExit):
        text = f"it called sys.exit({error.code!r})"
    if frame is None:
        return ModuleFailed(f"{what}: {text}")
    where = f"{_shown(frame.filename)}, line {frame.lineno}"
    return ModuleFailed(f"{what}: {text}\n  {where}\n    {frame.line or ''}".rstrip())


def _own_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost frame in the user's code, or else in any file."""
    innermost = None
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        machinery = (__file__, importlib.__file__)
        if frame.filename in machinery or frame.filename.startswith("<frozen importlib"):
            continue
        if not _is_library(frame.filename):
            return frame
        innermost = innermost or frame
    return innermost


def _is_library(path: str) -> bool:
    return path.startswith(_SITE_FOLDERS)


def _shown(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


# Which interface an application speaks

_Flavour = Literal["asgi3", "asgi2", "wsgi"]


def detect_interface(app: object) -> Literal["asgi", "wsgi"]:
    """Tell which interface the application speaks, by its signature; it is not called.

    ASGI 3: a coroutine function, or an object with ``async def __call__``. WSGI:
    a plain callable of two arguments. ASGI 2: a plain one of one. Raises
    `UnknownInterface` for what is neither.
    """
    flavour = _flavour(app)
    if flavour is not None:
        return "wsgi" if flavour == "wsgi" else "asgi"
    if not callable(app):
        raise UnknownInterface(f"{_described(app)} is not an application: it cannot be called")
    if _takes(app, 0):
        raise UnknownInterface(
            f"{_described(app)} takes no arguments: if it makes the application, write"
            " 'module:name()', with parentheses"
        )
    raise UnknownInterface(
        f"{_described(app)} takes neither (environ, start_response), as WSGI applications do, nor"
        " (scope, receive, send), as ASGI applications do"
    )


def single_callable(app: Any) -> asgi.Application:
    """Return an ASGI application as ASGI 3 calls it; those of ASGI 2 are wrapped."""
    if _flavour(app) == "asgi2":
        app = guarantee_single_callable(app)  # type: ignore[no-untyped-call]
    application: asgi.Application = app
    return application


def _flavour(app: Any) -> _Flavour | None:
    if not callable(app):
        return None
    if inspect.isclass(app):
        # Called with (scope) and then (receive, send), or, as in PEP 3333's own example,
        # with (environ, start_response) and then iterated.
        if _takes(app, 2) and hasattr(app, "__iter__"):
            return "wsgi"
        return "asgi2" if _takes(app, 1) and _is_coroutine_call(app) else None
    if getattr(app, "_asgi_single_callable", False):
        return "asgi3"
    if getattr(app, "_asgi_double_callable", False):
        return "asgi2"
    target: object = app
    while isinstance(target, functools.partial):
        target = target.func
    if inspect.iscoroutinefunction(target) or _is_coroutine_call(type(target)):
        return "asgi3"
    names = _positional_names(app)
    if names is None:
        # `*args`, as middleware has it. Of coroutines we know; so it is the other.
        return "wsgi" if _takes(app, 2) else None
    if len(names) == 3:
        return "asgi3"
    if len(names) == 2:
        return "wsgi"
    # A plain function of one argument may be anything; the name makes it an application.
    return "asgi2" if names == ["scope"] else None


def _is_coroutine_call(kind: type) -> bool:
    """Tell whether instances of the class are called as coroutine functions."""
    return inspect.iscoroutinefunction(getattr(kind, "__call__", None))  # noqa: B004 what, not whether


def _positional_names(app: Any) -> list[str] | None:
    """Return the names of the parameters that must be given; ``None`` if that is open."""
    signature = _signature(app)
    if signature is None:
        return []
    parameters = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    return [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]


def _takes(app: Any, count: int) -> bool:
    signature = _signature(app)
    if signature is None:
        return False
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _signature(app: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(app)
    except (TypeError, ValueError):
        return None


def _described(value: object) -> str:
    if inspect.isfunction(value) or inspect.isclass(value):
        return f"{value.__module__}.{value.__qualname__}"
    if inspect.ismodule(value):
        return f"the module {value.__name__!r}"
    return f"an object of class {type(value).__module__}.{type(value).__qualname__}"
