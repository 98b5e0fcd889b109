"""The duration of one decision of the memory manager as the number of deployments grows.

``python -m benchmarks.planner --out DIR`` builds a manager whose device holds 32 replicas, registers 10, 100
and 1,000 deployments, lets requests use some of them, and times whole decisions: reading the state of all
deployments, planning, and beginning what was decided. Workers and host cache answer at once and hold nothing.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import Report
from memory_manager.config import DeviceBudget, ManagerConfig
from memory_manager.fleet.controller import MemoryManager
from memory_manager.fleet.records import HeldCopy
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.ports import (
    ArtifactRef,
    Capabilities,
    DeploymentSpec,
    LeaseStatus,
    WarmPlace,
)
from memory_manager.stats import WorkerStats

__all__ = ["measure"]

SIZES = (10, 100, 1000)
NUM_RESIDENT = 32
WEIGHTS_PAGES, KV_PAGES = 10, 2
WAITING_SHARE = 0.1
REPEATS = 50


class InstantCopy:
    """A host copy without contents."""

    fd = -1
    checksum = None

    async def read(self) -> None:
        """Does nothing: nothing is to be read."""

    def release(self) -> None:
        """Does nothing: nothing is held."""


class InstantHostCache:
    """A host cache that has every artifact."""

    budget_bytes = 1 << 60
    free_bytes = 1 << 60

    def hold(self, ref: ArtifactRef) -> HeldCopy:
        return InstantCopy()

    def holds(self, key: str) -> bool:
        return True

    def open_file(self, ref: ArtifactRef) -> int:
        raise NotImplementedError("there is room for every copy")

    def contains(self, key: str) -> bool:
        return True

    def expect(self, ref: ArtifactRef) -> None:
        """Does nothing: every artifact is there already."""

    def forget(self, key: str) -> None:
        """Does nothing: nothing is held."""

    def discard(self, key: str) -> None:
        """Does nothing: the artifact is there again at once."""

    def allow_spare(self, allowed: bool) -> int:
        return 0

    def give_up(self, num_bytes: int) -> int:
        return 0


class InstantWorker:
    """A worker that obeys at once and reports that it holds what it was promised."""

    worker_id = "worker-0"
    device = "cpu"
    serves = ""

    async def load(
        self,
        replica_id: str,
        deployment: DeploymentSpec,
        weights_fd: int,
        checksum: int | None = None,
        from_file: bool = False,
    ) -> int:
        return deployment.weights_bytes

    async def drop_host_copy(self, replica_id: str) -> None:
        """Does nothing: nothing is held."""

    async def sleep(self, replica_id: str) -> int:
        return WEIGHTS_PAGES * PAGE_BYTES

    async def wake(self, replica_id: str, weights_lease_bytes: int) -> int:
        return weights_lease_bytes

    async def unload(self, replica_id: str) -> None:
        """Does nothing: nothing is held."""

    async def set_lease(self, kv_bytes: int, revision: int) -> LeaseStatus:
        return LeaseStatus.APPLIED

    def capabilities(self) -> Capabilities:
        return Capabilities("planner", self.device, True, True, WarmPlace.HOST_CACHE, False, 0)

    async def stats(self) -> WorkerStats:
        return WorkerStats()

    async def set_memory_limit(self, num_bytes: int) -> int:
        return 0


def measure(sizes: Sequence[int] = SIZES, repeats: int = REPEATS) -> dict[str, float]:
    """Median milliseconds of one decision: ``planner_ms_N`` with N deployments, of which one in ten has a
    request waiting, and ``planner_ms_N_all_waiting`` with a request waiting for each that is not resident."""
    figures = {}
    for size in sizes:
        figures[f"planner_ms_{size}"] = asyncio.run(_decide(size, WAITING_SHARE, repeats))
    largest = max(sizes)
    figures[f"planner_ms_{largest}_all_waiting"] = asyncio.run(_decide(largest, 1.0, repeats))
    return figures


async def _decide(num_deployments: int, waiting_share: float, repeats: int) -> float:
    """The median in milliseconds. No waiting request can come in: all residents are in use and have not been
    there for long, so that every decision weighs the same state."""
    num_resident = min(NUM_RESIDENT, num_deployments // 2)
    room_pages = num_resident * WEIGHTS_PAGES + KV_PAGES + 1
    manager = MemoryManager(
        [DeviceBudget("cpu", room_pages * PAGE_BYTES)],
        InstantHostCache(),
        ManagerConfig(usage_poll_s=3600),
    )
    manager.add_worker(InstantWorker())
    names = [f"model-{number}" for number in range(num_deployments)]
    for name in names:
        manager.upsert_deployment(_deployment(name))
    # Short, so that the worker has KV for all of them.
    leases = [await manager.acquire(name, most_output=1) for name in names[:num_resident]]
    asleep = names[num_resident:]
    waiting = [
        asyncio.create_task(manager.acquire(name))
        for name in asleep[: max(1, round(waiting_share * len(asleep)))]
    ]
    await asyncio.sleep(0.01)
    seconds = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        manager.replan()
        seconds.append(time.perf_counter() - began_s)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for lease in leases:
        lease.release()
    await manager.stop()
    return statistics.median(seconds) * 1e3


def _deployment(name: str) -> DeploymentSpec:
    artifact = ArtifactRef(name, Path(name), WEIGHTS_PAGES * PAGE_BYTES, b"{}")
    return DeploymentSpec(name, artifact, WEIGHTS_PAGES * PAGE_BYTES, 0, KV_PAGES * PAGE_BYTES, 2048)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("bench-out/planner"),
    repeats: Annotated[int, typer.Option(help="Decisions timed for each figure.")] = REPEATS,
) -> None:
    """Time one decision at 10, 100 and 1,000 deployments."""
    figures = measure(repeats=repeats)
    report = Report(out, "One decision of the memory manager")
    report.text(
        f"Milliseconds from the beginning to the end of one decision, median of {repeats}: reading the state of "
        f"all deployments, planning, beginning what was decided. Up to {NUM_RESIDENT} are resident and in use; "
        f"for {WAITING_SHARE:.0%} of the others a request waits, or for all of them where the name says so."
    )
    for name, value in figures.items():
        report.figure(name, value)
        print(f"{name}: {value:.3g}")
    report.write()


if __name__ == "__main__":
    typer.run(main)
