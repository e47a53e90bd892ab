"""What a check is: a function with an id that returns its numbers, or fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ground import Ground


class Failure(Exception):
    """A check does not hold; the message says what was seen instead."""


Check = Callable[["Ground"], str]
#: Every check by its id, in the order of the bar.
CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Register a check."""

    def register(function: Check) -> Check:
        assert name not in CHECKS, name
        CHECKS[name] = function
        return function

    return register


def hold(condition: object, otherwise: str) -> None:
    """Fail with ``otherwise`` unless the condition holds."""
    if not condition:
        raise Failure(otherwise)
