"""The Django admin by a client with a cookie jar, and it and the demonstration in Chromium."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
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

CHROMIUM_ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # as root, and in containers, there is none to be had
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


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


class Chromium:
    """A browser by WebDriver (W3C), which is JSON over HTTP: chromedriver speaks it."""

    ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

    def __init__(self, address: str, program: str, profile: Path) -> None:
        self._address = address
        arguments = [*CHROMIUM_ARGUMENTS, f"--user-data-dir={profile}"]
        options = {"binary": program, "args": arguments}
        wanted = {
            "alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        }
        self._path = ""
        self._path = f"/session/{self._ask('POST', '/session', capabilities=wanted)['sessionId']}"

    def close(self) -> None:
        self._ask("DELETE", "")

    def _ask(self, method: str, path: str, **parameters: object) -> Any:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        with contextlib.closing(connection):
            body = json.dumps(parameters) if method == "POST" else None
            connection.request(method, self._path + path, body)
            answer = connection.getresponse()
            value = json.loads(answer.read())["value"]
        assert answer.status == 200, value
        return value

    def open(self, url: str) -> None:
        self._ask("POST", "/url", url=url)

    @property
    def url(self) -> str:
        return str(self._ask("GET", "/url"))

    def run(self, script: str, *arguments: object) -> Any:
        """Run JavaScript in the page, and return what it returns."""
        return self._ask("POST", "/execute/sync", script=script, args=arguments)

    def _find(self, selector: str) -> str:
        found = self._ask("POST", "/element", using="css selector", value=selector)
        return f"/element/{found[self.ELEMENT]}"

    def write(self, selector: str, text: str) -> None:
        self._ask("POST", f"{self._find(selector)}/value", text=text)

    def click(self, selector: str) -> None:
        self._ask("POST", f"{self._find(selector)}/click")

    def wait_for(self, script: str) -> Any:
        """Return the first true value of a script; the page may be changing meanwhile."""
        deadline = time.monotonic() + WITHIN_S
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (
                f"{script}\n{self.run('return document.body.innerText')}"
            )
            time.sleep(0.02)
        return value

    def complaints(self) -> list[str]:
        """Return what stands in the browser's console: failed loads, errors of scripts."""
        entries = self._ask("POST", "/se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]


@pytest.fixture
def chromium(find_program: Any) -> str:
    return str(find_program("chromium", "chromium-browser", "google-chrome", package="chromium"))


@pytest.fixture
def browser_folder() -> Iterator[Path]:
    """Where Chromium puts everything; a short path, for there are sockets in it."""
    with tempfile.TemporaryDirectory(prefix="tetrapylon-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def browser(
    chromium: str, find_program: Any, start_server: Any, free_address: Any, browser_folder: Path
) -> Iterator[Chromium]:
    program = find_program("chromedriver", package="chromium-driver")
    address = free_address()
    env = {"TMPDIR": str(browser_folder)}
    start_server(program, f"--port={address.rpartition(':')[2]}", address=address, env=env)
    with contextlib.closing(Chromium(address, chromium, browser_folder / "driven")) as started:
        yield started


@pytest.fixture
def dump_dom(chromium: str, browser_folder: Path) -> Callable[[str], str]:
    """Return a page's DOM as Chromium has it when the page has been loaded."""

    def dump(url: str) -> str:
        profile = f"--user-data-dir={browser_folder}/dump"
        done = subprocess.run(
            [chromium, *CHROMIUM_ARGUMENTS, profile, "--dump-dom", url],
            env={**os.environ, "TMPDIR": str(browser_folder)},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode()

    return dump


def test_demo_page_in_a_browser(
    gateway: Any, dump_dom: Callable[[str], str], browser: Chromium
) -> None:
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


def test_admin_in_a_browser(house: Any, dump_dom: Callable[[str], str], browser: Chromium) -> None:
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
