"""Slots: the limit, the queue, the order, and nobody lost when somebody gives up."""

from __future__ import annotations

import asyncio
import math

import pytest

from tetrapylon.adapters.errors import Unavailable
from tetrapylon.adapters.slots import Slots


class Holder:
    """A task that holds a slot until it is let go."""

    def __init__(self, slots: Slots, order: list[str], name: str) -> None:
        self.go = asyncio.Event()
        self.task = asyncio.create_task(self._hold(slots, order, name))

    async def _hold(self, slots: Slots, order: list[str], name: str) -> None:
        async with slots:
            order.append(name)
            await self.go.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_they_go_in_the_order_of_arrival() -> None:
    async def main() -> None:
        slots, order = Slots(2, queue=3, wait_s=0, name="app"), list[str]()
        holders = [Holder(slots, order, name) for name in "abcde"]
        await settle()
        assert order == ["a", "b"]
        assert slots.taken == 2
        with pytest.raises(Unavailable, match="app: 2 requests are being answered and 3 wait"):
            async with slots:
                pass
        holders[1].go.set()
        await settle()
        assert order == ["a", "b", "c"]
        holders[3].task.cancel()
        await settle()
        for holder in holders:
            holder.go.set()
        await asyncio.gather(*(holder.task for holder in holders), return_exceptions=True)
        assert order == ["a", "b", "c", "e"]
        assert slots.taken == 0

    asyncio.run(main())


def test_who_is_cancelled_in_the_moment_of_its_turn_passes_it_on() -> None:
    async def main() -> None:
        slots, order = Slots(1, queue=2, wait_s=math.inf, name="app"), list[str]()
        first, second, third = (Holder(slots, order, name) for name in "abc")
        await settle()
        first.go.set()
        while not first.task.done():
            await asyncio.sleep(0)
        second.task.cancel()
        await settle()
        third.go.set()
        await third.task
        assert order[-1] == "c"
        assert slots.taken == 0

    asyncio.run(main())


def test_a_wait_that_is_too_long() -> None:
    async def main() -> None:
        slots = Slots(1, queue=1, wait_s=0.02, name="app")
        async with slots:
            with pytest.raises(Unavailable, match=r"no free slot within 0\.02 s") as caught:
                async with slots:
                    pass
            assert caught.value.retry_after_s == 1
        async with slots:
            assert slots.taken == 1

    asyncio.run(main())
