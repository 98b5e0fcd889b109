"""A dry run of the manager's: device by device, and nothing moves."""

from __future__ import annotations

import asyncio

import pytest
from support.simulated_house import BUDGET, house, virtually
from support.simulated_memory import PAGE, deployment

from memory_manager.fleet.events import EventKind


@virtually
async def test_each_device_is_told_apart_and_nothing_moves() -> None:
    async with house(cpu=BUDGET, cuda=BUDGET, small=8 * PAGE, empty=BUDGET) as h:
        for device in ("cpu", "cuda", "small"):
            h.add_worker(device, 8 * PAGE if device == "small" else BUDGET)
        await asyncio.sleep(0.1)
        for name in ("a", "b", "c"):
            await h.bring_in(name)
        await asyncio.sleep(1)
        hosted = {
            device: {
                each.name
                for each in h.manager.snapshot().deployments
                if each.replicas[0].worker_id == f"worker-{device}"
            }
            for device in ("cpu", "cuda")
        }
        full = next(device for device in hosted if len(hosted[device]) == 2)
        other = "cuda" if full == "cpu" else "cpu"
        num_events = len(h.decisions)
        found = h.manager.fit(deployment("new"))
        assert {device: each.verdict for device, each in found.items()} == {
            full: "would_displace",
            other: "fits",
            "small": "never",
            "empty": "waits",
        }
        assert "no worker" in found["empty"].message
        (gone,) = found[full].leaving
        assert gone.deployment in hosted[full]
        assert gone.freed_bytes == 12 * PAGE
        assert found[other].leaving == ()
        for each in found.values():
            assert (each.weights_bytes, each.kv_guarantee_bytes) == (10 * PAGE, 2 * PAGE)
        await asyncio.sleep(2)
        assert len(h.decisions) == num_events
        assert h.told(EventKind.EVICT) == []
        assert [each.name for each in h.manager.snapshot().deployments] == ["a", "b", "c"]


@virtually
async def test_a_deployment_that_is_there_fits_where_it_is() -> None:
    async with house(cpu=BUDGET, cuda=BUDGET) as h:
        for device in ("cpu", "cuda"):
            h.add_worker(device)
        await asyncio.sleep(0.1)
        await h.bring_in("a")
        (replica,) = h.manager.snapshot().deployments[0].replicas
        assert replica.worker_id is not None
        found = h.manager.fit(deployment("a"))
        here = found[replica.worker_id.removeprefix("worker-")]
        assert (here.verdict, here.message) == ("fits", "it is on this device, or on its way")
        assert {each.verdict for each in found.values()} == {"fits"}


@virtually
async def test_how_long_it_takes_follows_from_the_moves_of_before() -> None:
    async with house() as h:
        h.add_worker()
        await asyncio.sleep(0.1)
        guessed_s = h.manager.fit(deployment("a"))["cpu"].takes_s
        assert guessed_s == pytest.approx(10 * PAGE / 1e9)
        await h.bring_in("a")
        measured_s = h.manager.snapshot().deployments[0].load_s
        assert measured_s is not None
        twice = h.manager.fit(deployment("twice", weights_pages=20))["cpu"].takes_s
        assert twice == pytest.approx(2 * measured_s)
        await h.manager.sleep("a")
        await h.manager.wake("a")
        assert h.manager.fit(deployment("a"))["cpu"].takes_s == h.manager.snapshot().deployments[0].wake_s


@virtually
async def test_free_bytes_are_what_is_promised_to_nobody() -> None:
    async with house() as h:
        h.add_worker()
        await asyncio.sleep(0.1)
        await h.bring_in("a")
        await asyncio.sleep(1)
        promised = sum(h.owners().values()) * PAGE
        assert h.manager.fit(deployment("new"))["cpu"].free_bytes == BUDGET - promised
