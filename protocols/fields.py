"""Header fields as all our protocols see them (RFC 9110 section 5).

A field list is `tetrapylon.protocols.asgi.Fields`: pairs of bytes, names in
lower case. Here stand the questions that every codec and adapter asks of a name
or a value, so that each is answered once and by ASCII alone: ``str.isdigit``
knows Arabic digits, ``str.strip`` knows NBSP, ``int`` takes ``+5`` and ``5_0``.
"""

from __future__ import annotations

import re

#: RFC 9110 §7.6.1: about one connection, never passed on to the next. In lower case.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    )
)

#: Name a file to be sent in place of the body. A Content-Length beside them is the file's,
#: as scripts and frameworks write it, and not that of the empty body that comes.
FILE_FIELDS = frozenset((b"x-sendfile", b"x-accel-redirect"))

# The length is a file offset in many an application: a signed 64-bit number.
_LENGTH_LIMIT = 2**63 - 1
_LENGTH_DIGITS = 19

# RFC 9110 §5.6.2: token = 1*tchar
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# What becomes a meta-variable: two names that differ in `-` and `_`, or in `-` and `.`,
# are one name to an application, so that only one spelling may pass.
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9-]+")
# RFC 9110 §5.5: VCHAR, obs-text, SP and HTAB; that is, no CTL but HTAB.
_FIELD_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_DIGITS = re.compile(rb"[0-9]+")


def is_token(name: bytes) -> bool:
    """Tell whether the bytes are a token: a field name, a method."""
    return _TOKEN.fullmatch(name) is not None


def is_plain_name(name: bytes) -> bool:
    """Tell whether a field name may become a meta-variable: ``[A-Za-z0-9-]+``."""
    return _PLAIN_NAME.fullmatch(name) is not None


def is_field_value(value: bytes) -> bool:
    """Tell whether the value is safe on the wire: no CR, LF, NUL or other CTL but HTAB.

    White space around it is for the parser to take off, and is let pass here.
    """
    return _FIELD_VALUE.fullmatch(value) is not None


def parse_content_length(value: bytes) -> int:
    """Return the number of bytes that a Content-Length value says.

    Raises `ValueError` unless it is 1 to 19 ASCII digits and fits 63 bits.
    """
    # The count of digits is checked first: `int` is slow on very long ones.
    if len(value) > _LENGTH_DIGITS or _DIGITS.fullmatch(value) is None:
        raise ValueError(f"Content-Length {value[:40]!r} is not a decimal number")
    length = int(value)
    if length > _LENGTH_LIMIT:
        raise ValueError(f"Content-Length {value!r} is larger than any file")
    return length
