"""A: what is a request, and where it ends. Every check runs over both engines.

The cases are in `framing_cases`.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from framing_cases import CASES, CHUNKED, SMUGGLED, Case, bare_get, post
from ground import Gate, Ground
from verdicts import Failure, check, hold
from wire import Talk, Wire, ask, facts_of, get, request

ENGINES = ("httptools", "h11")
# A probe behind each kind of backend that takes a body.
TAKERS = {"CGI": "/cgi/echo", "FastCGI": "/fastcgi/x", "WSGI": "/wsgi/x", "ASGI": "/asgi/x"}
# A byte at a time needs a pause for the gateway to read each by itself.
BYTE_PAUSE_S = 0.001
CUTS = 6


def _judge(case: Case, talk: Talk) -> str:
    """Return what is wrong with what came back, or nothing."""
    if talk.ending != "eof":
        return f"ended by {talk.ending}, after {talk.raw[:60]!r}"
    if len(talk.answers) != 1 or talk.left:
        return f"answers {talk.statuses}, then {talk.left[:40]!r}"
    answer = talk.answers[0]
    if answer.status not in case.statuses:
        return f"{answer.status} instead of {sorted(case.statuses)}"
    if not answer.closes:
        return "no Connection: close"
    return "" if answer.is_whole else "the answer is cut"


def _send(gate: Gate, case: Case, cuts: Sequence[int] = ()) -> str:
    talk = ask(gate.port, case.bytes, ends=case.ends, cuts=cuts, pause_s=BYTE_PAUSE_S)
    wrong = _judge(case, talk)
    return f"{case.label}: {wrong}" if wrong else ""


def _nothing_ran(gate: Gate, *, was_cut: bool = False) -> None:
    """Fail if a probe saw anything but the beginning of a request whose body went bad."""
    allowed = {"/" + case.check.lower() for case in CASES if case.is_in_body} if was_cut else set()
    for call in gate.calls():
        if call["event"] != "call" or call["path"] not in allowed:
            raise Failure(f"a backend saw {call}")


def _refused(ground: Ground, name: str) -> str:
    """Run the cases of a check whole, through both engines."""
    cases = [case for case in CASES if case.check == name]
    for engine in ENGINES:
        with ground.visit(engine) as gate:
            wrong = [said for case in cases if (said := _send(gate, case))]
            hold(
                not wrong, f"{engine}: {len(wrong)} of {len(cases)} cases: " + "; ".join(wrong[:6])
            )
            # EOF comes behind the bytes: only then a head can have been acted upon.
            _nothing_ran(gate, was_cut=any(case.ends for case in cases))
            _probe_sees(gate)
    return (
        f"{len(cases)} cases × {len(ENGINES)} engines, one answer each, closed; no backend called"
    )


def _probe_sees(gate: Gate) -> None:
    """Make sure that a request would have been seen, had it got through."""
    hold(get(gate.port, "/control").status == 200, "a good request is refused")
    hold([call["path"] for call in gate.calls()] == ["/control"] * 2, "the probe records nothing")


@check("A1")
def length_and_coding(ground: Ground) -> str:
    return _refused(ground, "A1")


@check("A2")
def lengths(ground: Ground) -> str:
    said = _refused(ground, "A2")
    for engine in ENGINES:
        with ground.visit(engine) as gate:
            for value in (b"5", b"0000000000000000005"):
                talk = ask(
                    gate.port,
                    post("ok", b"Content-Length: " + value, b"Connection: close", body=b"12345"),
                )
                hold(
                    talk.only.status == 200,
                    f"{engine}: Content-Length {value!r} got {talk.statuses}",
                )
    return said


@check("A3")
def codings(ground: Ground) -> str:
    said = _refused(ground, "A3")
    for engine in ENGINES:
        with ground.visit(engine) as gate:
            for value in (b"chunked", b"Chunked"):
                data = post(
                    "echo",
                    b"Transfer-Encoding: " + value,
                    b"Connection: close",
                    body=b"5\r\n12345\r\n0\r\n\r\n",
                )
                body = facts_of(ask(gate.port, data).only)
                hold(body["body_length"] == 5, f"{engine}: {value!r} is not chunked")
    return said


@check("A4")
def chunks(ground: Ground) -> str:
    said = _refused(ground, "A4")
    # Whoever takes bodies whole is not even called, wherever the bytes are cut.
    cases = [case for case in CASES if case.check == "A4"]
    for target in (b"/wsgi/a4", b"/cgi/echo", b"/fastcgi/a4"):
        for engine in ENGINES:
            with ground.visit(engine) as gate:
                for case in cases:
                    data = case.bytes.replace(b"/a4", target, 1)
                    talk = ask(
                        gate.port,
                        data,
                        ends=case.ends,
                        cuts=[data.index(b"\r\n\r\n") + 4],
                        pause_s=0.002,
                    )
                    wrong = _judge(case, talk)
                    hold(not wrong, f"{engine}, {target.decode()}: {case.label}: {wrong}")
                seen = gate.calls()
                hold(not seen, f"{engine}: a backend saw {seen[:2]}")
    return said + "; WSGI, CGI, FastCGI: none called either when the body came later"


@check("A5")
def chunk_overhead(ground: Ground) -> str:
    chunk = b"1;" + b"x" * 200 + b"\r\na\r\n"
    data = post("a5", CHUNKED) + chunk * (16 * 1024 * 1024 // len(chunk))
    numbers = []
    for engine in ENGINES:
        with ground.visit(engine) as gate:
            gate.lag_ms()
            with Wire(gate.port) as wire:
                sent = wire.push(data, quiet_s=1.0)
                talk = wire.all()
            hold(talk.statuses == [400], f"{engine}: answered {talk.statuses} after {sent} bytes")
            hold(talk.ending == "eof", f"{engine}: the answer came with a {talk.ending}")
            lag = gate.lag_ms()
            hold(lag <= 50, f"{engine}: the loop stood still for {lag:.0f} ms")
            hold(
                not any(c["event"] == "body" for c in gate.calls()),
                f"{engine}: delivered as complete",
            )
            # As many as fit the limit are taken: 64 KiB of framing and a byte for each of body.
            fits = 64 * 1024 // (len(chunk) - 2)
            for count, status in ((fits, 200), (fits + 3, 400)):
                got = ask(
                    gate.port,
                    post("a5", CHUNKED, b"Connection: close") + chunk * count + b"0\r\n\r\n",
                )
                hold(got.statuses == [status], f"{engine}: {count} chunks got {got.statuses}")
            gate.calls()
            numbers.append(f"{engine} loop ≤ {lag:.0f} ms")
    return f"400 behind {fits} chunks of 1 + 200 bytes, none delivered; " + ", ".join(numbers)


@check("A6")
def heads(ground: Ground) -> str:
    return _refused(ground, "A6")


@check("A7")
def hosts(ground: Ground) -> str:
    said = _refused(ground, "A7")
    for engine in ENGINES:
        with ground.visit(engine) as gate:
            for kind, target in {
                "CGI": "/cgi/echo",
                "FastCGI": "/fastcgi/x",
                "WSGI": "/wsgi/x",
            }.items():
                answer = get(gate.port, f"http://target.test{target}", host="other.test")
                facts = facts_of(answer)
                seen = (facts["HTTP_HOST"], facts["SERVER_NAME"])
                hold(
                    seen == ("target.test",) * 2,
                    f"{engine}: {kind} saw {seen} for http://target.test",
                )
            facts = facts_of(get(gate.port, "http://target.test/asgi/x", host="other.test"))
            seen_by_asgi = [value for name, value in facts["headers"] if name == "host"]
            hold(seen_by_asgi == ["target.test"], f"{engine}: ASGI saw {seen_by_asgi}")
            gate.calls()
    return said + "; the target's host wins in CGI, FastCGI, WSGI, ASGI"


@check("A8")
def request_lines(ground: Ground) -> str:
    return _refused(ground, "A8")


@check("A9")
def field_names(ground: Ground) -> str:
    odd = (
        b"X_Real_IP: bad", b"X.Real.IP: bad", b"X-Real_IP: bad", b"Content_Length: 99",
        b"X!Real: bad",
        b"CONTENT_TYPE: bad", b"Remote_User: bad", b"X~y: bad",
    )  # fmt: skip
    fields = (b"X-Real-IP: good", *odd, b"Content-Type: text/plain")
    posts = 0
    for engine in ENGINES:
        with ground.fresh(http={"engine": engine}) as gate:
            for kind, target in TAKERS.items():
                with Wire(gate.port) as wire:
                    # The second time, the same fields come on a kept connection.
                    for _ in range(2):
                        wire.send(request(target, *fields, method="POST", body=b"1234"))
                        facts = facts_of(wire.answer())
                        posts += 1
                        _has_no_odd_field(facts, f"{engine}: {kind}")
            gate.closing()
            gate.stop()
            gate.is_stopped = True
            counted = sum(map(int, re.findall(r"dropped (\d+) request field", gate.log())))
            wanted = 2 * len(TAKERS) * len(odd)
            hold(counted == wanted, f"{engine}: {counted} of {wanted} dropped fields are counted")
    return (
        f"{len(odd)} odd names in {posts} requests to {', '.join(TAKERS)}: dropped, all counted "
        "in the log"
    )


def _has_no_odd_field(facts: dict[str, Any], what: str) -> None:
    hold(facts["body_length"] == 4, f"{what} read {facts['body_length']} bytes")
    if "headers" in facts:
        names = {name for name, _ in facts["headers"]}
        allowed = {"host", "x-real-ip", "content-type", "content-length"}
        hold(names == allowed, f"{what} saw {names ^ allowed}")
        return
    hold(facts["HTTP_X_REAL_IP"] == "good", f"{what} saw {facts['HTTP_X_REAL_IP']}")
    hold(facts["CONTENT_TYPE"] == "text/plain", f"{what} saw {facts['CONTENT_TYPE']}")
    odd = {name for name, value in facts.items() if "bad" in str(value) or value == "99"}
    hold(not odd, f"{what} saw {odd}")


@check("A10")
def trailers(ground: Ground) -> str:
    extra = b"Content-Length: 99\r\nHost: evil.test\r\nAuthorization: evil\r\nX-User: evil\r\n"
    many = b"".join(b"X-%d: y\r\n" % n for n in range(10_000))
    over = b"X: " + b"y" * 4096 + b"\r\n"
    for engine in ENGINES:
        with ground.visit(engine) as gate:
            for kind, target in {
                "CGI": "cgi/echo",
                "FastCGI": "fastcgi/x",
                "WSGI": "wsgi/x",
                "ASGI": "asgi/x",
            }.items():
                data = post(
                    target,
                    CHUNKED,
                    b"Trailer: X-User",
                    body=b"5\r\n12345\r\n0\r\n" + extra + b"\r\n",
                )
                talk = ask(
                    gate.port, data + bare_get("last", b"Host: a.test", b"Connection: close")
                )
                hold(talk.statuses == [200, 200], f"{engine}: {kind}: {talk.statuses}")
                body = talk.answers[0].body
                hold(
                    b"evil" not in body,
                    f"{engine}: {kind} saw a trailer as a field: {body[:300]!r}",
                )
                facts = json.loads(body)
                hold(
                    facts["body_length"] == 5, f"{engine}: {kind} read {facts['body_length']} bytes"
                )
                hold(
                    str(facts.get("CONTENT_LENGTH", 5)) == "5",
                    f"{engine}: {kind}: a trailer's length",
                )
            gate.calls()
            for block in (many, over):
                data = post("a10", CHUNKED, body=b"1\r\na\r\n0\r\n" + block + b"\r\n")
                talk = ask(gate.port, data + SMUGGLED)
                hold(
                    talk.statuses == [431],
                    f"{engine}: {len(block)} bytes of trailers: {talk.statuses}",
                )
                hold(talk.only.closes and talk.ending == "eof", f"{engine}: not closed after 431")
            seen = [call for call in gate.calls() if call["event"] == "body"]
            hold(not seen, f"{engine}: a backend was told of a complete body: {seen}")
    return "4 trailers never joined the fields of 4 backends; 10,000 and 4 KiB + 1: 431, closed"


@check("A11")
def pipelines(ground: Ground) -> str:
    numbers = []
    for engine in ENGINES:
        with ground.visit(engine) as gate:
            good = request("/asgi/one")
            talk = ask(gate.port, good + b"garbage\r\n\r\n" + SMUGGLED)
            hold(talk.statuses == [200, 400] and talk.ending == "eof", f"{engine}: {talk.statuses}")
            talk = ask(gate.port, request("/asgi/one", close=True) + SMUGGLED)
            hold(
                talk.statuses == [200] and talk.ending == "eof", f"{engine}: close: {talk.statuses}"
            )
            body = SMUGGLED * 3
            for kind in ("asgi", "wsgi"):
                first = request(f"/{kind}/unread", method="POST", body=body)
                talk = ask(gate.port, first + request(f"/{kind}/two", close=True))
                hold(talk.statuses == [200, 200], f"{engine}: {kind}: unread body: {talk.statuses}")
                hold(
                    b"two" in talk.answers[1].body,
                    f"{engine}: the second answer is not the second's",
                )
            paths = [c["path"] for c in gate.calls()]
            hold("/smuggled" not in paths, f"{engine}: a smuggled request ran: {paths}")
            numbers.append(f"{engine} " + _flood(gate, engine))
    return (
        "good + garbage 200 400; close + second 200; unread body + second in order; "
        + "; ".join(numbers)
    )


def _flood(gate: Gate, engine: str) -> str:
    count = 100_000
    data = b"".join(request(f"/asgi/n/{n:06d}") for n in range(count))
    first = request("/asgi/sleep/1.5")
    # Once small, so that what stays allocated for good is there before.
    ask(gate.port, request("/asgi/n/x") * 200 + request("/asgi/n/x", close=True))
    before = gate.rss_kib()
    with Wire(gate.port) as wire:
        sent = wire.push(first + data, quiet_s=0.3)
        waiting = gate.rss_kib() - before
        peak = waiting
        # The kernel's buffers are full, or all is sent; now read while the rest goes out.
        wire.socket.settimeout(10)
        pieces: list[bytes] = []
        view = memoryview(first + data)[sent:]
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(wire.send, bytes(view))
            talk = wire.all()
            peak = max(peak, gate.rss_kib() - before)
            pieces.append(talk.raw)
            rest.result()
    answers = talk.answers
    hold(len(answers) == 1000, f"{len(answers)} answers where 1,000 are the limit of a connection")
    hold(answers[-1].closes and talk.ending in ("eof", "reset"), "the last does not say close")
    for n, answer in enumerate(answers[1:]):
        hold(facts_of(answer)["path"] == f"/asgi/n/{n:06d}", f"answer {n + 1} is not in order")
    ran = sum(1 for call in gate.calls() if call["event"] == "call")
    # The warm-up has 201.
    hold(ran == 1000 + 201, f"{ran - 201} requests ran, 1,000 were answered")
    hold(peak <= 1024, f"{engine}: RSS grew by {peak} KiB")
    return f"100,000 in one write: 1,000 in order, then closed, RSS {peak:+d} KiB"


@check("A12")
def expectations(ground: Ground) -> str:
    expect = b"Expect: 100-continue"
    over = b"Content-Length: %d" % (16 * 1024 * 1024 + 1)
    count = 0
    for engine in ENGINES:
        with ground.visit(engine) as gate:
            body = SMUGGLED
            length = b"Content-Length: %d" % len(body)
            early = {
                "413": (b"POST /asgi/x HTTP/1.1", over, 413),
                "404": (b"GET /static/none.txt HTTP/1.1", length, 404),
                "static": (b"GET /static/hello.txt HTTP/1.1", length, 200),
                "unread": (b"POST /asgi/unread HTTP/1.1", length, 200),
            }
            for label, (line, size, status) in early.items():
                head = b"\r\n".join([line, b"Host: a.test", expect, size, b"", b""])
                for sends_body in (False, True):
                    with Wire(gate.port) as wire:
                        wire.send(head)
                        answer = wire.answer()
                        if sends_body:
                            wire.send(body)
                        kept = not answer.closes
                        if kept:
                            wire.send(request("/asgi/next", close=True))
                        talk = wire.all()
                    what = f"{engine}: {label}, {'with' if sends_body else 'without'} the body"
                    hold(answer.status == status, f"{what}: {answer.status}")
                    hold(not answer.interim, f"{what}: 100 before an answer that wants no body")
                    wanted = [200] if kept and sends_body else []
                    hold(
                        talk.statuses == wanted or (kept and not sends_body),
                        f"{what}: then {talk.statuses}",
                    )
                    hold(talk.ending == "eof", f"{what}: ended by {talk.ending}")
                    count += 1
            with Wire(gate.port) as wire:
                wire.send(post("asgi/x", expect, b"Content-Length: 5", b"Connection: close"))
                while b"100 Continue" not in wire.received:
                    wire.received += wire.socket.recv(1000)
                wire.send(b"12345")
                answer = wire.answer()
            hold(
                answer.interim == [100], f"{engine}: interim {answer.interim} to who reads the body"
            )
            hold(facts_of(answer)["body_length"] == 5, f"{engine}: the body did not arrive")
            for other in (b"Expect: 200-ok", b"Expect: 100-continue, x", b"Expect:"):
                talk = ask(
                    gate.port,
                    post("asgi/x", other, b"Content-Length: 5", body=b"12345") + SMUGGLED,
                )
                hold(talk.statuses == [417], f"{engine}: {other!r}: {talk.statuses}")
            paths = [call["path"] for call in gate.calls()]
            hold("/smuggled" not in paths, f"{engine}: a body ran as a request")
    return f"{count} early answers: one each, no 100, drained or closed; other expectations 417"


@check("A14")
def cut_anywhere(ground: Ground) -> str:
    """All of A as data, a byte at a time and cut at random places."""
    chance = random.Random(14)
    numbers = []
    began = time.monotonic()
    for engine in ENGINES:
        with ground.visit(engine) as gate:
            jobs: list[tuple[Case, Sequence[int]]] = []
            for case in CASES:
                size = len(case.bytes)
                jobs.append((case, range(1, size)))
                jobs += [(case, sorted(chance.sample(range(1, size), 2))) for _ in range(CUTS)]
            with ThreadPoolExecutor(12) as pool:
                wrong = [said for said in pool.map(lambda job: _send(gate, *job), jobs) if said]
            hold(not wrong, f"{engine}: {len(wrong)} of {len(jobs)}: " + "; ".join(wrong[:6]))
            _nothing_ran(gate, was_cut=True)
            goods = _good_streams()
            for data, statuses in goods:
                whole = _facts(ask(gate.port, data))
                hold(whole[0] == statuses, f"{engine}: a good pipeline got {whole[0]}")
                cuts = [range(1, len(data))]
                cuts += [sorted(chance.sample(range(1, len(data)), 3)) for _ in range(20)]  # type: ignore[misc]
                with ThreadPoolExecutor(12) as pool:
                    for talk in pool.map(
                        lambda cut, data=data: ask(gate.port, data, cuts=cut, pause_s=BYTE_PAUSE_S),
                        cuts,
                    ):
                        hold(
                            _facts(talk) == whole,
                            f"{engine}: cut differently, answered differently: {talk.statuses}",
                        )
            gate.calls()
            numbers.append(f"{engine} {len(jobs)}")
    return (
        f"{len(CASES)} cases byte by byte and {CUTS} sampled pairs of cuts each "
        f"({', '.join(numbers)} runs), "
        f"{len(goods)} good pipelines at 21 cuts: as when whole; {time.monotonic() - began:.0f} s"
    )


def _good_streams() -> list[tuple[bytes, list[int]]]:
    chunked = b"5;a=b\r\n12345\r\nA\r\n0123456789\r\n0\r\nX-Trailer: y\r\n\r\n"
    return [
        (
            request("/asgi/a?b=c", b"X-One: 1", b"X-One: 2")
            + post("asgi/chunked", CHUNKED, body=chunked)
            + request("/wsgi/b", method="POST", body=b"a body\r\n\r\n")
            + request("http://target.test/asgi/c", b"X_dropped: 1", close=True)
            + SMUGGLED,
            [200, 200, 200, 200],
        ),
        (
            post("asgi/unread", CHUNKED, body=chunked)
            + b"\r\n"
            + post("asgi/x", CHUNKED, body=b"0\r\n\r\n")
            + request("/asgi/x%2Fy"),
            [200, 200, 400],
        ),
    ]


def _facts(talk: Talk) -> tuple[list[int], list[object], str]:
    """What must not depend on how the bytes were cut."""
    facts: list[object] = []
    for answer in talk.answers:
        if answer.body.startswith(b"{"):
            said = facts_of(answer)
            said.pop("client", None)
            said.pop("REMOTE_PORT", None)
            facts.append(said)
        else:
            facts.append(answer.closes)
    return talk.statuses, facts, talk.ending
