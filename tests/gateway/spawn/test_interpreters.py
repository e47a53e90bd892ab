"""What would run a script: as execve(2) and env(1) have it, and which flags can be kept warm."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tetrapylon.gateway.spawn import warm_python
from tetrapylon.gateway.spawn.interpreters import (
    Eligible,
    Interpreter,
    Interpreters,
    NotEligible,
)
from tetrapylon.gateway.spawn.warm import examine, explain_trouble

PYTHON = os.path.realpath(sys.executable)
ENVIRON = {b"PATH": b"/usr/bin:/bin", b"LANG": b"C.UTF-8"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(PYTHON)
    (tmp_path / "bin" / "wrapped").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "wrapped").chmod(0o755)
    (tmp_path / "bin" / "folder").mkdir()
    return tmp_path


def find(folder: Path, line: bytes, path: str | None = None) -> Interpreter | NotEligible:
    script = folder / "script"
    script.write_bytes(line)
    environ = {b"PATH": (path or f"/no/such:{folder}/bin").encode()}
    return Interpreters().find(str(script), None, environ)


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        (b"#!%s\n", ()),
        (b"#! \t %s \t\n", ()),
        (b"#!%s -u\n", ("-u",)),
        (b"#!%s\t-u  \n", ("-u",)),
        (b"#!%s -W ignore  x \n", ("-W ignore  x",)),
    ],
)
def test_the_first_line(folder: Path, line: bytes, flags: tuple[str, ...]) -> None:
    found = find(folder, line % PYTHON.encode())
    assert found == Interpreter(PYTHON, PYTHON, flags, True)
    assert found.names_process


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        (b"#!/usr/bin/env python3\n", ()),
        (b"#!/bin/env   python3 \n", ()),
        (b"#!/usr/bin/env -S python3 -u -X utf8\n", ("-u", "-X", "utf8")),
        (b"#!/usr/bin/env -Spython3 -u\n", ("-u",)),
    ],
)
def test_env(folder: Path, line: bytes, flags: tuple[str, ...]) -> None:
    found = find(folder, line)
    assert found == Interpreter(f"{folder}/bin/python3", "python3", flags, True)
    assert not found.names_process


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"print(1)\n", "it has no #! line"),
        (b"", "it has no #! line"),
        (b"#!/usr/bin/python3", "its #! line does not end"),
        (b"#!/" + b"x" * 300 + b"\n", "its #! line does not end"),
        (b"#!/no/such/python3\n", "No such file"),
        (b"#!/no/such/python3\r\n", "No such file"),
        (b"#!python3\n", "no absolute path"),
        (b"#!BIN/wrapped\n", "itself a script"),
        (b"#!BIN/folder\n", "Is a directory"),
        (b"#!/usr/bin/env nothing\n", "there is no nothing in PATH"),
        (b"#!/usr/bin/env folder\n", "there is no folder in PATH"),
        (b"#!/usr/bin/env wrapped\n", "itself a script"),
        (b"#!/usr/bin/env python3 -u\n", "more than a program's name"),
        (b"#!/usr/bin/env -i python3\n", "more than a program's name"),
        (b"#!/usr/bin/env -S A=1 python3\n", "sets a variable"),
        (b"#!/usr/bin/env -S python3 'a b'\n", "more than a program's name"),
        (b"#!/usr/bin/env -S\n", "more than a program's name"),
        (b"#!/usr/bin/env ./python3\n", "names no program to be searched"),
    ],
)
def test_what_is_not_found(folder: Path, line: bytes, reason: str) -> None:
    found = find(folder, line.replace(b"BIN", str(folder / "bin").encode()))
    assert isinstance(found, NotEligible)
    assert reason in found.reason


def test_env_by_another_path(folder: Path) -> None:
    for path in (":/bin", "bin", "/bin:.:/usr/bin"):
        found = find(folder, b"#!/usr/bin/env no-such-program\n", path)
        assert isinstance(found, NotEligible)
        assert "relative" in found.reason


def test_a_configured_program(folder: Path) -> None:
    script = folder / "plain.py"
    script.write_text("print(1)\n")
    found = Interpreters().find(str(script), PYTHON, {})
    assert found == Interpreter(PYTHON, PYTHON, (), False)
    assert not found.names_process
    for program in ("/no/such", str(folder / "bin/wrapped")):
        assert isinstance(Interpreters().find(str(script), program, {}), NotEligible)
    assert isinstance(Interpreters().find(str(folder), PYTHON, {}), NotEligible)
    assert isinstance(Interpreters().find(str(folder / "absent"), PYTHON, {}), NotEligible)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may")
def test_set_uid(folder: Path) -> None:
    program = folder / "bin" / "suid"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755 | stat.S_ISUID)
    found = Interpreters().find(str(folder / "bin" / "wrapped"), str(program), {})
    assert isinstance(found, NotEligible)
    assert "set-uid" in found.reason


def test_what_is_remembered(folder: Path) -> None:
    interpreters = Interpreters()
    script = folder / "script"
    script.write_text(f"#!{PYTHON}\n")
    first = interpreters.find(str(script), None, ENVIRON)
    assert interpreters.find(str(script), None, ENVIRON) is first
    script.write_text(f"#!{PYTHON} -u\n")
    changed = interpreters.find(str(script), None, ENVIRON)
    assert isinstance(changed, Interpreter)
    assert changed.flags == ("-u",)


def look(*flags: str, **variables: str) -> Eligible | NotEligible:
    environ = ENVIRON | {name.encode(): value.encode() for name, value in variables.items()}
    return warm_python.examine(Interpreter(PYTHON, PYTHON, flags, True), "/srv/a.py", environ)


def kept(found: Eligible | NotEligible) -> Eligible:
    assert isinstance(found, Eligible), found
    return found


@pytest.mark.parametrize(
    "flags",
    [(), ("-u",), ("-uBE",), ("-I",), ("-OO",), ("-Wignore",), ("-W", "error"), ("-Xdev",),
     ("-X", "utf8"), ("-sSuWdefault",), ("-Xpycache_prefix=/tmp/x",), ("-P", "-q", "-bb")],
)  # fmt: skip
def test_flags_that_are_kept(flags: tuple[str, ...]) -> None:
    assert kept(look(*flags)).argv[: 1 + len(flags)] == (PYTHON, *flags)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("-i",), "the flag -i"),
        (("-uv",), "the flag -v"),
        (("-x",), "the flag -x"),
        (("-m", "cgi"), "the flag -m"),
        (("-c", "1"), "the flag -c"),
        (("-",), "'-' stands before the script"),
        (("other.py",), "'other.py' stands before the script"),
        (("-W",), "the flag -W has no value"),
        (("-Ximporttime",), "the flag -X importtime"),
        (("-X", "tracemalloc=5"), "the flag -X tracemalloc=5"),
        (("-Xpycache_prefix=x",), "relative"),
        (("-u -E",), "the flag - "),
        (("--help",), "the flag --"),
    ],
)
def test_flags_that_are_not(flags: tuple[str, ...], reason: str) -> None:
    found = look(*flags)
    assert isinstance(found, NotEligible)
    assert reason in found.reason + " "


def test_the_environment_of_the_template() -> None:
    found = kept(look(PYTHONUTF8="1", LC_ALL="C", TZ="UTC", QUERY_STRING="a", HOME="/x"))
    names = [name for name, _ in found.environ]
    assert names == [b"HOME", b"LANG", b"LC_ALL", b"PATH", b"PYTHONUTF8"]
    # The same, whatever the request is.
    assert kept(look(QUERY_STRING="a")) == kept(look(QUERY_STRING="b", HTTP_X="c"))
    assert kept(look(LC_ALL="C")) != kept(look())


@pytest.mark.parametrize(
    ("name", "value"),
    [("PYTHONINSPECT", "1"), ("PYTHONVERBOSE", "1"), ("PYTHONPATH", "lib"),
     ("PYTHONPATH", "/srv/lib:"), ("PYTHONHOME", "x"), ("PYTHONPYCACHEPREFIX", "x")],
)  # fmt: skip
def test_variables_that_cannot_be_kept(name: str, value: str) -> None:
    found = look(**{name: value})
    assert isinstance(found, NotEligible)
    assert name in found.reason
    kept(look(**{name: ""}))


def test_families(folder: Path) -> None:
    script = folder / "script"
    script.write_text("#!/bin/sh\n")
    assert examine(str(script), None, ENVIRON) == NotEligible("sh is neither Python nor Perl")
    script.write_text(f"#!{PYTHON}\n")
    kept(examine(str(script), None, ENVIRON))


def test_the_interpreter_is_asked(folder: Path) -> None:
    """What it says it would not run, it does not run; and nothing of the scripts is run."""
    texts = {
        "fine.py": "open('ran', 'w')\nimport json\n",
        "broken.py": "x = = 1\n",
        "looks.py": "import sys\nsys._getframe()\n",
        "bytes.py": "x = '\xe9'\n",
        "absent.py": None,
    }
    scripts = []
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_bytes(f"#!{PYTHON}\n{text}".encode("latin-1"))
        scripts.append(str(folder / name))
    template = kept(warm_python.examine(Interpreter(PYTHON, PYTHON, (), True), "", ENVIRON))
    reasons = warm_python.ask(template, scripts, user=None)
    assert reasons[0] == ""
    assert "does not compile" in reasons[1]
    assert "_getframe" in reasons[2]
    assert "does not compile" in reasons[3]
    assert "No such file" in reasons[4]
    assert not (folder / "ran").exists()

    (folder / "json.py").write_text("")
    os.utime(folder, (1, 1))
    assert "a module 'json' beside it" in warm_python.ask(template, scripts[:1], user=None)[0]


def test_an_interpreter_that_does_not_answer(folder: Path) -> None:
    def template(program: str, **variables: str) -> Eligible:
        environ = tuple((name.encode(), value.encode()) for name, value in variables.items())
        return Eligible((program, warm_python.PROGRAM, "direct"), program, environ)

    with pytest.raises(OSError, match="cannot be kept ready"):
        warm_python.ask(template("/bin/false"), ["a"], user=None)
    with pytest.raises(FileNotFoundError):
        warm_python.ask(template("/no/such"), ["a"], user=None)
    sleeping = Eligible(("sh", "-c", "exec sleep 60", "sh", "x"), "/bin/sh", ())
    with pytest.raises(TimeoutError):
        warm_python.ask(sleeping, ["a"], user=None, timeout_s=0.1)

    (folder / "lib").mkdir()
    (folder / "lib" / "random.py").write_text("")
    shadowed = template(PYTHON, PYTHONPATH=str(folder / "lib"))
    (reason,) = warm_python.ask(shadowed, ["a"], user=None)
    assert "PYTHONPATH has a module" in reason


def test_every_trouble_has_words() -> None:
    for reason in range(1, 5):
        for value in (0, 1, 17, 95, -9):
            assert explain_trouble(reason, value)
    assert explain_trouble(1, 8, "its own words") == "its own words"


def test_the_program_is_as_it_was_run(folder: Path) -> None:
    """Without a helper it ends, and says nothing."""
    result = subprocess.run(
        [PYTHON, warm_python.PROGRAM, "direct"], capture_output=True, env={}, timeout=60
    )
    assert result.returncode == 1
