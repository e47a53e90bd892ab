"""mypy --strict on what a user gets: the wheel's contents, from outside the tree.

In the tree the three folders are not the packages that they become, and mypy can
pass there without having looked at a file. So the wheel is unpacked into a
temporary folder, checked there, and the number of files that mypy saw is held
against the number of modules in the tree.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("protocols", "adapters", "gateway")


def main() -> int:
    """Build, unpack, check; return mypy's exit code, or 1 when it saw too little."""
    expected = sum(1 for room in ROOMS for _ in (ROOT / room).rglob("*.py"))
    with tempfile.TemporaryDirectory() as folder:
        # From a copy: an earlier build's folder would bring back what was deleted.
        source = Path(folder) / "source"
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source / name)
        for room in ROOMS:
            shutil.copytree(ROOT / room, source / room)
        subprocess.run(
            [
                sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
                "--no-build-isolation", "--disable-pip-version-check",
                "--wheel-dir", folder, str(source),
            ],
            check=True,
        )  # fmt: skip
        (wheel,) = Path(folder).glob("*.whl")
        site = Path(folder) / "site"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        packages = [f"-ptetrapylon.{room}" for room in ROOMS]
        done = subprocess.run(
            [
                sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"),
                "--strict", "--namespace-packages", "--explicit-package-bases",
                "--cache-dir", str(ROOT / ".mypy_cache"), *packages,
            ],
            cwd=site,
            env={"MYPYPATH": str(site), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )  # fmt: skip
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    if done.returncode:
        return done.returncode
    # A folder without modules counts as one more: a namespace package.
    seen = re.search(r"in (\d+) source files", done.stdout)
    if seen is None or int(seen[1]) < expected:
        print(f"mypy saw {seen[1] if seen else 'no'} files; the tree has {expected}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
