"""gitweb (Perl) and cgit (C): the pages of a repository, and the same programs run by hand."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import subprocess
import tarfile
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytestmark = pytest.mark.interop

FILES = {
    "README.md": "# The house\n\nGrüße\n",
    "src/gate.c": "int main(void) { return 4; }\n",
    "a b/ü+&.txt": "strange & <names>\n",
}
SUBJECTS = ("found the house", "a wall & a <roof>", "the last")
LARGE_BYTES = 24 << 20


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, find_program: Any) -> Path:
    """A folder that stands for the root, with srv/git/house.git and srv/git/large.git."""
    root = tmp_path_factory.mktemp("root")
    program = find_program("git", package="git")
    people = {
        f"GIT_{who}_{k}": "zoe@example.com"
        for who in ("AUTHOR", "COMMITTER")
        for k in ("NAME", "EMAIL")
    }
    env = {"PATH": os.environ["PATH"], "HOME": str(root), "GIT_CONFIG_NOSYSTEM": "1", **people}

    def git(*arguments: str | Path, day: int = 1) -> None:
        date = f"2010-01-{day:02}T12:00:00Z"
        dated = {**env, "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        subprocess.run([program, *arguments], cwd=work, env=dated, check=True, timeout=60)

    for name, files in (
        ("house", FILES),
        ("large", {"noise.bin": random.Random(1).randbytes(LARGE_BYTES)}),
    ):
        work = root / "work" / name
        work.mkdir(parents=True)
        git("init", "--quiet", "--initial-branch=main")
        for file, content in files.items():
            (work / file).parent.mkdir(exist_ok=True)
            (work / file).write_bytes(content.encode() if isinstance(content, str) else content)
        for day, subject in enumerate(SUBJECTS, 1):
            with (work / "log.txt").open("a") as log:
                log.write(f"day {day}\n")
            git("add", "--all")
            git("commit", "--quiet", "--message", subject, day=day)
        git("tag", "-a", "-m", "a tag", "v1")
        bare = root / "srv" / "git" / f"{name}.git"
        git("clone", "--quiet", "--bare", work, bare)
        git("--git-dir", bare, "update-server-info")
        (bare / "description").write_text(f"the {name} & its walls\n")
    return root


@pytest.fixture(scope="module")
def gitweb(shared_gateway: Any, recipe: Any, repository: Path) -> Any:
    return shared_gateway(recipe("gitweb", repository).configuration)


@pytest.fixture(scope="module")
def cgit(shared_gateway: Any, recipe: Any, repository: Path) -> Any:
    return shared_gateway(recipe("cgit", repository).configuration)


def git_below(pid: int) -> dict[int, str]:
    """Return the command lines of git, cgit and gitweb below a process, by their pids."""
    found, waiting = {}, [pid]
    while waiting:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
                found[int(task.name)] = (task / "cmdline").read_text().replace("\0", " ")
    return {pid: line for pid, line in found.items() if re.search(r"\bgit |cgit|gitweb", line)}


def expect_files(archive: bytes) -> None:
    """An archive has the files of the last commit, byte by byte."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = {member.name.partition("/")[2]: member for member in tar if member.isfile()}
        assert set(names) == {*FILES, "log.txt"}
        for name, content in FILES.items():
            member = tar.extractfile(names[name])
            assert member is not None
            assert member.read() == content.encode()


def text_of(page: Any) -> str:
    assert page.status == 200
    return re.sub(r"<[^>]*>", "", page.text).replace("&nbsp;", " ")


def test_gitweb_pages(gitweb: Any, repository: Path) -> None:
    def page(action: str, more: str = "") -> Any:
        return gitweb.get(f"/gitweb?p=house.git;a={action}{more}")

    projects = text_of(gitweb.get("/gitweb/"))
    assert "house.git" in projects
    assert "the house &amp; its walls" in projects
    for action in ("summary", "shortlog", "log"):
        assert "a wall &amp; a &lt;roof&gt;" in text_of(page(action)), action
    diff = page("commitdiff", ";h=v1")
    assert diff.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "+day 3" in text_of(diff)
    assert page("commitdiff_plain", ";h=v1").text.endswith("+day 3\n")
    assert "gate.c" in text_of(page("tree", ";f=src"))
    assert "ü+&amp;.txt" in text_of(page("tree", ";f=a+b"))
    assert "return 4" in text_of(page("blob", ";f=src/gate.c"))
    assert "return 4" in text_of(page("blame", ";f=src/gate.c"))
    for name, content in FILES.items():
        plain = gitweb.get(f"/gitweb/house.git/blob_plain/main:/{quote(name)}")
        assert (plain.status, plain.text) == (200, content), name
    found = text_of(page("search", ";s=roof;st=commit"))
    assert "a wall" in found
    assert "found the house" not in found

    expect_files(gitweb.get("/gitweb?p=house.git;a=snapshot;h=main;sf=tgz").body)
    with zipfile.ZipFile(io.BytesIO(page("snapshot", ";h=main;sf=zip").body)) as archive:
        assert archive.testzip() is None
        (readme,) = [name for name in archive.namelist() if name.endswith("/README.md")]
        assert archive.read(readme).decode() == FILES["README.md"]

    atom = page("atom")
    assert atom.headers["Content-Type"] == "application/atom+xml; charset=utf-8"
    entries = ElementTree.fromstring(atom.body).findall("{http://www.w3.org/2005/Atom}entry")
    assert [entry[0].text for entry in entries] == list(reversed(SUBJECTS))
    head = gitweb.request("HEAD", "/gitweb?p=house.git;a=atom")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Last-Modified"] == atom.headers["Last-Modified"]
    assert len(ElementTree.fromstring(page("rss").body).findall("channel/item")) == len(SUBJECTS)

    assert page("tree", ";f=none").status == 404
    assert gitweb.get("/gitweb?p=none.git").status == 404
    assert gitweb.get("/gitweb/../../etc/passwd").status in (400, 404)


def test_cgit_pages(cgit: Any) -> None:
    projects = text_of(cgit.get("/cgit/"))
    assert "the house &amp; its walls" in projects
    house = "/cgit/house.git/"
    for path in ("", "log/"):
        assert "a wall &amp; a &lt;roof&gt;" in text_of(cgit.get(house + path)), path
    assert "+day 3" in text_of(cgit.get(f"{house}commit/"))
    assert "+day 3" in cgit.get(f"{house}patch/").text
    assert "ü+&amp;.txt" in text_of(cgit.get(f"{house}tree/a%20b"))
    assert "return 4" in text_of(cgit.get(f"{house}tree/src/gate.c"))
    assert "return 4" in text_of(cgit.get(f"{house}blame/src/gate.c"))
    assert cgit.get(f"{house}plain/a%20b/%C3%BC%2B%26.txt").text == FILES["a b/ü+&.txt"]
    assert "a wall" in text_of(cgit.get(f"{house}log/?qt=grep&q=roof"))
    assert "the last" not in text_of(cgit.get(f"{house}log/?qt=grep&q=roof"))

    expect_files(cgit.get(f"{house}snapshot/house-main.tar.gz").body)
    with zipfile.ZipFile(io.BytesIO(cgit.get(f"{house}snapshot/house-main.zip").body)) as archive:
        assert archive.testzip() is None
    atom = ElementTree.fromstring(cgit.get(f"{house}atom/").body)
    entries = atom.findall("{http://www.w3.org/2005/Atom}entry")
    assert [entry[0].text for entry in entries] == list(reversed(SUBJECTS))

    assert cgit.get("/cgit/none.git/").status == 404
    assert cgit.get(f"{house}tree/none").status == 404
    # cgit answers HEAD with a head of its own, and says when a page was changed.
    page = cgit.get(house)
    head = cgit.request("HEAD", house)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Type"] == page.headers["Content-Type"]


def test_git_clones_from_cgit(cgit: Any, find_program: Any, tmp_path: Path) -> None:
    program = find_program("git", package="git")
    url = f"{cgit.url}/cgit/house.git"
    subprocess.run([program, "clone", "--quiet", url, tmp_path / "clone"], check=True, timeout=60)
    assert (tmp_path / "clone" / "README.md").read_text() == FILES["README.md"]


@pytest.mark.parametrize(
    ("path", "folder"),
    [("/gitweb/static/", "/usr/share/gitweb/static"), ("/cgit/static/", "/usr/share/cgit")],
)
def test_what_is_static_is_the_file(path: str, folder: str, request: pytest.FixtureRequest) -> None:
    running = request.getfixturevalue(path.split("/")[1])
    for file in Path(folder).iterdir():
        content = file.read_bytes()
        whole = running.get(path + file.name)
        assert (whole.status, whole.body) == (200, content)
        ranged = running.get(path + file.name, {"Range": "bytes=3-11"})
        assert (ranged.status, ranged.body) == (206, content[3:12])
        fields = {"If-Modified-Since": whole.headers["Last-Modified"]}
        assert running.get(path + file.name, fields).status == 304
    assert running.get(f"{path}none.css").status == 404
    assert "text/css" in running.get(f"{path}{path.split('/')[1]}.css").headers["Content-Type"]


def test_every_link_of_gitweb_leads_somewhere(gitweb: Any, crawl: Any) -> None:
    below = ("/gitweb?p=house.git", "/gitweb/house.git", "/gitweb/static/")
    answers = crawl(gitweb, "/gitweb?p=house.git", below=below, pages=60)
    assert {"/gitweb/static/gitweb.css", "/gitweb/static/git-logo.png"} <= set(answers)
    assert len(answers) == 60


def test_every_link_of_cgit_leads_somewhere(cgit: Any, crawl: Any) -> None:
    # cgit's own: pages of folders have a link to a blame that they cannot have.
    dead = re.compile("Blame is not available for folders")
    below = ("/cgit/house.git/", "/cgit/static/")
    answers = crawl(cgit, "/cgit/house.git/", below=below, pages=200, dead=dead)
    assert {"/cgit/static/cgit.css", "/cgit/house.git/snapshot/house-1.tar.gz"} <= set(answers)
    assert len(answers) > 60


def same_as_by_hand(running: Any, urls: list[str], run: Callable[[str], Any]) -> None:
    for url in urls:
        answer = running.get(url)
        status, fields, body = run(url)
        assert answer.status == status, url
        now = rb"at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d|[Ee]xpires: .* GMT"
        assert re.sub(now, b"", answer.body) == re.sub(now, b"", body), url
        expected = {name: value for name, value in fields.items() if name != "expires"}
        assert {name: answer.headers[name] for name in expected} == expected, url


def test_gitweb_says_the_same_by_hand(gitweb: Any, cgi_by_hand: Any, repository: Path) -> None:
    def run(url: str) -> Any:
        env = {"GITWEB_CONFIG": str(repository / "etc/gitweb.conf")}
        program = "/usr/share/gitweb/gitweb.cgi"
        return cgi_by_hand(program, gitweb, url, script_name="/gitweb", env=env)

    house = "/gitweb?p=house.git"
    actions = (
        "",
        ";a=log",
        ";a=tree",
        ";a=blob;f=a+b/%C3%BC%2B%26.txt",
        ";a=commitdiff;h=v1",
        ";a=rss",
    )
    urls = ["/gitweb", "/gitweb/", *(house + action for action in actions)]
    urls += ["/gitweb/house.git/tree/main:/a%20b", "/gitweb/none.git", f"{house};a=none"]
    urls += [f"{house};a=snapshot;h=main;sf=tgz"]
    same_as_by_hand(gitweb, urls, run)


def test_cgit_says_the_same_by_hand(cgit: Any, cgi_by_hand: Any, repository: Path) -> None:
    def run(url: str) -> Any:
        env = {"CGIT_CONFIG": str(repository / "etc/cgitrc")}
        return cgi_by_hand("/usr/lib/cgit/cgit.cgi", cgit, url, script_name="/cgit", env=env)

    house = "/cgit/house.git/"
    pages = ("log/", "tree/src/gate.c", "tree/a%20b", "commit/", "plain/README.md", "tree/none")
    urls = ["/cgit/none.git/", *(house + page for page in pages)]
    same_as_by_hand(cgit, [*urls, f"{house}snapshot/house-main.tar.gz"], run)


@pytest.mark.parametrize("name", ["gitweb", "cgit"])
def test_a_reader_of_a_snapshot_leaves(name: str, request: pytest.FixtureRequest) -> None:
    running = request.getfixturevalue(name)
    path = {
        "gitweb": "/gitweb?p=large.git;a=snapshot;h=main;sf=tgz",
        "cgit": "/cgit/large.git/snapshot/large-main.tar.gz",
    }[name]
    kept: set[int] = set()
    deadline = time.monotonic() + 20
    while name == "gitweb" and not kept:
        # The one that is kept ready stays, and there is one as soon as somebody has asked.
        assert running.get("/gitweb").status == 200
        below = git_below(running.process.pid)
        kept = {pid for pid, line in below.items() if "perl_template" in line}
        assert time.monotonic() < deadline, below
    with contextlib.closing(running.connect()) as connection:
        connection.request("GET", path)
        with connection.getresponse() as response:
            assert response.status == 200
            assert len(response.read(100_000)) == 100_000
            assert set(git_below(running.process.pid)) - kept
    deadline = time.monotonic() + 2
    while set(git_below(running.process.pid)) - kept:
        assert time.monotonic() < deadline, git_below(running.process.pid)
        time.sleep(0.01)
    assert running.get(f"/{name}/").status == 200
