"""Warm processes through the real spawner: what they are for, and what becomes of trouble."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tetrapylon.adapters.exchange import SpooledBody
from tetrapylon.adapters.processes import ChildCommand
from tetrapylon.gateway.spawn import helper, warm_python
from tetrapylon.gateway.spawn.child import SpawnedChild
from tetrapylon.gateway.spawn.client import Spawner, Warm
from tetrapylon.gateway.spawn.confinement import Confinement, User
from tetrapylon.gateway.spawn.interpreters import Eligible, NotEligible
from tetrapylon.gateway.spawn.warm import examine

pytestmark = pytest.mark.skipif(not Spawner.is_supported(), reason="Linux only")

DEADLINE_S = 30.0
PLAIN = Confinement()
PYTHON = os.path.realpath(sys.executable)
ENVIRON = {b"PATH": b"/usr/bin:/bin", b"LANG": b"C.UTF-8"}
PROGRAM = "python_importlib_bootstrap"


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str
    is_warm: bool


class Shop:
    """Runs scripts of one folder."""

    def __init__(self, spawner: Spawner, folder: Path, confinement: Confinement) -> None:
        self.spawner = spawner
        self.folder = folder
        self.confinement = confinement

    @property
    def helper_pid(self) -> int:
        (pid,) = self.spawner.helper_pids()
        return pid

    def children(self) -> list[int]:
        """Return the children of the helper, zombies among them."""
        text = Path(f"/proc/{self.helper_pid}/task/{self.helper_pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def templates(self) -> list[int]:
        """Return the warm processes; not their children, which look the same."""
        found = []
        for pid in self.children():
            with contextlib.suppress(OSError):
                own = PROGRAM in Path(f"/proc/{pid}/cmdline").read_text()
                if own and os.path.exists(f"/proc/{pid}/fd/3"):
                    found.append(pid)
        return found

    def write(self, name: str, text: str, *, python: str = PYTHON, flags: str = "") -> str:
        """Write a script that looks as if it had been there for long."""
        file = self.folder / name
        # A new file each time, as editors make them.
        file.unlink(missing_ok=True)
        file.write_text(f"#!{python} {flags}\n{text}")
        file.chmod(0o755)
        return str(file)

    def ask(
        self,
        script: str,
        environ: dict[bytes, bytes] | None = None,
        cwd: str | None = None,
        template: Eligible | NotEligible | None = None,
    ) -> SpawnedChild:
        environ = ENVIRON | (environ or {})
        template = template or examine(script, None, environ)
        warm = Warm(template, 0) if isinstance(template, Eligible) else None
        command = ChildCommand((script,), environ, cwd or str(self.folder), SpooledBody())
        return self.spawner.spawn(command, self.confinement, warm)

    async def run(self, script: str, **options: Any) -> Outcome:
        child = await self.ask(script, **options).started()
        async with asyncio.timeout(DEADLINE_S):
            out, err = await asyncio.gather(read_all(child.stdout), read_all(child.stderr))
            code = await child.exited
        return Outcome(code, out.decode(), err.decode(), child.is_warm)

    async def warm_up(self, script: str, **options: Any) -> Outcome:
        """Run it until it is run warm."""
        deadline = time.monotonic() + DEADLINE_S
        while not (outcome := await self.run(script, **options)).is_warm:
            assert time.monotonic() < deadline, f"it is not run warm: {outcome}"
            await asyncio.sleep(0.05)
        return outcome


def own_template(folder: Path, text: str) -> Eligible:
    program = folder / "template.py"
    program.write_text(text)
    return Eligible((PYTHON, "-I", str(program)), PYTHON, ())


async def read_all(fd: int) -> bytes:
    data = await asyncio.to_thread(_read_all, fd)
    os.close(fd)
    return data


def _read_all(fd: int) -> bytes:
    os.set_blocking(fd, True)
    with open(fd, "rb", closefd=False) as file:
        return file.read()


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def shop(folder: Path, confinement: Confinement = PLAIN) -> AsyncIterator[Shop]:
    async with Spawner() as spawner:
        await spawner.prepare(confinement)
        yield Shop(spawner, folder, confinement)


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, None]], None]:
    """Here one kind of loop does: the client is the same for all, and the rest is the helper's."""
    return lambda main: asyncio.run(asyncio.wait_for(main, 4 * DEADLINE_S))


@pytest.fixture
def hurried(hurry: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change constants of the helper's `templates`, for one test."""
    monkeypatch.setattr(helper, "__file__", helper.__file__)
    return hurry


# What it is for


def test_a_script_is_run_warm_once_there_is_a_template(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write("a.py", "import sys, json\nprint(sys.argv[0], json.dumps([1]))\n")
            first = await it.run(script)
            assert first == Outcome(0, f"{script} [1]\n", "", False)
            assert await it.warm_up(script) == Outcome(0, f"{script} [1]\n", "", True)
            # Another script needs no other template.
            other = it.write("b.py", "import sys\nsys.exit('no')\n")
            assert await it.run(other) == Outcome(1, "", "no\n", True)
            assert len(it.templates()) == 1

    run(main())


def test_a_changed_script(run: Any, tmp_path: Path) -> None:
    """Whether rewritten at once, in place and with the same length, or replaced."""

    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write("a.py", "print(0)\n")
            await it.warm_up(script)
            for number in range(1, 8):
                with open(script, "r+") as file:
                    file.write(f"#!{PYTHON} \nprint({number})\n")
                assert await it.run(script) == Outcome(0, f"{number}\n", "", True)
            it.write("a.py", "print('new')\n")
            assert await it.run(script) == Outcome(0, "new\n", "", True)
            os.utime(script, (1, 1))
            assert (await it.run(script)).stdout == "new\n"
            Path(script).write_text(f"#!{PYTHON}\nprint('old')\n")
            os.utime(script, (1, 1))
            assert (await it.run(script)).stdout == "old\n"

    run(main())


def test_scripts_that_cannot_be_run(run: Any, tmp_path: Path) -> None:
    """They fail as they would plain."""

    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write("a.py", "print(1)\n")
            await it.warm_up(script)
            with pytest.raises(FileNotFoundError) as caught:
                await it.ask(script, cwd="/no/such").started()
            assert caught.value.filename == "/no/such"
            assert (await it.run(script)).is_warm
            # Root could read it all the same.
            os.chmod(script, stat.S_IRUSR | stat.S_IWUSR)
            with pytest.raises(PermissionError):
                await it.run(script)
            os.chmod(script, 0o755)
            assert (await it.run(script)).is_warm
            os.unlink(script)
            with pytest.raises(FileNotFoundError):
                await it.run(script)

    run(main())


@pytest.mark.parametrize(
    ("name", "content", "is_warm"),
    [
        ("json.py", "", False),
        ("json/__init__.py", "", False),
        ("json/other.py", "", True),
        ("json.pyc", "", False),
        ("json.txt", "", True),
        ("os.py", "", True),
        ("time.py", "", True),
        ("own.py", "", True),
    ],
)
def test_a_module_beside_the_script(
    run: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    content: str,
    is_warm: bool,
) -> None:
    async def main() -> None:
        async with shop(tmp_path) as it:
            (tmp_path / "elsewhere").mkdir()
            await it.warm_up(it.write("elsewhere/a.py", "print(1)\n"))
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
            outcome = await it.run(it.write("b.py", "import time\nprint(2)\n"))
            assert (outcome.stdout, outcome.is_warm) == ("2\n", is_warm)

    with caplog.at_level(logging.WARNING, "tetrapylon.gateway.spawn"):
        run(main())
    assert ("b.py runs plain: there is a module 'json' beside it" in caplog.text) != is_warm


def test_a_link_to_a_script(run: Any, tmp_path: Path) -> None:
    """Modules are beside the script, not beside the link, and are found anew if it leads on."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text(f"name = {name!r}\n")

    async def main() -> None:
        async with shop(tmp_path) as it:
            text = "import own, sys\nprint(own.name, sys.path[0], sys.argv[0], __file__)\n"
            for name in ("one", "two"):
                it.write(f"{name}/a.py", text)
            link = tmp_path / "link.py"
            folder = tmp_path / "current"
            for name in ("one", "two", "one"):
                for place, target in ((link, tmp_path / name / "a.py"), (folder, tmp_path / name)):
                    place.unlink(missing_ok=True)
                    place.symlink_to(target)
                for script in (str(link), str(folder / "a.py")):
                    expected = f"{name} {tmp_path / name} {script} {script}\n"
                    assert (await it.warm_up(script)).stdout == expected

    run(main())


def test_under_small_limits(run: Any, tmp_path: Path) -> None:
    """The smallest number of files that can be set; requests wait for each other then."""
    confinement = Confinement(rlimits=(("nofile", 16),))

    async def main() -> None:
        async with shop(tmp_path, confinement) as it:
            script = it.write("a.py", "import json\nprint(json.dumps('ok'))\n")
            await it.warm_up(script)
            outcomes = await asyncio.gather(*(it.run(script) for _ in range(40)))
            assert {outcome[:3] for outcome in outcomes} == {(0, '"ok"\n', "")}

    run(main())


def test_more_than_a_packet_holds(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write("a.py", "import os\nprint(len(os.environ['X']))\n")
            environ = {b"X": b"x" * 1000}
            assert (await it.warm_up(script, environ=environ)).stdout == "1000\n"
            large = {b"X": b"x" * 60_000, b"Y": b"y" * 60_000}
            assert await it.run(script, environ=large) == Outcome(0, "60000\n", "", False)

    run(main())


def test_interpreters_of_a_virtual_environment(run: Any, tmp_path: Path, hurried: Any) -> None:
    """A change of ``pyvenv.cfg`` is seen, and a ``.pth`` file that comes later."""
    hurried(_LIFE_S=0.0)
    venv = tmp_path / "venv"
    site = venv / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    site.mkdir(parents=True)
    (venv / "bin").mkdir()
    python = venv / "bin/python3"
    python.symlink_to(PYTHON)
    settings = f"home = {os.path.dirname(PYTHON)}\ninclude-system-site-packages = false\n"
    (venv / "pyvenv.cfg").write_text(settings)

    async def main() -> None:
        async with shop(tmp_path) as it:
            text = "import sys\nprint(sys.prefix, getattr(sys, 'marked', 0))\n"
            script = it.write("a.py", text, python=str(python))
            assert (await it.warm_up(script)).stdout == f"{venv} 0\n"
            (site / "mark.pth").write_text("import sys; sys.marked = 1\n")
            await asyncio.sleep(0.6)
            assert (await it.run(script)).stdout == f"{venv} 1\n"
            assert (await it.warm_up(script)).stdout == f"{venv} 1\n"
            (templates,) = (it.templates(),)
            (venv / "pyvenv.cfg").write_text(settings + "# changed\n")
            await asyncio.sleep(0.6)
            assert not (await it.run(script)).is_warm
            await it.warm_up(script)
            assert set(it.templates()).isdisjoint(templates)

    run(main())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can choose")
def test_another_user(run: Any, tmp_path: Path) -> None:
    user = User.find("nobody")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    python = "/usr/bin/python3"
    program = warm_python.PROGRAM
    readable = all(
        os.stat(folder).st_mode & 0o5 == 0o5 for folder in Path(program).parents
    ) and os.path.exists(python)
    if not readable:
        pytest.skip("the user cannot read what would be warm")

    async def main() -> None:
        async with shop(tmp_path, Confinement(rlimits=(("core", 0),), user=user)) as it:
            script = it.write("a.py", "import os\nprint(os.getresuid())\n", python=python)
            os.chmod(script, 0o755)
            assert (await it.warm_up(script)).stdout == f"{(user.uid,) * 3}\n"

    run(main())


def test_without_clone3(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two forks do, and nobody sees it."""
    room = tmp_path / "room"
    room.mkdir()
    for file in Path(warm_python.PROGRAM).parent.glob("python_*.py"):
        shutil.copy(file, room)
    template = room / "python_template.py"
    template.write_text(template.read_text().replace("_CLONE3 = 435", "_CLONE3 = 9999"))
    monkeypatch.setattr(warm_python, "PROGRAM", str(room / f"{PROGRAM}.py"))

    async def main() -> None:
        async with shop(tmp_path) as it:
            text = "import os, sys\nprint(os.getppid(), os.getsid(0) == os.getpid())\nsys.exit(7)\n"
            script = it.write("a.py", text)
            await it.warm_up(script)
            outcomes = await asyncio.gather(*(it.run(script) for _ in range(20)))
            assert set(outcomes) == {Outcome(7, f"{it.helper_pid} True\n", "", True)}
            slow = await it.ask(it.write("b.py", "import time\ntime.sleep(60)\n")).started()
            slow.end(kill_after_s=5)
            assert await slow.exited == -signal.SIGTERM
            os.close(slow.stdout)
            os.close(slow.stderr)
            await until(lambda: it.children() == it.templates(), "all else is reaped")

    run(main())


# Trouble


def test_a_template_is_killed_under_load(run: Any, tmp_path: Path) -> None:
    """No request is lost, nor run twice."""

    async def main() -> None:
        async with shop(tmp_path) as it:
            text = "import os\nos.write(9, b'x')\nprint('ok')\n".replace(
                "os.write(9, b'x')", "os.close(os.open(f'ran-{os.getpid()}', os.O_CREAT))"
            )
            script = it.write("a.py", text)
            await it.warm_up(script)
            count = len(list(tmp_path.glob("ran-*")))
            warm = 0
            slots = asyncio.Semaphore(16)

            async def one() -> None:
                nonlocal warm
                async with slots:
                    outcome = await it.run(script)
                assert outcome[:3] == (0, "ok\n", ""), outcome
                warm += outcome.is_warm

            runs = [asyncio.ensure_future(one()) for _ in range(80)]
            killed = 0
            while not all(run.done() for run in runs) and killed < 6:
                for pid in it.templates():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed += 1
                await asyncio.sleep(0.1)
            await asyncio.gather(*runs)
            assert killed
            assert len(list(tmp_path.glob("ran-*"))) == count + len(runs)
            await it.warm_up(script)
            await until(lambda: it.children() == it.templates(), "nobody else is left")

    run(main())


def test_trouble_is_told_once(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write("a.py", "print('ok')\n")
            await it.warm_up(script)
            (template,) = it.templates()
            os.kill(template, signal.SIGKILL)
            await until(lambda: template not in it.children(), "it is reaped")
            for _ in range(5):
                assert (await it.run(script)).stdout == "ok\n"
            await it.warm_up(script)

    with caplog.at_level(logging.WARNING, "tetrapylon.gateway.spawn"):
        run(main())
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "its warm interpreter has ended" in lines[0]


def test_a_template_that_does_not_answer(
    run: Any, tmp_path: Path, hurried: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hurried(_ANSWER_S=0.2, _LOOK_S=0.05)

    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write("a.py", "print('ok')\n")
            await it.warm_up(script)
            (template,) = it.templates()
            os.kill(template, signal.SIGSTOP)
            outcomes = await asyncio.gather(*(it.run(script) for _ in range(20)))
            assert {outcome[:3] for outcome in outcomes} == {(0, "ok\n", "")}
            assert template not in it.templates()
            await it.warm_up(script)

    with caplog.at_level(logging.WARNING, "tetrapylon.gateway.spawn"):
        run(main())
    assert "did not answer" in caplog.text


FALSE_TEMPLATE = """
import os, socket, struct, sys
control = socket.socket(fileno=int(os.environ["TETRAPYLON_WARM_FD"]))
{}
control.send(bytes(8) + struct.pack("=i", os.getpid()))
while packet := control.recv(65536):
    {}
"""


@pytest.fixture
def bystander() -> Iterator[int]:
    """A process with a group of its own that has nothing to do with it."""
    with subprocess.Popen(["/bin/sleep", "60"], start_new_session=True) as process:
        yield process.pid
        assert process.poll() is None
        process.kill()


@pytest.mark.parametrize(
    "before",
    ["pid = {bystander}", "pid = os.getpid()", "pid = os.fork() or os.read(os.pipe()[0], 1)"],
    ids=["a process of others", "itself", "no child of the helper"],
)
def test_a_template_that_lies(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, bystander: int, before: str
) -> None:
    """What it names would be signalled, perhaps by root."""
    before = before.format(bystander=bystander)
    answer = "control.send(packet[4:12] + struct.pack('=i', pid))"

    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write("a.py", "print('ok')\n")
            template = own_template(tmp_path, FALSE_TEMPLATE.format(before, answer))
            deadline = time.monotonic() + DEADLINE_S
            while not caplog.records:
                assert time.monotonic() < deadline
                assert await it.run(script, template=template) == Outcome(0, "ok\n", "", False)

    with caplog.at_level(logging.WARNING, "tetrapylon.gateway.spawn"):
        run(main())
    assert "named a process that is none of its own" in caplog.text


def test_a_socket_that_somebody_else_holds(
    run: Any, tmp_path: Path, hurried: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests wait for no end of file that does not come."""
    hurried(_ANSWER_S=0.2, _LOOK_S=0.05)
    holder = "if os.fork() == 0:\n    os.setsid()\n    os.read(os.pipe()[0], 1)"

    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write("a.py", "print('ok')\n")
            template = own_template(tmp_path, FALSE_TEMPLATE.format(holder, "os._exit(0)"))
            deadline = time.monotonic() + DEADLINE_S
            while not caplog.records:
                assert time.monotonic() < deadline
                assert await it.run(script, template=template) == Outcome(0, "ok\n", "", False)

    with caplog.at_level(logging.WARNING, "tetrapylon.gateway.spawn"):
        run(main())
    assert "did not answer" in caplog.text


def test_a_child_that_answers_too_late(
    run: Any, tmp_path: Path, hurried: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It was run plain meanwhile, and does not begin."""
    hurried(_ANSWER_S=0.2, _LOOK_S=0.05)
    room = tmp_path / "room"
    room.mkdir()
    for file in Path(warm_python.PROGRAM).parent.glob("python_*.py"):
        shutil.copy(file, room)
    template = room / "python_template.py"
    text = template.read_text()
    place = "        # From now on the helper watches"
    assert place in text
    late = tmp_path / "late"
    wait = f"        while not os.path.exists({str(late)!r}): os.sched_yield()\n"
    template.write_text(text.replace(place, wait + place))

    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write(
                "a.py", "import os\nos.close(os.open(f'ran-{os.getpid()}', os.O_CREAT))\n"
            )
            found = examine(script, None, ENVIRON)
            assert isinstance(found, Eligible)
            argv = tuple(word.replace(warm_python.PROGRAM, own) for word in found.argv)
            template = found._replace(argv=argv)
            runs = []
            deadline = time.monotonic() + DEADLINE_S
            while not caplog.records:
                assert time.monotonic() < deadline
                runs.append(asyncio.ensure_future(it.run(script, template=template)))
                await asyncio.sleep(0.05)
            late.touch()
            assert {outcome.is_warm for outcome in await asyncio.gather(*runs)} == {False}
            await until(lambda: it.children() == it.templates(), "it has gone")
            assert len(list(tmp_path.glob("ran-*"))) == len(runs)

    own = str(room / f"{PROGRAM}.py")
    with caplog.at_level(logging.WARNING, "tetrapylon.gateway.spawn"):
        run(main())
    assert "did not answer" in caplog.text


def test_templates_do_not_take_turns(run: Any, tmp_path: Path, hurried: Any) -> None:
    """Scripts that are asked for in turn leave the place to those that have it."""
    hurried(_TEMPLATES=2, _KEPT_S=0.0)

    async def main() -> None:
        async with shop(tmp_path) as it:
            scripts = [
                it.write(f"{number}.py", "print(1)\n", flags=f"-Xa={number}") for number in range(4)
            ]
            for script in scripts[:2]:
                await it.warm_up(script)
            places = it.templates()
            for script in scripts * 4:
                assert (await it.run(script)).is_warm == (script in scripts[:2])
            assert it.templates() == places
            # One that is asked for more than others has it then.
            await it.warm_up(scripts[3])

    run(main())


def test_a_large_script(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Others would have to wait while it is compiled."""

    async def main() -> None:
        async with shop(tmp_path) as it:
            await it.warm_up(it.write("a.py", "print('ok')\n"))
            script = it.write("b.py", "print('ok')\n" + 60_000 * "x = 'text'\n")
            assert not (await it.run(script)).is_warm

    with caplog.at_level(logging.WARNING, "tetrapylon.gateway.spawn"):
        run(main())
    assert "bytes take too long to compile" in caplog.text


def test_an_interpreter_that_cannot_be_warm(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not tried again for each request."""
    python = tmp_path / "python3"
    shutil.copy("/bin/echo", python)

    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write("a.py", "", python=str(python))
            for _ in range(10):
                outcome = await it.run(script)
                assert (outcome.stdout.split()[-1], outcome.is_warm) == (script, False)
                assert len(it.templates()) <= 1
                await asyncio.sleep(0.02)

    with caplog.at_level(logging.WARNING, "tetrapylon.gateway.spawn"):
        run(main())
    assert len(caplog.records) == 1


def test_templates_are_few_and_idle_ones_end(run: Any, tmp_path: Path, hurried: Any) -> None:
    hurried(_TEMPLATES=2, _IDLE_S=1.0, _IDLE_LOOK_S=0.1)

    async def main() -> None:
        async with shop(tmp_path) as it:
            for number in range(3):
                script = it.write(
                    f"{number}.py", "import sys\nprint(sys._xoptions)\n", flags=f"-Xa={number}"
                )
                assert (await it.warm_up(script)).stdout == f"{{'a': '{number}'}}\n"
                assert len(it.templates()) <= 2
            await until(lambda: not it.children(), "all have ended")
            await it.warm_up(script)

    run(main())


def test_a_template_is_replaced_after_many_requests(run: Any, tmp_path: Path, hurried: Any) -> None:
    """It serves until the next one is ready."""
    hurried(_REQUESTS=5)

    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write("a.py", "print(hash('a'))\n")
            await it.warm_up(script)
            seeds = set()
            deadline = time.monotonic() + DEADLINE_S
            while len(seeds) < 3 and time.monotonic() < deadline:
                outcome = await it.run(script)
                assert outcome.is_warm
                seeds.add(outcome.stdout)
            assert len(seeds) == 3
            await until(lambda: len(it.templates()) <= 2, "the old one has gone")

    run(main())


def test_nothing_is_left_behind(run: Any, tmp_path: Path) -> None:
    """No descriptor, no zombie, over many requests; and no more memory."""

    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write("a.py", "import json\nprint(json.dumps('ok'))\n")
            await it.warm_up(script)
            (template,) = it.templates()

            def fds() -> list[int]:
                return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (it.helper_pid, template)]

            def pages() -> int:
                return int(Path(f"/proc/{template}/statm").read_text().split()[5])

            before = fds()
            await asyncio.gather(*(it.run(script) for _ in range(30)))
            held = pages()
            for _ in range(12):
                outcomes = await asyncio.gather(*(it.run(script) for _ in range(25)))
                assert {outcome[:3] for outcome in outcomes} == {(0, '"ok"\n', "")}
            assert fds() == before
            assert it.children() == [template]
            assert pages() - held < 64

    run(main())


SCRIPTS_OF_TROUBLE = {
    "exits at once": ("import os\nos._exit(3)\n", 3),
    "is killed": ("import os\nos.kill(os.getpid(), 9)\n", -9),
    "closes all": ("import os\nos.closerange(0, 64)\n", 0),
    "allocates": ("bytearray(1 << 30)\n", 1),
    "crashes": ("import ctypes\nctypes.string_at(0)\n", -11),
    "overflows": ("def f(): f()\nf()\n", 1),
    "signals its group": ("import os\nos.killpg(0, 15)\n", -15),
    "leaves its session": ("import os\nos.fork() or os.setsid()\n", 0),
    "forks and execs": ("import os\nif os.fork(): os.execv('/bin/true', ['true'])\n", 0),
}


def test_scripts_that_make_trouble(run: Any, tmp_path: Path) -> None:
    """Each ends as it would plain, and hurts nobody else."""

    async def main() -> None:
        async with shop(tmp_path) as it:
            fine = it.write("fine.py", "print('ok')\n")
            await it.warm_up(fine)
            (template,) = it.templates()
            for name, (text, code) in SCRIPTS_OF_TROUBLE.items():
                outcome = await it.run(it.write(f"{name}.py", text))
                assert (outcome.code, outcome.is_warm) == (code, True), (name, outcome)
                assert await it.run(fine) == Outcome(0, "ok\n", "", True), name
            assert it.templates() == [template]
            await until(lambda: it.children() == [template], "nobody is left")

    run(main())


@pytest.mark.parametrize("moment", ["at once", "later"])
def test_what_is_ended(run: Any, tmp_path: Path, moment: str) -> None:
    """A script that ignores TERM, and a daemon of its own, by the end of its time."""
    text = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    open("daemon", "w").write(str(os.getpid()))
print("running", flush=True)
time.sleep(60)
"""

    async def main() -> None:
        async with shop(tmp_path) as it:
            await it.warm_up(it.write("a.py", ""))
            child = it.ask(it.write("b.py", text))
            if moment == "later":
                await child.started()
                await until((tmp_path / "daemon").exists, "the daemon runs")
            child.end(kill_after_s=0.1)
            assert await child.exited in (-signal.SIGTERM, -signal.SIGKILL)
            os.close(child.stdout)
            os.close(child.stderr)
            await until(lambda: it.children() == it.templates(), "nobody is left")

    run(main())


def test_time_on_a_processor(run: Any, tmp_path: Path) -> None:
    """It counts for each script, not for the warm process that served so many."""
    confinement = Confinement(rlimits=(("cpu", 1),))

    async def main() -> None:
        async with shop(tmp_path, confinement) as it:
            await it.warm_up(it.write("a.py", ""))
            text = "import resource\nwhile True:\n    pass\n"
            assert (await it.run(it.write("b.py", text))).code == -signal.SIGXCPU
            (template,) = it.templates()
            limits = Path(f"/proc/{template}/limits").read_text()
            line = next(line for line in limits.splitlines() if line.startswith("Max cpu time"))
            assert line.split()[3] == line.split()[4]

    run(main())


def test_the_helper_dies(run: Any, tmp_path: Path) -> None:
    """Its templates go with it, and another helper starts others."""

    async def main() -> None:
        async with shop(tmp_path) as it:
            script = it.write("a.py", "print('ok')\n")
            await it.warm_up(script)
            (template,) = it.templates()
            first = it.helper_pid
            os.kill(first, signal.SIGKILL)
            await until(lambda: not os.path.exists(f"/proc/{template}"), "it is gone")
            await until(lambda: it.spawner.helper_pids() not in ([], [first]), "another")
            deadline = time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline:
                try:
                    await it.warm_up(script)
                    break
                except Exception:
                    await asyncio.sleep(0.02)
            else:
                pytest.fail("nothing can be started")

    run(main())
