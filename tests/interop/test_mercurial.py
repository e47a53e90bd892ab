"""Mercurial's hgweb over CGI, FastCGI (flup) and WSGI: the same pages, clone and push by each."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flup
import pytest

pytestmark = pytest.mark.interop

GATES = ("CGI", "FastCGI", "WSGI")
WITHIN_S = 60
LARGE_BYTES = 8 << 20
FILES = {
    "README": "The house\n\nGrüße\n",
    "src/gate.c": "int main(void) { return 4; }\n",
    "a b/c+d & e.txt": "strange <names>\n",
}
PAGES = (
    "/hg/",
    "/hg/?sort=name",
    "/hg/house",
    "/hg/house/log",
    "/hg/house/shortlog/0",
    "/hg/house/rev/tip",
    "/hg/house/raw-rev/tip",
    "/hg/house/diff/tip/README",
    "/hg/house/file/tip",
    "/hg/house/file/tip/a%20b/",
    "/hg/house/file/tip/src/gate.c",
    "/hg/house/raw-file/tip/a%20b/c%2Bd%20%26%20e.txt",
    "/hg/house/annotate/tip/src/gate.c",
    "/hg/house/graph",
    "/hg/house/tags",
    "/hg/house/branches",
    "/hg/house/log?rev=roof",
    "/hg/house/atom-log",
    "/hg/house/rss-log",
    "/hg/house/archive/tip.tar.gz",
    "/hg/house/static/style-paper.css",
    "/hg/house/static/hglogo.png",
    "/hg/house/help/clone",
    "/hg/house/file/tip/none",
    "/hg/none/",
    "/hg/house?cmd=capabilities",
    "/hg/house?cmd=listkeys&namespace=bookmarks",
)

Hg = Callable[..., str]


@pytest.fixture(scope="module")
def hg(find_program: Any, tmp_path_factory: pytest.TempPathFactory) -> Hg:
    """Run hg without anybody's settings; return its output, or what it says of its failure."""
    program = find_program("hg", package="mercurial")
    home = tmp_path_factory.mktemp("home")
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "HGRCPATH": "",
        "HGUSER": "Zoë <zoe@example.com>",
        "HGENCODING": "utf-8",
        "no_proxy": "127.0.0.1",
    }

    def run(*arguments: str | Path, fails: bool = False) -> str:
        done = subprocess.run(
            [program, "--noninteractive", *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"hg {arguments}:\n{done.stdout}{done.stderr}"
        return done.stderr if fails else done.stdout

    return run


@pytest.fixture(scope="module")
def repositories(hg: Hg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of repositories that each gate serves a copy of."""
    folder = tmp_path_factory.mktemp("repositories")
    house = folder / "house"
    hg("init", house)
    for name, text in FILES.items():
        (house / name).parent.mkdir(exist_ok=True)
        (house / name).write_text(text)
    subjects = ("found the house", "a wall & a <roof>", "the last")
    for day, subject in enumerate(subjects, 1):
        with (house / "README").open("a") as readme:
            readme.write(f"day {day}\n")
        date = f"2010-01-{day:02} 12:00:00 +0000"
        hg("--cwd", house, "commit", "--quiet", "--addremove", "-d", date, "-m", subject)
    large = folder / "large"
    hg("init", large)
    (large / "noise.bin").write_bytes(random.Random(1).randbytes(LARGE_BYTES))
    hg("--cwd", large, "commit", "--quiet", "--addremove", "-d", "0 0", "-m", "noise")
    return folder


@pytest.fixture(scope="module")
def served(
    repositories: Path,
    recipe: Any,
    shared_gateway: Any,
    find_program: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Any, Path]]:
    """Serve a copy of the repositories by a gate, once; return the gateway and their folder."""
    started: dict[str, tuple[Any, Path]] = {}

    def serve(gate: str) -> tuple[Any, Path]:
        if gate not in started:
            root = tmp_path_factory.mktemp(gate.lower())
            copy = Path(shutil.copytree(repositories, root / "srv/hg/repositories"))
            recipe("Mercurial by CGI", root)  # for its hgweb.config
            page = recipe(f"Mercurial by {gate}", root)
            if gate == "FastCGI":
                make_environment(find_program("python3", package="python3"), root / "srv/hg/venv")
            if gate == "WSGI":
                modules = "usr/lib/python3/dist-packages/mercurial/cext/parsers.cpython-*.so"
                built = {file.name.split("-")[1] for file in Path("/").glob(modules)}
                mine = f"{sys.version_info.major}{sys.version_info.minor}"
                assert mine in built, (
                    f"these tests run on Python {mine}, and Mercurial was built for {built}: run"
                    " them on the system's own Python to see hgweb by WSGI"
                )
            started[gate] = shared_gateway(page.configuration), copy
        return started[gate]

    return serve


def make_environment(python: str, folder: Path) -> None:
    """Make what the recipe makes with pip, with the flup that these tests have."""
    command = ["/usr/bin/python3", "-m", "venv", "--system-site-packages", "--without-pip", folder]
    subprocess.run(command, check=True, timeout=WITHIN_S)
    (site_packages,) = folder.glob("lib/python3*/site-packages")
    shutil.copytree(Path(flup.__file__).parent, site_packages / "flup")


def test_the_same_pages_by_each_gate(served: Any, cgi_by_hand: Any) -> None:
    answers: dict[str, dict[str, tuple[int, dict[str, str], bytes]]] = {}
    for gate in GATES:
        running, _ = served(gate)

        def ask(path: str, running: Any = running) -> tuple[int, dict[str, str], bytes]:
            answer = running.get(path)
            address = f"127.0.0.1:{running.port}"
            body = answer.body.replace(address.encode(), b"HOST")
            names = ("Content-Type", "Content-Disposition", "ETag")
            fields = {name: answer.headers[name] for name in names if name in answer.headers}
            return answer.status, fields, body

        with ThreadPoolExecutor(4) as pool:
            answers[gate] = dict(zip(PAGES, pool.map(ask, PAGES), strict=True))
    for path in PAGES:
        for gate in GATES[1:]:
            assert answers[gate][path] == answers["CGI"][path], (gate, path)

    # And they are what hgweb says by hand.
    running, repositories = served("CGI")
    script = repositories.parent / "hgweb.cgi"
    for path in (
        "/hg/house/rev/tip",
        "/hg/house/atom-log",
        "/hg/none/",
        "/hg/house/archive/tip.zip",
    ):
        status, fields, body = cgi_by_hand(script, running, path, script_name="/hg")
        answer = running.get(path)
        assert (answer.status, answer.body) == (status, body), path
        assert answer.headers["Content-Type"] == fields["content-type"]

    pages = answers["CGI"]
    assert [pages[path][0] for path in PAGES] == [404 if "none" in path else 200 for path in PAGES]
    text = {path: body.decode(errors="replace") for path, (_, _, body) in pages.items()}
    assert "a wall &#38; a &#60;roof&#62;" in text["/hg/house/log"] or (
        "a wall &amp; a &lt;roof&gt;" in text["/hg/house/log"]
    )
    assert "+day 3" in text["/hg/house/raw-rev/tip"]
    assert "c+d" in text["/hg/house/file/tip/a%20b/"]
    assert text["/hg/house/raw-file/tip/a%20b/c%2Bd%20%26%20e.txt"] == FILES["a b/c+d & e.txt"]
    feed = ElementTree.fromstring(text["/hg/house/atom-log"])
    assert len(feed.findall("{http://www.w3.org/2005/Atom}entry")) == 3
    archive = pages["/hg/house/archive/tip.tar.gz"][2]
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = {member.name.partition("/")[2] for member in tar}
    assert {*FILES} <= names
    assert pages["/hg/house/static/hglogo.png"][2].startswith(b"\x89PNG")


@pytest.mark.parametrize("gate", GATES)
def test_every_link_leads_somewhere(gate: str, served: Any, crawl: Any) -> None:
    running, _ = served(gate)
    answers = crawl(running, "/hg/house", below=("/hg/house",), pages=40)
    assert "/hg/house/static/style-paper.css" in answers
    assert len(answers) == 40


@pytest.mark.parametrize("gate", GATES)
def test_clone_and_push(gate: str, served: Any, hg: Hg, tmp_path: Path) -> None:
    running, repositories = served(gate)
    url = f"{running.url}/hg"
    with ThreadPoolExecutor(4) as pool:
        for done in [
            pool.submit(hg, "clone", "--quiet", f"{url}/house", tmp_path / f"clone-{number}")
            for number in range(4)
        ]:
            done.result()
    clone = tmp_path / "clone-0"
    for name in ("src/gate.c", "a b/c+d & e.txt"):
        assert (clone / name).read_text() == FILES[name]

    # Many heads, names and marks: arguments of hundreds of bytes, in header fields of their own.
    for number in range(6):
        hg("--cwd", clone, "update", "--quiet", "0")
        (clone / f"ü {number}").write_text(f"{number}\n")
        hg("--cwd", clone, "commit", "--quiet", "--addremove", "-m", f"head {number}")
    hg("--cwd", clone, "bookmark", f"mark-{gate}")
    hg("--cwd", clone, "push", "--force", "--quiet", "--bookmark", f"mark-{gate}")
    hg("--cwd", clone, "push", "--force", "--quiet")
    heads = hg("--cwd", clone, "heads", "--template", "{node}\\n").split()
    served_heads = hg("--cwd", repositories / "house", "heads", "--template", "{node}\\n").split()
    assert sorted(heads) == sorted(served_heads)
    assert f"mark-{gate}" in hg("--cwd", repositories / "house", "bookmarks")
    assert hg("incoming", "--cwd", tmp_path / "clone-1", "--quiet", "--template", "{rev}\\n")
    hg("--cwd", tmp_path / "clone-1", "pull", "--quiet")

    # Larger than what is kept in memory, and than what a process may hold by default.
    large = tmp_path / "large"
    hg("clone", "--quiet", f"{url}/large", large)
    (large / "more.bin").write_bytes(random.Random(2).randbytes(LARGE_BYTES))
    hg("--cwd", large, "commit", "--quiet", "--addremove", "-m", "more")
    hg("--cwd", large, "push", "--quiet")
    served_repository = repositories / "large"
    hg("--cwd", served_repository, "cat", "-r", "tip", "more.bin", "-o", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (large / "more.bin").read_bytes()
    for repository in (served_repository, repositories / "house"):
        hg("--cwd", repository, "verify", "--quiet")
    assert "hgweb.cgi" not in commands_below(running.process.pid)


@pytest.mark.parametrize("gate", GATES)
def test_a_push_that_is_refused(gate: str, served: Any, hg: Hg, tmp_path: Path) -> None:
    running, repositories = served(gate)
    clone = tmp_path / "clone"
    hg("clone", "--quiet", f"{running.url}/hg/house", clone)
    (clone / "noise.bin").write_bytes(random.Random(3).randbytes(LARGE_BYTES))
    hg("--cwd", clone, "commit", "--quiet", "--addremove", "-m", "noise")
    settings = repositories / "house" / ".hg" / "hgrc"
    settings.write_text("[web]\nallow-push = somebody\n")
    try:
        told = hg("--cwd", clone, "push", "--force", fails=True)
    finally:
        settings.unlink()
    assert "authorization failed" in told or "Authorization" in told or "401" in told, told
    tip = hg("--cwd", clone, "identify", "--id", "--debug").split()[0]
    assert tip not in hg("--cwd", repositories / "house", "log", "--template", "{node}\\n")


@pytest.mark.parametrize("gate", GATES)
def test_readers_that_leave_hold_nobody(gate: str, served: Any) -> None:
    running, _ = served(gate)
    for _ in range(12):  # more than there are threads
        with contextlib.closing(running.connect()) as connection:
            connection.request("GET", "/hg/large/raw-file/0/noise.bin")
            with connection.getresponse() as response:
                assert response.status == 200
                assert len(response.read(100_000)) == 100_000
    wait_until_gone(running)
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(running.get, ["/hg/house"] * 8):
            assert answer.status == 200


def test_an_hg_that_is_killed_leaves_no_process(
    served: Any, find_program: Any, tmp_path: Path
) -> None:
    running, _ = served("CGI")
    command = [find_program("hg", package="mercurial"), "clone", "--quiet"]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HGRCPATH": ""}
    with subprocess.Popen(
        [*command, f"{running.url}/hg/large", tmp_path / "clone"], env=env
    ) as client:
        # Stopped as soon as the bundle is on its way: what is left of it does not fit the buffers.
        deadline = time.monotonic() + WITHIN_S
        while "cmd=getbundle" not in environments_below(running.process.pid):
            assert client.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        client.send_signal(signal.SIGSTOP)
        assert "hgweb.cgi" in commands_below(running.process.pid)
        client.kill()
    wait_until_gone(running)


def tasks_below(pid: int) -> Iterator[Path]:
    waiting = [pid]
    while waiting:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
                yield task


def commands_below(pid: int) -> str:
    found = ""
    for task in tasks_below(pid):
        with contextlib.suppress(OSError):
            found += (task / "cmdline").read_text()
    return found


def environments_below(pid: int) -> str:
    found = ""
    for task in tasks_below(pid):
        with contextlib.suppress(OSError):
            found += (task / "environ").read_text(errors="replace")
    return found


def wait_until_gone(running: Any) -> None:
    deadline = time.monotonic() + 3
    while "hgweb.cgi" in commands_below(running.process.pid):
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.01)
