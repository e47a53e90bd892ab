"""The commands as they are typed: what they say, what they do, how they exit."""

import os
import re
import socket
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tetrapylon.gateway import __version__
from tetrapylon.gateway.cli import app
from tetrapylon.gateway.config import load

COMMAND = [sys.executable, "-P", "-m", "tetrapylon.gateway"]
COMMANDS = ("serve", "run", "cgi", "php", "demo", "init", "check")
# Wide and without colours, however the tests themselves are run.
PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
# Folders of tests are such that only root can read them, if root runs the tests.
USER = ("--user", "root") if os.geteuid() == 0 else ()

WSGI = """\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"it is wsgi"]
"""
ASGI = """\
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"it is asgi"})
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def tetrapylon(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def script(file: Path, command: str) -> None:
    file.write_text(f"#!/bin/sh\necho Content-Type: text/plain\necho\n{command}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


# What every command has


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(folder, command) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Examples" in result.output
    assert f"tetrapylon {command}" in result.output
    # Markup that nobody turned into colours.
    assert not re.search(r"\[/?(bold|cyan)\]", result.output)


def test_the_help_names_all_commands_in_their_groups(folder) -> None:
    result = CliRunner().invoke(app, ["--help"])
    serve, prepare = result.output.split("Prepare")
    assert all(re.search(rf"^\W*{command}\b", serve, re.M) for command in COMMANDS[:5])
    assert all(re.search(rf"^\W*{command}\b", prepare, re.M) for command in COMMANDS[5:])


def test_version(folder) -> None:
    result = tetrapylon("--version")
    assert (result.returncode, result.stdout) == (0, f"tetrapylon {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("servee",),
        ("serve", "--prot", "1"),
        ("run",),
        ("run", "shop.py"),
        ("run", "shop:app", "--port", "70000"),
        ("cgi",),
    ],
)
def test_a_command_line_that_is_wrong_exits_with_64(folder, arguments) -> None:
    result = tetrapylon(*arguments)
    assert result.returncode == 64
    assert result.stdout == ""
    assert "Error" in result.stderr


def test_the_nearest_command_is_suggested(folder) -> None:
    assert "'serve'" in tetrapylon("servee").stderr
    assert "'shop:app'" in tetrapylon("run", "shop.py").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve",), "tetrapylon.toml: no such file; tetrapylon init writes one"),
        (("check", "-c", "absent.toml"), "absent.toml: no such file"),
        (("cgi", "absent"), "absent: no such folder"),
        (("php", "absent"), "absent: no such folder"),
        (("init", "absent"), "absent: no such folder"),
    ],
)
def test_what_is_not_there_exits_with_66(folder, arguments, said) -> None:
    result = tetrapylon(*arguments)
    assert (result.returncode, result.stderr) == (66, said + "\n")


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_wrong_configuration_exits_with_78_and_all_its_errors(folder, command) -> None:
    Path("tetrapylon.toml").write_text("[listen]\nbidn = 1\n[routs]\n")
    result = tetrapylon(command)
    assert result.returncode == 78
    assert result.stderr.splitlines() == [
        "tetrapylon.toml: routes: nothing would be served; "
        'add [[routes]] with path = "/" and a backend',
        "tetrapylon.toml:2: listen.bidn: unknown key; did you mean 'bind'?",
        "tetrapylon.toml:3: routs: unknown key; did you mean 'routes'?",
        "3 errors",
    ]


# check


def test_check_shows_the_routes(folder) -> None:
    (folder / "site").mkdir()
    (folder / "shop.py").write_text("")
    Path("tetrapylon.toml").write_text(
        '[[routes]]\npath = "/static/"\nbackend = { static = "site" }\n'
        '[[routes]]\nhost = "*.example.com"\nbackend = { wsgi = "shop:app" }\n'
        'authorizer = "login"\n'
        '[backends.login]\nfastcgi = "127.0.0.1:9000"\n'
    )
    result = tetrapylon("check")
    assert (result.returncode, result.stderr) == (0, "")
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "tetrapylon.toml is right. It serves:" in rows
    assert "127.0.0.1:8000" in rows
    assert "/static/ static files in site" in rows
    application = "*.example.com / wsgi WSGI application shop:app, 8 threads"
    assert f"{application}; asks 'login' first" in rows
    assert "warning" not in result.stdout


def test_check_imports_nothing(folder) -> None:
    (folder / "shop.py").write_text("open('imported', 'w').close()\n")
    Path("tetrapylon.toml").write_text('[[routes]]\nbackend = { wsgi = "shop:app" }\n')
    assert tetrapylon("check").returncode == 0
    assert not (folder / "imported").exists()


def test_check_warns_at_the_line(folder) -> None:
    Path("tetrapylon.toml").write_text(
        '[backends.spare]\nproxy = "http://127.0.0.1:9"\n'
        '[[routes]]\npath = "/events"\nbackend = { wsgi = "absent_module:app" }\n'
    )
    result = tetrapylon("check")
    assert result.returncode == 0
    warnings = [line for line in result.stdout.splitlines() if line.startswith("warning")]
    assert len(warnings) == 3
    assert "tetrapylon.toml:1: no route leads to backend 'spare'" in warnings[0]
    assert "tetrapylon.toml:5: there is no module 'absent_module'" in warnings[1]
    assert "tetrapylon.toml:3: '/events' sounds like a stream" in warnings[2]


# init


def test_init_writes_what_check_accepts(folder) -> None:
    (folder / "cgi-bin").mkdir()
    (folder / "app.py").write_text("from flask import Flask\napp = Flask(__name__)\n")
    result = tetrapylon("init")
    assert result.returncode == 0
    assert "Next: tetrapylon check" in result.stderr
    assert tetrapylon("check", *USER).returncode == 0
    assert [route.path for route in load("tetrapylon.toml").routes] == ["/cgi-bin/", "/"]


def test_init_leaves_a_file_that_is_there(folder) -> None:
    Path("tetrapylon.toml").write_text("mine")
    result = tetrapylon("init")
    assert result.returncode == 73
    assert Path("tetrapylon.toml").read_text() == "mine"


def test_init_of_an_empty_folder_says_how_to_go_on(folder) -> None:
    (folder / "empty").mkdir()
    result = tetrapylon("init", "empty")
    assert result.returncode == 0
    assert "Nothing was found" in result.stderr
    assert "routes" not in tomllib.loads((folder / "empty/tetrapylon.toml").read_text())


# What serves


def test_serve_says_what_is_served_where_and_stops_at_sigterm(folder, gateway) -> None:
    (folder / "site").mkdir()
    (folder / "site/index.html").write_text("<p>hello")
    Path("tetrapylon.toml").write_text(
        '[listen]\nbind = "127.0.0.1:0"\n[[routes]]\nbackend = { static = "site" }\n'
    )
    running = gateway(None, "serve", cwd=folder)
    assert running.get("/").text == "<p>hello"
    running.stop()
    said = running.stderr_text()
    assert re.search(r"^ +/ +static +files in \S*site", said, re.M)
    assert "Ctrl-C to stop" in said
    assert '"GET / HTTP/1.1" 200 8 ' in running.stdout_text()


@pytest.mark.parametrize(("source", "kind"), [(WSGI, "wsgi"), (ASGI, "asgi")])
def test_run_finds_out_which_interface_it_is(folder, gateway, source, kind) -> None:
    (folder / "shop.py").write_text(source)
    running = gateway(None, "run", "shop:app", "--port", "0", cwd=folder)
    assert running.get("/").text == f"it is {kind}"
    assert f"{kind.upper()} application shop:app" in running.stderr_text()


def test_run_of_what_is_not_there_exits_with_66_and_a_hint(folder) -> None:
    (folder / "shop.py").write_text("application = 1\n")
    for name, hint in (("shopp:application", "shop"), ("shop:aplication", "application")):
        result = tetrapylon("run", name)
        assert result.returncode == 66
        assert re.search(rf"did you mean .*{hint}", result.stderr)
        assert "Traceback" not in result.stderr


def test_run_reload_serves_the_new_code(folder, gateway) -> None:
    (folder / "shop.py").write_text(WSGI)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = gateway(None, "run", "shop:app", "--port", port, "--reload", cwd=folder)
    assert running.get("/").text == "it is wsgi"
    # Written as editors do, so that no half of it is ever read.
    (folder / "shop.new").write_text(WSGI.replace("wsgi", "new"))
    os.replace(folder / "shop.new", folder / "shop.py")
    deadline = time.monotonic() + 20
    while running.stderr_text().count(f":{port}") < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "shop.py changed" in running.stderr_text()
    assert running.get("/").text == "it is new"


def test_an_address_that_is_taken_exits_with_69(folder) -> None:
    (folder / "shop.py").write_text(WSGI)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = tetrapylon("run", "shop:app", "--port", port)
    assert result.returncode == 69
    assert port in result.stderr
    assert "Traceback" not in result.stderr


def test_cgi_runs_cgi_bin_and_sends_the_rest(folder, gateway) -> None:
    (folder / "cgi-bin").mkdir()
    (folder / "index.html").write_text("the page")
    script(folder / "cgi-bin/hello", "echo $SCRIPT_NAME $PATH_INFO")
    running = gateway(None, "cgi", ".", "--port", "0", cwd=folder)
    assert running.get("/").text == "the page"
    assert running.get("/cgi-bin/hello/rest").text == "/cgi-bin/hello /rest\n"


def test_cgi_of_a_folder_of_scripts_runs_them_and_sends_none(folder, gateway) -> None:
    (folder / "scripts").mkdir()
    script(folder / "scripts/hello", "echo it ran")
    (folder / "scripts/notes.txt").write_text("not for everyone")
    running = gateway(None, "cgi", "scripts", "--port", "0", cwd=folder)
    assert running.get("/hello").text == "it ran\n"
    refused = running.get("/notes.txt")
    assert refused.status in (403, 404, 500, 502)
    assert "not for everyone" not in refused.text


def test_cgi_of_a_folder_without_scripts_exits_with_66_and_says_what_to_do(folder) -> None:
    (folder / "a.py").write_text("#!/usr/bin/env python3\n")
    result = tetrapylon("cgi", ".")
    assert result.returncode == 66
    assert "chmod +x" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone is asked")
@pytest.mark.parametrize("command", ["serve", "check"])
def test_root_is_told_to_say_whom_scripts_run_as(folder, command) -> None:
    (folder / "cgi-bin").mkdir()
    Path("tetrapylon.toml").write_text('[[routes]]\npath = "/"\nbackend = { cgi = "cgi-bin" }\n')
    result = tetrapylon(command)
    assert result.returncode == 78
    assert "tetrapylon.toml:3: backend /: started as root" in result.stderr
    assert 'user = "root" if that is really meant' in result.stderr
    assert "Traceback" not in result.stderr
    assert tetrapylon("check", "--user", "root").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone has the choice")
@pytest.mark.parametrize("command", ["cgi", "php"])
def test_root_s_folder_that_nobody_else_reads_needs_a_word(folder, command) -> None:
    script(folder / "hello", "echo hello")
    folder.chmod(0o700)
    result = tetrapylon(command, ".")
    assert result.returncode == 78
    assert "say --user root" in result.stderr


def test_php_without_php_names_the_package(folder, monkeypatch) -> None:
    monkeypatch.setattr("tetrapylon.gateway.php.FOLDERS", ())
    monkeypatch.setenv("PATH", str(folder))
    result = CliRunner().invoke(app, ["php", ".", *USER])
    assert result.exit_code == 69
    assert "apt install php-fpm" in result.output


@pytest.mark.interop
def test_php_runs_scripts_and_sends_the_rest(folder, gateway) -> None:
    (folder / "index.php").write_text("<?php echo $_SERVER['REQUEST_METHOD'], strlen($_POST['a']);")
    (folder / "style.css").write_text("body {}")
    (folder / "plain").mkdir()
    (folder / "plain/index.html").write_text("a page")
    # What php-fpm runs as, if the tests are run by root, must be able to read it.
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    running = gateway(None, "php", ".", "--port", "0", cwd=folder)
    assert running.get("/style.css").text == "body {}"
    assert running.get("/plain/").text == "a page"
    body = "a=" + "x" * 20_000_000
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert running.request("POST", "/", body, headers).text == "POST20000000"
    assert running.get("/absent").status == 404


def test_demo_serves(folder, gateway) -> None:
    running = gateway(None, "demo", "--port", "0")
    assert running.get("/").status == 200
    assert running.get("/wsgi/mirror").json()["protocol"]


def test_demo_copy_writes_a_folder_that_check_accepts(folder) -> None:
    assert tetrapylon("demo", "--copy", "mirror").returncode == 0
    assert tetrapylon("check", "-c", "mirror/tetrapylon.toml").returncode == 0
    assert tetrapylon("demo", "--copy", "mirror").returncode == 73
