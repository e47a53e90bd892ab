"""Range requests: which bytes of a representation are asked for (RFC 9110 section 14).

A range costs the server a part header and a read, the client four bytes; so the
number honoured is bounded, and what overlaps or nearly touches becomes one.
"""

from __future__ import annotations

import re

from .fields import parse_content_length

# RFC 9110 §14.1.2: int-range = first-pos "-" [ last-pos ]; suffix-range = "-" suffix-length.
# §5.6.1: a list may have empty elements.
_SPEC = re.compile(rb"[ \t]*(?:([0-9]*)-([0-9]*))?[ \t]*\Z")
# Further than any file reaches; also where longer numbers are cut off.
_FAR = 2**63
# RFC 9110 §15.3.7.2: a gap smaller than the overhead of a part is not worth one.
_GAP_BYTES = 80


def parse_ranges(value: bytes, length: int, *, limit: int) -> list[tuple[int, int]] | None:
    """Say what a Range field asks of a representation of ``length`` bytes.

    Returns half-open ranges ``(start, stop)`` in the order asked for, disjoint
    and never more than ``limit``; an empty list when none can be satisfied (416);
    ``None`` when the field is to be ignored, and all of it sent (200): another
    unit, a malformed or reversed range, more ranges than ``limit``, or nothing
    to take a range of.
    """
    unit, equals, rest = value.partition(b"=")
    if not equals or unit.lower() != b"bytes" or length == 0:
        return None
    if rest.count(b",") >= limit:
        return None
    ranges: list[tuple[int, int]] = []
    is_any = False
    for spec in rest.split(b","):
        match = _SPEC.match(spec)
        if match is None:
            return None
        first, last = match.groups()
        if first is None:
            continue
        if not first and not last:
            return None
        is_any = True
        if not first:
            suffix = _position(last)
            if suffix:
                ranges.append((max(0, length - suffix), length))
            continue
        start = _position(first)
        stop = _position(last) + 1 if last else _FAR
        if stop <= start and last:
            return None
        if start < length:
            ranges.append((start, min(stop, length)))
    if not is_any:
        return None
    return _coalesce(ranges) if len(ranges) > 1 else ranges


def _position(digits: bytes) -> int:
    try:
        return parse_content_length(digits.lstrip(b"0") or b"0")
    except ValueError:
        return _FAR


def _coalesce(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that overlap or nearly touch; each stands where its first part was."""
    # RFC 9110 §15.3.7.2: parts SHOULD come in the order they were asked for.
    joined: list[tuple[int, int, int]] = []
    for start, stop, place in sorted((*pair, place) for place, pair in enumerate(ranges)):
        if joined and start - joined[-1][1] < _GAP_BYTES:
            before = joined[-1]
            joined[-1] = (before[0], max(before[1], stop), min(before[2], place))
        else:
            joined.append((start, stop, place))
    return [(start, stop) for start, stop, place in sorted(joined, key=lambda one: one[2])]
