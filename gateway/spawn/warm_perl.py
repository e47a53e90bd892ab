"""Which Perl scripts can run warm, and how their templates are started.

A template is one process per script: Perl compiles the script, then forks for each
request (``perl_template.pm``). Here is decided what can be seen from outside: the
interpreter, the flags, the file. What the script does while it is compiled, only
compiling it shows (``perl_probe.pl``). See docs/warm-cgi.md.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import struct
from collections.abc import Mapping
from pathlib import Path

from .interpreters import Eligible, Interpreter, NotEligible

_DIRECTORY = os.path.dirname(os.path.abspath(__file__))
_SCRIPTS = 1024
_FIRST_LINE_BYTES = 512

# ELF: (e_machine, bits, is little-endian) → what perl_template.pm calls it.
_MACHINES = {
    (3, 32, True): "i386",
    (21, 64, True): "ppc64le",
    (22, 64, False): "s390x",
    (40, 32, True): "armhf",
    (62, 64, True): "x86_64",
    (183, 64, True): "aarch64",
    (243, 64, True): "riscv64",
}

# perlrun(1): flags without a value, those with digits or letters, those that take the rest.
_FLAGS = re.compile(r"(?:[-\s]|[wWXTtanpfg]|[0l][0-9A-Fa-fx]*|C[0-9A-Za-z]*|[FIMm]\S*)*")

# Perl, the C library or the loader look at these on their own, before the script does.
_LOOKED_AT = re.compile(rb"PERL|LC_|LD_|LANG|TZ|MALLOC_|GLIBC_|LOCPATH$|NLSPATH$")
# What is different from request to request; of other names it is learnt.
_VARYING = re.compile(
    rb"HTTP|CONTENT_|REMOTE_|REQUEST_|SSL_|SERVER_(?:ADDR|NAME|PORT|PROTOCOL)$"
    rb"|PATH_(?:INFO|TRANSLATED)$|QUERY_STRING$|AUTH_TYPE$"
)


class _Environs:
    """Knows for each script which variables had one value in all its requests.

    A template is started with these, for a script may look at them while it is
    compiled. A variable that is seen to vary costs one template, and no more.
    """

    def __init__(self) -> None:
        self._same: dict[str, dict[bytes, bytes]] = {}

    def of(self, script: str, environ: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
        """Return the environment of the script's template."""
        same = self._same.get(script)
        if same is None:
            while len(self._same) >= _SCRIPTS:
                del self._same[next(iter(self._same))]
            same = self._same[script] = {
                name: value
                for name, value in environ.items()
                if not _VARYING.match(name) and not _LOOKED_AT.match(name)
            }
        for name in [name for name, value in same.items() if environ.get(name) != value]:
            del same[name]
        looked_at = {name: value for name, value in environ.items() if _LOOKED_AT.match(name)}
        return tuple(sorted((same | looked_at).items()))


_environs = _Environs()


def examine(
    interpreter: Interpreter, script: str, environ: Mapping[bytes, bytes]
) -> Eligible | NotEligible:
    """Say how to start the template of ``script``, or why it runs plain.

    Raises `OSError` if there is no such script or interpreter.
    """
    status = os.stat(script)
    identity = (
        script,
        status.st_mtime_ns,
        status.st_size,
        status.st_ino,
        status.st_dev,
        status.st_ctime_ns,
    )
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        return NotEligible("it is set-uid or set-gid")
    options = environ.get(b"PERL5OPT", b"").decode("latin-1")
    flags = (*interpreter.flags, options, _first_line_flags(identity))
    reason = _flags_reason(flags)
    if reason is not None:
        return NotEligible(reason)
    program = os.stat(interpreter.program)
    machine = _machine(interpreter.program, program.st_mtime_ns, program.st_ino)
    if machine is None:
        return NotEligible(f"{interpreter.program} is for a machine without warm Perl")
    named = ",named" if interpreter.names_process else ""
    return Eligible(
        argv=(
            interpreter.name,
            *interpreter.flags,
            f"-I{_DIRECTORY}",
            f"-mperl_template={machine},{_file(status)}{named}",
            script,
        ),
        program=interpreter.program,
        environ=_environs.of(script, environ),
        identity=(*identity, program.st_mtime_ns, program.st_ino),
    )


def _file(status: os.stat_result) -> str:
    """Return what tells this state of a file, in the form that statx(2) has it."""
    changed_at = divmod(status.st_ctime_ns, 10**9)
    return struct.pack("=QQqI", status.st_ino, status.st_size, *changed_at).hex()


@functools.lru_cache(maxsize=_SCRIPTS)
def _first_line_flags(identity: tuple[object, ...]) -> str | None:
    """Return the flags in the script's first line; None if it names another program.

    Perl itself reads that line too, however it was started.
    """
    with open(str(identity[0]), "rb") as file:
        line = file.readline(_FIRST_LINE_BYTES).decode("latin-1")
    if not line.startswith("#!"):
        return ""
    _, perl, flags = line.partition("perl")
    if not perl:
        return None
    # Up to the first flag there may be a version.
    return flags[flags.find(" -") :] if " -" in flags else ""


@functools.lru_cache(maxsize=256)
def _flags_reason(flags: tuple[str | None, ...]) -> str | None:
    """Return why Perl cannot run warm with these flags; None if it can."""
    for words in flags:
        if words is None:
            return "its #! line names another program than Perl"
        known = _FLAGS.match(words)
        assert known is not None
        if known.end() < len(words):
            return f"the flag -{words[known.end()]} of Perl"
    return None


@functools.lru_cache(maxsize=16)
def _machine(program: str, mtime_ns: int, inode: int) -> str | None:
    with Path(program).open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    is_little = head[5] == 1
    number = int.from_bytes(head[18:20], "little" if is_little else "big")
    return _MACHINES.get((number, 32 * head[4], is_little))
