"""G and S: WSGI and ASGI applications that misbehave, and the end of the process."""

from __future__ import annotations

import fcntl
import re
import signal
import socket
import struct
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ground import Gate, Ground, house, wait_until
from limits import KIB, MIB
from others import Others, Report
from verdicts import Failure, check, hold
from wire import Answer, Wire, ask, get, request

# What the probes raise with: never shown to a client.
TRACEBACK = b"canary of a traceback"


@check("G1")
def sleeping_threads(ground: Ground) -> str:
    count, threads, queue = 100, 8, 64
    with ground.fresh() as gate:
        # Static and ASGI alone: WSGI's threads are what is taken away.
        others = Others(gate.port, targets=("/static/hello.txt", "/asgi/ok"))
        began = time.monotonic()
        with others, ThreadPoolExecutor(count) as pool:
            jobs = [pool.submit(_timed, gate, "/wsgi/sleep/20", began) for _ in range(count)]
            results = [job.result() for job in jobs]
        report: Report = others.report
        slept = [at for status, at, _ in results if status == 200]
        at_once = [at for status, at, _ in results if status == 503 and at < 2.5]
        later = [at for status, at, _ in results if status == 503 and at >= 2.5]
        hold(len(slept) == threads, f"{len(slept)} of {count} were answered with 200")
        hold(
            len(at_once) == count - threads - queue,
            f"{len(at_once)} got 503 at once, {len(later)} later",
        )
        hold(
            len(later) == queue and all(4.5 <= at <= 7 for at in later),
            f"waited {min(later)}–{max(later)} s",
        )
        hold(all(retry for status, _, retry in results if status == 503), "503 without Retry-After")
        hold(not report.failures, f"others failed: {report.failures[:3]}")
        worst = max(report.p99_by_target.values())
        hold(worst <= 50, f"others: p99 {report.p99_by_target}")
        hold(get(gate.port, "/wsgi/ok").status == 200, "WSGI does not answer afterwards")
        gate.calls()
    return (
        f"{threads} sleep, {queue} wait (503 after ≤ {max(later):.1f} s), {len(at_once)} get "
        "503 at once "
        f"(≤ {max(at_once):.2f} s); static and ASGI p99 {worst:.1f} ms of {report.count} "
        "requests; no health page yet"
    )


def _timed(gate: Gate, target: str, began: float) -> tuple[int, float, bool]:
    answer = get(gate.port, target, within_s=40)
    return answer.status, time.monotonic() - began, bool(answer.field(b"retry-after"))


@check("G2")
def wsgi_faults(ground: Ground) -> str:
    with ground.fresh() as gate:

        def closes(name: str, within_s: float = 2.0) -> int:
            """How often an iterable was closed, once it was: the client may see the end before."""
            deadline, seen = time.monotonic() + within_s, 0
            while not seen and time.monotonic() < deadline:
                time.sleep(0.02)
                calls = gate.calls()
                seen = sum(1 for call in calls if call["event"] == "close" and call["name"] == name)
            return seen

        for target, name in (
            ("head/cr", "head-cr"), ("head/lf", "head-lf"), ("head/nul", "head-nul"),
            ("head/name", "head-name"),
            ("no-start", "no-start"), ("raise/early", "raise-early"),
        ):  # fmt: skip
            talk = ask(gate.port, request(f"/wsgi/{target}") + request("/wsgi/ok", close=True))
            hold(talk.answers[0].status == 500, f"{target}: {talk.statuses}")
            hold(
                TRACEBACK not in talk.raw and b"Set-Cookie" not in talk.raw, f"{target}: it leaked"
            )
            _next_is_intact(talk.answers, target)
            # `start_response` raises in the application, which then has nothing to close.
            wanted = 0 if target.startswith("head/") else 1
            count = closes(name, 2.0 if wanted else 0.05)
            hold(count == wanted, f"{target}: close() called {count} ×")
        hold(get(gate.port, "/wsgi/raise/call").status == 500, "a call that raises is not 500")
        gate.calls()

        for target, whole in (("raise/late", False), ("length/100", False), ("length/4", True)):
            talk = ask(gate.port, request(f"/wsgi/{target}") + request("/wsgi/ok", close=True))
            first = talk.answers[0]
            if first.status == 200:
                hold(first.is_whole == whole, f"{target}: {first}")
                hold(
                    whole or len(talk.answers) == 1,
                    f"{target}: used again after a truncated answer",
                )
                if whole:
                    hold(
                        first.body == b"0123" and b"456" not in talk.raw, f"{target}: {talk.raw!r}"
                    )
                    hold(
                        len(talk.answers) == 1 or talk.answers[1].body == b"ok",
                        f"{target}: {talk.raw!r}",
                    )
            else:
                hold(first.status == 500 and not whole, f"{target}: {first.status}")
            name = target.replace("/", "-")
            hold((count := closes(name)) == 1, f"{target}: close() called {count} ×")

        ended = []
        for leave in ("reset", "eof"):
            with Wire(gate.port) as wire:
                wire.send(request("/wsgi/endless"))
                while len(wire.received) < MIB:
                    wire.received += wire.socket.recv(1 << 18)
                wire.reset() if leave == "reset" else wire.socket.close()
                left = time.monotonic()
                seen = closes("endless", 8.0)
                hold(seen == 1, f"endless, {leave}: close() called {seen} ×")
                ended.append(time.monotonic() - left)
        hold(not closes("endless", 0.3), "close() called twice")
    return (
        "6 faults 500, the next answer intact; 3 wrong ends visible; close() once each; a "
        f"departed client ends it in {max(ended):.2f} s"
    )


def _next_is_intact(answers: list[Answer], what: str) -> None:
    if len(answers) > 1:
        hold(
            (answers[1].status, answers[1].body) == (200, b"ok"),
            f"{what}: the next answer: {answers[1]}",
        )
    else:
        hold(answers[0].closes, f"{what}: neither closed nor was the next request answered")


@check("G3")
def deaf_application(ground: Ground) -> str:
    head = request("/asgi/deaf/4", b"Content-Length: %d" % (16 * MIB), method="POST")
    worst = 0
    with ground.fresh() as gate:
        before = gate.rss_kib()
        for warm in (False, True):
            with Wire(gate.port) as wire:
                wire.send(head)
                time.sleep(0.1)
                pushed = wire.push(bytes(16 * MIB), quiet_s=1.0)
                taken = pushed - _unread_by(gate, wire)
                grown = gate.rss_kib() - before
                hold(pushed < 16 * MIB, "the client was not slowed: the kernel took all 16 MiB")
                hold(wire.answer().status == 200, "no answer")
            if not warm:
                before = gate.rss_kib()
            worst = max(worst, taken)
        hold(
            worst <= 64 * KIB,
            f"{worst // KIB} KiB were read ahead of the application, RSS {grown:+d} KiB",
        )
        gate.calls()
    return (
        f"client stopped at {pushed // KIB} KiB of 16 MiB, all but {worst // KIB} KiB in the "
        f"kernel's buffers; RSS {grown:+d} KiB"
    )


def _unread_by(gate: Gate, wire: Wire) -> int:
    """How many bytes are still in the kernel: unsent here, and unread there."""
    unsent: int
    (unsent,) = struct.unpack("i", fcntl.ioctl(wire.socket, termios.TIOCOUTQ, b"\0\0\0\0"))
    ours = wire.socket.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(fields[i].partition(":")[2], 16) for i in (1, 2))
        if (local, remote) == (gate.port, ours):
            return unsent + int(fields[4].partition(":")[2], 16)
    raise Failure("the connection is not there")


@check("G4")
def asgi_faults(ground: Ground) -> str:
    numbers = []
    with ThreadPoolExecutor(4) as pool:
        # On a gateway of its own: to a blocked loop its time would not count.
        mute = pool.submit(_never_answers, ground)
        numbers.append(_asgi_misbehaves(ground, pool))
        numbers.append(mute.result())
    numbers.append(_startup_fails(ground))
    return (
        "early return 500; sends after a disconnect OSError; "
        + "; ".join(numbers)
        + "; one worker, so no other ones"
    )


def _never_answers(ground: Ground) -> str:
    with ground.fresh() as gate:
        status, took, _ = _timed(gate, "/asgi/mute", time.monotonic())
        hold(status == 504 and 29.5 <= took <= 31.5, f"never answers: {status} after {took:.1f} s")
        wait_until(
            lambda: any(c["event"] == "cancelled" for c in gate.calls()), 3, "it was cancelled"
        )
    return f"never answers: 504 after {took:.1f} s"


def _asgi_misbehaves(ground: Ground, pool: ThreadPoolExecutor) -> str:
    with ground.fresh() as gate:
        hold(get(gate.port, "/asgi/return-early").status == 500, "an early return is not 500")
        talk = ask(
            gate.port, request("/asgi/return-early/started") + request("/asgi/ok", close=True)
        )
        hold(
            len(talk.answers) == 1 and not talk.answers[0].is_whole,
            f"an early end is not visible: {talk.raw!r}",
        )
        answer = get(gate.port, "/asgi/raise")
        hold(
            answer.status == 500 and b"canary" not in answer.body,
            f"raise: {answer.status} {answer.body!r}",
        )
        talk = ask(gate.port, request("/asgi/raise/late"))
        hold(not talk.answers[0].is_whole, "an exception behind the head is not visible")
        gate.calls()

        with Wire(gate.port) as wire:
            wire.send(request("/asgi/after-disconnect"))
            wait_until(lambda: any(c["event"] == "call" for c in gate.calls()), 5, "it was called")
            wire.reset()
            late: list[str] = []

            def sent_late() -> bool:
                late.extend(s for c in gate.calls() if c["event"] == "sent-late" for s in c["seen"])
                return bool(late)

            wait_until(sent_late, 5, "it has tried to send")
        hold(all("is OSError: True" in one for one in late), f"sent after the disconnect: {late}")

        # A loop that is blocked: connections wait, none of them is timed out for it.
        with Wire(gate.port) as half, Wire(gate.port) as kept:
            kept.send(request("/asgi/ok"))
            kept.answer()
            half.send(b"GET /asgi/ok HTTP/1.1\r\nHost: a.test\r\n")
            time.sleep(0.2)
            blocker = pool.submit(_timed, gate, "/asgi/block/10", time.monotonic())
            time.sleep(0.5)
            waited = time.monotonic()
            kept.send(request("/asgi/ok"))
            hold(kept.answer(within_s=15).status == 200, "a kept connection was lost")
            waited = time.monotonic() - waited
            half.send(b"\r\n")
            hold(half.answer().status == 200, "a request whose head came meanwhile was lost")
            status, took, _ = blocker.result()
            hold(status == 200 and took <= 12, f"the blocker itself: {status} after {took:.1f} s")
        hold("blocked" in gate.log(), "nobody says that the loop was blocked")
    return f"a loop blocked for 10 s delays others by {waited:.1f} s and fails none"


def _startup_fails(ground: Ground) -> str:
    with ground.folder() as folder:
        process = ground.start(house(), folder, environ={"RELIABILITY_STARTUP_FAILS": "1"})
        try:
            code = process.wait(15)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said = (folder / "stderr").read_text()
    hold(code != 0, "the gateway started, and ended with 0")
    hold("the database is not there" in said and "Traceback" not in said, f"it says {said!r}")
    return f"a failed startup exits with {code} and says why"


@check("G5")
def bad_answers(ground: Ground) -> str:
    """Fields and bodies that no backend may have, and the answer behind each."""
    faults = {
        "CGI": ("/cgi/", {"cr": "cr-head", "nul": "nul-head", "name": "name-head"}),
        "FastCGI": ("/fastcgi/head/", {}),
        "WSGI": ("/wsgi/head/", {}),
        "ASGI": ("/asgi/head/", {}),
    }
    count = 0
    with ground.fresh() as gate:
        for kind, (prefix, names) in faults.items():
            follower = request("/asgi/ok", close=True)
            for fault in ("cr", "lf", "nul", "name", "hop", "204", "304", "100", "103"):
                if fault == "lf" and kind in ("CGI", "FastCGI"):
                    continue  # there it ends a line, as it may
                target = prefix + names.get(fault, fault)
                talk = ask(gate.port, request(target) + follower)
                what = f"{kind}: {fault}"
                first = talk.answers[0]
                if fault == "hop" and kind != "WSGI":
                    hold(first.status == 200 and first.body == b"body", f"{what}: {first}")
                elif fault in ("204", "304"):
                    hold(
                        first.status == int(fault) and b"body" not in talk.raw,
                        f"{what}: {talk.raw!r}",
                    )
                else:
                    hold(first.status in (500, 502), f"{what}: {first.status}")
                _no_hop(first, what)
                hold(b"Set-Cookie" not in talk.raw, f"{what}: the answer is split")
                _next_is_intact(talk.answers, what)
                count += 1
            good = "ok" if kind == "CGI" else "200"
            talk = ask(
                gate.port, request(prefix + good, method="HEAD") + follower, methods=["HEAD"]
            )
            hold(
                talk.statuses == [200, 200] and not talk.answers[0].body,
                f"{kind}: HEAD: {talk.raw!r}",
            )
            hold(talk.answers[1].body == b"ok", f"{kind}: behind HEAD: {talk.answers[1]}")
            count += 1
        gate.calls()
    return (
        f"{count} answers of {', '.join(faults)}: 500, 502 or stripped, the pipelined one behind "
        "intact or the connection closed"
    )


def _no_hop(answer: Answer, what: str) -> None:
    passed = [
        name
        for name in (b"keep-alive", b"upgrade", b"proxy-connection", b"x bad", b"x-bad")
        if answer.field(name)
    ]
    hold(not passed and b"x-hop" not in answer.field(b"connection"), f"{what}: passed on {passed}")


@check("S6")
def terminate(ground: Ground) -> str:
    targets = ("/wsgi/sleep/5", "/asgi/sleep/5")
    numbers = []
    with ground.fresh() as gate:
        with ThreadPoolExecutor(16) as pool:
            jobs = [pool.submit(_one_of, gate, targets[n % 2]) for n in range(16)]
            wait_until(
                lambda: gate.record.read_text().count('"call"') >= 16, 5, "all are under way"
            )
            with Wire(gate.port) as idle:
                idle.send(request("/asgi/ok"))
                idle.answer()
                gate.process.send_signal(signal.SIGTERM)
                began = time.monotonic()
                hold(not idle.socket.recv(10), "an idle connection is kept")
                hold(time.monotonic() - began <= 1, "an idle connection was closed late")
            wait_until(lambda: _is_refused(gate.port), 2, "no more is accepted")
            answers = [job.result() for job in jobs]
        bad = [str(answer) for answer in answers if answer.status != 200 or not answer.closes]
        hold(not bad, f"{len(bad)} of 16 under way: {bad[:2]}")
        code = gate.process.wait(5)
        took = time.monotonic() - began
        hold(code == 0, f"it exited with {code}")
        hold(took <= 6.5, f"it took {took:.1f} s")
        numbers.append(f"16 requests of 5 s finished, each said close, exit 0 after {took:.1f} s")
        _nothing_left(gate)
        _stopped(gate)
    with ground.fresh() as gate:
        with ThreadPoolExecutor(8) as pool:
            jobs_2 = [pool.submit(ask, gate.port, request(targets[n % 2])) for n in range(8)]
            wait_until(lambda: gate.record.read_text().count('"call"') >= 8, 5, "all are under way")
            gate.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            gate.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            for job in jobs_2:
                hold(not job.result().answers, f"answered after all: {job.result().statuses}")
            cut = time.monotonic() - began
            gate.process.wait(10)
            took = time.monotonic() - began
        hold(cut <= 1, f"the second TERM cut the requests after {cut:.1f} s")
        # A thread that sleeps for 5 s cannot be ended, and must not be waited for.
        hold(took <= 1.5, f"it was there {took:.1f} s after the second TERM")
        numbers.append(f"TERM twice: cut after {cut:.2f} s, gone after {took:.2f} s")
        _nothing_left(gate)
        _stopped(gate)
    return "; ".join(numbers)


def _one_of(gate: Gate, target: str) -> Answer:
    with Wire(gate.port) as wire:
        wire.send(request(target))
        return wire.answer()


def _is_refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def _nothing_left(gate: Gate) -> None:
    hold(not list((gate.folder / "tmp").iterdir()), "temporary files are left")
    hold(
        not re.search("Traceback|never retrieved", gate.log()),
        f"a traceback in the log:\n{gate.log()[-2000:]}",
    )


def _stopped(gate: Gate) -> None:
    """Tell the gate that its process has ended as it should."""
    gate.is_stopped = True
