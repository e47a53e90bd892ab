"""AWStats counts the gateway's own access log, and shows its pages through the gateway."""

from __future__ import annotations

import re
import subprocess
import time
from html import unescape
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
ICONS = ("/awstats/icon/other/awstats_logo6.png", "/awstats/icon/clock/hr1.png")
PAGE = "/awstats/awstats.pl?config=house"


@pytest.fixture
def house(recipe: Any, gateway: Any, tmp_path: Path) -> Any:
    """The recipe's gateway, with some visitors in its log and all of them counted."""
    page = recipe("AWStats", tmp_path)
    log = tmp_path / "var/log/tetrapylon.log"
    log.parent.mkdir(parents=True)
    page.run(0)
    running = gateway(page.configuration)

    people = {"User-Agent": FIREFOX, "Referer": "http://elsewhere.example/links?q=1"}
    for icon in ICONS:
        for _ in range(5):
            assert running.get(icon, people).status == 200
    for _ in range(7):
        assert running.get(PAGE, people).status == 200
    for number in range(3):
        assert running.get(f"/none-{number}.html", people).status == 404
    assert running.request("HEAD", ICONS[0], headers=people).status == 200
    assert running.get(ICONS[0], {**people, "Range": "bytes=0-9"}).status == 206
    assert running.get(ICONS[0], {"User-Agent": GOOGLEBOT}).status == 200
    # What would end a line, or a field of it, is escaped: it is a line as any other.
    strange = {"User-Agent": 'a "quote" and \\ ü', "Referer": '" 200 1 "'}
    assert running.get(f"{ICONS[0]}?%22%20200&%0A", strange).status == 200

    requests = 5 * len(ICONS) + 7 + 3 + 4
    deadline = time.monotonic() + 10
    while len(log.read_text().splitlines()) < requests:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    told = page.run(1)
    assert "Found 0 corrupted records" in told
    assert f"Found {requests} new qualified records" in told
    return running


def table_row(page: str, name: str) -> list[str]:
    """Return the cells of the table row that begins with a name."""
    for row in re.findall(r"<tr.*?</tr>", page, re.S):
        cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S)
        texts = [" ".join(unescape(re.sub("<[^>]*>", " ", cell)).split()) for cell in cells]
        if texts and texts[0] == name:
            return texts
    pytest.fail(f"no row {name!r}")


def test_awstats(house: Any, cgi_by_hand: Any, crawl: Any, tmp_path: Path) -> None:
    running = house
    frames = running.get(PAGE)
    assert "Statistics for house.example" in frames.text
    main = running.get(f"{PAGE}&framename=mainright")
    assert main.headers["Content-Type"].startswith("text/html")
    text = main.body.decode("utf-8", "replace")
    seen = table_row(text, "Viewed traffic *")
    assert seen[1] == "1"  # visitors
    assert "19" in seen[4]  # hits
    assert "127.0.0.1" in text
    assert "elsewhere.example" in text
    agents = running.get(f"{PAGE}&framename=mainright&output=browserdetail").text
    assert "Firefox" in agents
    robots = running.get(f"{PAGE}&framename=mainright&output=lastrobots").text
    assert "Googlebot" in robots
    missing = running.get(f"{PAGE}&framename=mainright&output=errors404").text
    for number in range(3):
        assert f"/none-{number}.html" in missing

    # The same as by hand, and every page and picture that it leads to is there.
    for url in (PAGE, f"{PAGE}&framename=mainleft", f"{PAGE}&output=lasthosts"):
        program = tmp_path / "srv/awstats/awstats.pl"
        _, _, body = cgi_by_hand(program, running, url, script_name="/awstats/awstats.pl")
        assert running.get(url).body == body, url
    answers = crawl(running, PAGE, below=("/awstats/",), pages=40)
    assert any(path.startswith("/awstats/icon/") for path in answers)

    # Without an update of its own: a page must not be able to start one.
    updated = running.get(f"{PAGE}&update=1").body
    assert b"new qualified records" not in updated
    assert running.get("/awstats/awstats.pl?config=../../etc/passwd").status in (200, 404)
    assert b"root:" not in running.get("/awstats/awstats.pl?config=../../etc/passwd").body


@pytest.mark.usefixtures("house")
def test_static_pages(tmp_path: Path) -> None:
    folder = tmp_path / "static"
    folder.mkdir()
    subprocess.run(
        [
            "/usr/share/awstats/tools/awstats_buildstaticpages.pl",
            "-config=house",
            f"-awstatsprog={tmp_path}/srv/awstats/awstats.pl",
            f"-dir={folder}",
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert "house.example" in (folder / "awstats.house.html").read_text(errors="replace")
