"""E: CGI scripts that fail, by the gateway's defaults."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from crowd import Crowd
from ground import Gate, Ground, group_of, others_are_fine, wait_until
from limits import MIB
from verdicts import check, hold
from wire import Wire, ask, facts_of, get, request


def _diary(gate: Gate, ending: str) -> Path:
    return gate.folder / f"diary.{ending}"


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


@check("E1")
def never_exits(ground: Ground) -> str:
    # Side by side: the diary is one script's.
    with ThreadPoolExecutor(2) as pool:
        endless = pool.submit(_outstay, ground, "endless")
        stubborn = pool.submit(_outstay, ground, "stubborn")
        answered, gone, said = endless.result()
        answered_2, gone_2, _ = stubborn.result()
    hold(said == "TERM", f"the one that listens to SIGTERM has got {said!r}")
    hold(gone <= 1.0, f"the one that listens was there for {gone:.1f} s after its time")
    hold(
        1.5 <= gone_2 <= 3.0,
        f"the one that ignores SIGTERM was there for {gone_2:.1f} s after its time",
    )
    return (
        f"504 after {answered:.1f} and {answered_2:.1f} s; SIGTERM ends a group in {gone:.2f} s, "
        f"SIGKILL one that ignores it in {gone_2:.2f} s, grandchild included"
    )


def _outstay(ground: Ground, script: str) -> tuple[float, float, str]:
    with ground.fresh() as gate:
        began = time.monotonic()
        answer = get(gate.port, f"/cgi/{script}", within_s=40)
        answered = time.monotonic() - began
        hold(answer.status == 504, f"{script}: {answer.status}")
        hold(29.5 <= answered <= 31.5, f"{script}: answered after {answered:.1f} s")
        group = int(_read(_diary(gate, "pid")))
        wait_until(lambda: not group_of(group), 6, f"the group of {script} is gone")
        return answered, time.monotonic() - began - answered, _read(_diary(gate, "term"))


@check("E2")
def silent(ground: Ground) -> str:
    worst, cold = 0.0, 0.0
    with ground.fresh() as gate:
        scripts = gate.folder / "cgi-bin"
        (scripts / "not-executable").write_text("#!/bin/sh\necho X: y\n")
        (scripts / "no-shebang").write_text("\x7fELF no program\n")
        (scripts / "no-shebang").chmod(0o755)
        for script in ("silent-0", "silent-1", "silent-segv"):
            for _ in range(5):
                answer = get(gate.port, f"/cgi/{script}")
                now = time.time()
                hold(answer.status == 502, f"{script}: {answer.status}")
                took = (now - float(_read(_diary(gate, "end")))) * 1000
                hold(took <= 100, f"{script}: answered {took:.0f} ms after its end")
                worst = max(worst, took)
        for script in ("not-executable", "bad-interpreter", "no-shebang"):
            began = time.monotonic()
            answer = get(gate.port, f"/cgi/{script}")
            took = (time.monotonic() - began) * 1000
            hold(answer.status == 502, f"{script}: {answer.status}")
            hold(took <= 100, f"{script}: answered after {took:.0f} ms")
            cold = max(cold, took)
        _said(gate, "exited with 1", "SIGSEGV", "bad-interpreter", "not-executable")
    return (
        f"exit 0, 1, SIGSEGV without output: 502 ≤ {worst:.0f} ms behind; not executable, bad #!: "
        f"502 ≤ {cold:.0f} ms"
    )


def _said(gate: Gate, *words: str) -> None:
    said = gate.log()
    for word in words:
        hold(word in said, f"the log does not say {word!r}:\n{said[-1500:]}")


@check("E3")
def bad_heads(ground: Ground) -> str:
    causes = {
        "no-blank-line": "", "big-head": "", "nul-head": "", "cr-head": "", "name-head": "",
        "status-99999": "99999",
        "length-plus": r"\+5", "length-twice": "(?i)content-length", "crlf-pair": "",
    }  # fmt: skip
    with ground.fresh() as gate:
        for script, cause in causes.items():
            before = len(gate.log())
            answer = get(gate.port, f"/cgi/{script}")
            hold(answer.status == 502, f"{script}: {answer.status}")
            lines = [
                line
                for line in gate.log()[before:].splitlines()
                if f"/cgi/{script}" in line and "502" in line
            ]
            hold(len(lines) >= 1, f"{script}: the log says {gate.log()[before:]!r}")
            line = lines[-1]
            hold(len(line) > len(script) + 80, f"{script}: the cause is not in {line!r}")
            hold(re.search(cause, line), f"{script}: the cause is not in {line!r}")
            hold("\0" not in line and "\r" not in line, f"{script}: raw bytes in the log: {line!r}")
        # RFC 3875 §6.3.4 and RFC 9110 §7.6.1: hop-by-hop fields are the server's, so a
        # Transfer-Encoding beside a good length is dropped or refused, but never passed on.
        talk = ask(gate.port, request("/cgi/length-and-coding") + request("/cgi/ok", close=True))
        first, second = talk.answers
        hold(first.status == 502, f"length-and-coding: {first.status}")
        hold((second.status, second.body) == (200, b"ok\n"), "the answer behind it is not intact")
    return f"{len(causes) + 1} heads: 502, the cause in one line of the log"


@check("E4")
def redirect_loop(ground: Ground) -> str:
    with ground.fresh() as gate:
        answer = get(gate.port, "/cgi/again")
        runs = len(_read(_diary(gate, "runs")).split())
        hold(answer.status == 500, f"{answer.status} after {runs} runs")
        hold(runs == 11, f"{runs} runs instead of the first and 10 redirects")
        _said(gate, "/cgi/again")
    return f"500 after {runs - 1} redirects"


@check("E5")
def gibibyte(ground: Ground) -> str:
    with ground.fresh() as gate:
        before = gate.rss_kib()
        began = time.monotonic()
        taken, peak = _take(gate, 1 << 30)
        took = time.monotonic() - began
        hold(taken >= 1 << 30, f"{taken} bytes came")
        grown = peak - before
        hold(grown <= 2 * 1024, f"RSS grew by {grown} KiB")
        with Wire(gate.port) as wire:
            wire.send(request("/cgi/gibibyte"))
            left = 10 * MIB
            while left > 0:
                left -= len(wire.socket.recv(1 << 18))
            group = int(_read(_diary(gate, "pid")))
            hold(bool(group_of(group)), "the script does not run any more")
            wire.reset()
            began = time.monotonic()
            wait_until(lambda: not group_of(group), 5, "the group is gone")
            gone = time.monotonic() - began
        hold(gone <= 2, f"the group was there for {gone:.1f} s after its reader had left")
    return (
        f"1 GiB in {took:.1f} s, RSS {grown:+d} KiB; group dead {gone:.2f} s after a reader "
        "who left at 10 MiB"
    )


def _take(gate: Gate, size: int) -> tuple[int, int]:
    """Read a script's gibibyte; return how much came, and the gateway's largest RSS meanwhile."""
    buffer = bytearray(1 << 20)
    taken, peak, looked = 0, 0, 0
    with Wire(gate.port) as wire:
        wire.send(request("/cgi/gibibyte"))
        while taken < size and (got := wire.socket.recv_into(buffer)):
            taken += got
            if taken - looked > 16 * MIB:
                looked = taken
                peak = max(peak, gate.rss_kib())
    return taken, peak


@check("E7")
def outlived_answers(ground: Ground) -> str:
    with ground.fresh() as gate:
        spans = []
        for script in ("deaf", "daemon"):
            began = time.monotonic()
            talk = ask(gate.port, request(f"/cgi/{script}", close=True))
            spans.append(time.monotonic() - began)
            hold(
                (talk.only.status, talk.only.body) == (200, b"ok\n") and talk.only.is_whole,
                f"{script}: {talk.only}",
            )
            hold(spans[-1] <= 1, f"{script}: the answer ended after {spans[-1]:.1f} s")
        began = time.monotonic()
        pids = [int(_read(_diary(gate, script))) for script in ("deaf", "daemon")]
        hold(all(map(_is_alive, pids)), f"{pids} were to run on, to the end of their time")
        wait_until(lambda: not any(map(_is_alive, pids)), 36, f"{pids} are gone")
        gone = time.monotonic() - began
        hold(27 <= gone <= 34, f"they were gone after {gone:.1f} s")
    return (
        f"answers end after {spans[0]:.2f} s (stdout closed) and {spans[1]:.2f} s (a daemon holds "
        f"it); both are gone {gone:.1f} s later"
    )


@contextmanager
def _for_at_least(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    time.sleep(max(0.0, began + seconds - time.monotonic()))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@check("E10")
def greedy_scripts(ground: Ground) -> str:
    # Whose processes are counted together: a user of their own, where we may choose one.
    own = {"cgi": {"user": 64321, "group": 64321}} if os.geteuid() == 0 else {}
    with ground.fresh(**own) as gate:
        # To read 500 requests and refuse most takes a tenth of a second. That may be seen, but
        # not for long: hence the ten.
        with ground.others(gate) as others, _for_at_least(10):
            with Crowd(gate.port, 500, lambda _: request("/cgi/pause", close=True)) as crowd:
                most = 0
                deadline = time.monotonic() + 10
                while crowd.open and time.monotonic() < deadline:
                    crowd.wait(0.1)
                    most = max(most, len(gate.children()))
                ends = crowd.endings()
                refused = [m for m in crowd.members.values() if b" 503 " in m.received[:16]]
                late = max(member.lasted_s for member in refused)
                hold(ends == {"200": 96, "503": 404}, f"of 500 at once: {ends}")
                hold(
                    all(b"\r\nretry-after: " in m.received.lower() for m in refused),
                    "503 without Retry-After",
                )
            hold(most <= 32, f"{most} ran at once")
        seen = others_are_fine(others.report, others.quiet)

        with ground.others(gate) as others, _for_at_least(10):
            with Wire(gate.port) as wire:
                wire.send(request("/cgi/bomb"))
                time.sleep(2)
                bombs = len(gate.children())
                wire.reset()
                began = time.monotonic()
                wait_until(lambda: not gate.children(), 8, "the bomb is gone")
                gone = time.monotonic() - began
        hold(bombs >= 100, f"{bombs} processes are no bomb")
        hold(not own or bombs <= 256, f"{bombs} processes of one user")
        hold(gone <= 2, f"the bomb was there for {gone:.1f} s")
        bombed = others_are_fine(others.report, others.quiet)

        began = time.monotonic()
        answer = get(gate.port, "/cgi/glutton")
        hold(answer.status == 502, f"1 GiB: {answer.status}")
        _said(gate, "/cgi/glutton: the script")
    return (
        f"500 at once: {most} run, 64 wait, 404 refused within {late * 1000:.0f} ms, {seen}; a "
        f"bomb of {bombs}: gone in {gone:.2f} s, {bombed}; 1 GiB: 502"
    )


@check("E6")
def loud_stderr(ground: Ground) -> str:
    with ground.fresh() as gate:
        before, logged = gate.rss_kib(), len(gate.log())
        began = time.monotonic()
        answer = get(gate.port, "/cgi/loud", within_s=35)
        took = time.monotonic() - began
        hold(
            (answer.status, answer.body) == (200, b"quiet again\n"),
            f"{answer.status} {answer.body[:60]!r}",
        )
        wait_until(lambda: _diary(gate, "done").exists(), 5, "the script is done")
        grown = gate.rss_kib() - before
        logged = len(gate.log()) - logged
        hold(logged <= 128 * 1024, f"{logged} bytes reached the log")
        hold(logged >= 32 * 1024, f"{logged} bytes only reached the log")
        hold(grown <= 4 * 1024, f"RSS grew by {grown} KiB")
    return (
        f"1 GiB to stderr before the head: 200 after {took:.1f} s, {logged // 1024} KiB logged, "
        f"RSS {grown:+d} KiB"
    )


@check("E8")
def wrong_lengths(ground: Ground) -> str:
    with ground.fresh() as gate:
        numbers = []
        for script in ("short", "short-late"):
            talk = ask(gate.port, request(f"/cgi/{script}") + request("/cgi/ok", close=True))
            statuses = talk.statuses
            first = talk.answers[0]
            if first.status == 200:
                # The head was gone already: the end must be seen as a break.
                hold(not first.is_whole, f"{script}: taken for whole: {first.body!r}")
                hold(len(statuses) == 1, f"{script}: the connection was used again")
                hold(first.field(b"content-length") == b"100", f"{script}: {first.fields}")
                hold(first.body in (b"0123456789", b"01234"), f"{script}: {first.body!r}")
                numbers.append(f"{script}: cut at {len(first.body)} of 100")
            else:
                hold(first.status == 502, f"{script}: {first.status}")
                numbers.append(f"{script}: 502")
        for script in ("long", "long-late"):
            talk = ask(gate.port, request(f"/cgi/{script}") + request("/cgi/ok", close=True))
            first = talk.answers[0]
            hold(
                (first.status, first.body, first.is_whole) == (200, b"0123", True),
                f"{script}: {first}",
            )
            hold(b"456789" not in talk.raw, f"{script}: the excess was sent")
            if len(talk.answers) > 1:
                hold(
                    talk.answers[1].body == b"ok\n",
                    f"{script}: the next answer is {talk.answers[1].body!r}",
                )
            numbers.append(f"{script}: 4 of 10 bytes")
        # HTTP/1.0 without keep-alive has the length alone.
        talk = ask(gate.port, b"GET /cgi/short-late HTTP/1.0\r\nHost: a.test\r\n\r\n")
        hold(not talk.only.is_whole or talk.only.status == 502, f"HTTP/1.0: {talk.only}")
    return "; ".join(numbers)


@check("E9")
def unread_stdin(ground: Ground) -> str:
    body = bytes(range(256)) * (10 * MIB // 256)
    with ground.fresh() as gate:
        began = time.monotonic()
        answer = get(gate.port, "/cgi/ignores", method="POST", body=body)
        took = time.monotonic() - began
        hold(
            (answer.status, answer.body) == (200, b"ignored\n"),
            f"{answer.status} {answer.body[:60]!r}",
        )
        hold(took <= 3, f"an ignored body took {took:.1f} s")
        answer = get(gate.port, "/cgi/counts", method="POST", body=body)
        hold(
            int(answer.body) == len(body), f"stdin ended after {answer.body!r} of {len(body)} bytes"
        )
        facts = facts_of(get(gate.port, "/cgi/echo", method="POST", body=body))
        hold(facts["body_sha256"] == hashlib.sha256(body).hexdigest(), "stdin is not the body")

        # A client that leaves in the middle of its upload: nothing was started for it.
        wait_until(lambda: not gate.children(), 5, "the scripts before are gone")
        gate.calls()
        for leave in ("reset", "eof"):
            with Wire(gate.port) as wire:
                wire.send(request("/cgi/ignores", b"Content-Length: %d" % len(body), method="POST"))
                wire.send(body[: 5 * MIB])
                wait_until(lambda: gate.left_files(), 5, "the upload is spooled")
                hold(not gate.children(), "a script was started before its body was complete")
                wire.reset() if leave == "reset" else wire.end()
                wait_until(lambda: not gate.left_files(), 2, f"the spool is gone after a {leave}")

        gone = max(_leave_while_it_runs(gate, body), _leave_behind_a_busy_loop(gate, body))
        hold(gone <= 2, f"the group was there for {gone:.1f} s after its client had left")
        gate.calls()
    return (
        f"10 MiB unread: answered after {took:.1f} s; stdin ends with the body; left mid-upload: "
        f"none started, no spool; group dead {gone:.2f} s after its client"
    )


def _leave_while_it_runs(gate: Gate, body: bytes) -> float:
    """Have a client leave when its script has begun; return how long the script went on."""
    with Wire(gate.port) as wire:
        wire.send(request("/cgi/lingers", method="POST", body=body))
        while b"begun" not in wire.received:
            wire.received += wire.socket.recv(4096)
        group = int(_read(_diary(gate, "pid")))
        wait_until(lambda: len(group_of(group)) >= 2, 5, "the script and its child run")
        wire.reset()
        left = time.monotonic()
        wait_until(lambda: not group_of(group), 5, "the group is gone")
        return time.monotonic() - left


def _leave_behind_a_busy_loop(gate: Gate, body: bytes) -> float:
    """The same with a body of which all that fits is read at once, when the loop is free again."""
    with Wire(gate.port) as blocker:
        blocker.send(request("/asgi/block/0.5"))
        wait_until(lambda: '"call"' in gate.record.read_text(), 5, "the loop is busy")
        return _leave_while_it_runs(gate, body[: 200 << 10])
