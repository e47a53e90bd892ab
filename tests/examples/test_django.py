"""examples/django: one project over WSGI and over ASGI, the admin in both."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

PASSWORD = "four gates, one house"


class Browser:
    """Keeps cookies, follows redirects, fills in Django's forms."""

    def __init__(self, running: Any) -> None:
        self._running = running
        self._cookies: SimpleCookie = SimpleCookie()

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Any:
        cookies = "; ".join(f"{name}={found.value}" for name, found in self._cookies.items())
        answer = self._running.request(method, path, body, {**headers, "Cookie": cookies})
        for line in answer.headers.get_all("Set-Cookie", []):
            self._cookies.load(line)
        return answer

    def get(self, path: str) -> Any:
        answer = self._send("GET", path, None, {})
        if answer.status in (301, 302):
            return self.get(answer.headers["Location"])
        return answer

    def submit(self, path: str, **fields: str) -> Any:
        page = self.get(path)
        assert page.status == 200
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
        assert found
        form = urlencode({"csrfmiddlewaretoken": found[1], **fields}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Referer": path}
        return self._send("POST", path, form, headers)


@pytest.fixture
def running(copy_example: Any, start_example: Any, tmp_path: Path) -> Any:
    folder = copy_example("django")
    env = {"HOUSE_DATA": str(tmp_path / "data"), "HOUSE_ADMIN_PASSWORD": PASSWORD}
    prepare = [sys.executable, folder / "manage.py", "prepare"]
    for _ in range(2):  # the second changes nothing
        subprocess.run(prepare, env=env, check=True, capture_output=True)
    assert (tmp_path / "data" / "secret-key").stat().st_mode & 0o077 == 0
    return start_example(folder, env=env)


def test_pages_over_both_protocols(running: Any) -> None:
    moved = running.get("/")
    assert (moved.status, moved.headers["Location"]) == (302, "/wsgi/")
    kind = {"Content-Type": "application/json"}
    names = []
    for gate, protocol in (("wsgi", "WSGI"), ("asgi", "ASGI")):
        browser = Browser(running)
        page = browser.get(f"/{gate}/")
        assert f'<a href="/{gate}/admin/">The admin</a>, over {protocol}' in page.text
        arrived = browser.submit(f"/{gate}/", name=f"Zoë <{gate}>")
        assert (arrived.status, arrived.headers["Location"]) == (302, f"/{gate}/")
        assert f"<li>Zoë &lt;{gate}&gt;</li>" in browser.get(f"/{gate}/").text
        made = running.request("POST", f"/{gate}/guests.json", b'{"name": "Ada"}', kind)
        assert made.status == 201
        names += [f"Zoë <{gate}>", "Ada"]
        assert running.request("POST", f"/{gate}/guests.json", b"{}", kind).status == 422
        assert running.request("POST", f"/{gate}/", b"name=x").status == 403  # no token
        assert running.get(f"/{gate}/nothing").status == 404
        refused = running.request("PUT", f"/{gate}/guests.json", b"")
        assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD, POST")
    for gate in ("wsgi", "asgi"):
        listed = running.get(f"/{gate}/guests.json").json()["guests"]
        assert [guest["name"] for guest in listed] == names
        assert running.get(f"/{gate}/guests.txt").text.splitlines() == names


@pytest.mark.parametrize("gate", ["wsgi", "asgi"])
def test_admin_over_each_protocol(running: Any, gate: str) -> None:
    browser = Browser(running)
    login = f"/{gate}/admin/login/?next=/{gate}/admin/"
    assert browser.submit(login, username="admin", password="wrong").status == 200
    welcome = browser.submit(login, username="admin", password=PASSWORD)
    assert (welcome.status, welcome.headers["Location"]) == (302, f"/{gate}/admin/")
    assert "Site administration" in browser.get(f"/{gate}/admin/").text
    # One session for both protocols.
    other = "asgi" if gate == "wsgi" else "wsgi"
    assert "Site administration" in browser.get(f"/{other}/admin/").text

    added = browser.submit(f"/{gate}/admin/house/guest/add/", name="Grace <Hopper>")
    assert (added.status, added.headers["Location"]) == (302, f"/{gate}/admin/house/guest/")
    assert "Grace &lt;Hopper&gt;" in browser.get(f"/{gate}/admin/house/guest/").text

    page = browser.get(f"/{gate}/admin/").text
    files = [unescape(path) for path in re.findall(r'(?:href|src)="(/static/[^"]+)"', page)]
    assert len(files) >= 5
    for path in files:
        answer = running.get(path)
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "max-age=3600"
        assert answer.headers["Content-Type"].startswith(("text/css", "text/javascript"))
    assert running.get("/static/site_settings.py").status == 404
