"""Modules that a warm Python has ready, and that no script sees before it imports them.

A part of the program that begins in `python_importlib_bootstrap`, and like it run by
the script's own interpreter, whichever that is: nothing of ours is imported, nothing
newer than Python 3.9 used.

The modules that scripts use are imported once, and then taken out of `sys.modules`
again, and submodules out of their packages. When a script imports one, it is put back
together with all that its import would have brought along, in the same order. So
`'json' in sys.modules`, and `urllib.parse` without its import, are as in a cold
interpreter; and where an import might find another module, because the script has
changed `sys.path` or put something of its own into `sys.modules`, it is a real one.
"""

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import ModuleType
    from typing import Any, TypeVar

    _Used = TypeVar("_Used")

#: What CGI scripts import. Not `multiprocessing`, whose state is that of a process, nor
#: what is large and rare: whatever is held here is mapped anew for each request.
USUAL = (
    *("__future__", "argparse", "ast", "atexit", "base64", "binascii", "bisect", "calendar"),
    *("cgi", "cgitb", "codecs", "collections", "collections.abc", "configparser", "contextlib"),
    *("copy", "csv", "ctypes", "dataclasses", "datetime", "decimal", "difflib", "email"),
    *("email.header", "email.message", "email.mime.multipart", "email.mime.text"),
    *("email.parser", "email.policy", "email.utils", "enum", "errno", "fcntl", "fnmatch"),
    *("functools", "gc", "getopt", "getpass", "gettext", "glob", "gzip"),
    *("hashlib", "heapq", "hmac", "html", "html.entities", "html.parser", "http"),
    *("http.client", "http.cookiejar", "http.cookies", "inspect", "io", "itertools", "json"),
    *("keyword", "linecache", "locale", "logging", "logging.handlers", "math", "mimetypes"),
    *("numbers", "operator", "optparse", "os", "os.path", "pathlib", "pickle", "platform"),
    *("posixpath", "pprint", "pwd", "queue", "quopri", "random", "re", "reprlib", "secrets"),
    *("select", "shlex", "shutil", "signal", "smtplib", "socket", "sqlite3", "ssl", "stat"),
    *("string", "struct", "subprocess", "tempfile", "textwrap", "threading"),
    *("time", "traceback", "types", "typing", "unicodedata", "urllib.error"),
    *("urllib.parse", "urllib.request", "urllib.response", "uuid", "warnings", "weakref"),
    *("xml.dom.minidom", "xml.etree.ElementTree", "xml.sax", "xml.sax.saxutils", "zipfile"),
    "zlib",
)

# `traceback` cuts such frames out of what an ImportError shows, `warnings` skips them.
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_FIND_AND_LOAD = """
def _find_and_load(name, import_):
    if name in brings and name not in modules:
        module = give(name)
        if module is not None:
            return module
    return find_and_load(name, import_)
"""
_MISSING = object()


class Imports:
    """The modules that are ready, and the import that gives them out.

    ``at_start`` are the names that every script finds in `sys.modules`; ``names``
    those of the modules that are ready, ``shadowable`` those that a file could take
    the place of.
    """

    def __init__(self, at_start: Iterable[str]) -> None:
        import _frozen_importlib as bootstrap
        import _frozen_importlib_external
        import builtins

        self._bootstrap: Any = bootstrap
        self._builtins: Any = builtins
        self._import = builtins.__import__
        external: Any = _frozen_importlib_external
        self._suffixes = tuple(
            suffix for _, suffixes in external._get_supported_file_loaders() for suffix in suffixes
        )
        self._at_start = frozenset(at_start)
        self.names: frozenset[str] = frozenset()
        self.shadowable: set[str] = set()
        self._ready: dict[str, ModuleType] = {}
        # What an import of a name puts into `sys.modules`, itself among it.
        self._brings: dict[str, tuple[str, ...]] = {}
        # Submodule → its package and its name there.
        self._places: dict[str, tuple[ModuleType, str]] = {}
        # What a module's import does besides, in the process that imports it.
        self._effects: dict[str, list[Callable[[], object]]] = {}
        self._given: set[str] = set()
        # Where a script that changes nothing has its imports searched.
        self._path: list[str] = []
        self._finders: list[Any] = []
        self._hooks: list[Any] = []

    def load(self, use: Callable[[], _Used]) -> _Used:
        """Import what is usual, return ``use()``, which may import, too, and hide all of it.

        Raises `LookupError` if PYTHONPATH has modules that would be taken for the
        standard library's.
        """
        usual = {name.partition(".")[0] for name in USUAL}
        self.shadowable = set(getattr(sys, "stdlib_module_names", usual))
        for folder in _searched_first(sys.path):
            name = self.shadows(folder)
            if name is not None:
                raise LookupError(f"{folder} has a module {name!r}, as Python has")
        recorder = _Recorder(self._bootstrap, self._at_start)
        with recorder:
            for name in USUAL:
                try:
                    __import__(name)
                except ImportError:
                    pass  # not in this version, or not in this build
            used = use()
        self._hide(recorder)
        self._path = list(sys.path)
        self._finders = list(sys.meta_path)
        self._hooks = list(sys.path_hooks)
        namespace = {
            "brings": self._brings,
            "modules": sys.modules,
            "give": self._give,
            "find_and_load": self._bootstrap._find_and_load,
        }
        exec(compile(_FIND_AND_LOAD, _IMPORT_SYSTEM, "exec"), namespace)  # noqa: S102
        self._bootstrap._find_and_load = namespace["_find_and_load"]
        return used

    def shadows(self, folder: str) -> str | None:
        """Return a name that an import would find in ``folder`` instead of a ready module."""
        return min(self._names(folder) & self.shadowable, default=None)

    @staticmethod
    def recording() -> Recording:
        """Return what takes down the warnings of a compilation."""
        return Recording()

    def expect(self, path: list[str]) -> None:
        """Take note of a `sys.path` which shadows nothing."""
        self._path = list(path)

    def _hide(self, recorder: _Recorder) -> None:
        modules = sys.modules
        new = [name for name in modules if name not in self._at_start]
        library = tuple(f"{folder}/" for folder in _library())
        for name in new:
            module = modules[name]
            if name in recorder.loaded:
                package, _, attribute = name.rpartition(".")
                holder = modules.get(package)
                if holder is not None and holder.__dict__.get(attribute) is module:
                    self._places[name] = (holder, attribute)
            origin = _origin(module)
            if name not in recorder.warned and (
                origin is None or origin.startswith((*library, "built-in", "frozen"))
            ):
                self._ready[name] = module
        for name in new:
            del modules[name]
        for holder, attribute in self._places.values():
            delattr(holder, attribute)
        self.names = frozenset(self._ready)
        self._ready.update((name, modules[name]) for name in self._at_start)
        for name in self.names:
            brings = recorder.closure(name)
            if all(other in self._ready for other in brings):
                self._brings[name] = brings
        self._effects = recorder.effects
        self.shadowable = recorder.absent | {
            name
            for name in self.names
            if "." not in name and _origin(self._ready[name]) not in ("built-in", "frozen")
        }

    def _give(self, name: str) -> ModuleType | None:
        """Put a module and what it brings into `sys.modules`; None if that would be wrong."""
        ready = self._ready
        modules = sys.modules
        brings = self._brings[name]
        if self._builtins.__import__ is not self._import:
            return None
        if (
            sys.path != self._path
            or sys.meta_path != self._finders
            or sys.path_hooks != self._hooks
        ) and not self._is_unshadowed(brings):
            return None
        for other in brings:
            module: Any = modules.get(other, _MISSING)
            if module is not ready[other] and (module is not _MISSING or other in self._given):
                return None
        for other in brings:
            if other in modules:
                continue
            self._given.add(other)
            module = modules[other] = ready[other]
            place = self._places.get(other)
            if place is not None:
                setattr(place[0], place[1], module)
            for effect in self._effects.get(other, ()):
                effect()
            if other in _RENEWED:
                _RENEWED[other](module)
        return modules[name]

    def renew(self) -> None:
        """In a fork, set right what has been imported at the start."""
        for name, renew in _RENEWED.items():
            if name in self._at_start:
                renew(sys.modules[name])

    def _is_unshadowed(self, names: Sequence[str]) -> bool:
        """Tell whether the search, though changed, still finds the standard library's."""
        path = sys.path
        if (
            not isinstance(path, list)
            or sys.path_hooks != self._hooks
            or sys.meta_path[: len(self._finders)] != self._finders
            or not any(folder in path for folder in _library())
        ):
            return False
        tops = self.shadowable.intersection(names)
        return not any(
            folder not in self._path and (not isinstance(folder, str) or tops & self._names(folder))
            for folder in _searched_first(path)
        )

    def _names(self, folder: str) -> set[str]:
        """Return what could be imported from a folder; of what is none, all that there is."""
        found: set[str] = set()
        try:
            entries = posix.listdir(folder or ".")
        except NotADirectoryError:
            return self.shadowable
        except OSError:
            return found
        for entry in entries:
            if entry in self.shadowable:
                # Without it, a folder is a package only if there is no module of that name.
                if any(inner.startswith("__init__.") for inner in _list(f"{folder}/{entry}")):
                    found.add(entry)
                continue
            for suffix in self._suffixes:
                if entry.endswith(suffix):
                    found.add(entry[: -len(suffix)])
        return found


def _origin(module: ModuleType) -> str | None:
    origin: str | None = getattr(getattr(module, "__spec__", None), "origin", None)
    return origin


def _list(folder: str) -> list[str]:
    try:
        return posix.listdir(folder)
    except OSError:
        return []


def _library() -> list[str]:
    """Return the folders of the standard library as they stand in `sys.path`."""
    version = "python{}.{}".format(*sys.version_info)
    libraries = [
        f"{prefix}/{sys.platlibdir}/{version}"
        for prefix in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix))
    ]
    return [*libraries, *(f"{library}/lib-dynload" for library in libraries)]


def _searched_first(path: list[str]) -> list[str]:
    """Return what is searched before the last folder of the standard library, but for those."""
    library = _library()
    last = max((path.index(folder) for folder in library if folder in path), default=0)
    return [folder for folder in path[:last] if folder not in library]


def _renew_logging(logging: Any) -> None:
    """Have ``relativeCreated`` begin now, at the import."""
    import time

    is_ns = isinstance(logging._startTime, int)  # since Python 3.13
    logging._startTime = time.time_ns() if is_ns else time.time()


def _renew_threading(threading: Any) -> None:
    """Tell the main thread its id; before Python 3.13 a fork does not."""
    threading.main_thread()._set_native_id()


_RENEWED: dict[str, Callable[[Any], None]] = {
    "logging": _renew_logging,
    "threading": _renew_threading,
}


class Recording:
    """While entered, warnings go to the list that it gives, whatever is set for them.

    `warnings.catch_warnings` would leave a list of its own with the C code, once
    nobody can see `warnings` any more.
    """

    def __init__(self) -> None:
        import warnings

        self._warnings: Any = warnings

    def __enter__(self) -> list[Any]:
        module = self._warnings
        # Without it in its place, C code would not ask it.
        self._is_hidden = sys.modules.get("warnings") is not module
        sys.modules["warnings"] = module
        self._show = module._showwarnmsg
        module.filters.insert(0, ("always", None, Warning, None, 0))
        self._touch()
        found: list[Any] = []
        module._showwarnmsg = found.append
        return found

    def __exit__(self, *exc_info: object) -> None:
        self._warnings._showwarnmsg = self._show
        del self._warnings.filters[0]
        self._touch()
        if self._is_hidden:
            del sys.modules["warnings"]

    def _touch(self) -> None:
        """Have C code forget what it concluded from the filters."""
        module = self._warnings
        getattr(module, "_filters_mutated_lock_held", module._filters_mutated)()


class _Recorder:
    """While entered, takes down which module's import asks for which others.

    ``warned`` are those whose import brings a warning, ``absent`` was asked for in
    vain. ``effects`` are to be called when a script imports the module: whoever
    wants to be called at the end or at a fork is not registered before that.
    """

    def __init__(self, bootstrap: Any, at_start: frozenset[str]) -> None:
        import builtins

        self._builtins: Any = builtins
        self._bootstrap = bootstrap
        self._find_and_load: Any = bootstrap._find_and_load
        self._import: Any = builtins.__import__
        self._modules = sys.modules
        self._at_start = at_start
        self._loading: list[str] = []
        self._asked: dict[str, dict[str, None]] = {}
        self._seen = set(sys.modules)
        self.loaded: set[str] = set()
        self.absent: set[str] = set()
        self.warned: set[str] = set()
        self.effects: dict[str, list[Callable[[], object]]] = {}
        self._warnings: list[Any] = []
        self._recording: Any = None
        self._replaced: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        self._bootstrap._find_and_load = self.find_and_load
        self._builtins.__import__ = self.import_
        import atexit

        self._replace(atexit, "register", self._register_at_exit)
        self._replace(posix, "register_at_fork", self._register_at_fork)
        if "os" in sys.modules:
            self._replace(sys.modules["os"], "register_at_fork", self._register_at_fork)
        self._recording = Recording()
        self._warnings = self._recording.__enter__()

    def __exit__(self, *exc_info: object) -> None:
        self._recording.__exit__()
        for module, name, function in self._replaced:
            setattr(module, name, function)
        self._builtins.__import__ = self._import
        self._bootstrap._find_and_load = self._find_and_load

    def find_and_load(self, name: str, import_: Any) -> Any:
        self._note(name)
        if name in self._modules:
            return self._find_and_load(name, import_)
        count = len(self._warnings)
        self._loading.append(name)
        self._seen.add(name)
        try:
            module = self._find_and_load(name, import_)
            self.loaded.add(name)
            # Such as `collections.abc`, which no import has loaded.
            for other in [other for other in self._modules if other not in self._seen]:
                self._seen.add(other)
                self._note(other)
            return module
        except ModuleNotFoundError:
            self.absent.add(name)
            raise
        finally:
            if len(self._warnings) > count:
                self.warned.update(self._loading)
            self._loading.pop()

    def import_(
        self,
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        module = self._import(name, globals, locals, fromlist, level)
        if level:
            package = self._bootstrap._calc___package__(globals)
            name = self._bootstrap._resolve_name(name, package, level)
        self._note(name)
        for item in fromlist or ():
            if f"{name}.{item}" in self._modules:
                self._note(f"{name}.{item}")
        return module

    def _replace(self, module: Any, name: str, function: Any) -> None:
        self._replaced.append((module, name, getattr(module, name)))
        setattr(module, name, function)

    def _add(self, effect: Callable[[], object]) -> None:
        self.effects.setdefault(self._loading[-1] if self._loading else "", []).append(effect)

    def _register_at_exit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        import atexit

        self._add(lambda: atexit.register(function, *args, **kwargs))
        return function

    def _register_at_fork(self, **hooks: Any) -> None:
        def effect() -> None:
            # It has been forked since.
            if "after_in_child" in hooks:
                hooks["after_in_child"]()
            posix.register_at_fork(**hooks)

        self._add(effect)

    def _note(self, name: str) -> None:
        if self._loading:
            self._asked.setdefault(self._loading[-1], {})[name] = None

    def closure(self, name: str) -> tuple[str, ...]:
        """Return all that an import of ``name`` puts into `sys.modules`, in order."""
        found: set[str] = set()
        order: list[str] = []

        def visit(name: str) -> None:
            if name in found or name in self.absent:
                return
            # A module takes its place when all that it imports has been loaded.
            found.add(name)
            package = name.rpartition(".")[0]
            if package:
                visit(package)
            for other in self._asked.get(name, ()):
                visit(other)
            order.append(name)

        visit(name)
        return tuple(order)
