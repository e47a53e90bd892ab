"""S, as far as children go: whose they are, and how long they outlive the gateway."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ground import PROBES, Ground, descendants, free_port, house, merged, wait_until
from verdicts import Failure, check, hold
from wire import facts_of, get

MANAGED = PROBES / "managed_fastcgi.py"
# It is left alone by whatever ends a group, and by the signals that ask.
_DAEMON = f"""#!{sys.executable} -IS
import os, runpy, signal, sys, time
become_daemon = runpy.run_path({str(MANAGED)!r})["become_daemon"]
open(os.path.join(os.environ["PIDS"], str(os.getpid())), "w").close()
become_daemon(os.environ["PIDS"])
if os.environ.get("SABOTAGE") == "helper":
    time.sleep(0.5)
    os.kill(os.getppid(), signal.SIGSTOP)
time.sleep(1000)
"""
_SLOW = '#!/bin/sh\n: > "$PIDS/$$"\ntrap "" TERM\nsleep 1000\n'
_STATUS = r"""#!/bin/sh
printf 'Content-Type: text/plain\n\n'
cat /proc/$$/status
"""


def _script(folder: Path, name: str, text: str) -> None:
    (folder / "cgi-bin" / name).write_text(text)
    (folder / "cgi-bin" / name).chmod(0o755)


@check("S2")
def killed_gateway(ground: Ground) -> str:
    with ground.folder() as folder:
        pids = folder / "pids"
        pids.mkdir()
        _script(folder, "slow", _SLOW)
        _script(folder, "daemon", _DAEMON)
        port = free_port()
        command = [sys.executable, "-IS", str(MANAGED), str(pids)]
        tables = house()
        tables["backends"] = {
            "cgi": {"cgi": "cgi-bin", "env": {"PIDS": str(pids)}},
            "managed": {"spawn": command, "processes": 2},
            "public": {"spawn": command, "fastcgi": f"127.0.0.1:{port}"},
        }
        tables["routes"] = [
            {"path": f"/{name}", "backend": name, "mount": True} for name in tables["backends"]
        ]
        with ground.gate(tables, folder) as gate:
            before = {int(file.name) for file in pids.iterdir()}
            with ThreadPoolExecutor(8) as pool:
                targets = ("/cgi/slow", "/cgi/daemon") * 4
                jobs = [pool.submit(_ask, gate.port, target) for target in targets]
                # A daemon writes a line beside its script's.
                wait_until(
                    lambda: len(list(pids.iterdir())) >= len(before) + 12, 10, "all scripts run"
                )
                # They may do their worst now.
                time.sleep(1)
                everybody = set(gate.descendants()) | {int(file.name) for file in pids.iterdir()}
                hold(len(everybody) >= 20, f"only {len(everybody)} processes to be seen")
                gate.is_stopped = True
                gate.process.send_signal(signal.SIGKILL)
                began = time.monotonic()
                gate.process.wait()
                while alive := {pid for pid in everybody if _is_alive(pid)}:
                    if time.monotonic() - began > 2:
                        _end(alive)
                        raise Failure(f"{len(alive)} of {len(everybody)} still there after 2 s")
                    time.sleep(0.005)
                gone = time.monotonic() - began
                for job in jobs:
                    job.result()
            for freed in (gate.port, port):
                socket.create_server(("127.0.0.1", freed)).close()
            left = list((folder / "tmp").iterdir())
            hold(not left, f"left in the file system: {left}")
        return (
            f"SIGKILL: {len(everybody)} processes, daemons of scripts and of applications among "
            f"them, gone {gone:.2f} s after; ports free; no file left"
        )


def _ask(port: int, target: str) -> None:
    with suppress(Failure, OSError):
        get(port, target)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _end(pids: set[int]) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


@check("S11")
def started_as_root(ground: Ground) -> str:
    nobody = pwd.getpwnam("nobody")
    if nobody.pw_uid == os.geteuid():
        nobody = pwd.getpwnam("daemon")
    with ground.folder() as folder:
        _script(folder, "status", _STATUS)
        backends = {
            "cgi": {"cgi": "cgi-bin"},
            "managed": {"spawn": [_python_for_all(), "-IS", str(_copy(folder)), "/nowhere"]},
        }
        routes = [{"path": f"/{name}", "backend": name, "mount": True} for name in backends]
        tables = merged(house(), {"backends": {}, "routes": []})
        tables |= {"backends": backends, "routes": routes}
        user = {"user": nobody.pw_name}
        named = {**tables, "cgi": user, "fastcgi": user}
        if os.geteuid() != 0:
            code, said = _refusal(ground, named, folder)
            hold(code not in (0, None), f"it has started: {said}")
            hold("only a gateway that is started as root" in said, f"it says {said!r}")
            hold(nobody.pw_name in said, f"it does not say whom: {said!r}")
            return "as an ordinary user: refuses to start for somebody else, and says why"
        code, said = _refusal(ground, tables, folder)
        hold(code not in (0, None), f"started as root, with scripts as root: {said}")
        for name in backends:
            hold(f"backend {name}: started as root" in said, f"it does not name {name}: {said!r}")
        with ground.gate(named, folder) as gate:
            answer = get(gate.port, "/cgi/status")
            lines = answer.body.decode().splitlines()
            status: dict[str, Any] = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            _judge("script", status, nobody)
            status = facts_of(get(gate.port, "/managed/"))
            _judge("application", status, nobody)
            hold(not status["regains_root"], "the application can become root again")
            helpers = [
                pid
                for pid in descendants(gate.pid)
                if Path(f"/proc/{pid}/status").stat().st_uid == nobody.pw_uid
            ]
            hold(len(helpers) >= 3, f"{len(helpers)} processes are nobody's")
    return (
        "root without a user: refuses to start; script and application as nobody: uid, gid and "
        "groups at the first instruction, CapEff 0, root not to be had again"
    )


def _judge(what: str, status: dict[str, Any], user: pwd.struct_passwd) -> None:
    """Judge what proc_pid_status(5) says: real, effective, saved and file system ids."""
    uids, gids = status["Uid"].split(), status["Gid"].split()
    hold(uids == [str(user.pw_uid)] * 4, f"{what}: Uid {uids}")
    hold(gids == [str(user.pw_gid)] * 4, f"{what}: Gid {gids}")
    groups = set(map(int, status["Groups"].split()))
    wanted = set(os.getgrouplist(user.pw_name, user.pw_gid))
    hold(groups <= wanted, f"{what}: Groups {groups}, not among {wanted}")
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        hold(int(status[name], 16) == 0, f"{what}: {name} {status[name]}")


def _refusal(ground: Ground, tables: Any, folder: Path) -> tuple[int | None, str]:
    """Start the gateway as a user does and return how it ends."""
    ground.write(tables, folder)
    done = subprocess.run(
        [sys.executable, "-m", "tetrapylon.gateway", "serve", "-c", "gate.toml"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={**os.environ, "COLUMNS": "1000"},
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def _python_for_all() -> str:
    """Return an interpreter that others may run, too."""
    for program in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        real = Path(program).resolve()
        if real.exists() and all(folder.stat().st_mode & 0o001 for folder in (real, *real.parents)):
            return program if Path(program).is_relative_to("/usr") else str(real)
    raise Failure("there is no Python that everybody may run")


def _copy(folder: Path) -> Path:
    """Lay the application where everybody can read it."""
    copy = folder / "managed.py"
    copy.write_text(MANAGED.read_text())
    copy.chmod(0o644)
    return copy
