"""What ``check`` tells of CGI scripts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.gateway import warm_report
from tetrapylon.gateway.config import Config
from tetrapylon.gateway.spawn.client import Spawner
from tetrapylon.gateway.warm_report import legacy_hints, warm_scripts

PYTHON = os.path.realpath(sys.executable)

needs_linux = pytest.mark.skipif(not Spawner.is_supported(), reason="Linux only")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def write(name: str, text: str, mode: int = 0o755) -> None:
        file = tmp_path / "bin" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    write("a.py", f"#!{PYTHON}\nimport os, cgi as form\n")
    write("b.py", f"#!{PYTHON} -v\n  import cgitb; cgitb.enable()\n")
    write("c.sh", "#!/bin/sh\n# import cgi\n")
    write("sub/d.py", f"#!{PYTHON}\nfrom cgi import escape\nimport cgitb, cgi\n")
    write("sub/e.py", f"#!{PYTHON}\n1 +\n")
    write("sub/f.txt", "not a script\n", 0o644)
    write("sub/g.pyx", "import cgi.x\nimport cgitools\n", 0o644)
    write(".hidden.py", f"#!{PYTHON}\n")
    return tmp_path


def config(folder: Path, **keys: Any) -> Config:
    user = {"user": "root"} if os.geteuid() == 0 else {}
    backend = {"cgi": "bin", **user, **keys}
    routes = [{"path": "/", "backend": "old"}]
    return Config.from_dict({"backends": {"old": backend}, "routes": routes}, base=folder)


@needs_linux
def test_scripts_that_run_warm(folder: Path) -> None:
    assert list(warm_scripts(config(folder))) == []
    (report,) = warm_scripts(config(folder, warm=True, interpreters={".pyx": PYTHON}))
    assert (report.name, report.warm) == ("old", 3)
    assert [os.path.basename(script) for script, _ in report.plain] == ["b.py", "c.sh", "e.py"]
    reasons = [reason for _, reason in report.plain]
    assert reasons[0] == "the flag -v"
    assert reasons[1] == "sh is neither Python nor Perl"
    assert "does not compile" in reasons[2]


@needs_linux
def test_one_program(folder: Path) -> None:
    (report,) = warm_scripts(config(folder, cgi="bin/a.py", warm=True))
    assert (report.warm, report.plain) == (1, [])


def test_elsewhere_none_runs_warm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spawner, "is_supported", staticmethod(lambda: False))
    (report,) = warm_scripts(config(folder, warm=True))
    assert (report.warm, len(report.plain)) == (0, 1)


def test_modules_that_are_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(legacy_hints(config(folder)))
    names = [os.path.basename(text.split(" imports ")[0]) for _, text in found]
    # ``-v`` is no hindrance here; on Python 3.13 there is neither, unless legacy-cgi is.
    assert names in ([], ["a.py", "b.py", "d.py"])

    monkeypatch.setattr(warm_report, "_missing", lambda *_: ("3.13", ["cgi", "cgitb"]))
    found = list(legacy_hints(config(folder, interpreters={".pyx": PYTHON})))
    hints = {os.path.basename(text.split(" imports ")[0]): text for _, text in found}
    assert sorted(hints) == ["a.py", "b.py", "d.py"]
    assert " imports cgi, which Python 3.13 no longer has: " in hints["a.py"]
    assert " imports cgitb, which" in hints["b.py"]
    assert " imports cgi and cgitb, which" in hints["d.py"]
    assert f"{PYTHON} -m pip install legacy-cgi" in hints["a.py"]


def test_an_interpreter_that_says_nothing(folder: Path) -> None:
    """Neither hint nor failure."""
    program = folder / "python"
    program.write_bytes(Path("/bin/false").read_bytes())
    program.chmod(0o755)
    script = folder / "bin" / "a.py"
    script.write_text(f"#!{program}\nimport cgi\n")
    (folder / "bin" / "b.py").unlink()
    (folder / "bin" / "sub" / "d.py").unlink()
    assert list(legacy_hints(config(folder))) == []
