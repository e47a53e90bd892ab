"""A forked process becomes the run of a script, and ends as the interpreter would.

A part of the program that begins in `python_importlib_bootstrap`. What is done here
CPython does in C: `Streams` as its ``create_stdio``, `handle` as ``PyErr_Print``,
`end` as ``Py_FinalizeEx`` without taking the interpreter itself to pieces, which would
be two thirds of the time of a short script.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import os
import signal
import stat
import struct
import sys
import time
import weakref
from collections import deque
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

_STREAMS = ("stdin", "stdout", "stderr")
_FLUSH_FAILED = 120
_PR_SET_NAME = 15
_PR_SET_MM = 35
_PR_SET_MM_MAP = 14
_NAME_BYTES = 15
# In struct prctl_mm_map: the end of the heap, and where command and environment are.
_BRK = 5
_PLACES = 7
_MAP_BYTES = ctypes.c_size_t(13 * 8)
# What finalisation sets to None before modules go, so that late code sees it.
_SYS_GONE = (
    *("path", "argv", "ps1", "ps2", "last_exc", "last_type", "last_value", "last_traceback"),
    *("path_hooks", "path_importer_cache", "meta_path", "__interactivehook__"),
)

_libc = ctypes.PyDLL(None)


class Streams:
    """The standard streams as this interpreter makes them, by its flags and environment.

    Those for pipes, and a stdin for nothing, are made once, for all processes.
    """

    def __init__(self) -> None:
        out: Any = sys.stdout
        self._is_unbuffered = bool(out.write_through)
        self._codecs = [(it.encoding, it.errors) for it in (sys.stdin, sys.stdout, sys.stderr)]
        null = os.dup(0)
        reader, writer = os.pipe()
        self._ready: list[dict[int, Any]] = [{}, {}, {}]
        self._ready[0][_kind(0)] = self._make(0)
        for fd in range(3):
            os.dup2(writer if fd else reader, fd)
            self._ready[fd][_kind(fd)] = self._make(fd)
            os.dup2(null, fd)
        for fd in (null, reader, writer):
            os.close(fd)

    def set(self, fds: Sequence[int]) -> None:
        """Have `sys` refer to streams that will be right when ``fds`` are 0, 1 and 2."""
        for to, (name, fd) in enumerate(zip(_STREAMS, fds)):  # noqa: B905 - since Python 3.10
            stream = self._ready[to].get(_kind(fd))
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)

    def complete(self) -> None:
        """Make those that were not ready, now that 0, 1 and 2 are in place."""
        for fd, name in enumerate(_STREAMS):
            if getattr(sys, name) is None:
                stream = self._make(fd)
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)

    def _make(self, fd: int) -> Any:
        name = _STREAMS[fd]
        is_raw = self._is_unbuffered and fd > 0
        binary: Any = io.open(  # noqa: SIM115, UP020 - stays open; not what `open` may be
            fd, "wb" if fd else "rb", 0 if is_raw else -1, closefd=False
        )
        raw = binary if is_raw else binary.raw
        raw.name = f"<{name}>"
        encoding, errors = self._codecs[fd]
        text: Any = io.TextIOWrapper(
            binary,
            encoding,
            errors,
            newline="\n",
            line_buffering=not self._is_unbuffered and (fd == 2 or raw.isatty()),
            write_through=self._is_unbuffered,
        )
        text.mode = "w" if fd else "r"
        return text


def _kind(fd: int) -> int:
    """Return what a stream depends on: a device by its number, a pipe as such, else -1."""
    found = os.fstat(fd)
    if stat.S_ISFIFO(found.st_mode):
        return 0
    return found.st_rdev if stat.S_ISCHR(found.st_mode) else -1


class Environment:
    """The environment of a run, set in one go where `os.environ` would do it piecemeal.

    ``coerced`` is what the interpreter, in the C locale, has added to its own (PEP 538).
    """

    def __init__(self, coerced: list[tuple[bytes, bytes]]) -> None:
        import posix

        environ: Any = os.environ
        self._of_os: dict[bytes, bytes] = environ._data
        self._of_posix: Any = posix.environ
        self._coerced = coerced
        self._pointer = ctypes.c_void_p.in_dll(_libc, "environ")
        self._strings: Any = None

    def set(self, fields: list[bytes]) -> None:
        """Take names and values in turn."""
        pairs = dict(zip(fields[::2], fields[1::2]))  # noqa: B905 - since Python 3.10
        pairs.update(self._coerced)
        for environ in (self._of_os, self._of_posix):
            environ.clear()
            environ.update(pairs)
        strings = [b"%b=%b" % pair for pair in pairs.items()]
        array = (ctypes.c_char_p * (len(strings) + 1))(*strings)
        self._pointer.value = ctypes.addressof(array)
        self._strings = array

    def complete(self) -> None:
        """Do what the interpreter does at its start by the environment."""
        if b"TZ" in self._of_os:
            time.tzset()


class Listing:
    """How the system lists this process: its name, and in /proc its command and environment.

    Children inherit it. Where the system has that switched off, they are listed as
    the warm process that they come from.
    """

    def __init__(self) -> None:
        with open("/proc/self/comm", "rb") as file:
            self._name = file.read().rstrip(b"\n")
        with open("/proc/self/stat", "rb") as file:
            # proc(5), of which the first two fields come before the parenthesis.
            fields = [b"", b"", b"", *file.read().rpartition(b") ")[2].split()]
        numbers = [int(fields[place]) for place in (26, 27, 45, 46, 47, 28, 48, 49, 50, 51)]
        # struct prctl_mm_map: the places of code, data, heap and stack, then ours; at the
        # end no auxiliary vector, and no other program.
        numbers.insert(_BRK, 0)
        end = int.from_bytes(struct.pack("=Ii", 0, -1), sys.byteorder)
        self._map = (ctypes.c_uint64 * 13)(*numbers, 0, end)
        self._own = numbers[_PLACES:]
        self._sbrk = _libc.sbrk
        self._sbrk.restype = ctypes.c_void_p
        self._strings = b""

    def show(self, name: bytes | None, command: list[bytes], environ: list[bytes]) -> None:
        """Be listed under a name, None for the interpreter's, with a command and variables."""
        if name is not None:
            _libc.prctl(_PR_SET_NAME, name[:_NAME_BYTES], 0, 0, 0)
        line = b"\0".join(command) + b"\0"
        pairs = zip(environ[::2], environ[1::2])  # noqa: B905 - since Python 3.10
        self._strings = strings = line + b"".join([b"%b=%b\0" % pair for pair in pairs])
        start = ctypes.cast(ctypes.c_char_p(strings), ctypes.c_void_p).value or 0
        middle = start + len(line)
        self._place([start, middle, middle, start + len(strings)])

    def restore(self) -> None:
        """Be listed as before."""
        _libc.prctl(_PR_SET_NAME, self._name, 0, 0, 0)
        self._place(self._own)

    def _place(self, places: list[int]) -> None:
        for place, address in enumerate(places, _PLACES):
            self._map[place] = address
        # It is told anew, too, and must not move.
        self._map[_BRK] = self._sbrk(0) or 0
        _libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, self._map, _MAP_BYTES, 0)


def new_main(script: str) -> ModuleType:
    """Return the module ``__main__`` for a script, as a cold interpreter begins with."""
    import builtins
    from _frozen_importlib_external import SourceFileLoader

    main = type(sys)("__main__")
    namespace: dict[str, Any] = main.__dict__
    namespace["__loader__"] = SourceFileLoader("__main__", script)
    if sys.version_info < (3, 14):
        namespace["__annotations__"] = {}
    namespace["__builtins__"] = builtins
    namespace["__file__"] = script
    namespace["__cached__"] = None
    return main


def handle(error: BaseException) -> int:
    """Show what a script did not catch; return the exit code."""
    # The first frame is not the script's.
    traceback = error.__traceback__.tb_next if error.__traceback__ is not None else None
    error.__traceback__ = traceback
    if isinstance(error, SystemExit):
        return _exit_code(error)
    kind = type(error)
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, traceback
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    hook = getattr(sys, "excepthook", None)
    if hook is None:
        _complain("sys.excepthook is missing\n")
        sys.__excepthook__(kind, error, traceback)
        return 1
    try:
        hook(kind, error, traceback)
    except BaseException as second:
        again = second.__traceback__.tb_next if second.__traceback__ is not None else None
        second.__traceback__ = again
        if isinstance(second, SystemExit):
            return _exit_code(second)
        _complain("Error in sys.excepthook:\n")
        sys.__excepthook__(type(second), second, again)
        _complain("\nOriginal exception was:\n")
        sys.__excepthook__(kind, error, traceback)
    return 1


def _complain(text: str) -> None:
    try:
        sys.stderr.write(text)
    except BaseException:  # noqa: S110
        pass


def _exit_code(error: SystemExit) -> int:
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        # As C casts it: what is too large for a long is -1.
        return int(code) & 0xFF if -(2**63) <= code < 2**63 else 0xFF
    try:
        text = f"{code}"
        if sys.stderr is not None:
            sys.stderr.write(text)
        else:
            os.write(2, text.encode())
    except BaseException:  # noqa: S110
        pass
    _complain("\n")
    return 1


def end(caught: list[BaseException], kept: frozenset[str]) -> None:
    """End the process: all of a cold interpreter's end that others can see.

    ``caught`` is emptied of what the script did not catch. ``kept`` are the names in
    `sys.modules` that are not the script's.
    """
    code = 0
    is_interrupted = False
    try:
        flush_quietly()
        if caught:
            is_interrupted = type(caught[0]) is KeyboardInterrupt
            code = handle(caught.pop())
        threading = sys.modules.get("threading")
        if threading is not None:
            try:
                threading._shutdown()
            except BaseException as error:
                _show_ignored(error, "threading shutdown", threading)
        try:
            atexit._run_exitfuncs()
        except BaseException:  # noqa: S110
            pass  # shown already
        if not _flush_streams():
            code = _FLUSH_FAILED
        has_libraries = "_ctypes" in sys.modules or any(
            str(getattr(module, "__file__", None)).endswith(".so")
            for name, module in sys.modules.items()
            if name not in kept
        )
        _drop([partial(gc.collect)])
        _clear_modules(kept)
        flush_quietly()
        if is_interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if has_libraries:
            # They may have something to say and to do at the end.
            _libc.exit(code)
    finally:
        os._exit(code)


def flush_quietly() -> None:
    """Flush what can be; whether all of it could, `end` will find."""
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except BaseException:  # noqa: S110
            pass


def _flush_streams() -> bool:
    """Flush the script's streams; false if something could not be written."""
    is_flushed = True
    out = getattr(sys, "stdout", None)
    if out is not None and not _is_closed(out):
        try:
            out.flush()
        except BaseException as error:
            _show_ignored(error, "flushing sys.stdout", out)
            is_flushed = False
    err = getattr(sys, "stderr", None)
    if err is not None and not _is_closed(err):
        try:
            err.flush()
        except BaseException:
            is_flushed = False
    return is_flushed


def _is_closed(stream: Any) -> bool:
    try:
        return bool(stream.closed)
    except BaseException:
        return False


def _unraisable() -> Any:
    """Return the type of what `sys.unraisablehook` gets, which has no name."""

    class Raiser:
        def __del__(self) -> None:
            raise ValueError

    found: list[Any] = []
    hook = sys.unraisablehook
    sys.unraisablehook = found.append
    Raiser()
    sys.unraisablehook = hook
    return type(found.pop())


_Unraisable = _unraisable()


def _show_ignored(error: BaseException, when: str, where: object) -> None:
    """Show an exception that nobody can catch any more, as C code does."""
    # The first frame is ours.
    traceback = error.__traceback__.tb_next if error.__traceback__ is not None else None
    error.__traceback__ = traceback
    message = None
    if sys.version_info >= (3, 13):
        word = "on" if sys.version_info < (3, 14) else "while"
        message = f"Exception ignored {word} {when}"
        where = None
    try:
        sys.unraisablehook(_Unraisable((type(error), error, traceback, message, where)))
    except BaseException:  # noqa: S110
        pass


def _from_nowhere() -> Any:
    """Return a function that calls `partial` objects as from no code at all.

    So warnings name ``sys`` as their place, as they do at the end of an interpreter.
    """
    filename, line = ("<sys>", 0) if sys.version_info >= (3, 13) else ("sys", 1)
    source = "def drop(steps): deque(map(call, steps), 0)"
    names: dict[str, Any] = {"__name__": "sys", "deque": deque, "call": partial.__call__}
    exec(compile(source, filename, "exec", dont_inherit=True), names)  # noqa: S102
    drop = names["drop"]
    drop.__code__ = drop.__code__.replace(co_firstlineno=line)
    return drop


_drop = _from_nowhere()


def _clear_modules(kept: frozenset[str]) -> None:
    """Let go of the script's modules as finalisation does: its objects are finalised.

    What even that does not free, such as a file that the standard library holds, is
    flushed.
    """
    names = [name for name in sys.modules if name not in kept or name == "__main__"]
    modules = sys.modules
    alive = [weakref.ref(modules[name]) for name in names if isinstance(modules[name], type(sys))]
    put = sys.__dict__.__setitem__
    steps: list[Any] = [partial(put, name, None) for name in _SYS_GONE if name in sys.__dict__]
    steps += [partial(put, name, sys.__dict__.get(f"__{name}__")) for name in _STREAMS]
    steps += [partial(modules.pop, name) for name in names]
    _drop([*steps, partial(gc.collect)])
    for reference in reversed(alive):
        _clear(reference())
    for found in gc.get_objects():
        if isinstance(found, (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)):
            try:
                found.flush()
            except BaseException:  # noqa: S110
                pass


def _clear(module: ModuleType | None) -> None:
    """Forget a module's names: first those with one underscore, as CPython does."""
    if module is not None:
        names = [name for name in module.__dict__ if name != "__builtins__"]
        private = [name for name in names if name[:1] == "_" and name[:2] != "__"]
        put = module.__dict__.__setitem__
        _drop([partial(put, name, None) for name in (*private, *names)])
