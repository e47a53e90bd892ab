"""D: which file, whatever the spelling."""

from __future__ import annotations

import contextlib
import ctypes
import os
import posixpath
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote_to_bytes

from ground import CANARY, EVERY_KIND, Gate, Ground, Tables, house, with_fastcgi
from probes.asgi_probe import SENDFILES
from probes.cgi_scripts import SCRIPTS, write_scripts
from verdicts import check, hold
from wire import Answer, Wire, facts_of, get

AT_FDCWD, RENAME_EXCHANGE = -100, 2
SWAPS = 10_000

# Ways to climb out, each put before a name outside of the root.
CLIMBS = (
    "../", "..%2f", "..%2F", "%2e%2e/", "%2E%2E/", "%2e./", ".%2e/", "%2e%2e%2f", "..%5c", "..\\",
    "%2e%2e%5c", "..;/", "..;x=y/", "..%3b/", "..%00/", "%00../", "..%0a/", "..%0d/", "..%09/",
    "..%20/", "..%ff/",
    "..%c0%af", "%c0%ae%c0%ae/", "%c0%ae%c0%ae%c0%af", "..%c1%9c", "..%e0%80%af", "..%f0%80%80%af",
    "%e0%80%ae%e0%80%ae/", "..%ef%bc%8f", "%ef%bc%8e%ef%bc%8e/", "..%e2%88%95", "%u002e%u002e/",
    "..%u2215",
    "%252e%252e/", "%252e%252e%252f", "..%252f", "..%255c", "..%25c0%25af", ".../", "..../",
    "....//", "..././",
    "./../", "/../", "//../", "/./../", "x/../../", "x/%2e%2e/%2e%2e/", "hello.txt/../../", "..//",
    "..///",
    "../../", "../../../../../../", "..%2f..%2f..%2f", "%2f", "%2f%2f", "~/../", "..%2e/",
    "%2e%2e%2e/",
    "\\..\\", "%5c..%5c", "/%5c../", "C:/", "file:///",
)  # fmt: skip
# Names that some file systems and some readers take for another one.
ENDS = (
    "hello.txt.", "hello.txt..", "hello.txt%20", "hello.txt%2e", "hello.txt/", "hello.txt/.",
    "hello.txt%00",
    "hello.txt%00.jpg", "hello.txt;x", "hello.txt;", "hello.txt%3b", "hello.txt::$DATA",
    "hello.txt%0a", "HELLO.TXT",
    "%68ello.txt%", "hello%2etxt%2f", "hello.txt~", ".hidden", "%2ehidden", "./.hidden",
    ".git/config", "x/..%2f.hidden",
)  # fmt: skip


def _spellings(outside: str) -> list[str]:
    found = [climb + outside for climb in CLIMBS]
    found += [climb + "etc/passwd" for climb in CLIMBS if "../" in climb or "/" in climb[:1]]
    return [*found, "//etc/passwd", "/etc/passwd", "%2fetc%2fpasswd"]


def _raw_get(gate: Gate, target: str, method: str = "GET") -> Answer:
    with Wire(gate.port) as wire:
        target_bytes = target.encode("latin-1")
        wire.send(
            method.encode()
            + b" "
            + target_bytes
            + b" HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
        )
        return wire.answer(method)


def _closed_house(port: int, root: Path) -> Tables:
    """A gateway without a route for everything: what leaves its route is nobody's."""
    return {
        "listen": {"bind": ["127.0.0.1:0"]},
        "access_log": {"file": "access.log"},
        "backends": {
            "static": {"static": "files"},
            "cgi": {"cgi": "cgi-bin"},
            "php": {"fastcgi": f"127.0.0.1:{port}", "root": str(root)},
            "wsgi": {"wsgi": "wsgi_probe:app"},
            "asgi": {"asgi": "asgi_probe:app"},
        },
        "routes": [
            {"path": "/static/", "backend": "static"},
            {"path": "/cgi/", "backend": "cgi"},
            {"path": "/php/", "backend": "php"},
            {"path": "/wsgi/", "backend": "wsgi", "mount": True},
            {"path": "/asgi/", "backend": "asgi", "mount": True},
        ],
    }


@check("D1")
def spellings(ground: Ground) -> str:
    count = 0
    seen: dict[int, int] = {}
    with ground.folder() as folder, ground.responder(folder) as port:
        # A secret beside the root, and one in a folder whose name begins like the root's.
        for beside in ("files-secret", "cgi-bin-secret", "outside", "php-secret"):
            (folder / beside).mkdir(exist_ok=True)
            (folder / beside / "secret.txt").write_text(CANARY)
            (folder / beside / "secret.php").write_text(CANARY)
            (folder / beside / "tell").write_text(f"#!/bin/sh\nprintf 'X: y\\n\\n{CANARY}'\n")
            (folder / beside / "tell").chmod(0o755)
        (folder / "php").mkdir()
        (folder / "php" / "a.php").touch()
        (folder / "files" / ".hidden").write_text(CANARY)
        (folder / "files" / ".git").mkdir()
        (folder / "files" / ".git" / "config").write_text(CANARY)
        write_scripts(folder / "cgi-bin", "ok", "echo")
        names = {
            "static": [f"{d}/secret.txt" for d in ("outside", "files-secret")],
            "cgi": [f"{d}/tell" for d in ("outside", "cgi-bin-secret")],
            "php": [f"{d}/secret.php" for d in ("outside", "php-secret")],
        }
        tables = _closed_house(port, folder / "php")
        with ground.gate(
            tables, folder, warm=("/static/hello.txt", "/cgi/ok", "/php/a.php", "/wsgi/ok")
        ) as gate:
            for kind, secrets in names.items():
                targets = [f"/{kind}/{spelt}" for name in secrets for spelt in _spellings(name)]
                # The sibling's name without a slash between: no prefix of the root's.
                targets += [
                    f"/{kind}-secret/{name}" for name in ("secret.txt", "secret.php", "tell")
                ]
                targets += [f"/{kind}/..-secret/secret.txt", f"/{kind}/../files-secret/secret.txt"]
                if kind == "static":
                    targets += [f"/static/{end}" for end in ENDS]
                for target in targets:
                    answer = _raw_get(gate, target)
                    hold(
                        CANARY.encode() not in answer.body and b"root:" not in answer.body,
                        f"{target} left the root",
                    )
                    hold(answer.status in (400, 404), f"{target}: {answer.status}")
                    seen[answer.status] = seen.get(answer.status, 0) + 1
                    count += 1
            hold(_raw_get(gate, "/static/x/../hello.txt").status == 200, "a good path is refused")
            hold(_raw_get(gate, "/static/%68ello.txt").status == 200, "a good escape is refused")
            gate.calls()
    return (
        f"{len(CLIMBS)} climbs and {len(ENDS)} ends, {count} requests on files, CGI and scripts: "
        f"{seen}, nothing outside"
    )


@check("D2")
def one_normal_path(ground: Ground) -> str:
    """A route that denies lies over a part of every backend; no spelling gets by it."""
    backends = {
        "static": "secret.txt",
        "cgi": "tell",
        "fastcgi": "x",
        "wsgi": "x",
        "asgi": "x",
        "php": "tell.php",
    }
    with ground.folder() as folder, ground.responder(folder) as port:
        write_scripts(folder / "cgi-bin")
        for root in ("files", "cgi-bin", "php"):
            (folder / root / "private").mkdir(parents=True)
        (folder / "files" / "private" / "secret.txt").write_text(CANARY)
        (folder / "cgi-bin" / "private" / "tell").write_text(
            f"#!/bin/sh\nprintf 'X: y\\n\\n{CANARY}'\n"
        )
        (folder / "cgi-bin" / "private" / "tell").chmod(0o755)
        (folder / "php" / "private" / "tell.php").touch()
        (folder / "php" / "a.php").touch()
        tables = with_fastcgi(house(), port)
        tables["backends"]["php"] = {"fastcgi": f"127.0.0.1:{port}", "root": str(folder / "php")}
        tables["routes"].append({"path": "/php/", "backend": "php"})
        tables["backends"]["denied"] = {"redirect": "https://denied.test/", "status": 307}
        tables["routes"] += [
            {"path": f"/{name}/private/", "backend": "denied"} for name in backends
        ]
        count = denied = 0
        with ground.gate(tables, folder, warm=(*EVERY_KIND, "/php/a.php")) as gate:
            gate.calls()
            for kind, name in backends.items():
                for target in _denied_spellings(f"/{kind}", name):
                    answer = _raw_get(gate, target)
                    count += 1
                    denied += answer.status == 307
                    hold(CANARY.encode() not in answer.body, f"{target} shows what is denied")
                    if answer.status == 200 and kind != "static":
                        _is_elsewhere(kind, target, answer)
                plain = _raw_get(gate, f"/{kind}/private/{name}")
                hold(plain.status == 307, f"/{kind}/private/{name} itself: {plain.status}")
                other = {"static": "hello.txt", "cgi": "echo", "php": "a.php"}.get(kind, "y")
                hold(
                    _raw_get(gate, f"/{kind}/{other}").status == 200, f"/{kind}/{other} is not open"
                )
            gate.calls()
    return (
        f"{count} spellings of 6 denied prefixes: {denied} met the denying route, the others 400 "
        "or 404 or another path"
    )


def _denied_spellings(prefix: str, name: str) -> Iterator[str]:
    words = (
        "private", "%70rivate", "p%72ivate", "%70%72%69%76%61%74%65", "private%2f", "private%2F",
        "private;x", "private;",
        "private%3b", "private%20", "private.", "private%00", "private%5c", "private\\", "Private",
        "PRIVATE", "private%0a",
        "private%ff", "%2570rivate", "private%2e", "prıvate".encode().decode("latin-1"),
        "%c0%f0rivate",
    )  # fmt: skip
    for word in words:
        yield f"{prefix}/{word}/{name}"
    for climb in (
        "/", "./", "././", ".//", "x/../", "x/./../", "x/%2e%2e/", "x/..//", "//", "///", "%2e/",
        "%2f", "%2e%2e/" + prefix[1:] + "/",
        "..%2f" + prefix[1:] + "/", "x%2f..%2f", "x%2f../", ";/", "x;/../", "x/..;/",
        "..;" + prefix + "/", "%5c", "\\", ".\\", "x\\..\\",
        "private/../private/", "x/y/../../", "%00/", "~/../", "%252e/", "x/%252e%252e/",
    ):  # fmt: skip
        yield f"{prefix}/{climb}private/{name}"
    yield f"/.{prefix}/private/{name}"
    yield f"//{prefix[1:]}/private/{name}"
    yield f"/x/..{prefix}/private/{name}"
    yield f"/%{ord(prefix[1]):02x}{prefix[2:]}/private/{name}"
    yield f"http://a.test{prefix}/private/{name}"
    yield f"http://a.test{prefix}/./private/{name}"
    yield f"{prefix}/private"
    yield f"{prefix}/private/"
    yield f"{prefix}/private/?x"


def _is_elsewhere(kind: str, target: str, answer: Answer) -> None:
    """What a backend was given is another path, however one may resolve it once more."""
    if not answer.body.startswith(b"{"):
        return
    facts = facts_of(answer)
    if "PATH_INFO" in facts:
        seen = facts["PATH_INFO"].encode("latin-1")
    else:
        seen = facts["path"].removeprefix(facts["root_path"]).encode("utf-8", "surrogateescape")
    normal = posixpath.normpath(b"/" + seen)
    hold(
        not normal.startswith(b"/private/") and normal != b"/private",
        f"{kind} was given {seen!r} for {target}",
    )


@check("D3")
def swapped_directory(ground: Ground) -> str:
    with ground.fresh() as gate:
        files = gate.folder / "files"
        (files / "link-out").symlink_to(gate.folder / "outside" / "secret.txt")
        (files / "link-dir").symlink_to(gate.folder / "outside")
        (files / "link-abs").symlink_to("/etc/passwd")
        (files / "link-in").symlink_to("hello.txt")
        for name in ("link-out", "link-dir/secret.txt", "link-abs", "link-dir/"):
            answer = _raw_get(gate, f"/static/{name}")
            hold(
                answer.status in (403, 404) and CANARY.encode() not in answer.body,
                f"{name}: {answer.status}",
            )
        hold(_raw_get(gate, "/static/link-in").body == b"hello\n", "a link inside is not followed")
        # Readers ask for the file while its folder is now a folder, now a link out.
        (files / "sub").mkdir()
        (files / "sub" / "secret.txt").write_text("inside\n")
        (files / "other").symlink_to(gate.folder / "outside")
        is_over = threading.Event()
        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(_read_over_and_over, gate, is_over) for _ in range(4)]
            try:
                began = time.monotonic()
                for _ in range(SWAPS // 2):
                    _exchange(files / "sub", files / "other")
                    # Half of the time each, so that readers meet both.
                    time.sleep(0.0002)
                    _exchange(files / "sub", files / "other")
                    time.sleep(0.0002)
                took = time.monotonic() - began
            finally:
                is_over.set()
            seen: dict[int, int] = {}
            for reader in readers:
                for status, count in reader.result().items():
                    seen[status] = seen.get(status, 0) + count
        hold(set(seen) <= {200, 403, 404}, f"answers {seen}")
        hold(
            seen.get(200, 0) > 100 and len(seen) > 1, f"the readers met one of the two only: {seen}"
        )
    return (
        f"links out 403 or 404; {SWAPS} swaps in {took:.1f} s under {sum(seen.values())} reads: "
        f"{seen}, never the secret"
    )


def _read_over_and_over(gate: Gate, is_over: threading.Event) -> dict[int, int]:
    seen: dict[int, int] = {}
    while not is_over.is_set():
        with Wire(gate.port) as wire:
            for _ in range(500):
                wire.send(b"GET /static/sub/secret.txt HTTP/1.1\r\nHost: a.test\r\n\r\n")
                answer = wire.answer()
                hold(CANARY.encode() not in answer.body, "the secret behind the link was served")
                seen[answer.status] = seen.get(answer.status, 0) + 1
                if is_over.is_set() or answer.closes:
                    break
    return seen


_libc = ctypes.CDLL(None, use_errno=True)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one step (renameat2(2))."""
    if _libc.renameat2(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


@check("D4")
def no_regular_file(ground: Ground) -> str:
    with ground.folder() as folder:
        for root in ("files", "cgi-bin"):
            at = folder / root
            os.mkfifo(at / "fifo", 0o666)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(at / "socket"))
            os.chmod(at / "socket", 0o777)
            (at / "sealed.txt").write_text(CANARY)
            os.chmod(at / "sealed.txt", 0)
            (at / "sealed").mkdir()
            (at / "sealed" / "in.txt").write_text(CANARY)
            os.chmod(at / "sealed", 0)
            (at / "folder").mkdir()
        write_scripts(folder / "cgi-bin", "ok")
        tables = house()
        # Whoever may not make devices finds some here.
        tables["backends"]["devices"] = {"static": "/dev"}
        tables["routes"].append({"path": "/dev/", "backend": "devices"})
        worst = 0.0
        names = ("fifo", "socket", "sealed.txt", "sealed/in.txt", "sealed/", "folder", "folder/")
        targets = [f"/{kind}/{name}" for kind in ("static", "cgi") for name in names]
        targets += ["/dev/zero", "/dev/null", "/dev/tty", "/dev/full", "/dev/random"]
        # Permissions are nothing to root, unless it gives that up.
        with ground.gate(
            tables, folder, warm=("/static/hello.txt", "/cgi/ok"), is_mortal=True
        ) as gate:
            threads = gate.threads()
            for target in targets:
                began = time.monotonic()
                answer = _raw_get(gate, target)
                took = (time.monotonic() - began) * 1000
                allowed = {403, 404, 301, 307, 308} if target.endswith("folder") else {403, 404}
                hold(answer.status in allowed, f"{target}: {answer.status}")
                hold(took <= 50, f"{target}: after {took:.0f} ms")
                worst = max(worst, took)
            hold(gate.threads() <= threads, f"{gate.threads() - threads} threads are held")
            hold(not any(stat.S_ISFIFO(_mode(what)) for what in gate.fds()), "a FIFO is held open")
        for root in ("files", "cgi-bin"):
            os.chmod(folder / root / "sealed", 0o755)
    return (
        f"{len(targets)} FIFOs, sockets, devices, mode 000, folders: 403 or 404, ≤ {worst:.0f} "
        "ms, no thread held"
    )


def _mode(name: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(name).st_mode if name.startswith("/") else 0
    return 0


@check("D5")
def which_script(ground: Ground) -> str:
    source = f"<?php echo '{CANARY}'; ?>"
    with ground.folder() as folder, ground.responder(folder) as port:
        site = folder / "site"
        site.mkdir()
        for name in ("index.php", "a.php", "İ.php", "B.PHP", "c.php.bak", "inc.inc", "sp ace.php"):
            (site / name).write_text(source)
        (site / "a.jpg").write_text("a picture")
        (site / "dir.php").mkdir()
        (site / "dir.php" / "x.txt").write_text("x")
        write_scripts(folder / "cgi-bin", "echo", "ok")
        (folder / "cgi-bin" / "plain.py").write_text(f"# {CANARY}\n")
        (folder / "cgi-bin" / "lib.sh").write_text(SCRIPTS["ok"] + f"# {CANARY}\n")
        (folder / "cgi-bin" / "lib.sh").chmod(0o644)
        tables = house()
        for name, files in (("php", False), ("site", True)):
            tables["backends"][name] = {
                "fastcgi": f"127.0.0.1:{port}",
                "root": str(site),
                "files": files,
            }
            tables["routes"].append({"path": f"/{name}/", "backend": name})
        with ground.gate(tables, folder, warm=("/php/a.php", "/site/a.jpg", "/cgi/ok")) as gate:
            gate.calls()
            refused = 0
            for mount in ("php", "site"):
                for name in (
                    "a.jpg/b.php", "a.php%0a", "a.php%00.jpg", "i.php", "%c4%b1.php", "I.php",
                    "A.php", "a.PHP", "a.Php",
                    "B.PHP", "b.php", "a.php.", "a.php%20", "a.php%2e", "a.php%ff", "none.php",
                    "none.php/a.php", "dir.php",
                    "c.php.bak/x.php", "a.jpg%00.php", "../site/x.php", "a.php%5cx", "a.php::$DATA",
                    "a.php~", "inc.inc/x.php",
                ):  # fmt: skip
                    for method in ("GET", "HEAD", "POST"):
                        answer = _raw_get(gate, f"/{mount}/{name}", method)
                        hold(
                            CANARY.encode() not in answer.body,
                            f"/{mount}/{name}: the source was sent",
                        )
                        hold(
                            answer.status in (301, 308, 400, 403, 404, 405),
                            f"{method} /{mount}/{name}: {answer.status}",
                        )
                        refused += 1
                ran = [call for call in gate.calls() if call["app"] == "fastcgi"]
                hold(not ran, f"the application was asked: {ran[:2]}")
                for target, name, info in (
                    ("a.php", "a.php", b""), ("a.php/b.php", "a.php", b"/b.php"),
                    ("%61.php/x", "a.php", b"/x"),
                    ("a.php/%ff%fe/y%20z%2e", "a.php", b"/\xff\xfe/y z."),
                    ("%C4%B0.php/%C4%B0", "İ.php", "/İ".encode()),
                    ("sp%20ace.php/a;b", "sp ace.php", b"/a;b"), ("", "index.php", b""),
                    ("a.php/x/../y", "a.php", b"/y"),
                ):  # fmt: skip
                    facts = facts_of(_raw_get(gate, f"/{mount}/{target}"))
                    hold(
                        facts["SCRIPT_FILENAME"].encode("latin-1") == str(site / name).encode(),
                        f"{target}: {facts['SCRIPT_FILENAME']}",
                    )
                    hold(
                        facts["PATH_INFO"].encode("latin-1") == info,
                        f"{target}: PATH_INFO {facts['PATH_INFO']!r}",
                    )
                    script = (
                        unquote_to_bytes(f"/{mount}/{name}")
                        if name.isascii()
                        else f"/{mount}/{name}".encode()
                    )
                    hold(
                        facts["SCRIPT_NAME"].encode("latin-1") == script,
                        f"{target}: SCRIPT_NAME {facts['SCRIPT_NAME']!r}",
                    )
                gate.calls()
            for name in (
                "plain.py",
                "lib.sh",
                "echo%00",
                "echo.",
                "ECHO",
                "echo~",
                ".",
                "./",
                "echo%20",
                "%65cho%0a",
            ):
                for fields in (
                    (),
                    (b"Range: bytes=0-",),
                    (b"If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT",),
                ):
                    answer = get(gate.port, f"/cgi/{name}", *fields)
                    # A script that cannot be run is a gateway's failure, as E2 has it.
                    hold(answer.status in (400, 403, 404, 502), f"/cgi/{name}: {answer.status}")
                    hold(
                        CANARY.encode() not in answer.body and b"import" not in answer.body,
                        f"/cgi/{name}: source",
                    )
                    refused += 1
            facts = facts_of(get(gate.port, "/cgi/echo/%ff%fe/y%20z%3b"))
            hold(
                facts["PATH_INFO"].encode("latin-1") == b"/\xff\xfe/y z;",
                f"CGI: PATH_INFO {facts['PATH_INFO']!r}",
            )
            gate.calls()
    return (
        f"{refused} requests for what is no script: none ran, no source sent; 17 paths with "
        "PATH_INFO exact in bytes"
    )


@check("D6")
def send_file(ground: Ground) -> str:
    count = 0
    with ground.fresh() as gate:
        (gate.folder / "files" / "link-out").symlink_to(gate.folder / "outside" / "secret.txt")
        kinds = {
            "CGI": "/cgi/",
            "FastCGI": "/fastcgi/head/",
            "WSGI": "/wsgi/head/",
            "ASGI": "/asgi/head/",
        }
        for kind, prefix in kinds.items():
            for name in SENDFILES:
                answer = get(gate.port, prefix + name)
                hold(answer.status == 502, f"{kind}: {name}: {answer.status}")
                hold(not answer.field(b"x-sendfile"), f"{kind}: the field is forwarded")
                hold(
                    b"root:" not in answer.body and CANARY.encode() not in answer.body,
                    f"{kind}: the file was sent",
                )
                count += 1
        gate.calls()
    # The same names, and one that is good, where a folder is configured.
    with ground.folder() as folder, ground.responder(folder) as port:
        write_scripts(folder / "cgi-bin")
        (folder / "files" / "link-out").symlink_to(folder / "outside" / "secret.txt")
        tables = with_fastcgi(house(static={"sendfile_roots": ["files"]}), port)
        with ground.gate(tables, folder, warm=EVERY_KIND) as gate:
            for kind, prefix in kinds.items():
                for name in SENDFILES:
                    answer = get(gate.port, prefix + name)
                    hold(answer.status == 502, f"{kind}: {name}, with a root: {answer.status}")
                    hold(not answer.field(b"x-sendfile"), f"{kind}: the field is forwarded")
                    hold(
                        b"root:" not in answer.body and CANARY.encode() not in answer.body,
                        f"{kind}: the file was sent",
                    )
                    count += 1
            (folder / "files" / "link-in").symlink_to("hello.txt")
            for name, status in (
                ("hello.txt", 200), ("link-in", 200), ("absent", 404), ("link-out", 502),
                ("../outside/secret.txt", 502), ("%2e%2e/outside/secret.txt", 502),
            ):  # fmt: skip
                answer = get(gate.port, f"/asgi/head/sendfile-asked?{folder}/files/{name}")
                hold(answer.status == status, f"{name} beneath a root: {answer.status}")
                hold(status != 200 or answer.body == b"hello\n", f"{name}: {answer.body[:60]!r}")
                hold(not answer.field(b"x-sendfile"), f"{name}: the field is forwarded")
            gate.calls()
    return (
        f"{count} answers with X-Sendfile from {', '.join(kinds)}, with a root and without: 502, "
        "the field not forwarded; what is beneath the root is sent"
    )
