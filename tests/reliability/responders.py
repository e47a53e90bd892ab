"""F: FastCGI applications that are not there, silent, or mad."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

from ground import EVERY_KIND, Ground, Tables, free_port, house, with_fastcgi
from verdicts import check, hold
from wire import ask, facts_of, get, request


@check("F1")
def no_answer(ground: Ground) -> str:
    with ground.folder() as folder, ground.responder(folder) as port:
        (folder / "cgi-bin" / "ok").write_text("#!/bin/sh\nprintf 'X: y\\n\\nok'\n")
        (folder / "cgi-bin" / "ok").chmod(0o755)
        # Listens and never accepts; the backlog is filled at once.
        full = socket.create_server(("127.0.0.1", 0), backlog=0)
        callers = []
        for _ in range(4):
            caller = socket.socket()
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
            callers.append(caller)
        full_unix = socket.socket(socket.AF_UNIX)
        full_unix.bind(str(folder / "full.sock"))
        full_unix.listen(0)
        for _ in range(4):
            caller = socket.socket(socket.AF_UNIX)
            caller.setblocking(False)
            caller.connect_ex(str(folder / "full.sock"))
            callers.append(caller)
        places = {
            "absent": (f"127.0.0.1:{free_port()}", {502, 503}, 2.0),
            "absent-unix": (f"unix:{folder}/none.sock", {502, 503}, 2.0),
            "full": (f"127.0.0.1:{full.getsockname()[1]}", {503, 504}, 2.0),
            "full-unix": (f"unix:{folder}/full.sock", {503, 504}, 2.0),
            "unknown": ("no-such-host.invalid:9000", {502, 503}, 2.0),
        }
        tables: Tables = with_fastcgi(house(), port)
        for name, (address, _, _) in places.items():
            tables["backends"][name] = {"fastcgi": address}
            tables["routes"].append({"path": f"/{name}/", "backend": name})
        numbers = []
        with ground.gate(tables, folder, warm=EVERY_KIND) as gate:
            gate.lag_ms()

            def timed(target: str) -> tuple[int, float]:
                began = time.monotonic()
                return get(gate.port, target, within_s=40).status, time.monotonic() - began

            with ThreadPoolExecutor(8) as pool:
                silent = pool.submit(timed, "/fastcgi/mute")
                others = {name: pool.submit(timed, f"/{name}/x") for name in places}
                for name, (_, statuses, limit) in places.items():
                    status, took = others[name].result()
                    hold(status in statuses, f"{name}: {status}")
                    hold(took <= limit + 1, f"{name}: after {took:.1f} s")
                    numbers.append(f"{name} {status} after {took:.1f} s")
                status, took = silent.result()
            hold(status == 504 and 29.5 <= took <= 31.5, f"silent: {status} after {took:.1f} s")
            numbers.append(f"silent {status} after {took:.1f} s")
            lag = gate.lag_ms()
            hold(lag <= 50, f"the loop stood still for {lag:.0f} ms")
        for sock in (*callers, full, full_unix):
            sock.close()
    return ", ".join(numbers) + f"; loop ≤ {lag:.0f} ms"


@check("F4")
def wrong_records(ground: Ground) -> str:
    refused = (
        "version-2",
        "id-0",
        "id-unknown",
        "end-of-unknown",
        "past-eof",
        "head-past-eof",
        "short-end",
        "params",
    )
    # The fault is the end of the stream, which may come when the head is gone already.
    cut = ("no-end", "padding-past-eof")
    with ground.fresh() as gate:
        for name in refused:
            answer = get(gate.port, f"/fastcgi/wrong/{name}")
            hold(answer.status == 502, f"{name}: {answer.status}")
        for name in cut:
            talk = ask(
                gate.port, request(f"/fastcgi/wrong/{name}") + request("/asgi/ok", close=True)
            )
            first = talk.answers[0]
            seen = f"{name}: {talk.statuses}, {first.body!r}"
            hold(first.status == 502 or (not first.is_whole and len(talk.answers) == 1), seen)
        # Legal, if odd: all of the padding that a record may have.
        answer = get(gate.port, "/fastcgi/wrong/padding-255")
        hold(
            (answer.status, answer.body) == (200, b"padded"),
            f"padding-255: {answer.status} {answer.body!r}",
        )
        answer = get(gate.port, "/fastcgi/wrong/stdout-after-end")
        hold(answer.status == 502, f"stdout-after-end: {answer.status} {answer.body!r}")
        answer = get(gate.port, "/fastcgi/wrong/stderr")
        hold(
            (answer.status, answer.body) == (200, b"good"),
            f"stderr: {answer.status} {answer.body!r}",
        )
        said = gate.log()
        hold(
            "\x1b" not in said and "\0" not in said and "\r" not in said,
            "STDERR is not escaped in the log",
        )
        hold(
            "red" in said and "\nforged line" not in said,
            "STDERR is not in the log, or forges a line of it",
        )

        before, logged = gate.rss_kib(), len(gate.log())
        began = time.monotonic()
        # One that floods is given up at once; one that drips, when its time is over.
        with ThreadPoolExecutor(2) as pool:
            fast = pool.submit(get, gate.port, "/fastcgi/loud/fast", within_s=40)
            slow = pool.submit(get, gate.port, "/fastcgi/loud/slow", within_s=40)
            hold(fast.result().status in (502, 504), f"endless STDERR: {fast.result().status}")
            hold(slow.result().status in (502, 504), f"dripping STDERR: {slow.result().status}")
            statuses = fast.result().status, slow.result().status
        took = time.monotonic() - began
        hold(took <= 32, f"endless STDERR: after {took:.1f} s")
        grown, logged = gate.rss_kib() - before, len(gate.log()) - logged
        hold(grown <= 4096, f"endless STDERR: RSS +{grown} KiB")
        hold(logged <= 2 * 128 * 1024, f"endless STDERR: {logged} bytes of log")
        stats = facts_of(get(gate.port, "/fastcgi/stats"))
        hold(stats["open"] <= 1, f"{stats['open'] - 1} connections were not dropped")
        gate.calls()
    return (
        f"{len(refused) + 1} faults 502, {len(cut)} 502 or a visible break, connections "
        "dropped; padding 255 taken; STDERR escaped; "
        f"endless STDERR {statuses[0]}, dripping {statuses[1]} after {took:.0f} s, "
        f"{logged // 1024} KiB logged"
    )


@check("F5")
def large_requests(ground: Ground) -> str:
    record = struct.pack(">BBHHBx", 1, 1, 2, 8, 0) + struct.pack(">HB5x", 1, 0)
    record += struct.pack(">BBHHBx", 1, 4, 2, 0, 0) + struct.pack(">BBHHBx", 1, 5, 2, 0, 0)
    body = (record * (99_000 // len(record) + 1))[:99_000]
    big = "v" * 30_000
    with ground.folder() as folder, ground.responder(folder) as port:
        (folder / "cgi-bin" / "ok").write_text("#!/bin/sh\nprintf 'X: y\\n\\nok'\n")
        (folder / "cgi-bin" / "ok").chmod(0o755)
        tables = with_fastcgi(house(), port)
        tables["backends"]["big"] = {
            "fastcgi": f"127.0.0.1:{port}",
            "params": {f"BIG_{n}": big for n in range(4)},
        }
        tables["routes"].append({"path": "/big/", "backend": "big"})
        with ground.gate(tables, folder, warm=(*EVERY_KIND, "/big/ok")) as gate:
            for target in ("/fastcgi/x", "/big/x"):
                facts = facts_of(get(gate.port, target, method="POST", body=body))
                hold(
                    facts["begun"] == 1, f"{target}: the application saw {facts['begun']} requests"
                )
                hold(facts["largest"] <= 65535, f"{target}: a record of {facts['largest']} bytes")
                hold(
                    facts["body_length"] == len(body),
                    f"{target}: {facts['body_length']} bytes arrived",
                )
                hold(
                    facts["body_sha256"] == hashlib.sha256(body).hexdigest(),
                    f"{target}: another body",
                )
            hold(facts["params_bytes"] > 4 * 30_000, f"params of {facts['params_bytes']} bytes")
            hold(
                facts["longest"] == len(big),
                f"a value of {facts['longest']} bytes instead of {len(big)}",
            )
            spread = os.urandom(3 << 20)
            facts_2 = facts_of(get(gate.port, "/fastcgi/x", method="POST", body=spread))
            hold(
                facts_2["body_sha256"] == hashlib.sha256(spread).hexdigest(),
                "a spooled body is another",
            )
            hold(facts_2["largest"] <= 65535, f"a record of {facts_2['largest']} bytes")
            gate.calls()
    return (
        f"99,000 bytes of records as a body and {facts['params_bytes']} bytes of params: one "
        f"request, records ≤ {facts['largest']}"
    )
