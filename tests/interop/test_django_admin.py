"""The Django admin by a client with a cookie jar, and it and the demonstration in Chromium."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from html import unescape
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

pytestmark = pytest.mark.interop

PASSWORD = "four gates, one house"
WITHIN_S = 30.0
GATES = ("wsgi", "asgi")
GATES_OF_DEMO = ("cgi", "fastcgi", "wsgi", "asgi")


@pytest.fixture
def house(copy_example: Any, gateway: Any, tmp_path: Path) -> Any:
    """The example, prepared and served."""
    folder = copy_example("django")
    env = {"HOUSE_DATA": str(tmp_path / "data"), "HOUSE_ADMIN_PASSWORD": PASSWORD}
    prepare = [sys.executable, folder / "manage.py", "prepare"]
    subprocess.run(prepare, env=env, check=True, capture_output=True)
    configuration = folder / "tetrapylon.toml"
    text = configuration.read_text()
    assert "127.0.0.1:8000" in text
    configuration.write_text(text.replace("127.0.0.1:8000", "127.0.0.1:0"))
    return gateway(configuration, env=env)


class Visitor:
    """urllib with a cookie jar, which keeps cookies as a browser does: by path and age."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.jar = CookieJar()
        # Of this machine alone: no proxy of the environment.
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self.jar), urllib.request.ProxyHandler({})
        )

    def open(self, path: str, form: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Return status, path and text of the page that redirects lead to."""
        data = urlencode(form).encode() if form is not None else None
        request = urllib.request.Request(self.url + path, data, {"Referer": self.url + path})
        try:
            with self._opener.open(request, timeout=WITHIN_S) as answer:
                return answer.status, answer.url.removeprefix(self.url), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, path, error.read().decode()

    def submit(self, path: str, **fields: str) -> tuple[int, str, str]:
        """Fill in the form of a page, with Django's token from it."""
        _, path, page = self.open(path)
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        assert found, page
        return self.open(path, {"csrfmiddlewaretoken": found[1], **fields})


@pytest.mark.parametrize("gate", GATES)
def test_admin_by_a_cookie_jar(house: Any, gate: str) -> None:
    admin = f"/{gate}/admin/"
    visitor = Visitor(house.url)
    status, path, page = visitor.open(admin)
    assert (status, path) == (200, f"{admin}login/?next={admin}")
    (token,) = visitor.jar
    assert (token.name, token.value is None) == ("csrftoken", False)

    # Neither without the form's token nor without the cookie.
    account = {"username": "admin", "password": PASSWORD}
    assert visitor.open(path, account)[0] == 403
    stranger = Visitor(house.url)
    form_token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert form_token
    assert stranger.open(path, {"csrfmiddlewaretoken": form_token[1], **account})[0] == 403

    status, path, page = visitor.submit(path, **account)
    assert (status, path) == (200, admin)
    assert "Site administration" in page
    cookies = {cookie.name: cookie for cookie in visitor.jar}
    assert set(cookies) == {"csrftoken", "sessionid"}
    assert cookies["csrftoken"].value != token.value  # rotated at the login
    assert cookies["sessionid"].has_nonstandard_attr("HttpOnly")

    status, path, page = visitor.submit(f"{admin}house/guest/add/", name="Zoë & <co>")
    assert (status, path) == (200, f"{admin}house/guest/")
    assert "was added successfully" in unescape(page)  # a message, carried over by a cookie
    assert "Zoë &amp; &lt;co&gt;" in page
    for other in GATES:
        assert visitor.open(f"/{other}/admin/")[1] == f"/{other}/admin/"

    assert "been logged out" not in visitor.open(admin)[2]
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', visitor.open(admin)[2])
    assert found
    assert visitor.open(f"{admin}logout/", {"csrfmiddlewaretoken": found[1]})[0] == 200
    assert "sessionid" not in {cookie.name for cookie in visitor.jar}
    assert visitor.open(admin)[1] == f"{admin}login/?next={admin}"


# In a browser


def test_demo_page_in_a_browser(gateway: Any, dump_dom: Callable[[str], str], browser: Any) -> None:
    running = gateway(None, "demo", "--port", "0")
    dom = dump_dom(running.url + "/")
    # The script has run: it hides one and shows the other.
    assert re.search(r'<p[^>]* id="without"[^>]* hidden', dom)
    assert re.search(r'<div[^>]* id="bench"(?![^>]* hidden)', dom)

    browser.open(running.url + "/")
    browser.click("#request button")
    said = browser.wait_for(
        "return !document.querySelector('#request button').disabled"
        " && !document.querySelector('#answers').hidden"
        " && document.querySelector('#status').textContent"
    )
    assert said == "Four answers, and the same request in all of them."
    rows = browser.run(
        "return [...document.querySelectorAll('#answers tbody tr')]"
        ".map((row) => [...row.children].map((cell) => cell.textContent))"
    )
    table = {row[0]: row[1:] for row in rows}
    assert table["status"] == ["200"] * 4
    assert table["protocol"] == ["CGI", "FastCGI", "WSGI", "ASGI"]
    assert table["script_name"] == ["/cgi", "/fastcgi", "/wsgi", "/asgi"]
    assert table["path_info"] == ["/mirror"] * 4
    assert table["body_length"] == [str(len("One road in, four gates."))] * 4
    assert table["headers: x-traveller"] == ["a letter"] * 4

    # The clocks: Server-Sent Events, all four at once.
    browser.run(
        "window.events = Object.fromEntries(arguments[0].map((gate) => [gate, []]));"
        "window.clocks = arguments[0].map((gate) => new EventSource(`${gate}/clock`));"
        "clocks.forEach((clock, at) => {"
        "  clock.onmessage = (event) => events[arguments[0][at]].push(event.data);"
        "});",
        GATES_OF_DEMO,
    )
    browser.wait_for("return Object.values(events).every((data) => data.length >= 3)")
    browser.run("clocks.forEach((clock) => clock.close())")
    for data in browser.run("return events").values():
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", tick) for tick in data)
    assert browser.complaints() == []


def test_admin_in_a_browser(house: Any, dump_dom: Callable[[str], str], browser: Any) -> None:
    dom = dump_dom(f"{house.url}/asgi/admin/")
    assert re.search(r"<title>Log in \| Django site admin</title>", dom)
    assert '<input type="hidden" name="csrfmiddlewaretoken"' in dom

    for gate in GATES:
        admin = f"{house.url}/{gate}/admin/"
        browser.open(admin)
        assert browser.url == f"{admin}login/?next=/{gate}/admin/"
        browser.write("#id_username", "admin")
        browser.write("#id_password", PASSWORD)
        browser.click("[type=submit]")
        assert browser.wait_for("return document.querySelector('#content h1')?.textContent") == (
            "Site administration"
        )
        assert browser.url == admin
        # The style sheets, from the static backend, are at work.
        colour = "return getComputedStyle(document.querySelector('#header')).backgroundColor"
        assert browser.run(colour) == "rgb(65, 118, 144)"
        browser.open(f"{admin}house/guest/add/")
        browser.write("#id_name", f"Zoë by {gate}")
        browser.click("[name=_save]")
        listed = browser.wait_for("return document.querySelector('#result_list')?.innerText")
        assert f"Zoë by {gate}" in listed
        browser.click("#logout-form button")
        browser.wait_for("return document.querySelector('#content')?.innerText.includes('Log in')")
    assert browser.complaints() == []
