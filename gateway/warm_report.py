"""What ``tetrapylon check`` tells of CGI scripts: which run warm, and which miss a module.

No script is run; the interpreters are asked, each once, and not waited for long.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from .config import CgiSpec, Config
from .spawn import warm_python
from .spawn.client import Spawner
from .spawn.confinement import User, child_user
from .spawn.interpreters import Eligible, Interpreter, Interpreters, NotEligible
from .spawn.warm import examine

_SCRIPTS = 1000
_READ_BYTES = 256 * 1024
_ASK_S = 10.0
_IMPORT = re.compile(rb"^[ \t]*(?:from[ \t]+(\w+)[ \t]|import[ \t]+([^#;\n]+))", re.MULTILINE)
_REMOVED = {"cgi", "cgitb"}
_WITHOUT_CGI = """
import sys
from importlib.util import find_spec
print(*sys.version_info[:2], *(name for name in ("cgi", "cgitb") if find_spec(name) is None))
"""


class WarmScripts(NamedTuple):
    """A backend's scripts: how many would run warm, and why others would not."""

    place: str
    name: str
    warm: int
    plain: list[tuple[str, str]]


def warm_scripts(config: Config) -> Iterator[WarmScripts]:
    """Yield what is to be said of each backend with ``warm = true``."""
    for spec in _specs(config):
        if spec.warm:
            yield _examined(spec)


def legacy_hints(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (place, text) for scripts that import what their Python no longer has.

    `cgi` and `cgitb` went with Python 3.13; ``legacy-cgi`` brings them back.
    """
    interpreters = Interpreters()
    missing: dict[tuple[Interpreter, User | None], tuple[str, list[str]]] = {}
    for spec in _specs(config):
        environ = _environ(spec)
        user = _user(spec)
        for script, program in _scripts(spec):
            names = _imported(script)
            if not names:
                continue
            found = interpreters.find(script, program, environ)
            if isinstance(found, NotEligible) or "python" not in os.path.basename(found.program):
                continue
            key = (found, user)
            if key not in missing:
                missing[key] = _missing(found, environ, user)
            version, absent = missing[key]
            lost = [name for name in names if name in absent]
            if lost:
                yield (
                    _place(spec),
                    f"{script} imports {' and '.join(lost)}, which Python {version} no longer "
                    f"has: {found.program} -m pip install legacy-cgi brings it back",
                )


def _specs(config: Config) -> Iterator[CgiSpec]:
    return (spec for spec in config.backends.values() if isinstance(spec, CgiSpec))


def _place(spec: CgiSpec) -> str:
    return spec.place or f"backends.{spec.name}"


def _user(spec: CgiSpec) -> User | None:
    try:
        return child_user(spec.user, spec.group)
    except (LookupError, ValueError):
        return None  # the start will say so


def _environ(spec: CgiSpec) -> dict[bytes, bytes]:
    """Return what of a script's environment does not depend on the request."""
    passed = {name: os.environ[name] for name in spec.env_pass if name in os.environ}
    variables = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **passed, **spec.env}
    return {os.fsencode(name): os.fsencode(value) for name, value in variables.items()}


def _scripts(spec: CgiSpec) -> Iterator[tuple[str, str | None]]:
    """Yield the scripts that requests can name, and the configured interpreters."""
    names = [spec.script] if not os.path.isdir(spec.script) else _below(spec.script)
    for count, script in enumerate(names):
        if count == _SCRIPTS:
            return
        endings = (program for end, program in spec.interpreters.items() if script.endswith(end))
        program = next(endings, None)
        try:
            mode = os.stat(script).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode) and (program is not None or mode & 0o111):
            yield script, program


def _below(folder: str) -> Iterator[str]:
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.join(path, name)


def _examined(spec: CgiSpec) -> WarmScripts:
    report = WarmScripts(_place(spec), spec.name, 0, [])
    if not Spawner.is_supported():
        return report._replace(plain=[(spec.script, "only on Linux can scripts run warm")])
    environ = _environ(spec)
    warm = 0
    asked: dict[Eligible, list[str]] = {}
    for script, program in _scripts(spec):
        found = examine(script, program, environ)
        if isinstance(found, NotEligible):
            report.plain.append((script, found.reason))
        elif found.argv[-2:-1] == (warm_python.PROGRAM,):
            asked.setdefault(found, []).append(script)
        else:
            warm += 1
    for template, scripts in asked.items():
        try:
            reasons = warm_python.ask(template, scripts, user=_user(spec))
        except OSError as error:
            reasons = [f"{template.program}: {error.strerror}"] * len(scripts)
        warm += reasons.count("")
        report.plain.extend(pair for pair in zip(scripts, reasons, strict=True) if pair[1])
    report.plain.sort()
    return report._replace(warm=warm)


def _imported(script: str) -> list[str]:
    try:
        with open(script, "rb") as file:
            found = _IMPORT.findall(file.read(_READ_BYTES))
    except OSError:
        return []
    words = (part.split() for pair in found for part in b",".join(pair).split(b","))
    return sorted(_REMOVED & {name[0].decode(errors="replace") for name in words if name})


def _missing(
    interpreter: Interpreter, environ: dict[bytes, bytes], user: User | None
) -> tuple[str, list[str]]:
    """Return an interpreter's version, and which of `cgi` and `cgitb` it does not have."""
    try:
        answer = subprocess.run(
            [interpreter.name, *interpreter.flags, "-c", _WITHOUT_CGI],
            executable=interpreter.program,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            timeout=_ASK_S,
            text=True,
            **warm_python.identity(user),
        )
        major, minor, *absent = answer.stdout.split()
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return "", []
    return f"{major}.{minor}", absent
