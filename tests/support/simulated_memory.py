"""Workers and a host cache that hold numbers instead of bytes, on a loop whose time is not real.

They keep accounts of their own and refuse what a real worker would refuse, so that a controller which
promises bytes twice is caught by them and not only by its own ledger.
"""

from __future__ import annotations

import asyncio
import os
import random
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.ports import (
    ArtifactRef,
    Capabilities,
    DeploymentSpec,
    LeaseStatus,
    WarmPlace,
)
from memory_manager.stats import ReplicaStats, WorkerStats
from mooring.errors import ArtifactError, HostCopyAlteredError, InsufficientMemoryError, WorkerLostError
from mooring.policy import DeploymentPolicy

T = TypeVar("T")
PAGE = PAGE_BYTES


class _VirtualSelector(selectors.SelectSelector):
    """Waits by moving the loop's time forward."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("deadlock: nothing is scheduled and nothing is ready")
        self.now_s += max(0.0, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on which sleeping costs nothing."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)
        self.errors: list[str] = []
        self.set_exception_handler(lambda loop, context: self.errors.append(repr(context)))

    def time(self) -> float:
        return self._virtual.now_s


def run_virtually(main: Callable[[], Coroutine[Any, Any, T]], limit_s: float = 3600.0) -> T:
    """Runs ``main`` on a loop of its own; fails if it takes longer than ``limit_s`` of virtual time, or if
    anything went wrong in a callback or task that nobody awaits."""

    async def limited() -> T:
        async with asyncio.timeout(limit_s):
            return await main()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualTimeLoop)
        result = runner.run(limited())
        assert loop.errors == [], loop.errors
        return result


@dataclass
class SimulatedCopy:
    cache: SimulatedHostCache
    ref: ArtifactRef
    fd: int = 0
    checksum: int | None = None

    async def read(self) -> None:
        cache, key = self.cache, self.ref.key
        if key not in cache.copies:
            await asyncio.sleep(cache.read_s)
            if key in cache.broken:
                raise ArtifactError(f"{key} is corrupt")
            if cache.starved:
                raise InsufficientMemoryError(f"there is no host memory for {key}")
        if key not in cache.copies:
            cache.copies[key] = self.ref.num_bytes
            unused = [each for each in cache.copies if each not in cache.pins]
            while sum(cache.copies.values()) > cache.budget_bytes:
                del cache.copies[unused.pop(0)]

    def release(self) -> None:
        key = self.ref.key
        self.cache.pins[key] -= 1
        if not self.cache.pins[key]:
            del self.cache.pins[key], self.cache.sizes[key]


@dataclass
class SimulatedHostCache:
    """Reads at ``read_s`` a copy; evicts copies that nobody holds for others. While ``starved`` the host has no
    memory for a new one. ``pins`` and ``sizes`` are of what is held, ``copies`` the sizes of what was read."""

    budget_bytes: int = 1 << 60
    read_s: float = 0.05
    broken: set[str] = field(default_factory=set)
    starved: bool = False
    pins: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    expected: set[str] = field(default_factory=set)
    num_discarded: int = 0

    def contains(self, key: str) -> bool:
        return key in self.copies

    def discard(self, key: str) -> None:
        self.num_discarded += 1
        if key not in self.pins:
            self.copies.pop(key, None)

    @property
    def free_bytes(self) -> int:
        return self.budget_bytes - sum(self.sizes.values())

    def holds(self, key: str) -> bool:
        return key in self.pins

    def hold(self, ref: ArtifactRef) -> SimulatedCopy:
        assert self.holds(ref.key) or ref.num_bytes <= self.free_bytes, "the planner should have known"
        self.pins[ref.key] = self.pins.get(ref.key, 0) + 1
        self.sizes[ref.key] = ref.num_bytes
        return SimulatedCopy(self, ref)

    def open_file(self, ref: ArtifactRef) -> int:
        if ref.key in self.broken:
            raise ArtifactError(f"{ref.key} is corrupt")
        return os.open(os.devnull, os.O_RDONLY)

    def expect(self, ref: ArtifactRef) -> None:
        self.expected.add(ref.key)

    def forget(self, key: str) -> None:
        self.expected.discard(key)

    def allow_spare(self, allowed: bool) -> int:
        return 0

    def give_up(self, num_bytes: int) -> int:
        given_bytes = 0
        for key in [each for each in self.copies if each not in self.pins]:
            if given_bytes < num_bytes:
                given_bytes += self.copies.pop(key)
        return given_bytes


@dataclass
class _Held:
    spec: DeploymentSpec
    weights_bytes: int
    resident: bool
    has_copy: bool


class SimulatedWorker:
    """A worker with a device of ``budget_bytes``; ``violations`` tells when that held more.

    ``neighbours`` are all workers of the device, itself included. It holds what is leased to it, and whatever more it
    is allowed, ready for later. Its models use all the KV that they are leased, and give it up at
    ``kv_pages_per_s``; asleep they keep ``remains_pages`` of their weights, as captured graphs would. Moves of
    replicas fail at ``failure_rate``, calls named in ``failing`` always, those named in ``altered`` once, for an
    altered host
    copy, having changed nothing; ``die()`` makes all calls, under way too, fail for ever.
    """

    def __init__(
        self,
        budget_bytes: int,
        *,
        worker_id: str = "worker-0",
        device: str = "cpu",
        seed: int = 0,
        failure_rate: float = 0.0,
        copy_s: float = 0.1,
        kv_pages_per_s: float = 2000.0,
        remains_pages: int = 0,
        sleep: bool = True,
        elastic_kv: bool = True,
        warm: WarmPlace = WarmPlace.HOST_CACHE,
        maps_host_copy: bool = False,
        max_step_tokens: int = 0,
        max_sequences: int = 0,
    ) -> None:
        self.worker_id = worker_id
        self.device = device
        self.serves = ""
        self._capabilities = Capabilities(
            "simulated",
            device,
            sleep,
            elastic_kv,
            warm,
            False,
            0,
            maps_host_copy,
            max_step_tokens,
            max_sequences,
        )
        self.budget_bytes = budget_bytes
        self.failure_rate = failure_rate
        self.copy_s = copy_s
        self.alive = True
        self.on_death: Callable[[SimulatedWorker], None] = lambda worker: None
        self.failing: set[str] = set()
        self.altered: set[str] = set()
        self.violations: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.held: dict[str, _Held] = {}
        self.neighbours: list[SimulatedWorker] = [self]
        self.allowed_bytes = 0
        self.kv_bytes = 0
        self.kv_lease_bytes = 0
        self.num_queued = 0  # as it says of each replica
        self.kv_wanted_bytes = 0  # as it says
        self.revision = 0
        self._remains_bytes = remains_pages * PAGE
        self._random = random.Random(seed)
        self._kv_bytes_per_s = kv_pages_per_s * PAGE
        self._kv_at_s = 0.0
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def weights_bytes(self) -> int:
        return sum(map(self._held_bytes, self.held.values()))

    @property
    def physical_bytes(self) -> int:
        """What it holds, with what it keeps ready."""
        return max(self.allowed_bytes, self.weights_bytes + self.kv_bytes)

    def _held_bytes(self, held: _Held) -> int:
        return held.weights_bytes if held.resident else min(self._remains_bytes, held.weights_bytes)

    def die(self) -> None:
        if self.alive:
            self.alive = False
            self.held.clear()
            self.kv_bytes = self.allowed_bytes = 0
            self.neighbours.remove(self)
            if not self._gone.done():
                self._gone.set_result(None)
            self.on_death(self)

    def _check(self) -> None:
        total = sum(each.physical_bytes for each in self.neighbours)
        if total > self.budget_bytes:
            # Noted, not raised: whoever called would take it for a failed call and go on.
            self.violations.append(f"{self.calls[-1]}: holds {total} of {self.budget_bytes} bytes")

    def check_guarantees(self) -> None:
        """For a settled worker: its KV lease covers what its resident models were promised, each its own and all of
        them one longest sequence."""
        there = [each.spec for each in self.held.values() if each.resident]
        own_bytes = sum(each.kv_guarantee_bytes for each in there)
        assert own_bytes + PAGE <= self.kv_lease_bytes
        for each in there:
            others_bytes = own_bytes - each.kv_guarantee_bytes
            assert others_bytes + each.kv_longest_bytes + PAGE <= self.kv_lease_bytes

    async def _call(self, verb: str, replica_id: str, duration_s: float, may_fail: bool = True) -> None:
        await asyncio.wait([self._gone], timeout=duration_s)
        if not self.alive:
            raise WorkerLostError(f"{self.worker_id} is gone")
        if verb in self.altered:
            self.altered.discard(verb)
            raise HostCopyAlteredError(f"the host copy of {replica_id} was written to")
        if verb in self.failing or (may_fail and self._random.random() < self.failure_rate):
            raise ArtifactError(f"{verb} of {replica_id} failed")

    async def load(
        self,
        replica_id: str,
        deployment: DeploymentSpec,
        weights_fd: int,
        checksum: int | None = None,
        from_file: bool = False,
    ) -> int:
        # The pages are taken as the copy begins: that is when a lease must be there.
        self.calls.append(("load from file" if from_file else "load", replica_id))
        keeps_copy = not from_file and self._capabilities.warm is WarmPlace.HOST_CACHE
        self.held[replica_id] = _Held(deployment, deployment.weights_bytes, True, keeps_copy)
        self._grow()
        self._check()
        try:
            await self._call("load", replica_id, self.copy_s)
        except (ArtifactError, HostCopyAlteredError):
            del self.held[replica_id]
            raise
        return deployment.weights_bytes

    async def drop_host_copy(self, replica_id: str) -> None:
        self.calls.append(("drop_host_copy", replica_id))
        await self._call("drop_host_copy", replica_id, 0.001)
        held = self.held[replica_id]
        if not held.resident or self._capabilities.maps_host_copy:
            self.violations.append(f"{replica_id} was made to drop the copy that it needs")
        held.has_copy = False

    async def wake(self, replica_id: str, weights_lease_bytes: int) -> int:
        self.calls.append(("wake", replica_id))
        held = self.held.get(replica_id)
        if held is None:
            raise ArtifactError(f"{replica_id} is not known here")
        if weights_lease_bytes < held.weights_bytes:
            raise InsufficientMemoryError(f"{replica_id} needs {held.weights_bytes} bytes")
        held.resident = True
        self._check()
        try:
            await self._call("wake", replica_id, self.copy_s)
        except (ArtifactError, HostCopyAlteredError):
            held.resident = False
            raise
        return held.weights_bytes

    async def sleep(self, replica_id: str) -> int:
        assert self._capabilities.sleep
        self.calls.append(("sleep", replica_id))
        await self._call("sleep", replica_id, 0.001)
        held = self.held.get(replica_id)
        if held is None:
            raise ArtifactError(f"{replica_id} is not known here")
        if not held.has_copy and self._capabilities.warm is WarmPlace.HOST_CACHE:
            self.violations.append(f"{replica_id} was put to sleep without a copy to wake from")
        before_bytes = self._held_bytes(held)
        held.resident = False
        return before_bytes - self._held_bytes(held)

    async def run(self, replica_id: str, seconds: float) -> float:
        """Runs a request for so long as its replica is resident; returns the seconds that it still needs when the
        worker has forgotten the replica, 0 if it has ended."""
        while seconds > 1e-9 and replica_id in self.held:
            is_resident = self.held[replica_id].resident
            slice_s = min(seconds, 0.05) if is_resident else 0.05
            await asyncio.sleep(slice_s)
            if is_resident and replica_id in self.held:
                seconds -= slice_s
        return seconds if seconds > 1e-9 else 0.0

    async def unload(self, replica_id: str) -> None:
        self.calls.append(("unload", replica_id))

        async def forget() -> None:
            await self._call("unload", replica_id, 0.001)
            self.held.pop(replica_id, None)

        # Another process goes on when its caller does not.
        forgetting = asyncio.ensure_future(forget())
        forgetting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.shield(forgetting)

    async def set_lease(self, kv_bytes: int, revision: int) -> LeaseStatus:
        self.calls.append(("set_lease", str(kv_bytes)))
        await self._call("set_lease", str(kv_bytes), 0.0005, may_fail=False)
        if revision < self.revision:
            return LeaseStatus.STALE
        if revision == self.revision and kv_bytes != self.kv_lease_bytes:
            return LeaseStatus.CONFLICT
        if revision != self.revision:
            self._kv_at_s = asyncio.get_running_loop().time()
        self.revision, self.kv_lease_bytes = revision, kv_bytes
        self._grow()
        self._check()
        self._shrink()
        return LeaseStatus.APPLIED if self.kv_bytes <= kv_bytes else LeaseStatus.DEFERRED

    async def set_memory_limit(self, num_bytes: int) -> int:
        self.calls.append(("set_memory_limit", str(num_bytes)))
        self.allowed_bytes = max(num_bytes, self.allowed_bytes)
        self._check()
        await self._call("set_memory_limit", str(num_bytes), 0.0005, may_fail=False)
        self.allowed_bytes = num_bytes
        return 0

    def _grow(self) -> None:
        self.kv_bytes = max(self.kv_bytes, self.kv_lease_bytes)

    def _shrink(self) -> None:
        now_s = asyncio.get_running_loop().time()
        given_up_bytes = int((now_s - self._kv_at_s) * self._kv_bytes_per_s) // PAGE * PAGE
        if given_up_bytes:
            self._kv_at_s = now_s
            self.kv_bytes = max(self.kv_lease_bytes, self.kv_bytes - given_up_bytes)

    async def stats(self) -> WorkerStats:
        await self._call("stats", "", 0.0005, may_fail=False)
        replicas = tuple(
            ReplicaStats(
                replica_id,
                "resident" if held.resident else "warm",
                self._held_bytes(held),
                num_queued=self.num_queued,
            )
            for replica_id, held in self.held.items()
        )
        return WorkerStats(
            replicas,
            kv_lease_revision=self.revision,
            kv_bytes=self.kv_bytes,
            kv_wanted_bytes=self.kv_wanted_bytes,
        )


def deployment(
    name: str, weights_pages: int = 10, kv_pages: int = 2, longest_pages: int = 0, **policy: Any
) -> DeploymentSpec:
    """A deployment whose sizes are given in pages: of its weights, of KV that is its alone, and of its longest
    sequence."""
    artifact = ArtifactRef(f"artifact-{name}", Path(f"{name}.bin"), weights_pages * PAGE, b"{}")
    return DeploymentSpec(
        name,
        artifact,
        weights_pages * PAGE,
        kv_pages * PAGE,
        longest_pages * PAGE,
        128,
        DeploymentPolicy(**policy),
    )
