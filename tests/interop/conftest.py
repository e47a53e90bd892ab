"""Programs that the system's packages bring, found and run for one test each.

A program that is missing fails the test: whoever runs these tests asked for them.
Recipes of docs/recipes.md are laid out in a folder that stands for the root.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

import pytest

START_S = 20.0
STOP_S = 20.0
WITHIN_S = 30.0

DOCUMENT = Path(__file__).parents[2] / "docs" / "recipes.md"

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


class FindProgram(Protocol):
    """What the fixture `find_program` is."""

    def __call__(self, *names: str, package: str) -> str: ...


@pytest.fixture(scope="session")
def find_program() -> FindProgram:
    """Return the path of the first program that is there; fail with Debian's package."""
    # Distributions keep servers in sbin, where PATH of a user does not lead.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"))

    def find(*names: str, package: str) -> str:
        for name in names:
            if (program := shutil.which(name, path=path)) is not None:
                return program
        pytest.fail(f"there is no {' or '.join(names)} here; in Debian: apt install {package}")

    return find


def is_listening(address: str) -> bool:
    """Tell whether somebody takes connections at "host:port" or "unix:/path"."""
    kind, _, path = address.partition(":")
    if kind == "unix":
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(path) == 0
    with socket.socket() as probe:
        return probe.connect_ex((kind, int(path))) == 0


class StartServer(Protocol):
    """What the fixture `start_server` is."""

    def __call__(
        self, *command: str, address: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]: ...


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start a server of somebody else's and wait until it listens; it ends with the test."""
    with contextlib.ExitStack() as running:
        yield _starter(tmp_path, running)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """As `start_server`, for the tests of a module that can share one."""
    with contextlib.ExitStack() as running:
        yield _starter(tmp_path_factory.mktemp("servers"), running)


def _starter(folder: Path, running: contextlib.ExitStack) -> StartServer:
    log_path = folder / "servers.log"

    def start(
        *command: str, address: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        running.callback(_stop, process)
        deadline = time.monotonic() + START_S
        while not is_listening(address):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} does not listen:\n{log_path.read_text()}")
            time.sleep(0.02)
        return process

    return start


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    finally:
        # And what it has started: not every server ends its own children.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def free_address() -> Callable[[], str]:
    """Return an address that nobody listens on, for servers that must be told one."""

    def choose() -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{probe.getsockname()[1]}"

    return choose


@pytest.fixture
def copy_example(tmp_path: Path) -> Callable[[str], Path]:
    """Copy an example by its name, so that nothing is written into the tree."""
    examples = Path(__file__).parents[2] / "examples"

    def copy(name: str) -> Path:
        ignored = shutil.ignore_patterns("__pycache__", "collected")
        return Path(shutil.copytree(examples / name, tmp_path / name, ignore=ignored))

    return copy


class Recipe:
    """A section of docs/recipes.md: its files, below a folder that stands for the root.

    A block of code is the file whose name in backticks ends the line above it;
    blocks of `sh` are commands. Of all paths, those of /srv, /etc, /var
    and /run come to lie in the folder; what packages install stays where it is.
    """

    _BLOCK = re.compile(r"(?:`(?P<name>[^`\n]+)`:\n\n)?```(?P<kind>\w*)\n(?P<text>.*?)```", re.S)
    _PATH = re.compile(r"(?<![\w./-])/(?=(?:srv|etc|var|run)\b)")

    def __init__(self, title: str, folder: Path) -> None:
        (folder / "run").mkdir(parents=True, exist_ok=True)
        sections = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.M)
        (section,) = [s for s in sections if s.partition("\n")[0] == title]
        self.folder = folder
        self.files: dict[str, Path] = {}
        self.commands: list[str] = []
        for block in self._BLOCK.finditer(section):
            text = self._PATH.sub(f"{folder}/", block["text"])
            if block["kind"] == "sh":
                self.commands.append(text)
                continue
            assert block["name"] is not None, f"a file without a name: {text}"
            file = folder / block["name"].lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            if block["kind"] == "toml":
                text = f'[listen]\nbind = ["127.0.0.1:0"]\n\n{text}'
            file.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                file.chmod(0o755)
            assert block["name"] not in self.files
            self.files[block["name"]] = file

    @property
    def configuration(self) -> Path:
        return self.files["tetrapylon.toml"]

    def run(self, command: int = 0) -> str:
        """Run one of the section's blocks of commands, by a shell that stops at a failure."""
        done = subprocess.run(
            ["sh", "-eu", "-c", self.commands[command]],
            cwd=self.folder,
            env={**os.environ, "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def recipe() -> Callable[[str, Path], Recipe]:
    """Lay out the recipe of a title below a folder."""
    return Recipe


class WebDriverError(Exception):
    """What chromedriver could not do."""


class Chromium:
    """A browser by WebDriver (W3C), which is JSON over HTTP: chromedriver speaks it."""

    ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

    def __init__(self, address: str, program: str, profile: Path) -> None:
        self._address = address
        arguments = [*CHROMIUM_ARGUMENTS, f"--user-data-dir={profile}"]
        options = {"binary": program, "args": arguments}
        wanted = {
            "alwaysMatch": {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
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
        if answer.status != 200:
            raise WebDriverError(f"{value['error']}: {value['message']}")
        return value

    def open(self, url: str) -> None:
        self._ask("POST", "/url", url=url)

    @property
    def url(self) -> str:
        return str(self._ask("GET", "/url"))

    def run(self, script: str, *arguments: object) -> Any:
        """Run JavaScript in the page, and return what it returns."""
        return self._ask("POST", "/execute/sync", script=script, args=arguments)

    def cookies(self) -> str:
        """Return the page's cookies as a Cookie field, those that scripts cannot see, too."""
        return "; ".join(f"{c['name']}={c['value']}" for c in self._ask("GET", "/cookie"))

    def _find(self, selector: str) -> str:
        found = self._ask("POST", "/element", using="css selector", value=selector)
        return f"/element/{found[self.ELEMENT]}"

    def write(self, selector: str, text: str) -> None:
        self._ask("POST", f"{self._find(selector)}/value", text=text)

    def click(self, selector: str) -> Any:
        """Click as soon as nothing lies over it: pages move while they load."""
        element = self._find(selector)
        deadline = time.monotonic() + WITHIN_S
        while True:
            try:
                return self._ask("POST", f"{element}/click")
            except WebDriverError as error:
                if "intercepted" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

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

    def failed_loads(self) -> list[str]:
        """Return what did not load since the last call: URLs with a status from 400, or an error.

        Loads that a page or the browser itself gave up are none.
        """
        urls: dict[str, str] = {}
        failed = []
        for entry in self._ask("POST", "/se/log", type="performance"):
            event = json.loads(entry["message"])["message"]
            facts = event["params"]
            if event["method"] == "Network.requestWillBeSent":
                urls[facts["requestId"]] = facts["request"]["url"]
            elif event["method"] == "Network.loadingFailed" and facts["requestId"] in urls:
                if not facts["canceled"]:
                    failed.append(f"{urls[facts['requestId']]}: {facts['errorText']}")
            elif event["method"] == "Network.responseReceived":
                response = facts["response"]
                if response["status"] >= 400:
                    failed.append(f"{response['url']}: {response['status']}")
        return failed


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


# Pages


def _cgi_by_hand(
    program: str | Path,
    running: Any,
    url: str,
    *,
    script_name: str,
    method: str = "GET",
    env: Mapping[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Run a CGI program as RFC 3875 has it, without a gateway; what does it answer to `url`?

    The variables are those of `running`, and of a client on this machine.
    """
    path, _, query = url.partition("?")
    assert path.startswith(script_name)
    done = subprocess.run(
        [program],
        cwd=Path(program).parent,
        env={
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SERVER_SOFTWARE": "tetrapylon",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": str(running.port),
            "SERVER_ADDR": "127.0.0.1",
            "REMOTE_ADDR": "127.0.0.1",
            "REQUEST_METHOD": method,
            "REQUEST_URI": url,
            "SCRIPT_NAME": script_name,
            "PATH_INFO": unquote(path.removeprefix(script_name)),
            "QUERY_STRING": query,
            "HTTP_HOST": f"127.0.0.1:{running.port}",
            **(env or {}),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WITHIN_S,
        check=True,
    )
    head, _, body = re.split(rb"(\r?\n\r?\n)", done.stdout, maxsplit=1)
    fields = {}
    for line in head.decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    return int(fields.pop("status", "200").split()[0]), fields, body


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"a": "href", "link": "href", "img": "src", "script": "src", "frame": "src"}
        self.found += [value for name, value in attrs if value and name == wanted.get(tag)]


def _crawl(
    running: Any,
    start: str,
    *,
    below: tuple[str, ...],
    pages: int,
    dead: re.Pattern[str] | None = None,
) -> dict[str, Any]:
    """Follow links from page to page, in breadth, to paths that start with one of `below`.

    Return the answers by path. Each link must lead somewhere: to a 200, or a redirect, which
    is followed; or to a 404 whose page says what `dead` is, where an application has such links.
    """
    answers: dict[str, Any] = {}
    waiting = [start]
    with ThreadPoolExecutor(4) as pool:
        while waiting and len(answers) < pages:
            batch = waiting[: pages - len(answers)]
            del waiting[: len(batch)]
            for path, answer in zip(batch, pool.map(running.get, batch), strict=True):
                answers[path] = answer
                links = _Links()
                if answer.status in (301, 302):
                    links.found.append(answer.headers["Location"])
                elif answer.status == 404 and dead is not None and dead.search(answer.text):
                    continue
                else:
                    assert answer.status == 200, f"{path}: {answer.status}\n{answer.body!r}"
                    if "html" in answer.headers["Content-Type"]:
                        links.feed(answer.text)
                for link in links.found:
                    parts = urlsplit(urljoin(running.url + path, link))
                    name = quote(parts.path, safe="/%=~+,;:@")
                    found = urlunsplit(("", "", name, parts.query, ""))
                    is_here = f"{parts.scheme}://{parts.netloc}" == running.url
                    is_new = found not in {*answers, *waiting, *batch}
                    if is_here and is_new and found.startswith(below):
                        waiting.append(found)
    return answers


@pytest.fixture(scope="session")
def cgi_by_hand() -> Callable[..., tuple[int, dict[str, str], bytes]]:
    """Run a CGI program without a gateway (`_cgi_by_hand`)."""
    return _cgi_by_hand


@pytest.fixture(scope="session")
def crawl() -> Callable[..., dict[str, Any]]:
    """Follow a site's links (`_crawl`)."""
    return _crawl
