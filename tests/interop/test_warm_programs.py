"""gitweb, AWStats, hgweb and a form of CGI.pm with `warm = true`: the same, and sooner."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

WITHIN_S = 60
HOUSE = "/gitweb?p=house.git"
PAGES = {
    "gitweb": [
        "/gitweb",
        HOUSE,
        *(f"{HOUSE};a={action}" for action in ("log", "tree", "commitdiff", "rss", "atom", "tags")),
        f"{HOUSE};a=blob;f=file",
        f"{HOUSE};a=blame;f=file",
        f"{HOUSE};a=snapshot;h=main;sf=tgz",
        f"{HOUSE};a=search;s=third;st=commit",
        "/gitweb/house.git/tree/main:/",
        "/gitweb?p=none.git",
        f"{HOUSE};a=none",
    ],
    "AWStats": [
        "/awstats/awstats.pl?config=house",
        "/awstats/awstats.pl?config=house&framename=mainleft",
        "/awstats/awstats.pl?config=house&framename=mainright",
        "/awstats/awstats.pl?config=house&output=lasthosts",
        "/awstats/awstats.pl?config=house&output=errors404&lang=de",
        "/awstats/awstats.pl?config=none",
    ],
    "Mercurial by CGI": [
        "/hg/",
        "/hg/house",
        "/hg/house/log",
        "/hg/house/rev/tip",
        "/hg/house/file/tip/file",
        "/hg/house/annotate/tip/file",
        "/hg/house/raw-file/tip/file",
        "/hg/house/atom-log",
        "/hg/house/archive/tip.tar.gz",
        "/hg/house/static/style-paper.css",
        "/hg/house/file/tip/none",
        "/hg/none/",
        "/hg/house?cmd=capabilities",
    ],
    "CGI.pm": [
        "/cgi-bin/form.pl",
        "/cgi-bin/form.pl?name=Zo%C3%AB&name=Ann",
        "/cgi-bin/form.pl?a+b",
    ],
}
#: What a page takes warm, as a share of what it takes plain, at most. (hgweb is not among
#: them: its time goes into modules of its own, which are not kept ready.)
SHARE = {"gitweb": 0.6, "AWStats": 0.5, "CGI.pm": 0.8}
FORM = """#!/usr/bin/perl
use strict;
use warnings;
use CGI qw(-utf8);
my $q = CGI->new;
binmode STDOUT, ':encoding(UTF-8)';
my @names = $q->multi_param('name');
my $seen = $q->cookie(-name => 'seen', -value => scalar @names);
print $q->header(-charset => 'utf-8', -cookie => $seen),
    $q->start_html('Names'), $q->h1(map { $q->escapeHTML($_) } @names);
if (my $file = $q->upload('file')) {
    local $/;
    my $content = <$file>;
    print $q->p(length $content), $q->p(unpack '%32C*', $content);
}
print $q->p(join ' ', map { "$_=" . ($ENV{$_} // '') } qw(PATH_INFO QUERY_STRING REMOTE_ADDR)),
    $q->p(join ' ', @ARGV), $q->start_form, $q->textfield('name'), $q->end_form, $q->end_html;
warn "a form was sent\\n" if @names > 1;
"""
SHELL = """
export HOME=$PWD GIT_AUTHOR_NAME=Z GIT_AUTHOR_EMAIL=z@e GIT_COMMITTER_NAME=Z GIT_COMMITTER_EMAIL=z@e
export HGRCPATH= HGUSER=Z
mkdir -p work srv/git srv/hg/repositories
git init --quiet --initial-branch=main work
hg init srv/hg/repositories/house
for text in first second third; do
    echo $text >> work/file
    echo $text >> srv/hg/repositories/house/file
    date="2010-01-01T12:00:00Z"
    (cd work && git add file && GIT_AUTHOR_DATE=$date GIT_COMMITTER_DATE=$date \
        git commit --quiet -m "$text & <more>")
    (cd srv/hg/repositories/house && hg commit --quiet --addremove -d '0 0' -m "$text & <more>")
done
git clone --quiet --bare work srv/git/house.git
"""


@pytest.fixture(scope="module")
def served(
    recipe: Any, shared_gateway: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Any, Path]]:
    """Serve a recipe as it stands, and with `warm`, from the same files."""
    root = tmp_path_factory.mktemp("root")
    subprocess.run(["sh", "-euc", SHELL], cwd=root, check=True, timeout=WITHIN_S)
    started: dict[str, tuple[Any, Any, Path]] = {}

    def serve(name: str) -> tuple[Any, Any, Path]:
        if name not in started:
            if name == "CGI.pm":
                folder = root / "cgi-bin"
                folder.mkdir()
                (folder / "form.pl").write_text(FORM)
                (folder / "form.pl").chmod(0o755)
                text = '[listen]\nbind = ["127.0.0.1:0"]\n'
                text += f'[[routes]]\npath = "/cgi-bin/"\nbackend = {{ cgi = "{folder}" }}\n'
            else:
                page = recipe(name, root)
                text = page.configuration.read_text()
                if name == "AWStats":
                    count_visitors(page, root)
            text = re.sub(r",? *\bwarm = true\b", "", text)
            plain = shared_gateway(text)
            warm = shared_gateway(f"{text}\n[cgi]\nwarm = true\n")
            started[name] = plain, warm, root
        return started[name]

    return serve


def count_visitors(page: Any, root: Path) -> None:
    page.run(0)
    log = root / "var/log/tetrapylon.log"
    log.parent.mkdir(parents=True)
    line = '10.0.0.{0} - - [01/Jan/2026:12:00:0{0} +0000] "GET /{0} HTTP/1.1" {1} 9 "-" "curl/8.5"'
    log.write_text("".join(f"{line.format(n, 404 if n % 3 else 200)}\n" for n in range(1, 9)))
    page.run(1)


def fetch(running: Any, path: str) -> tuple[int, dict[str, str], bytes]:
    answer = running.get(path)
    body = answer.body.replace(f"127.0.0.1:{running.port}".encode(), b"HOST")
    names = ("Content-Type", "Content-Disposition", "Location", "Set-Cookie")
    fields = {name: answer.headers[name] for name in names if name in answer.headers}
    return answer.status, fields, body


@pytest.mark.parametrize("name", PAGES)
def test_the_same_pages_warm(name: str, served: Any) -> None:
    plain, warm, _ = served(name)
    expected = {path: fetch(plain, path) for path in PAGES[name]}
    for path in PAGES[name]:
        # More than once: the first may be plain, while the interpreter gets ready.
        for _ in range(2):
            assert fetch(warm, path) == expected[path], path
    with ThreadPoolExecutor(6) as pool:
        pages = PAGES[name] * 2
        answers = list(pool.map(lambda path: fetch(warm, path), pages))
    for path, answer in zip(pages, answers, strict=True):
        assert answer == expected[path], path
    assert "runs plain" not in warm.stderr_text()


@pytest.mark.parametrize("name", SHARE)
def test_warm_is_sooner(name: str, served: Any) -> None:
    plain, warm, _ = served(name)
    path = PAGES[name][0]
    for _ in range(5):
        fetch(warm, path)

    def median(running: Any) -> float:
        times = []
        for _ in range(9):
            begun = time.perf_counter()
            fetch(running, path)
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    # In turn, so that what else the machine does is on both sides.
    shares = []
    for _ in range(3):
        alone = median(plain)
        shares.append(median(warm) / alone)
    print(f"{name}: {[f'{share:.2f}' for share in shares]}")
    assert min(shares) < SHARE[name]


def test_a_form_that_is_posted(served: Any) -> None:
    plain, warm, _ = served("CGI.pm")
    noise = os.urandom(300_000)
    url = {"Content-Type": "application/x-www-form-urlencoded"}
    multi = {"Content-Type": "multipart/form-data; boundary=limit"}
    file = (
        b'--limit\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        + noise
        + b"\r\n--limit--\r\n"
    )
    for body, fields in ((b"name=Zo%C3%AB&name=%3Cb%3E", url), (file, multi), (b"", url)):
        answers = [
            running.request("POST", "/cgi-bin/form.pl/info?x=1", body, fields)
            for running in (plain, warm, warm)
        ]
        assert [answer.status for answer in answers] == [200] * 3
        assert answers[0].body == answers[1].body == answers[2].body
    for running in (plain, warm):
        assert running.has_logged("a form was sent")


def test_hg_pushes_to_a_warm_hgweb(served: Any, tmp_path: Path) -> None:
    _, warm, root = served("Mercurial by CGI")
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HGRCPATH": "", "HGUSER": "Z"}

    def hg(*arguments: str | Path) -> str:
        return subprocess.run(
            ["hg", *arguments],
            env=env,
            check=True,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
        ).stdout

    for number in range(2):
        clone = tmp_path / f"clone-{number}"
        hg("clone", "--quiet", f"{warm.url}/hg/house", clone)
        (clone / "noise").write_bytes(os.urandom(2_000_000))
        hg("--cwd", clone, "commit", "--quiet", "--addremove", "-m", f"noise {number}")
        hg("--cwd", clone, "push", "--quiet")
        (clone / "noise").unlink()
    house = root / "srv/hg/repositories/house"
    assert "noise 1" in hg("--cwd", house, "log", "-l", "1")
    hg("--cwd", house, "verify", "--quiet")
    page = warm.get("/hg/house/log").text
    assert re.search("noise 1", page)
    assert "runs plain" not in warm.stderr_text()
