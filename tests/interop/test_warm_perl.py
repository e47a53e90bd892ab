"""Perl scripts run warm and plain, with the same exit status, output and files.

The scripts are in ``warm_perl``. Their comments say what they are sent (``query``,
``body``, ``type``, ``cookie``), and if they are to run plain, how the reason begins
(``plain``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from tetrapylon.adapters.exchange import SpooledBody
from tetrapylon.adapters.processes import ChildCommand
from tetrapylon.gateway.backends.cgi import CgiBackend
from tetrapylon.gateway.spawn.client import Spawner, Warm
from tetrapylon.gateway.spawn.confinement import Confinement
from tetrapylon.gateway.spawn.interpreters import Eligible
from tetrapylon.gateway.spawn.warm import examine
from tetrapylon.protocols.asgi import Message, Scope

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not Spawner.is_supported(), reason="Linux only"),
]

CORPUS = Path(__file__).parent / "warm_perl"
NAMES = sorted(path.name for path in CORPUS.glob("*.pl"))
GITWEB = Path("/usr/share/gitweb/gitweb.cgi")
AWSTATS = Path("/usr/lib/cgi-bin/awstats.pl")
READY_S = 30.0
ENVIRON = {
    b"PATH": b"/usr/bin:/bin",
    b"LANG": b"C.UTF-8",
    # The order of keys is not a difference.
    b"PERL_HASH_SEED": b"0",
    b"GATEWAY_INTERFACE": b"CGI/1.1",
    b"SERVER_SOFTWARE": b"tetrapylon",
    b"SERVER_NAME": b"localhost",
    b"SERVER_PORT": b"80",
    b"SERVER_PROTOCOL": b"HTTP/1.1",
    b"REQUEST_METHOD": b"GET",
    b"REMOTE_ADDR": b"127.0.0.1",
    b"HTTP_HOST": b"localhost",
}

T = TypeVar("T")


class Run(NamedTuple):
    """What a run of a script came to."""

    code: int
    stdout: bytes
    stderr: bytes
    files: dict[str, tuple[int, bytes]]


class Asked(NamedTuple):
    """What a script's comments ask for."""

    environ: dict[bytes, bytes]
    body: bytes
    reason: str


def ask(script: Path) -> Asked:
    text = script.read_text("utf-8", "replace")

    def said(what: str) -> bytes:
        found = re.search(rf"^# {what}: (.*)$", text, re.M)
        line = found[1] if found is not None else ""
        return line.encode("latin-1").decode("unicode_escape").encode("latin-1")

    environ = ENVIRON | {
        b"SCRIPT_NAME": b"/" + os.fsencode(script.name),
        b"SCRIPT_FILENAME": os.fsencode(script),
        b"QUERY_STRING": said("query") or b"a=1&b=two",
    }
    body = said("body")
    if said("type"):
        environ[b"REQUEST_METHOD"] = b"POST"
        environ[b"CONTENT_TYPE"] = said("type")
        environ[b"CONTENT_LENGTH"] = b"%d" % len(body)
    if said("cookie"):
        environ[b"HTTP_COOKIE"] = said("cookie")
    return Asked(environ, body, said("plain").decode())


class Ground:
    """Runs scripts, warm or plain, by one helper."""

    def __init__(self, spawner: Spawner, confinement: Confinement) -> None:
        self._spawner = spawner
        self._confinement = confinement

    async def start(
        self, script: Path, environ: Mapping[bytes, bytes], body: bytes, *, warm: bool
    ) -> tuple[Run, bool]:
        """Return what it came to, and whether a warm process made it."""
        command = ChildCommand((str(script),), environ, str(script.parent), SpooledBody(body))
        how = None
        if warm:
            found = examine(str(script), None, environ)
            assert isinstance(found, Eligible), found
            how = Warm(found, 0)
        child = self._spawner.spawn(command, self._confinement, how)
        await child.started()
        stdout, stderr = await asyncio.gather(read_all(child.stdout), read_all(child.stderr))
        return Run(await child.exited, stdout, stderr, {}), child.is_warm

    async def plain(self, script: Path, asked: Asked) -> Run:
        return (await self._run(script, asked, warm=False))[0]

    async def warm(self, script: Path, asked: Asked) -> Run:
        """Run it warm; until its template is there, that is tried again."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            run, is_warm = await self._run(script, asked, warm=True)
            if is_warm:
                return run
            await asyncio.sleep(0.02)
        pytest.fail(f"{script.name} did not run warm in {READY_S:g} s")

    async def _run(self, script: Path, asked: Asked, *, warm: bool) -> tuple[Run, bool]:
        before = set(script.parent.rglob("*"))
        run, is_warm = await self.start(script, asked.environ, asked.body, warm=warm)
        files = {}
        for path in sorted(set(script.parent.rglob("*")) - before):
            files[str(path.relative_to(script.parent))] = (path.stat().st_mode, path.read_bytes())
            path.unlink()
        return run._replace(files=files), is_warm


async def read_all(fd: int) -> bytes:
    """Read a pipe to its end, and close it."""
    loop = asyncio.get_running_loop()
    parts = []
    try:
        while True:
            readable = loop.create_future()
            loop.add_reader(fd, readable.set_result, None)
            try:
                await readable
            finally:
                loop.remove_reader(fd)
            part = os.read(fd, 65536)
            if not part:
                return b"".join(parts)
            parts.append(part)
    finally:
        os.close(fd)


class Stage:
    """A loop with a helper, for the tests of the module."""

    def __init__(self, runner: asyncio.Runner, ground: Ground, folder: Path) -> None:
        self._runner = runner
        self.ground = ground
        self.folder = folder

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def script(self, name: str, text: str) -> Path:
        """Write a script, into a folder of its own."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        path = folder / "script.pl"
        path.write_text(text)
        path.chmod(0o755)
        return path


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, hurry: Callable[..., None]) -> Iterator[Stage]:
    # Each script has a template of its own, which is soon not asked for any more.
    hurry(_KEPT_S=0.0)
    folder = tmp_path_factory.mktemp("warm")
    shutil.copytree(CORPUS, folder / "corpus")
    confinement = Confinement()
    with asyncio.Runner() as runner:
        spawner = Spawner()

        async def enter() -> None:
            await spawner.__aenter__()
            await spawner.prepare(confinement)

        runner.run(enter())
        try:
            yield Stage(runner, Ground(spawner, confinement), folder)
        finally:
            runner.run(spawner.__aexit__(None, None, None))


def without_times(run: Run) -> Run:
    """CGI::Carp says when."""
    return run._replace(stderr=re.sub(rb"^\[.*?\] ", b"", run.stderr, flags=re.M))


def test_the_corpus_is_there() -> None:
    assert len(NAMES) > 90


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("plain_")])
def test_same_when_warm(stage: Stage, name: str) -> None:
    script = stage.folder / "corpus" / name
    asked = ask(script)

    async def runs() -> list[Run]:
        plain = await stage.ground.plain(script, asked)
        # What one request leaves behind, the next would show.
        return [plain, *[await stage.ground.warm(script, asked) for _ in range(3)]]

    plain, *warm = map(without_times, stage.run(runs()))
    assert warm == [plain] * 3


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("plain_")])
def test_found_out_and_run_plain(stage: Stage, name: str, caplog: pytest.LogCaptureFixture) -> None:
    script = stage.folder / "corpus" / name
    asked = ask(script)

    async def told() -> list[Run]:
        plain = await stage.ground.plain(script, asked)
        deadline = time.monotonic() + READY_S
        while not caplog.records:
            assert time.monotonic() < deadline, "nothing was said"
            run, is_warm = await stage.ground._run(script, asked, warm=True)
            assert not is_warm
            await asyncio.sleep(0.02)
        return [plain, run, (await stage.ground._run(script, asked, warm=True))[0]]

    with caplog.at_level(logging.WARNING, logger="tetrapylon.gateway.spawn"):
        plain, *others = stage.run(told())
    assert others == [plain] * 2
    (record,) = caplog.records
    assert re.match(rf"{re.escape(str(script))} runs plain: it (?:{asked.reason})", record.message)


# What is not the same in each request


def test_random_numbers_are_of_each_request(stage: Stage) -> None:
    script = stage.script("random", "#!/usr/bin/perl\nprint join ' ', rand, rand;\n")
    asked = Asked(ENVIRON, b"", "")

    async def runs() -> list[bytes]:
        return [(await stage.ground.warm(script, asked)).stdout for _ in range(5)]

    assert len(set(stage.run(runs()))) == 5


def test_variables_that_are_looked_at_when_compiling(stage: Stage) -> None:
    """A template serves the requests that have its values; the others run plain."""
    script = stage.script(
        "looked_at",
        "#!/usr/bin/perl\nBEGIN { $r = $ENV{DOCUMENT_ROOT} } print qq($r $ENV{QUERY_STRING});",
    )
    one = Asked(ENVIRON | {b"DOCUMENT_ROOT": b"/one", b"QUERY_STRING": b"a"}, b"", "")
    two = Asked(ENVIRON | {b"DOCUMENT_ROOT": b"/two", b"QUERY_STRING": b"b"}, b"", "")

    async def runs() -> None:
        assert (await stage.ground.warm(script, one)).stdout == b"/one a"
        # Its own template would not have it: it is seen to vary.
        for _ in range(3):
            run, is_warm = await stage.ground._run(script, two, warm=True)
            assert (run.stdout, is_warm) == (b"/two b", False)

    stage.run(runs())


def test_a_request_that_is_looked_at_when_compiling(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    script = stage.script(
        "query", "#!/usr/bin/perl\nBEGIN { $query = $ENV{QUERY_STRING} } print $query;\n"
    )
    harmless = stage.script("harmless", "#!/usr/bin/perl\nprint 1;\n")

    async def runs() -> None:
        for number in range(20):
            environ = ENVIRON | {b"QUERY_STRING": b"%d" % number}
            run, is_warm = await stage.ground._run(script, Asked(environ, b"", ""), warm=True)
            assert (run.stdout, is_warm) == (b"%d" % number, False)
            if number == 10:
                # By then its template is ready, or nearly.
                await stage.ground.warm(harmless, Asked(ENVIRON, b"", ""))

    stage.run(runs())
    assert not caplog.records


def changes(stage: Stage, name: str, text: str, change: Callable[[Path], object]) -> list[bytes]:
    """Return the output of a warm run, and after a change, of one that is not."""
    folder = stage.folder / name
    (folder / "late").mkdir(parents=True)
    (folder / "early").mkdir()
    (folder / "late/Module.pm").write_text("package Module; sub name { 'first' } 1;\n")
    (folder / "settings").write_text("first\n")
    script = stage.script(name, text)
    asked = Asked(ENVIRON, b"", "")

    async def outputs() -> list[bytes]:
        first = await stage.ground.warm(script, asked)
        change(folder)
        second, is_warm = await stage.ground._run(script, asked, warm=True)
        assert not is_warm
        return [first.stdout, second.stdout]

    return stage.run(outputs())


USES_MODULE = "#!/usr/bin/perl\nuse lib 'late', 'early'; use lib 'early'; use Module;\n"
READS_FILE = (
    "#!/usr/bin/perl\nBEGIN { open F, '<', 'settings'; $line = <F>; close F }\nprint $line;"
)


def test_a_changed_module(stage: Stage) -> None:
    def change(folder: Path) -> None:
        (folder / "late/Module.pm").write_text("package Module; sub name { 'other' } 1;\n")

    text = USES_MODULE + "print Module::name();"
    assert changes(stage, "changed", text, change) == [b"first", b"other"]


def test_a_module_that_comes_first(stage: Stage) -> None:
    def change(folder: Path) -> None:
        (folder / "early/Module.pm").write_text("package Module; sub name { 'early' } 1;\n")
        # It is looked for once a second.
        time.sleep(1.1)

    text = USES_MODULE + "print Module::name();"
    assert changes(stage, "appeared", text, change) == [b"first", b"early"]


def test_a_changed_file(stage: Stage) -> None:
    def change(folder: Path) -> None:
        (folder / "settings").write_text("other\n")

    assert changes(stage, "settings", READS_FILE, change) == [b"first\n", b"other\n"]


def test_a_folder_in_place_of_another(stage: Stage) -> None:
    """The template's working directory is gone; the path leads to another."""

    def change(folder: Path) -> None:
        folder.rename(folder.with_name("moved"))
        shutil.copytree(folder.with_name("moved"), folder)
        (folder / "settings").write_text("other\n")

    text = "#!/usr/bin/perl\nopen F, '<', 'settings'; print <F>;"
    assert changes(stage, "folder", text, change) == [b"first\n", b"other\n"]


def test_many_at_once(stage: Stage) -> None:
    """The positions of open files are their own."""
    script = stage.folder / "corpus/data_large.pl"
    asked = ask(script)

    async def runs() -> tuple[Run, list[tuple[Run, bool]]]:
        plain = await stage.ground.plain(script, asked)
        await stage.ground.warm(script, asked)
        return plain, await asyncio.gather(
            *(stage.ground.start(script, asked.environ, b"", warm=True) for _ in range(12))
        )

    plain, warm = stage.run(runs())
    assert warm == [(plain, True)] * 12


# Through the gateway


def test_through_the_backend(stage: Stage) -> None:
    """An upload, as a client sees it."""
    script = stage.folder / "corpus/cgi_upload.pl"
    asked = ask(script)
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/upload/more",
        "raw_path": b"/upload/more",
        "root_path": "/upload",
        "query_string": b"a=1",
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1024),
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", asked.environ[b"CONTENT_TYPE"]),
            (b"content-length", b"%d" % len(asked.body)),
        ],
    }

    async def answer(backend: CgiBackend) -> tuple[int, bytes, bytes]:
        sent: list[Message] = []
        body: list[Message] = [{"type": "http.request", "body": asked.body, "more_body": False}]

        async def receive() -> Message:
            if not body:
                await asyncio.Event().wait()  # the client stays
            return body.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        await backend(scope, receive, send)
        (script.parent / "uploaded.txt").unlink()
        fields = dict(sent[0]["headers"])
        content = b"".join(message["body"] for message in sent[1:])
        return sent[0]["status"], fields[b"content-type"], content

    async def compare() -> None:
        async with Spawner() as spawner:
            plain = CgiBackend("plain", script, spawner=spawner)
            warm = CgiBackend("warm", script, spawner=spawner, warm=True)
            async with plain, warm:
                expected = await answer(plain)
                assert expected[0] == 200
                assert b"line 1\nline 2" in expected[2]
                for _ in range(10):
                    assert await answer(warm) == expected

    stage.run(compare())


# Real programs


def pages(stage: Stage, script: Path, environs: list[dict[bytes, bytes]]) -> None:
    """Compare a program's pages."""

    async def compare() -> None:
        for more in environs:
            environ = ENVIRON | {b"SCRIPT_NAME": b"/script"} | more
            plain, _ = await stage.ground.start(script, environ, b"", warm=False)
            assert plain.code == 0
            assert b"<html" in plain.stdout or b"<?xml" in plain.stdout
            deadline = time.monotonic() + READY_S
            is_warm = False
            while not is_warm:
                assert time.monotonic() < deadline
                run, is_warm = await stage.ground.start(script, environ, b"", warm=True)
            assert without_clock(run.stdout) == without_clock(plain.stdout)
            assert run._replace(stdout=b"") == plain._replace(stdout=b"")

    stage.run(compare())


def without_clock(page: bytes) -> bytes:
    """Awstats says when a page was made."""
    return re.sub(rb"\d\d:\d\d(:\d\d)?", b"", page)


def test_gitweb(stage: Stage) -> None:
    if not GITWEB.exists():
        pytest.fail("there is no gitweb here; in Debian: apt install gitweb")
    root = stage.folder / "git"
    work = root / "work"
    work.mkdir(parents=True)
    (work / "file").write_text("content\n")
    for command in (
        ("init", "--quiet"),
        ("add", "file"),
        ("-c", "user.name=N", "-c", "user.email=n@example.com", "commit", "--quiet", "-m", "one"),
    ):
        # Long ago: the pages say how long.
        dates = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2005-04-07T22:13:13Z")
        subprocess.run(["git", *command], cwd=work, env={**os.environ, **dates}, check=True)
    config = stage.folder / "gitweb.conf"
    config.write_text(f"$projectroot = '{root}';\n")
    shown = [b"", b"p=work/.git;a=summary", b"p=work/.git;a=tree", b"p=work/.git;a=commitdiff"]
    pages(
        stage,
        GITWEB,
        [
            {b"GITWEB_CONFIG": os.fsencode(config), b"QUERY_STRING": query, b"REQUEST_URI": b"/"}
            for query in shown
        ],
    )


def test_awstats(stage: Stage) -> None:
    if not AWSTATS.exists():
        pytest.fail("there is no awstats here; in Debian: apt install awstats")
    folder = stage.folder / "awstats"
    (folder / "data").mkdir(parents=True)
    line = '192.0.2.{0} - - [10/Oct/2025:13:00:{1:02} +0000] "GET /{0} HTTP/1.1" 200 9 "-" "x"\n'
    log = folder / "access.log"
    log.write_text("".join(line.format(number % 9, number) for number in range(60)))
    (folder / "awstats.site.conf").write_text(
        f'LogFile="{log}"\nLogType=W\nLogFormat=1\nSiteDomain="site"\nDirData="{folder}/data"\n'
        "DNSLookup=0\n"
    )
    environ = {b"AWSTATS_ENABLE_CONFIG_DIR": os.fsencode(folder)}
    subprocess.run(
        [AWSTATS, "-config=site", f"-configdir={folder}", "-update"],
        env={"AWSTATS_ENABLE_CONFIG_DIR": str(folder), "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )
    queries = [
        b"config=site&configdir=%s&year=2025&month=10%s" % (os.fsencode(folder), more)
        for more in (b"", b"&framename=mainright", b"&output=allhosts")
    ]
    pages(stage, AWSTATS, [environ | {b"QUERY_STRING": query} for query in queries])
