"""Records: header, padding, limits; see also the golden vectors in test_connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetrapylon.protocols.errors import LocalProtocolError, RemoteProtocolError
from tetrapylon.protocols.fastcgi.records import (
    FULL_CONTENT_BYTES,
    MAX_CONTENT_BYTES,
    ProtocolStatus,
    Record,
    RecordDecoder,
    RecordType,
    Role,
    encode_record,
    encode_stream,
)


def decode(*pieces: bytes) -> list[Record]:
    decoder = RecordDecoder()
    records = []
    for piece in pieces:
        decoder.receive(piece)
        while (record := decoder.next_record()) is not None:
            records.append(record)
    return records


def test_numbers_of_the_specification() -> None:
    # FCGI-8-TYPES, FCGI-8-STATUS, FCGI-5.1-ROLE
    assert {type_.name: type_.value for type_ in RecordType} == {
        "BEGIN_REQUEST": 1,
        "ABORT_REQUEST": 2,
        "END_REQUEST": 3,
        "PARAMS": 4,
        "STDIN": 5,
        "STDOUT": 6,
        "STDERR": 7,
        "DATA": 8,
        "GET_VALUES": 9,
        "GET_VALUES_RESULT": 10,
        "UNKNOWN_TYPE": 11,
    }
    assert [(role.name, role.value) for role in Role] == [
        ("RESPONDER", 1),
        ("AUTHORIZER", 2),
        ("FILTER", 3),
    ]
    assert [(status.name, status.value) for status in ProtocolStatus] == [
        ("REQUEST_COMPLETE", 0),
        ("CANT_MPX_CONN", 1),
        ("OVERLOADED", 2),
        ("UNKNOWN_ROLE", 3),
    ]


@pytest.mark.parametrize(
    ("content", "encoded"),
    [
        (b"", b"\x01\x05\x01\x02\x00\x00\x00\x00"),
        (b"a", b"\x01\x05\x01\x02\x00\x01\x07\x00a" + bytes(7)),
        (b"1234567", b"\x01\x05\x01\x02\x00\x07\x01\x001234567\x00"),
        (b"12345678", b"\x01\x05\x01\x02\x00\x08\x00\x0012345678"),
    ],
)
def test_encoding_aligns_to_eight_bytes(content: bytes, encoded: bytes) -> None:
    # FCGI-3.3-ALIGN, FCGI-3.3-RESERVED
    assert encode_record(5, 0x0102, content) == encoded


def test_a_record_holds_65535_bytes_and_no_more() -> None:
    # FCGI-3.3-MAX
    content = bytes(MAX_CONTENT_BYTES)
    assert decode(encode_record(5, 1, content)) == [(5, 1, content, 0)]
    with pytest.raises(LocalProtocolError, match="65536 bytes"):
        encode_record(5, 1, bytes(MAX_CONTENT_BYTES + 1))


@pytest.mark.parametrize("length", [0, 1, 65527, 65528, 65529, 131056, 131057, 300_000])
def test_a_stream_is_cut_into_full_records(length: int) -> None:
    # F5: a body that looks like records stays content, FCGI-3.3-STREAM, FCGI-3.3-END
    data = (encode_record(3, 1, bytes(8)) * (length // 16 + 1))[:length]
    records = decode(encode_stream(5, 1, data))
    assert b"".join(record[2] for record in records) == data
    assert all(record[:2] == (5, 1) for record in records)
    assert [len(record[2]) for record in records[:-1]] == [FULL_CONTENT_BYTES] * (len(records) - 1)
    assert (length == 0) == (records == [(5, 1, b"", 0)])


def test_garbage_is_told_by_its_first_byte() -> None:
    # FCGI-3.3-VERSION
    decoder = RecordDecoder()
    decoder.receive(b"H")
    with pytest.raises(RemoteProtocolError, match="byte 0: a record of version 72") as caught:
        decoder.next_record()
    assert caught.value.status_hint == 502


def test_a_large_record_byte_by_byte_is_copied_once() -> None:
    encoded = encode_record(6, 1, bytes(range(256)) * 255)
    pieces = [encoded[i : i + 1] for i in range(len(encoded))]
    assert decode(*pieces) == decode(encoded)


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 23])
def test_the_end_within_a_record(cut: int) -> None:
    decoder = RecordDecoder()
    decoder.receive(encode_record(6, 1, b"x" * 8) * 2)
    decoder.receive(encode_record(6, 1, b"x" * 16)[:cut])
    assert [decoder.next_record() is not None for _ in range(3)] == [True, True, False]
    assert decoder.has_pending
    decoder.receive(b"")
    with pytest.raises(RemoteProtocolError, match=f"byte 32: .* {cut} bytes into"):
        decoder.next_record()


def test_the_end_between_records() -> None:
    decoder = RecordDecoder()
    decoder.receive(encode_record(6, 1, b"x"))
    decoder.receive(b"")
    assert decoder.next_record() == (6, 1, b"x", 0)
    assert decoder.next_record() is None
    assert decoder.is_closed
    assert not decoder.has_pending


RECORDS = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 65535), st.binary(max_size=300)), max_size=6
)


@given(RECORDS, st.data())
def test_decoding_undoes_encoding_however_it_is_cut(
    records: list[tuple[int, int, bytes]], data: st.DataObject
) -> None:
    encoded = b"".join(encode_record(*record) for record in records)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=8)))
    pieces = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    decoded = decode(*filter(None, pieces))
    assert [record[:3] for record in decoded] == records
    offset = 0
    for record in decoded:
        assert record[3] == offset
        offset += len(encode_record(*record[:3]))


@given(RECORDS, st.binary(max_size=7))
def test_trailing_bytes_wait(records: list[tuple[int, int, bytes]], tail: bytes) -> None:
    decoder = RecordDecoder()
    decoder.receive(b"".join(encode_record(*record) for record in records) + b"\x01" + tail[1:])
    for _ in records:
        assert decoder.next_record() is not None
    assert decoder.next_record() is None
    assert decoder.has_pending
