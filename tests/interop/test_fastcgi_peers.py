"""The FastCGI adapter and backend against php-fpm, libfcgi (C, by spawn-fcgi) and Perl's FCGI."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.adapters.errors import BackendError, Unavailable
from tetrapylon.adapters.fastcgi_to_asgi import FastCgiToAsgi
from tetrapylon.gateway.backends.fastcgi import FastCgiBackend
from tetrapylon.protocols.asgi import GATEWAY_EXTENSION, Message

pytestmark = pytest.mark.interop

WITHIN_S = 20.0


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner() as runner:
        runner.run(asyncio.wait_for(main, 6 * WITHIN_S))


def find(*names: str) -> str:
    """Return the first program that is there; fail, for these tests were asked for."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    for name in names:
        if (program := shutil.which(name, path=path)) is not None:
            return program
    pytest.fail(f"none of these programs is installed: {', '.join(names)}")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can read, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


class Exchange:
    is_departed = False
    on_departure = None


async def ask(
    app: Any, method: str = "GET", path: str = "/", query: str = "", body: bytes = b"", **more: Any
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send a request straight to an ASGI application; return status, fields and content."""
    messages: list[Message] = []
    pieces = [body[start : start + 65536] for start in range(0, len(body), 65536)] or [b""]

    async def receive() -> Message:
        data = pieces.pop(0)
        return {"type": "http.request", "body": data, "more_body": bool(pieces)}

    async def send(message: Message) -> None:
        messages.append(message)

    headers = [(b"host", b"example.com"), *more.pop("headers", [])]
    if body:
        headers.append((b"content-length", str(len(body)).encode()))
    scope = {
        "type": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 50000),
        "method": method,
        "root_path": "",
        "path": path,
        "query_string": query.encode(),
        "headers": headers,
        "extensions": {GATEWAY_EXTENSION: Exchange()},
        **more,
    }
    await app(scope, receive, send)
    content = b"".join(message["body"] for message in messages[1:])
    assert not messages[-1].get("more_body", False)
    return messages[0]["status"], dict(messages[0]["headers"]), content


def wait_for_socket(path: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + WITHIN_S
    while True:
        assert process is None or process.poll() is None, "the server has ended"
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                return
        assert time.monotonic() < deadline, f"nothing listens on {path}"
        time.sleep(0.02)


# php-fpm

PAGE = """<?php
header('Content-Type: application/json');
header('X-One: 1');
setcookie('a', '1');
setcookie('b', '2');
$input = fopen('php://input', 'rb');
$hash = hash_init('sha256');
$length = hash_update_stream($hash, $input);
$names = ['SCRIPT_FILENAME', 'SCRIPT_NAME', 'PATH_INFO', 'PATH_TRANSLATED', 'PHP_SELF',
    'DOCUMENT_ROOT', 'DOCUMENT_URI', 'REQUEST_URI', 'QUERY_STRING', 'REQUEST_METHOD',
    'HTTP_X_LONG', 'CONTENT_LENGTH'];
$server = [];
foreach ($names as $name) $server[$name] = isset($_SERVER[$name]) ? $_SERVER[$name] : null;
if ($_SERVER['PATH_INFO'] ?? '' === '/log') error_log("careful \\x1b[31m");
$files = [];
foreach ($_FILES as $file) $files[] = hash_file('sha256', $file['tmp_name']);
echo json_encode(['server' => $server, 'length' => $length, 'sha256' => hash_final($hash),
    'post' => $_POST, 'get' => $_GET, 'files' => $files, 'pid' => getmypid()],
    JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE | JSON_PARTIAL_OUTPUT_ON_ERROR);
"""
FPM = """[global]
error_log = {folder}/fpm.log
daemonize = no
[www]
{user}listen = {folder}/fpm
listen.mode = 0666
pm = static
pm.max_children = {children}
pm.max_requests = {requests}
catch_workers_output = yes
php_admin_value[post_max_size] = 64M
php_admin_value[upload_max_filesize] = 64M
"""


@contextlib.contextmanager
def php_fpm(folder: Path, *, children: int = 2, requests: int = 0) -> Iterator[str]:
    """Run php-fpm; give its address."""
    root = folder / "site"
    (root / "shop").mkdir(parents=True)
    (root / "index.php").write_text(PAGE)
    (root / "shop" / "caf\u00e9.php").write_text(PAGE)
    (root / "a.jpg").write_text("<?php echo 'never';")
    (root / "early.php").write_text("<?php http_response_code(202); echo 'early';")
    (root / "missing.php").write_text("<?php http_response_code(404); echo 'sorry';")
    (root / "die.php").write_text("<?php posix_kill(getmypid(), 9);")
    (root / "big.php").write_text(
        "<?php for ($i = 0; $i < 500; $i++) { echo str_repeat('x', 20000); flush(); }"
    )
    user = ""
    command = [find("php-fpm", "php-fpm8.4", "php-fpm8.3", "php-fpm8.2"), "-F"]
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        user = f"user = nobody\ngroup = {nobody.pw_gid}\n"
    (folder / "fpm.conf").write_text(
        FPM.format(folder=folder, user=user, children=children, requests=requests)
    )
    with subprocess.Popen([*command, "-y", folder / "fpm.conf"]) as process:
        try:
            wait_for_socket(folder / "fpm", process)
            yield f"unix:{folder}/fpm"
        finally:
            process.send_signal(signal.SIGTERM)


def test_php_gets_exact_variables(folder: Path) -> None:
    # D5, with cgi.fix_pathinfo=1 as PHP has it
    async def main(address: str) -> None:
        root = folder / "site"
        for app in (
            FastCgiToAsgi(address, root=root),
            FastCgiToAsgi(address, root=root, check_file=False),
        ):
            for path, script, info in (
                ("/", "/index.php", ""),
                ("/index.php", "/index.php", ""),
                ("/index.php/", "/index.php", "/"),
                ("/index.php/a b/\u00fc", "/index.php", "/a b/\u00fc"),
                ("/index.php/x.php/y", "/index.php", "/x.php/y"),
                ("/shop/caf\u00e9.php/1", "/shop/caf\u00e9.php", "/1"),
            ):
                status, fields, content = await ask(app, path=path, query="a=1")
                assert status == 200
                assert fields[b"x-one"] == b"1"
                server = json.loads(content)["server"]
                assert server["SCRIPT_FILENAME"] == f"{root}{script}"
                assert server["SCRIPT_NAME"] == script
                assert (server["PATH_INFO"] or "") == info
                assert server["PHP_SELF"] == script + info
                assert server["DOCUMENT_ROOT"] == str(root)
                assert server["DOCUMENT_URI"] == script + info
                assert server["QUERY_STRING"] == "a=1"
                if info:
                    assert server["PATH_TRANSLATED"] == f"{root}{info}"
            for path in ("/a.jpg/b.php", "/a.jpg/index.php", "/none.php", "/none.php/x"):
                with contextlib.suppress(BackendError):
                    status, _, content = await ask(app, path=path)
                    assert status in (403, 404)
                    assert b"never" not in content

    with php_fpm(folder) as address:
        run(main(address))


def test_php_gets_bodies_and_large_parameters(folder: Path) -> None:
    # F5: php-fpm parses each PARAMS record by itself
    async def main(address: str) -> None:
        app = FastCgiToAsgi(address, root=folder / "site")
        headers = [(f"x-{number}".encode(), b"v" * 7000) for number in range(30)]
        headers += [(b"x-long", b"l" * 60_000)]
        for size in (0, 10, 99_000, 20_000_000):
            body = os.urandom(size)
            _, _, content = await ask(app, "POST", "/index.php", body=body, headers=headers)
            answer = json.loads(content)
            assert answer["length"] == size
            assert answer["sha256"] == hashlib.sha256(body).hexdigest()
            assert answer["server"]["HTTP_X_LONG"] == "l" * 60_000
        file = os.urandom(20_000_000)
        form = (
            b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nvalue\r\n'
            b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
            + file
            + b"\r\n--b--\r\n"
        )
        headers = [(b"content-type", b"multipart/form-data; boundary=b")]
        _, _, content = await ask(app, "POST", "/index.php", body=form, headers=headers)
        answer = json.loads(content)
        assert answer["post"] == {"name": "value"}
        assert answer["files"] == [hashlib.sha256(file).hexdigest()]

    with php_fpm(folder) as address:
        run(main(address))


def test_php_answers_early_much_or_not_at_all(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(address: str) -> None:
        app = FastCgiToAsgi(address, root=folder / "site")
        status, _, content = await ask(app, "POST", "/early.php", body=bytes(10_000_000))
        assert (status, content) == (202, b"early")
        assert (await ask(app, path="/missing.php"))[0::2] == (404, b"sorry")
        status, _, content = await ask(app, path="/big.php")
        assert content == b"x" * 10_000_000
        with pytest.raises(BackendError) as caught:
            await ask(app, path="/die.php")
        assert caught.value.status == 502
        await ask(app, path="/index.php/log")
        assert any("careful \\x1b[31m" in text for text in caplog.messages)

    with php_fpm(folder) as address:
        run(main(address))


@pytest.mark.parametrize("keep_alive", [False, True])
def test_many_requests_to_php(folder: Path, keep_alive: bool) -> None:
    # F2: pm.max_requests closes kept connections all the time
    async def main(address: str) -> None:
        app = FastCgiToAsgi(
            address,
            root=folder / "site",
            connections=4,
            queue=200,
            queue_wait_s=WITHIN_S,
            keep_alive=keep_alive,
        )

        async def one(number: int) -> None:
            method, body = ("GET", b"") if number % 4 else ("POST", b"%d" % number)
            status, _, content = await ask(app, method, "/", f"n={number}", body)
            assert status == 200
            assert json.loads(content)["get"] == {"n": str(number)}
            assert json.loads(content)["length"] == len(body)

        await asyncio.gather(*(one(number) for number in range(200)))
        app.close()

    with php_fpm(folder, children=4, requests=7) as address:
        run(main(address))


def test_more_requests_than_php_has_children(folder: Path) -> None:
    async def main(address: str) -> None:
        app = FastCgiToAsgi(address, root=folder / "site", connections=1, queue=3)
        results = await asyncio.gather(
            *(ask(app, path="/big.php") for _ in range(8)), return_exceptions=True
        )
        assert sum(isinstance(result, Unavailable) for result in results) == 4
        assert sum(isinstance(result, tuple) for result in results) == 4

    with php_fpm(folder, children=1) as address:
        run(main(address))


# libfcgi

C_APPLICATION = r"""
#include <fcgi_stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(void) {
    int count = 0;
    while (FCGI_Accept() >= 0) {
        const char *text = getenv("CONTENT_LENGTH");
        long length = text ? atol(text) : 0, got = 0, sum = 0;
        const char *info = getenv("PATH_INFO");
        if (strcmp(info, "/crash") == 0) abort();
        if (strcmp(info, "/error") == 0) fprintf(stderr, "something is wrong\n");
        for (int c; got < length && (c = getchar()) != EOF; got++) sum += c;
        printf("Content-Type: text/plain\r\n\r\n%s|%s|%ld|%ld|%d|%d", getenv("SCRIPT_NAME"), info,
               got, sum, ++count, (int) getpid());
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def c_application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a compiled libfcgi application."""
    folder = tmp_path_factory.mktemp("c")
    (folder / "app.c").write_text(C_APPLICATION)
    compiler = find("cc", "gcc", "clang")
    built = subprocess.run(
        [compiler, "-O1", "-o", "app", "app.c", "-lfcgi"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert built.returncode == 0, f"libfcgi is needed:\n{built.stderr}"
    return folder / "app"


def test_libfcgi_started_by_spawn_fcgi(
    c_application: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        for keep_alive in (False, True):
            app = FastCgiToAsgi(
                f"unix:{folder}/app", connections=1, keep_alive=keep_alive, script_name="/c"
            )
            body = os.urandom(300_000)
            status, _, content = await ask(app, "POST", "/c/a", body=body)
            assert status == 200
            assert content.startswith(b"/c|/a|300000|%d|" % sum(body))
            assert (await ask(app, path="/c/error"))[0] == 200
            assert "something is wrong" in caplog.text
            results = await asyncio.gather(*(ask(app, path="/c/b") for _ in range(20)))
            assert {content.rsplit(b"|", 1)[1] for _, _, content in results} == {b"%d" % pid}
            app.close()
        with pytest.raises(BackendError) as caught:
            await ask(app, path="/c/crash")
        assert caught.value.status == 502

    spawn_fcgi = find("spawn-fcgi")
    command = [spawn_fcgi, "-n", "-s", str(folder / "app"), "--", str(c_application)]
    with subprocess.Popen(command) as process:
        pid = process.pid
        try:
            wait_for_socket(folder / "app", process)
            run(main())
        finally:
            process.kill()


def test_libfcgi_started_by_the_gateway(c_application: Path) -> None:
    async def main() -> None:
        backend = FastCgiBackend("c", spawn=[str(c_application)], processes=3, keep_alive=True)
        async with backend:
            for _ in range(3):
                results = await asyncio.gather(*(ask(backend, path="/x") for _ in range(30)))
                assert all(status == 200 for status, _, _ in results)
            pids = {int(content.rsplit(b"|", 1)[1]) for _, _, content in results}
            assert pids <= set(backend.pids)
            with pytest.raises(BackendError):
                await ask(backend, path="/crash")
            async with asyncio.timeout(WITHIN_S):
                while len(backend.pids) < 3:
                    await asyncio.sleep(0.01)
            assert (await ask(backend, path="/x"))[0] == 200
        assert not backend.pids

    run(main())


def test_who_does_not_multiplex_is_served_all_the_same(
    folder: Path, c_application: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # FCGI-MPX, FCGI-4.1-GETVALUES: php-fpm and libfcgi say that they cannot
    async def main(address: str) -> None:
        php = FastCgiBackend("php", address=address, root=folder / "site", multiplex=8)
        c = FastCgiBackend("c", spawn=[str(c_application)], processes=2, multiplex=8)
        async with php, c:
            for backend, path in ((php, "/index.php"), (c, "/x")):
                answers = await asyncio.gather(*(ask(backend, path=path) for _ in range(20)))
                assert [status for status, _, _ in answers] == [200] * 20
                posted = await ask(backend, "POST", path, body=b"once")
                assert posted[0] == 200

    with php_fpm(folder) as address:
        run(main(address))
    said = [record.message for record in caplog.records if "does not multiplex" in record.message]
    assert sorted(line.partition(":")[0] for line in said) == ["c", "php"]


# Perl

PERL = r"""
use FCGI;
my %env;
my $request = FCGI::Request(\*STDIN, \*STDOUT, \*STDERR, \%env);
while ($request->Accept() >= 0) {
    my $length = $env{CONTENT_LENGTH} || 0;
    my $body = '';
    while (length($body) < $length) {
        read(STDIN, my $piece, $length - length($body)) or last;
        $body .= $piece;
    }
    print STDERR "from perl\n" if $env{PATH_INFO} eq '/error';
    print "Status: 201 Created\r\nContent-Type: text/plain\r\n\r\n";
    print join '|', $env{SCRIPT_NAME}, $env{PATH_INFO}, length($body), unpack('%32C*', $body), $$;
}
"""


def test_perl_started_by_the_gateway(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    perl = find("perl")
    check = subprocess.run([perl, "-MFCGI", "-e1"], stderr=subprocess.PIPE, text=True, check=False)
    assert check.returncode == 0, f"Perl's FCGI is needed:\n{check.stderr}"
    (folder / "app.pl").write_text(PERL)

    async def main() -> None:
        async with FastCgiBackend("perl", spawn=[perl, f"{folder}/app.pl"], processes=2) as backend:
            body = os.urandom(200_000)
            status, _, content = await ask(backend, "POST", "/p/a%2", body=body, root_path="/p")
            assert status == 201
            assert content.startswith(b"/p|/a%%2|200000|%d|" % sum(body))
            await ask(backend, path="/error")
            assert any("from perl" in text for text in caplog.messages)
            pids = backend.pids
            results = await asyncio.gather(*(ask(backend) for _ in range(20)))
            assert {int(content.rsplit(b"|", 1)[1]) for _, _, content in results} <= set(pids)
        assert not backend.pids

    run(main())


def test_a_perl_program_that_does_not_compile(folder: Path) -> None:
    (folder / "app.pl").write_text("use NoSuchModule;")

    async def main() -> None:
        with pytest.raises(Exception, match="NoSuchModule"):
            async with FastCgiBackend("perl", spawn=[find("perl"), f"{folder}/app.pl"]):
                pass

    run(main())


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
