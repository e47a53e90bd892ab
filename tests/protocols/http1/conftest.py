"""Both engines, and a transcript of what a codec makes of some bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from tetrapylon.protocols.errors import RemoteProtocolError
from tetrapylon.protocols.http1 import (
    NEED_DATA,
    Data,
    Http1Limits,
    Request,
    ServerCodec,
    engine,
)

Transcript = list[object]


def transcribe(
    codec_class: type[ServerCodec],
    pieces: Iterable[bytes],
    limits: Http1Limits | None = None,
) -> Transcript:
    """List the events of a connection; adjoining `Data` joined, an error as its status."""
    codec = codec_class(limits or Http1Limits())
    events: Transcript = []
    for piece in pieces:
        codec.receive_data(piece)
        while True:
            try:
                event = codec.next_event()
            except RemoteProtocolError as error:
                # How much of a broken body came before depends on the cut.
                if events and isinstance(events[-1], Data):
                    events.pop()
                return [*events, error.status_hint]
            if event is NEED_DATA:
                break
            if isinstance(event, Data) and events and isinstance(events[-1], Data):
                event = Data(events[-1].data + event.data)
                events.pop()
            events.append(event)
    return events


@pytest.fixture(params=["httptools", "h11"])
def codec_class(request: pytest.FixtureRequest) -> type[ServerCodec]:
    """One engine after the other."""
    return engine(request.param)


@pytest.fixture
def read(codec_class: type[ServerCodec]) -> Callable[..., Transcript]:
    """Transcribe bytes whole, byte by byte and cut in two, and see that it is all one."""

    def read_all_ways(data: bytes, limits: Http1Limits | None = None) -> Transcript:
        whole = transcribe(codec_class, [data], limits)
        single = transcribe(codec_class, [data[i : i + 1] for i in range(len(data))], limits)
        assert single == whole, "byte by byte is not as whole"
        for cut in range(1, min(len(data), 200)):
            assert transcribe(codec_class, [data[:cut], data[cut:]], limits) == whole, cut
        return whole

    return read_all_ways


@pytest.fixture
def status_of(read: Callable[..., Transcript]) -> Callable[..., object]:
    """Return the status that bytes are refused with; fails if they are not."""

    def refusal(data: bytes, limits: Http1Limits | None = None) -> object:
        events = read(data, limits)
        assert events, "no event and no refusal"
        assert isinstance(events[-1], int), f"let through: {events}"
        return events[-1]

    return refusal


@pytest.fixture
def only_request(read: Callable[..., Transcript]) -> Callable[[bytes], Request]:
    """Return the one request that bytes hold."""

    def request_in(data: bytes) -> Request:
        events = read(data)
        assert isinstance(events[0], Request), events
        return events[0]

    return request_in
