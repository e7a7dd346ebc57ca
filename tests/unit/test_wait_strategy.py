"""How the loop waits: the turns it takes only to stay awake are counted, so no test here depends on the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic_ns

import uvloop

from router.wait_strategy import StayAwake, stay_awake

LONG_US = 60e6
TURNS = 50


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    uvloop.run(main())


async def turns(awake: StayAwake, count: int) -> None:
    """Wait until the loop has taken so many turns more. Nothing but ``awake`` wakes it."""
    event_loop = asyncio.get_running_loop()
    reached = event_loop.create_future()
    until = awake.turn_count + count

    def look() -> None:
        if awake.turn_count >= until:
            reached.set_result(None)
        else:
            event_loop.call_soon(look)

    event_loop.call_soon(look)
    await asyncio.wait_for(reached, 30)


def test_block_is_nothing_at_all() -> None:
    async def main() -> None:
        assert stay_awake(asyncio.get_running_loop(), "block", 100) is None

    run(main)


def test_spin_is_always_awake() -> None:
    async def main() -> None:
        awake = stay_awake(asyncio.get_running_loop(), "spin", 100)
        assert awake is not None
        awake.start()
        await turns(awake, TURNS)
        awake.stop()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        stopped_at = awake.turn_count
        await asyncio.sleep(0.01)
        assert awake.turn_count == stopped_at, "it ends when it is told to"

    run(main)


def test_adaptive_is_awake_after_an_event_only() -> None:
    async def main() -> None:
        awake = stay_awake(asyncio.get_running_loop(), "adaptive", LONG_US)
        assert awake is not None
        awake.start()
        await asyncio.sleep(0.01)
        assert awake.turn_count == 0, "nothing has happened yet"
        awake.touch(monotonic_ns())
        await turns(awake, TURNS)
        awake.stop()

    run(main)


def test_adaptive_sleeps_when_its_time_is_over_and_wakes_again() -> None:
    async def main() -> None:
        awake = stay_awake(asyncio.get_running_loop(), "adaptive", 1)
        assert awake is not None
        awake.start()
        for _ in range(2):
            awake.touch(monotonic_ns() - 1_000_000)  # long ago
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            slept_at = awake.turn_count
            await asyncio.sleep(0.01)
            assert awake.turn_count == slept_at
        awake.touch(monotonic_ns() + 30_000_000_000)
        await turns(awake, TURNS)
        awake.stop()

    run(main)


def test_a_published_record_is_an_event() -> None:
    async def main() -> None:
        published: list[tuple[int, ...]] = []

        def publish(*words: int) -> int:
            published.append(words)
            return 7

        awake = StayAwake(asyncio.get_running_loop(), LONG_US)
        assert awake.watching(publish)(monotonic_ns(), 2, 3, 4, 5, 6, 7) == 7
        assert published[0][1:] == (2, 3, 4, 5, 6, 7)
        await turns(awake, TURNS)
        awake.stop()

    run(main)
