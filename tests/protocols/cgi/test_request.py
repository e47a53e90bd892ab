"""What SCGI and uwsgi servers receive: vectors written by hand from both specifications.

A ``requests/NAME.vector`` has lines of hexadecimal bytes and "quoted text", then
`= event` lines in order, perhaps `! pattern` of the error, and for uwsgi
`modifiers`. Before the bytes: `receiver PROTOCOL`, and `closed` where the peer
closes after them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.protocols.cgi.request import (
    NEED_DATA,
    Data,
    EndOfMessage,
    RequestDecoder,
    RequestHead,
)
from tetrapylon.protocols.errors import LocalProtocolError, RemoteProtocolError
from tetrapylon.protocols.scgi import ScgiRequestDecoder
from tetrapylon.protocols.uwsgi import UwsgiRequestDecoder

DECODERS: dict[str, type[RequestDecoder]] = {
    "scgi": ScgiRequestDecoder,
    "uwsgi": UwsgiRequestDecoder,
}
EVENTS = {"RequestHead": RequestHead, "Data": Data, "EndOfMessage": EndOfMessage}


@dataclass
class Vector:
    receiver: str = ""
    is_closed: bool = False
    data: bytes = b""
    events: list[Any] = field(default_factory=list)
    error: str | None = None
    modifiers: tuple[int, ...] = (0, 0)


def load(path: Path) -> Vector:
    vector = Vector()
    for line in path.read_text(encoding="ascii").splitlines():
        word, _, rest = line.partition(" ")
        if not line or word == "#":
            continue
        if word == "receiver":
            vector.receiver = rest
        elif word == "closed":
            vector.is_closed = True
        elif word == "=":
            vector.events.append(eval(rest, dict(EVENTS)))
        elif word == "!":
            vector.error = rest
        elif word == "modifiers":
            vector.modifiers = tuple(map(int, rest.split()))
        else:
            for token in re.findall(r'"[^"]*"|\S+', line):
                vector.data += token[1:-1].encode() if token[0] == '"' else bytes.fromhex(token)
    return vector


VECTORS = {
    path.stem: load(path) for path in sorted(Path(__file__).parent.glob("requests/*.vector"))
}


def decode(
    decoder: RequestDecoder, pieces: Iterable[bytes], *, is_closed: bool
) -> tuple[list[Any], str | None]:
    """Return all events, adjacent Data as one, and the message of the error if there was one."""
    events: list[Any] = []
    try:
        for piece in (*filter(None, pieces), *([b""] if is_closed else [])):
            decoder.receive_data(piece)
            while (event := decoder.next_event()) is not NEED_DATA:
                if isinstance(event, Data) and events and isinstance(events[-1], Data):
                    event = Data(events.pop().data + event.data)
                events.append(event)
    except RemoteProtocolError as error:
        with pytest.raises(RemoteProtocolError):
            decoder.next_event()
        return events, str(error)
    return events, None


def check(vector: Vector, pieces: Iterable[bytes]) -> None:
    decoder = DECODERS[vector.receiver]()
    events, error = decode(decoder, pieces, is_closed=vector.is_closed)
    if vector.error is None:
        assert error is None
        assert events == vector.events
        if isinstance(decoder, UwsgiRequestDecoder):
            assert (decoder.modifier1, decoder.modifier2) == vector.modifiers
    else:
        assert error is not None
        assert re.search(vector.error, error)
        if events != vector.events:
            # A byte too many may be seen before the end is told, and behind it.
            assert events == [*vector.events, EndOfMessage()]


@pytest.mark.parametrize("name", VECTORS)
def test_whole_and_byte_by_byte(name: str) -> None:
    vector = VECTORS[name]
    check(vector, [vector.data])
    check(vector, [vector.data[at : at + 1] for at in range(len(vector.data))])


@given(st.sampled_from(sorted(VECTORS)), st.data())
def test_cut_anywhere(name: str, data: st.DataObject) -> None:
    vector = VECTORS[name]
    ends = sorted(data.draw(st.sets(st.integers(0, len(vector.data)), max_size=5)))
    bounds = [0, *ends, len(vector.data)]
    check(vector, [vector.data[a:b] for a, b in itertools.pairwise(bounds)])


@settings(max_examples=300)
@given(st.sampled_from(sorted(VECTORS)), st.data())
def test_mutated_bytes_make_events_or_a_remote_error(name: str, data: st.DataObject) -> None:
    vector = VECTORS[name]
    mutated = bytearray(vector.data)
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    events, error = decode(DECODERS[vector.receiver](), [bytes(mutated)], is_closed=True)
    assert (error is None) == (EndOfMessage() in events)


@given(st.binary(max_size=200))
def test_any_bytes_make_events_or_a_remote_error(data: bytes) -> None:
    for decoder in DECODERS.values():
        decode(decoder(), [data], is_closed=True)


def test_nothing_comes_after_the_end() -> None:
    decoder = ScgiRequestDecoder()
    decoder.receive_data(b"")
    with pytest.raises(LocalProtocolError):
        decoder.receive_data(b"2")


def test_a_head_over_its_limit() -> None:
    decoder = ScgiRequestDecoder(head_limit_bytes=30)
    decoder.receive_data(b"31:")
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.next_event()
    assert caught.value.status_hint == 431
