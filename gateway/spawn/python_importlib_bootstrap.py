"""The program of a warm Python: where it begins, and all that is below a script's frames.

Run by the script's own interpreter (3.9 or newer), with its flags: ``python [FLAGS]
FILE direct|called``, the last word telling whether scripts name the interpreter
themselves by an absolute path. Each request is a fork of it, in which `exec` below
runs the script's code. With ``examine`` instead, it reads names of scripts, each with
a NUL behind it, and writes for each why it would not run warm, or nothing, and a NUL.

The file's name says to `warnings` that this frame is not one of the script's: they
skip whatever has "importlib" and "_bootstrap" in its name, and would else blame this
line for what is to be blamed on nobody.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# Before anything else is imported, be it `__future__`.
_at_start = tuple(sys.modules)


def _load(name: str) -> "dict[str, Any]":
    """Run another part of the program, which is not to be seen among the modules."""
    with open(f"{__file__.rpartition('/')[0]}/{name}.py", "rb") as file:
        # Named after this file, for the reason that is given above.
        code = compile(file.read(), f"{__file__}: {name}", "exec", dont_inherit=True)
    module = type(sys)(name)
    exec(code, module.__dict__)  # noqa: S102
    return module.__dict__


def _start() -> "Any":
    imports = _load("python_imports")["Imports"](_at_start)
    if sys.argv[1] == "examine":
        parts = imports.load(lambda: _load("python_scripts"))
        return parts["examine"](parts["Scripts"](imports, imports.recording()))
    return imports.load(lambda: _load("python_template")["Template"](_at_start, imports, _load))


def _fail(number: int) -> "NoReturn":
    """Tell the helper why there will be no requests to be sent here."""
    import os

    if sys.argv[1] == "examine":
        os._exit(number)
    fd = int(os.environ["TETRAPYLON_WARM_FD"])
    os.write(fd, bytes(8) + (-number).to_bytes(4, sys.byteorder, signed=True))
    os._exit(1)


if __name__ == "__main__":
    if (
        sys.version_info < (3, 9)
        or sys.implementation.name != "cpython"
        or "t" in sys.abiflags  # free-threaded
    ):
        _fail(95)  # ENOTSUP
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]  # ours
    try:
        _template = _start()
    except LookupError:
        _fail(17)  # EEXIST: what PYTHONPATH has would be taken for the standard library
    _template.serve()
    # From here on, this is the process of one request.
    _caught = []
    try:
        exec(_template.code, sys.modules["__main__"].__dict__)  # noqa: S102
    except BaseException as error:
        _caught.append(error)
    _template.end(_caught)
