"""Python scripts run plain and warm: nobody can tell the difference.

The scripts stand in ``warm/python.txt``. Each runs in a folder of its own, plain, and
then warm in the same folder made anew, through the real spawner; exit status, output
and all files must be the same.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from tetrapylon.adapters.exchange import SpooledBody
from tetrapylon.adapters.processes import ChildCommand
from tetrapylon.gateway.spawn.client import Spawner, Warm
from tetrapylon.gateway.spawn.confinement import Confinement
from tetrapylon.gateway.spawn.interpreters import Eligible
from tetrapylon.gateway.spawn.warm import examine

pytestmark = pytest.mark.skipif(not Spawner.is_supported(), reason="Linux only")

DEADLINE_S = 60.0
# As many at once as find room beside each other.
AT_ONCE = 4
_ADDRESS = re.compile(rb"\b0x[0-9a-f]{8,}")
CORPUS = Path(__file__).parent / "warm" / "python.txt"


class Case(NamedTuple):
    """One section of the corpus."""

    name: str
    flags: str
    environ: dict[bytes, bytes]
    stdin: bytes
    is_plain: bool
    text: str


def _cases() -> list[Case]:
    cases = []
    for section in re.split(r"^=== ", CORPUS.read_text(), flags=re.MULTILINE)[1:]:
        head, _, text = section.partition("\n")
        stdin = b""
        if " <" in head:
            head, _, line = head.partition(" <")
            stdin = line.encode("ascii").decode("unicode_escape").encode()
        words = head.split(" ")
        name: list[str] = []
        flags: list[str] = []
        environ = {}
        is_plain = False
        for word in words:
            variable, equals, value = word.partition("=")
            if word == "plain":
                is_plain = True
            elif equals and variable.replace("_", "").isalnum() and variable.upper() == variable:
                environ[variable.encode()] = value.encode()
            elif word.startswith("-"):
                flags.append(word)
            else:
                name.append(word)
        cases.append(Case(" ".join(name), " ".join(flags), environ, stdin, is_plain, text))
    return cases


CASES = _cases()


def _interpreters() -> list[str]:
    """Return the Pythons to be tried: ours, and one of 3.13 or later if it is another.

    Or those that TETRAPYLON_PYTHONS names, separated by colons.
    """
    if "TETRAPYLON_PYTHONS" in os.environ:
        return os.environ["TETRAPYLON_PYTHONS"].split(":")
    found = [os.path.realpath(sys.executable)]
    if sys.version_info < (3, 13):
        names = [f"python3.{minor}" for minor in (13, 14)]
        folders = [
            *os.get_exec_path(),
            *map(str, Path.home().glob(".pyenv/versions/3.1[3-9]*/bin")),
        ]
        for folder in folders:
            for name in names:
                program = os.path.realpath(os.path.join(folder, name))
                if len(found) == 1 and os.path.isfile(program) and _is_program(program):
                    found.append(program)
    return found


def _is_program(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


class Outcome(NamedTuple):
    """All that a run leaves behind."""

    code: int
    stdout: bytes
    stderr: bytes
    files: dict[str, object]


@dataclass
class Room:
    """Runs scripts in folders of their own."""

    spawner: Spawner
    folder: Path
    python: str
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    confinement: Confinement = field(default_factory=Confinement)

    async def compare(self, case: Case) -> str | None:
        """Return what is different, None if nothing is."""
        async with self.slots:
            plain, _ = await self.run(case, is_warm=False)
            warm, is_warm = await self.run(case, is_warm=True)
            if case.is_plain:
                if is_warm:
                    return "it was run warm"
            else:
                deadline = asyncio.get_running_loop().time() + DEADLINE_S
                while not is_warm:
                    if asyncio.get_running_loop().time() > deadline:
                        return "it was not run warm"
                    # Its own interpreter is being started.
                    await asyncio.sleep(0.2)
                    warm, is_warm = await self.run(case, is_warm=True)
        if warm == plain:
            return None
        return "\n".join(
            f"{name}: plain {a!r}\n{' ' * len(name)}   warm {b!r}"
            for name, a, b in zip(Outcome._fields, plain, warm, strict=True)
            if a != b
        )

    async def run(self, case: Case, *, is_warm: bool) -> tuple[Outcome, bool]:
        folder = self.folder / case.name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        script = folder / "script.py"
        script.write_text(f"#!{self.python} {case.flags}\n{case.text}", encoding="utf-8")
        script.chmod(0o755)
        # As a file that has not been written just now.
        os.utime(script, (1_500_000_000, 1_500_000_000))
        environ = {b"PATH": b"/usr/bin:/bin", b"LANG": b"C.UTF-8", b"QUERY_STRING": b""}
        environ |= case.environ
        body = SpooledBody(case.stdin)
        command = ChildCommand((str(script),), environ, str(folder), body)
        warm = None
        if is_warm:
            template = examine(str(script), None, environ)
            if isinstance(template, Eligible):
                warm = Warm(template, 0)
            elif not case.is_plain:
                pytest.fail(f"{case.name}: {template.reason}")
        child = await self.spawner.spawn(command, self.confinement, warm).started()
        stdout, stderr = await asyncio.gather(read_all(child.stdout), read_all(child.stderr))
        async with asyncio.timeout(DEADLINE_S):
            code = await child.exited
        texts = (_ADDRESS.sub(b"0x", text) for text in (stdout, stderr))
        return Outcome(code, *texts, _files(folder)), child.is_warm


def _files(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        mode = oct(file.lstat().st_mode)
        # What has a time of its own in it is compared by its name.
        is_stamped = file.suffix in (".pyc", ".gz", ".zip", ".db")
        found[name] = (mode, None if file.is_dir() or is_stamped else file.read_bytes())
    return found


async def read_all(fd: int) -> bytes:
    data = await asyncio.to_thread(_read_all, fd)
    os.close(fd)
    return data


def _read_all(fd: int) -> bytes:
    os.set_blocking(fd, True)
    with open(fd, "rb", closefd=False) as file:
        return file.read()


@asynccontextmanager
async def room(folder: Path, python: str) -> AsyncIterator[Room]:
    async with Spawner() as spawner:
        made = Room(spawner, folder, python)
        await spawner.prepare(made.confinement)
        yield made


@pytest.fixture(scope="module", params=_interpreters(), ids=lambda path: Path(path).name)
def differences(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    hurry: Callable[..., None],
) -> dict[str, str | None]:
    """All cases, run beside each other."""
    # Many have an interpreter of their own, which nobody else asks for.
    hurry(_KEPT_S=0.0)
    folder = tmp_path_factory.mktemp("warm")

    async def main() -> dict[str, str | None]:
        async with room(folder, request.param) as it:
            found = await asyncio.gather(*map(it.compare, CASES))
        return {case.name: difference for case, difference in zip(CASES, found, strict=True)}

    return asyncio.run(main())


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_it_is_the_same(differences: dict[str, str | None], name: str) -> None:
    assert differences[name] is None, differences[name]
