"""A client that sends any bytes and reads answers as strictly as it can.

Nothing here is shared with the gateway: a misunderstanding in one is not to hide
the same one in the other.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from verdicts import Failure

HOST = "127.0.0.1"
ANSWER_S = 20.0


@dataclass
class Answer:
    """One response; ``is_whole`` is false when the connection ended inside of it."""

    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes
    is_whole: bool = True
    interim: list[int] = field(default_factory=list)
    ends_with_connection: bool = False

    def field(self, name: bytes) -> bytes:
        """The value of a field, all of them joined; ``b""`` if there is none."""
        return b", ".join(value for key, value in self.fields if key == name)

    @property
    def closes(self) -> bool:
        return b"close" in self.field(b"connection").lower()


@dataclass
class Talk:
    """What came back on a connection, and how it ended: ``eof``, ``reset`` or ``silence``."""

    raw: bytes
    ending: str
    answers: list[Answer]
    left: bytes
    ended_after_s: float = 0.0

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]

    @property
    def only(self) -> Answer:
        if len(self.answers) != 1 or self.left:
            raise Failure(f"not one answer but {self.statuses} and {self.left[:60]!r}")
        return self.answers[0]


def parse_answers(raw: bytes, methods: Sequence[str] = ()) -> tuple[list[Answer], bytes]:
    """Take apart a stream of responses; what is no response is left over.

    ``methods`` are those of the requests, in order, as far as they matter (HEAD).
    """
    answers: list[Answer] = []
    while raw:
        taken = take_answer(raw, methods[len(answers)] if len(answers) < len(methods) else "GET")
        if taken is None:
            break
        answer, raw = taken
        answers.append(answer)
    return answers, raw


def take_answer(raw: bytes, method: str) -> tuple[Answer, bytes] | None:
    """Take the first response off a stream, whole or not; ``None`` if there is no head."""
    interim: list[int] = []
    while True:
        head, gap, raw = raw.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        if not gap or not lines[0].startswith(b"HTTP/1.1 ") or not lines[0][9:12].isdigit():
            return None
        status = int(lines[0][9:12])
        if not 100 <= status < 200:
            break
        interim.append(status)
    fields = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or b"\n" in line or b"\r" in line or b"\0" in line:
            raise Failure(f"malformed field line {line[:80]!r} in an answer")
        fields.append((name.lower(), value.strip()))
    answer = Answer(status, fields, b"", interim=interim)
    coding, length = answer.field(b"transfer-encoding"), answer.field(b"content-length")
    if coding and length:
        raise Failure("an answer with Content-Length and Transfer-Encoding")
    if method == "HEAD" or status in (204, 304):
        return answer, raw
    if coding:
        return answer, _take_chunks(answer, raw)
    if length:
        answer.body = raw[: int(length)]
        answer.is_whole = len(answer.body) == int(length)
        return answer, raw[int(length) :]
    answer.body, answer.ends_with_connection = raw, True
    return answer, b""


def _take_chunks(answer: Answer, raw: bytes) -> bytes:
    parts = []
    answer.is_whole = False
    while True:
        line, gap, raw = raw.partition(b"\r\n")
        if not gap:
            break
        size = int(line, 16)
        if not size:
            answer.is_whole = raw.startswith(b"\r\n")
            raw = raw[2:]
            break
        parts.append(raw[:size])
        if raw[size : size + 2] != b"\r\n":
            raw = b""
            break
        raw = raw[size + 2 :]
    answer.body = b"".join(parts)
    return raw


class Wire:
    """One connection."""

    def __init__(self, port: int, *, receive_buffer: int = 0, source: str = "") -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(ANSWER_S)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((HOST, port))
        self.received = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send all of it; that the gateway has closed meanwhile is no failure here."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def end(self) -> None:
        """Close the sending side."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave by a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def push(self, data: bytes, *, quiet_s: float) -> int:
        """Send until the gateway has taken nothing for ``quiet_s``; tell how much it took."""
        view, sent = memoryview(data), 0
        self.socket.setblocking(False)
        try:
            while sent < len(data):
                _, writable, _ = select.select([], [self.socket], [], quiet_s)
                if not writable:
                    break
                with contextlib.suppress(BlockingIOError):
                    sent += self.socket.send(view[sent : sent + 65536])
        except ConnectionError:
            pass
        finally:
            self.socket.settimeout(ANSWER_S)
        return sent

    def answer(self, method: str = "GET", *, within_s: float = ANSWER_S) -> Answer:
        """Read one whole response; what comes behind it is kept for the next call."""
        deadline = time.monotonic() + within_s
        while True:
            taken = take_answer(self.received, method)
            if taken is not None and taken[0].is_whole and not taken[0].ends_with_connection:
                answer, self.received = taken
                return answer
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                piece = self.socket.recv(1 << 18)
            except TimeoutError:
                raise Failure(f"no answer within {within_s:g} s") from None
            if not piece:
                if taken is not None and taken[0].is_whole:
                    self.received = b""
                    return taken[0]
                raise Failure(f"closed without a whole answer, after {self.received[:80]!r}")
            self.received += piece

    def all(self, methods: Sequence[str] = (), *, within_s: float = ANSWER_S) -> Talk:
        """Read until the gateway closes, or is silent for ``within_s``."""
        began = time.monotonic()
        pieces, self.received = [self.received], b""
        self.socket.settimeout(within_s)
        try:
            while piece := self.socket.recv(1 << 18):
                pieces.append(piece)
            ending = "eof"
        except ConnectionError:
            ending = "reset"
        except TimeoutError:
            ending = "silence"
        raw = b"".join(pieces)
        answers, left = parse_answers(raw, methods)
        return Talk(raw, ending, answers, left, time.monotonic() - began)


def ask(
    port: int,
    data: bytes,
    *,
    ends: bool = False,
    methods: Sequence[str] = (),
    within_s: float = ANSWER_S,
    cuts: Iterable[int] = (),
    pause_s: float = 0.0,
) -> Talk:
    """Send ``data`` on a fresh connection, in pieces at ``cuts``, and read to its end."""
    with Wire(port) as wire:
        at = 0
        for cut in (*cuts, len(data)):
            wire.send(data[at:cut])
            at = cut
            if pause_s and cut < len(data):
                time.sleep(pause_s)
        if ends:
            wire.end()
        return wire.all(methods, within_s=within_s)


def get(
    port: int,
    target: str | bytes,
    *fields: bytes,
    host: str = "a.test",
    method: str = "GET",
    body: bytes | None = None,
    within_s: float = ANSWER_S,
) -> Answer:
    """One request on a connection of its own."""
    with Wire(port) as wire:
        wire.send(request(target, *fields, host=host, method=method, body=body, close=True))
        return wire.answer(method, within_s=within_s)


def request(
    target: str | bytes,
    *fields: bytes,
    host: str = "a.test",
    method: str = "GET",
    body: bytes | None = None,
    close: bool = False,
) -> bytes:
    """Write a good request."""
    if isinstance(target, str):
        target = target.encode("latin-1")
    lines = [b"%s %s HTTP/1.1" % (method.encode(), target), b"Host: " + host.encode(), *fields]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    if close:
        lines.append(b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


def facts_of(answer: Answer) -> dict[str, Any]:
    """What an echoing probe said of its request; fail if it is no such answer."""
    if answer.status != 200 or not answer.body.startswith(b"{"):
        raise Failure(f"{answer.status} {answer.body[:80]!r} instead of what the probe says")
    facts: dict[str, Any] = json.loads(answer.body)
    return facts
