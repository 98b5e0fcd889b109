"""Other processes that come and go at random, beside random traffic, against the real controller."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.simulated_house import CONFIG, House, house
from support.simulated_memory import PAGE, deployment, run_virtually

BUDGET_PAGES = 30

claims = st.tuples(st.just("others"), st.integers(0, BUDGET_PAGES), st.floats(0, 6))
uses = st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.floats(0, 6))


async def use(h: House, name: str, hold_s: float) -> None:
    lease = await h.manager.acquire(name)
    await asyncio.sleep(hold_s)
    lease.release()


def check(h: House) -> None:
    h.manager.check()
    for device in h.manager.snapshot().devices:
        assert sum(device.owners.values()) <= device.budget_bytes
    for worker in h.workers:
        assert worker.violations == []


@given(st.lists(st.one_of(claims, uses), max_size=25))
@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_the_ledger_holds_and_everybody_is_served_once_others_are_gone(
    steps: list[tuple[str, int, float]],
) -> None:
    async def main() -> None:
        async with house(replace(CONFIG, max_waiting_requests=100)) as h:
            h.add_worker()
            for name in "abc":
                h.manager.upsert_deployment(deployment(name))
            running = []
            for what, number, pause_s in steps:
                if what == "others":
                    h.manager.others.set_others("cpu", number * PAGE, "others")
                else:
                    running.append(asyncio.ensure_future(use(h, what, float(number))))
                await asyncio.sleep(pause_s)
                check(h)
            h.manager.others.set_others("cpu", 0, "gone")
            async with asyncio.timeout(600):
                await asyncio.gather(*running)
            check(h)

    run_virtually(main)


@given(st.integers(0, BUDGET_PAGES), st.lists(st.sampled_from("abc"), max_size=6))
@settings(max_examples=15)
def test_a_claim_is_met_in_time_unless_nothing_more_can_go(claim_pages: int, names: list[str]) -> None:
    async def main() -> None:
        async with house() as h:
            h.add_worker()
            await asyncio.sleep(1)  # until it has the page that it always holds
            for name in "abc":
                h.manager.upsert_deployment(deployment(name))
            for name in names:
                (await h.manager.acquire(name)).release()
            h.manager.others.set_others("cpu", claim_pages * PAGE, "others")
            await asyncio.sleep(15)
            # That page is all that stays when nobody asks for anything.
            assert h.owners().get("others", 0) == min(claim_pages, BUDGET_PAGES - 1)
            h.manager.others.set_others("cpu", 0, "gone")

    run_virtually(main)
