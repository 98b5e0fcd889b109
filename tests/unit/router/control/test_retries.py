"""What failed is tried again, each time later, until it goes well or is wanted no more."""

from __future__ import annotations

import asyncio

from support.simulated_memory import run_virtually

from mooring.errors import RegistryUnavailableError
from router.control.retries import Retries, RetryConfig

CONFIG = RetryConfig(first_s=1.0, max_s=3.0)


def test_pauses_double_up_to_the_longest_and_end_when_it_goes_well() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        tried_s: list[float] = []

        async def attempt(name: str) -> None:
            tried_s.append(round(loop.time(), 3))
            if len(tried_s) == 3:
                raise RegistryUnavailableError("away")
            if len(tried_s) < 5:
                retries.failed(name)
            else:
                retries.settled(name)

        retries = Retries(attempt, CONFIG)
        assert retries.failed("a") == 1.0
        await asyncio.sleep(100)
        assert tried_s == [1, 3, 6, 9, 12]
        assert retries.failed("a") == 1.0, "it begins anew"
        await retries.stop()
        await asyncio.sleep(10)
        assert len(tried_s) == 5

    run_virtually(main)


def test_what_is_wanted_no_more_is_not_tried() -> None:
    async def main() -> None:
        tried: list[str] = []

        async def attempt(name: str) -> None:
            tried.append(name)
            await asyncio.sleep(50)

        retries = Retries(attempt, CONFIG)
        for name in "ab":
            retries.failed(name)
        retries.settled("a")
        await asyncio.sleep(5)
        assert tried == ["b"]
        await retries.stop()
        assert len(asyncio.all_tasks()) == 1

    run_virtually(main)
