"""The event loop of those adapters that are not called on one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:  # another interpreter or system than uvloop is made for
    new_event_loop = asyncio.new_event_loop

__all__ = ["new_event_loop"]
