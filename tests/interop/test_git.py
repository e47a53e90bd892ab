"""git's own smart HTTP: `git http-backend` as a CGI program behind the gateway."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

FILES = 500
WITHIN_S = 60

CONFIGURATION = """
[listen]
bind = ["127.0.0.1:0"]

[[routes]]
path = "/git/"
[routes.backend]
cgi = "{program}"
env = {{ GIT_PROJECT_ROOT = "{projects}", GIT_HTTP_EXPORT_ALL = "1" }}
timeout = "10m"
body = "1GiB"
rlimits = {{ fsize = "2GiB", as = "2GiB", cpu = "5m" }}
"""

Git = Callable[..., str]


@pytest.fixture
def git(find_program: Any, tmp_path: Path) -> Git:
    """Run git without anybody's settings; return its output, or what it says or traces."""
    program = find_program("git", package="git")
    home = tmp_path / "home"
    home.mkdir()
    people = {"NAME": "A", "EMAIL": "a@example.com"}
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        # Noise does not compress, however long it takes.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.compression",
        "GIT_CONFIG_VALUE_0": "0",
        **{f"GIT_{who}_{k}": v for who in ("AUTHOR", "COMMITTER") for k, v in people.items()},
    }

    def run(
        *arguments: str | Path,
        cwd: Path | None = None,
        trace: bool = False,
        fails: bool = False,
        started: Callable[[subprocess.Popen[bytes]], None] | None = None,
    ) -> str:
        traced = {"GIT_CURL_VERBOSE": "1", "GIT_TRACE_PACKET": "1"} if trace else {}
        if started is not None:
            # In a group of its own: git is several processes.
            with subprocess.Popen(
                [program, *arguments], cwd=cwd, env=env, process_group=0, stderr=subprocess.DEVNULL
            ) as process:
                started(process)
            return ""
        done = subprocess.run(
            [program, *arguments],
            cwd=cwd,
            env={**env, **traced},
            capture_output=True,
            timeout=WITHIN_S,
            check=False,
        )
        stderr = done.stderr.decode(errors="replace")
        assert (done.returncode != 0) == fails, f"git {arguments}:\n{stderr[-5000:]}"
        return stderr if trace or fails else done.stdout.decode()

    return run


@pytest.fixture
def projects(git: Git, tmp_path: Path) -> Path:
    """A folder with the repository that is served, bare and still empty."""
    folder = tmp_path / "projects"
    git("init", "--quiet", "--bare", "--initial-branch=main", folder / "house.git")
    git("config", "http.receivepack", "true", cwd=folder / "house.git")
    return folder


@pytest.fixture
def served(gateway: Any, git: Git, projects: Path) -> Any:
    program = Path(git("--exec-path").strip()) / "git-http-backend"
    return gateway(CONFIGURATION.format(program=program, projects=projects))


def write_files(folder: Path, seed: int) -> None:
    """Write 500 files in folders, of text and of bytes that do not compress."""
    chance = random.Random(seed)
    for number in range(FILES):
        file = folder / f"floor {number % 7}" / f"räum-{number}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        size = chance.choice((0, 10, 4_000, 80_000))
        file.write_bytes(f"{number}\n".encode() * 40 + chance.randbytes(size))


def commit(git: Git, folder: Path, text: str) -> str:
    git("add", "--all", cwd=folder)
    git("commit", "--quiet", "--allow-empty", "--message", text, cwd=folder)
    return git("rev-parse", "HEAD", cwd=folder).strip()


def children_of(pid: int) -> list[str]:
    """Return the names of all processes below `pid`."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (entry / "stat").read_text(errors="replace").rpartition(")")
            parents[int(entry.name)] = int(rest.split()[1])
            names[int(entry.name)] = name.partition("(")[2]
    found = [pid]
    for parent in found:
        found += [child for child, above in parents.items() if above == parent]
    return [names[child] for child in found[1:]]


def assert_no_git_below(pid: int) -> None:
    deadline = time.monotonic() + 2
    while left := [name for name in children_of(pid) if "git" in name]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.01)


def test_push_and_clone_of_500_files(served: Any, git: Git, projects: Path, tmp_path: Path) -> None:
    bare = projects / "house.git"
    url = f"{served.url}/git/house.git"
    work = tmp_path / "work"
    git("init", "--quiet", "--initial-branch=main", work)
    write_files(work, 1)
    first = commit(git, work, "first")

    # A pack larger than the buffer is sent in chunks, its length unknown.
    small_buffer = ("-c", "http.postBuffer=65536")
    told = git(*small_buffer, "push", url, "main", cwd=work, trace=True)
    assert "Transfer-Encoding: chunked" in told
    assert git("rev-parse", "main", cwd=bare).strip() == first
    git("fsck", "--strict", cwd=bare)

    clone = tmp_path / "clone"
    told = git("-c", "protocol.version=2", "clone", url, clone, trace=True)
    assert "Git-Protocol: version=2" in told
    assert "clone< version 2" in told  # in a packet: the program got the variable
    assert git("rev-parse", "HEAD", cwd=clone).strip() == first
    assert git("status", "--porcelain", cwd=clone) == ""
    files = [file for file in clone.glob("floor */*") if file.is_file()]
    assert len(files) == FILES
    for file in files:
        assert file.read_bytes() == (work / file.relative_to(clone)).read_bytes()

    # The other way: many commits that the server lacks make the next negotiation
    # long, and git compresses what is long.
    for number in range(40):
        git("commit", "--quiet", "--allow-empty", "-m", f"mine {number}", cwd=clone)
    write_files(work, 2)
    second = commit(git, work, "second")
    git(*small_buffer, "push", url, "main", cwd=work)
    told = git("fetch", "origin", cwd=clone, trace=True)
    assert "Content-Encoding: gzip" in told
    assert git("rev-parse", "origin/main", cwd=clone).strip() == second
    for repository in (bare, work, clone):
        git("fsck", "--strict", cwd=repository)
    assert_no_git_below(served.process.pid)


def test_old_protocol_shallow_and_refused(
    served: Any, git: Git, projects: Path, tmp_path: Path
) -> None:
    url = f"{served.url}/git/house.git"
    work = tmp_path / "work"
    git("init", "--quiet", "--initial-branch=main", work)
    for number in range(3):
        (work / "file").write_text(f"{number}\n")
        last = commit(git, work, f"{number}")
    git("push", url, "main", cwd=work)
    for version in (0, 1):
        clone = tmp_path / f"clone-{version}"
        options = ("-c", f"protocol.version={version}")
        git(*options, "clone", "--depth=1", url, clone)
        assert git("rev-list", "--all", cwd=clone).split() == [last]
        git(*options, "fetch", "--unshallow", cwd=clone)
        assert len(git("rev-list", "--all", cwd=clone).split()) == 3
        git("fsck", "--strict", cwd=clone)

    git("config", "http.receivepack", "false", cwd=projects / "house.git")
    refused = served.get("/git/house.git/info/refs?service=git-receive-pack")
    assert refused.status == 403
    assert served.get("/git/none.git/info/refs?service=git-upload-pack").status == 404
    assert served.get("/git/../home/").status in (400, 404)
    assert_no_git_below(served.process.pid)


@pytest.mark.parametrize("buffer", ["65536", "100000000"])
def test_a_push_over_the_limit_is_told_so(
    gateway: Any, git: Git, projects: Path, tmp_path: Path, buffer: str
) -> None:
    program = Path(git("--exec-path").strip()) / "git-http-backend"
    text = CONFIGURATION.format(program=program, projects=projects)
    assert 'body = "1GiB"' in text
    served = gateway(text.replace('body = "1GiB"', 'body = "4MiB"'))
    work = tmp_path / "work"
    git("init", "--quiet", "--initial-branch=main", work)
    (work / "large").write_bytes(random.Random(3).randbytes(16 << 20))
    commit(git, work, "large")
    # In chunks as well as with a length, git reads the answer and not a reset.
    url = f"{served.url}/git/house.git"
    told = git("-c", f"http.postBuffer={buffer}", "push", url, "main", cwd=work, fails=True)
    assert "413" in told
    assert git("rev-list", "--all", cwd=projects / "house.git") == ""
    assert_no_git_below(served.process.pid)


def test_a_client_that_leaves_ends_git(served: Any, git: Git, projects: Path) -> None:
    # A file of 64 MiB by the dumb protocol: neither git nor the gateway can
    # have passed on all of it when the client leaves.
    pack = projects / "house.git" / "objects" / "pack" / f"pack-{'0' * 40}.pack"
    pack.parent.mkdir(parents=True, exist_ok=True)
    with pack.open("wb") as file:
        file.truncate(64 << 20)
    with contextlib.closing(served.connect()) as connection:
        connection.request("GET", f"/git/house.git/objects/pack/{pack.name}")
        with connection.getresponse() as response:
            assert response.headers["Content-Length"] == str(64 << 20)
            assert response.read(100_000) == bytes(100_000)
            assert any("git" in name for name in children_of(served.process.pid))
    assert_no_git_below(served.process.pid)


@pytest.fixture
def by_recipe(gateway: Any, git: Git, recipe: Any, tmp_path: Path) -> Any:
    """What docs/recipes.md says, with its repository."""
    page = recipe("git over HTTP", tmp_path / "root")
    (tmp_path / "root" / "srv" / "git").mkdir(parents=True)
    page.run()
    git("config", "core.compression", "0", cwd=tmp_path / "root" / "srv" / "git" / "house.git")
    return gateway(page.configuration)


def fill(git: Git, url: str, work: Path, noise_bytes: int, **push: Any) -> str:
    """Make a repository with noise, which does not compress, and push it."""
    git("init", "--quiet", "--initial-branch=main", work)
    (work / "noise.bin").write_bytes(random.Random(4).randbytes(noise_bytes))
    (work / "file").write_text("text\n")
    last = commit(git, work, "noise")
    git("push", "--quiet", url, "main", cwd=work, **push)
    return last


@pytest.mark.parametrize("buffer", ["65536", "100000000"])
def test_a_large_pack_and_many_clones(
    by_recipe: Any, git: Git, tmp_path: Path, buffer: str
) -> None:
    url = f"{by_recipe.url}/git/house.git"
    bare = tmp_path / "root" / "srv" / "git" / "house.git"
    git("config", "uploadpack.allowFilter", "true", cwd=bare)
    work = tmp_path / "work"
    git("init", "--quiet", "--initial-branch=main", work)
    git("config", "http.postBuffer", buffer, cwd=work)
    last = fill(git, url, work, 12 << 20)

    def clone(number: int) -> str:
        target = tmp_path / f"clone-{number}"
        ways = ("--depth=1", "--filter=blob:none", "--single-branch", "--bare")
        git("clone", "--quiet", ways[number % len(ways)], url, target)
        git("fsck", cwd=target)
        return git("rev-parse", "HEAD", cwd=target).strip()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(clone, range(8))) == {last}
    # What the partial clone left out came when it was asked for.
    assert (tmp_path / "clone-1" / "noise.bin").read_bytes() == (work / "noise.bin").read_bytes()

    # Two that push at once: each gets its own branch, or an answer that says why not.
    def push(number: int) -> str:
        target = tmp_path / f"clone-{number}"
        (target / f"file-{number}").write_bytes(random.Random(number).randbytes(1_000_000))
        commit(git, target, f"by {number}")
        git("push", "--quiet", "origin", f"HEAD:refs/heads/branch-{number}", cwd=target)
        return f"branch-{number}"

    with ThreadPoolExecutor(4) as pool:
        branches = set(pool.map(push, (0, 2, 4, 6)))
    told = git("ls-remote", "--heads", url)
    assert {line.rpartition("/")[2] for line in told.splitlines()} == {*branches, "main"}
    git("fsck", "--strict", cwd=bare)
    assert_no_git_below(by_recipe.process.pid)


@pytest.mark.parametrize("what", ["clone", "push"])
def test_a_git_that_is_killed_leaves_nothing(
    by_recipe: Any, git: Git, tmp_path: Path, what: str
) -> None:
    url = f"{by_recipe.url}/git/house.git"
    bare = tmp_path / "root" / "srv" / "git" / "house.git"
    work = tmp_path / "work"
    if what == "clone":
        fill(git, url, work, 24 << 20)
        # Of a pack, or git is silent for seconds while it makes one.
        git("repack", "-adq", cwd=bare)
        commands = [("clone", "--quiet", url, tmp_path / f"clone-{n}") for n in range(3)]
    else:
        git("init", "--quiet", "--initial-branch=main", work)
        (work / "noise.bin").write_bytes(random.Random(5).randbytes(24 << 20))
        commit(git, work, "noise")
        commands = [("-c", "http.postBuffer=65536", "push", "--quiet", url, "main")] * 3

    def is_under_way() -> bool:
        if what == "clone":
            packs = list(tmp_path.glob("clone-*/.git/objects/pack/tmp_pack_*"))
            return any(pack.stat().st_size > 1 << 20 for pack in packs)
        return is_spooling(by_recipe.process.pid)

    def kill(process: subprocess.Popen[bytes]) -> None:
        # Stopped first: so it is neither too early nor too late for what is left of the pack.
        deadline = time.monotonic() + WITHIN_S
        while not is_under_way():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGSTOP)
        os.killpg(process.pid, signal.SIGKILL)

    for command in commands:
        git(*command, cwd=work, started=kill)
        assert_no_git_below(by_recipe.process.pid)
        for left in tmp_path.glob("clone-*"):
            shutil.rmtree(left)
    git("fsck", "--strict", cwd=bare)
    assert not list(bare.rglob("*.lock"))
    # And those who come next are served.
    if what == "push":
        git("push", "--quiet", url, "main", cwd=work)
    git("clone", "--quiet", url, tmp_path / "whole")
    assert (tmp_path / "whole" / "noise.bin").stat().st_size == 24 << 20


def is_spooling(pid: int) -> bool:
    """Tell whether a process has a megabyte in a file without a name."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if "(deleted)" in os.readlink(file) and file.stat().st_size > 1 << 20:
                return True
    return False
