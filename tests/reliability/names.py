"""C: what a client may say of itself, and what a script gets to see."""

from __future__ import annotations

import re

from ground import CANARY, EVERY_KIND, Gate, Ground, house, with_fastcgi
from probes.cgi_scripts import SCRIPTS, write_scripts
from verdicts import check, hold
from wire import Wire, facts_of, get

KINDS = {"CGI": "/cgi/echo", "FastCGI": "/fastcgi/x", "WSGI": "/wsgi/x"}

# RFC 3875 §4.1, and what servers have added to it since.
RFC_3875 = {
    "CONTENT_LENGTH", "CONTENT_TYPE", "GATEWAY_INTERFACE", "PATH_INFO", "PATH_TRANSLATED",
    "QUERY_STRING", "REMOTE_ADDR", "REQUEST_METHOD", "SCRIPT_NAME", "SERVER_NAME", "SERVER_PORT",
    "SERVER_PROTOCOL", "SERVER_SOFTWARE",
}  # fmt: skip
CUSTOMARY = {
    "REQUEST_URI", "REQUEST_SCHEME", "REMOTE_PORT", "SERVER_ADDR", "DOCUMENT_ROOT",
    "SCRIPT_FILENAME",
}  # fmt: skip
DEFAULTS = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


@check("C1")
def proxy_field(ground: Ground) -> str:
    fields = (b"Proxy: evil", b"proxy: evil", b"PROXY: evil", b"Proxy_: evil", b"X-Good: good")
    with ground.visit("httptools") as gate:
        for kind, target in KINDS.items():
            facts = facts_of(get(gate.port, target, *fields))
            evil = [name for name, value in facts.items() if "evil" in str(value)]
            hold(not evil and "HTTP_PROXY" not in facts, f"{kind} saw {evil}")
            hold(facts["HTTP_X_GOOD"] == "good", f"{kind} sees no fields at all")
        get(gate.port, "/asgi/x", *fields)
        gate.calls()
    return f"no HTTP_PROXY in {', '.join(KINDS)}"


@check("C2")
def untrusted_peer(ground: Ground) -> str:
    fields = (
        b"Forwarded: for=6.6.6.6;proto=https;host=evil.test", b"X-Forwarded-For: 6.6.6.6",
        b"X-Real-IP: 6.6.6.6",
        b"X-Forwarded-Proto: https", b"X-Forwarded-Host: evil.test", b"X-Forwarded-Port: 443",
        b"X-Forwarded-Prefix: /evil", b"Remote-User: evil", b"Remote-Addr: 6.6.6.6",
        b"Script-Name: /evil",
        b"X-Script-Name: /evil", b"Auth-Type: evil", b"X-Sendfile: /etc/passwd", b"Https: on",
        b"X-Forwarded-User: evil",
    )  # fmt: skip
    with ground.visit("httptools") as gate:
        for kind, target in KINDS.items():
            facts = facts_of(get(gate.port, target, *fields))
            core = {name: value for name, value in facts.items() if not name.startswith("HTTP_")}
            hold(core["REMOTE_ADDR"] == "127.0.0.1", f"{kind}: REMOTE_ADDR {core['REMOTE_ADDR']}")
            hold(core["SERVER_NAME"] == "a.test", f"{kind}: SERVER_NAME {core['SERVER_NAME']}")
            hold(
                core["SERVER_PORT"] == str(gate.port), f"{kind}: SERVER_PORT {core['SERVER_PORT']}"
            )
            prefix = target.rpartition("/")[0] if kind != "CGI" else target
            hold(core["SCRIPT_NAME"] == prefix, f"{kind}: SCRIPT_NAME {core['SCRIPT_NAME']}")
            scheme = core.get("REQUEST_SCHEME", "http"), core.get("wsgi.url_scheme", "http")
            hold(scheme == ("http", "http") and "HTTPS" not in core, f"{kind}: scheme {scheme}")
            hold(not {"REMOTE_USER", "AUTH_TYPE"} & set(core), f"{kind}: {sorted(core)}")
            evil = [
                name
                for name, value in core.items()
                if "evil" in str(value) or "6.6.6" in str(value)
            ]
            hold(not evil, f"{kind}: {evil}")
        facts = facts_of(get(gate.port, "/asgi/x", *fields))
        seen = facts["client"][0], facts["scheme"], facts["root_path"], facts["path"]
        hold(seen == ("127.0.0.1", "http", "/asgi", "/asgi/x"), f"ASGI: {seen}")
        gate.calls()
    return (
        f"{len(fields)} fields: address, scheme, root path and user unchanged in "
        f"{', '.join(KINDS)}, ASGI"
    )


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^== (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@check("C5")
def surroundings(ground: Ground) -> str:
    with ground.folder() as folder, ground.responder(folder) as port:
        write_scripts(folder / "cgi-bin")
        tables = with_fastcgi(house(), port)
        with ground.gate(tables, folder, warm=EVERY_KIND) as gate:
            answer = get(
                gate.port,
                "/cgi/dump/info?q=1",
                b"X-One: 1",
                b"Authorization: Basic evil",
                b"Cookie: a=b",
            )
            hold(answer.status == 200, f"the script was answered with {answer.status}")
            part = _sections(answer.body.decode("latin-1"))

            variables = dict(line.partition("=")[::2] for line in part["env"].splitlines() if line)
            allowed = (
                RFC_3875
                | CUSTOMARY
                | set(DEFAULTS)
                | {"HTTP_HOST", "HTTP_X_ONE", "HTTP_COOKIE", "HTTP_CONNECTION"}
            )
            hold(
                set(variables) <= allowed,
                f"variables that nobody asked for: {set(variables) - allowed}",
            )
            wanted = {
                **DEFAULTS,
                "GATEWAY_INTERFACE": "CGI/1.1",
                "PATH_INFO": "/info",
                "QUERY_STRING": "q=1",
            }
            wanted |= {
                "REMOTE_ADDR": "127.0.0.1",
                "REQUEST_METHOD": "GET",
                "SCRIPT_NAME": "/cgi/dump",
            }
            wanted |= {
                "SERVER_NAME": "a.test",
                "SERVER_PORT": str(gate.port),
                "SERVER_PROTOCOL": "HTTP/1.1",
            }
            other = {
                name: variables.get(name) for name in wanted if variables.get(name) != wanted[name]
            }
            hold(not other, f"not as the standard says: {other}")
            hold(
                "/" not in variables["SERVER_SOFTWARE"],
                f"a version: {variables['SERVER_SOFTWARE']}",
            )
            hold(
                CANARY not in answer.body.decode("latin-1"), "the gateway's own environment leaked"
            )

            # dash opens its script at 10, bash at 255, both for themselves alone.
            fds = set(part["fds"].split()) - {"10", "255"}
            hold(fds == {"0", "1", "2"}, f"file descriptors {sorted(fds)}")
            cwd = part["cwd"].strip()
            hold(cwd == str((folder / "cgi-bin").resolve()), f"the directory is {cwd}")
            status = dict(
                line.split(":\t", 1) for line in part["status"].splitlines() if ":\t" in line
            )
            hold(int(status["SigBlk"], 16) == 0, f"signals are blocked: {status['SigBlk']}")
            # glibc's posix_spawn ignores 32 and 33, its own two, in every child.
            ignored = int(status["SigIgn"], 16) & ~(0b11 << 31)
            hold(not ignored, f"signals are ignored: {status['SigIgn']}")
            hold(status["Umask"].strip() == "0077", f"umask {status['Umask']}")
            ids = part["ids"].split()
            pid, stat = ids[1], " ".join(ids[3:]).rpartition(")")[2].split()
            hold(
                stat[2] == pid and stat[3] == pid, f"pid {pid}, group {stat[2]}, session {stat[3]}"
            )
            hold(stat[4] == "0", f"a controlling terminal: {stat[4]}")
            for name, value in (
                ("Max cpu time", 30), ("Max address space", 512 << 20), ("Max open files", 64),
                ("Max file size", 64 << 20), ("Max core file size", 0),
            ):  # fmt: skip
                line = next(line for line in part["limits"].splitlines() if line.startswith(name))
                hold(line[len(name) :].split()[0] == str(value), f"rlimit {line}")
            argv = part["argv"].splitlines()
            hold(argv == ["/bin/sh", str(folder / "cgi-bin" / "dump")], f"argv {argv}")
    return (
        f"{len(variables)} variables, all of RFC 3875, HTTP_* or customary; fds 0–2; cwd the "
        "script's; no signal "
        "blocked or ignored; own session, no terminal; umask 077; five rlimits; no canary"
    )


@check("C6")
def no_shell(ground: Ground) -> str:
    with ground.folder() as folder:
        scripts = folder / "cgi-bin"
        write_scripts(scripts, "dump", "ok")
        odd_names = ("a;b", "with space", "$(touch owned)", "-s", "`id`", "a&b", "a|b")
        for name in odd_names:
            (scripts / name).write_text(SCRIPTS["dump"])
            (scripts / name).chmod(0o755)
        shock = b"() { :;}; touch " + str(folder / "owned").encode()
        count = 0
        with ground.gate(house(), folder, warm=("/cgi/ok", "/asgi/ok")) as gate:
            for query in (
                "-s",
                "a+b",
                "-d+allow_url_include=1",
                "$(id)",
                "%60id%60",
                ";id",
                "a+-s+b",
            ):
                _argv_is(gate, f"/cgi/dump?{query}", str(scripts / "dump"))
                count += 1
            for name in odd_names:
                spelt = "".join(f"%{byte:02X}" for byte in name.encode())
                _argv_is(gate, f"/cgi/{spelt}?x", str(scripts / name))
                count += 1
            _argv_is(gate, "/cgi/a;b", str(scripts / "a;b"))
            with Wire(gate.port) as wire:
                wire.send(b"GET /cgi/dump?x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n")
                wire.send(
                    b"User-Agent: " + shock + b"\r\nCookie: " + shock + b"\r\nX-A: $(id)\r\n\r\n"
                )
                hold(wire.answer().status == 200, "a field with a shell's function is refused")
            gone = list(folder.rglob("owned*"))
            hold(not gone, f"something ran in a shell: {gone}")
    return f"{count + 2} requests: argv is the script alone, nothing was run by a shell"


def _argv_is(gate: Gate, target: str, script: str) -> None:
    answer = get(gate.port, target)
    hold(answer.status == 200, f"{target}: {answer.status}")
    argv = _sections(answer.body.decode())["argv"].splitlines()
    hold(argv == ["/bin/sh", script], f"{target}: argv {argv}")
