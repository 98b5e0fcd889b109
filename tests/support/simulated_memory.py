"""Workers and a host cache that hold numbers instead of bytes, on a loop whose time is not real.

They keep accounts of their own and refuse what a real worker would refuse, so that a controller which
promises bytes twice is caught by them and not only by its own ledger.
"""

from __future__ import annotations

import asyncio
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
    key: str
    fd: int = 0
    checksum: int | None = None

    def release(self) -> None:
        self.cache.pins[self.key] -= 1
        assert self.cache.pins[self.key] >= 0


@dataclass
class SimulatedHostCache:
    """Reads at ``read_s`` a copy; evicts unused copies where there are more than ``max_copies``. Copies of
    ``too_large_bytes`` or more are never held; while ``starved`` the host has no memory for a new one."""

    max_copies: int = 1000
    read_s: float = 0.05
    broken: set[str] = field(default_factory=set)
    too_large_bytes: int = 1 << 60
    starved: bool = False
    pins: dict[str, int] = field(default_factory=dict)
    expected: set[str] = field(default_factory=set)
    num_discarded: int = 0

    def contains(self, key: str) -> bool:
        return key in self.pins

    def discard(self, key: str) -> None:
        self.num_discarded += 1
        if not self.pins.get(key):
            self.pins.pop(key, None)

    def can_hold(self, num_bytes: int) -> bool:
        return num_bytes < self.too_large_bytes

    def has_room(self, num_bytes: int) -> bool:
        unused = sum(count == 0 for count in self.pins.values())
        return self.can_hold(num_bytes) and len(self.pins) - unused < self.max_copies

    def expect(self, ref: ArtifactRef) -> None:
        self.expected.add(ref.key)

    def forget(self, key: str) -> None:
        self.expected.discard(key)

    def allow_spare(self, allowed: bool) -> int:
        return 0

    def give_up(self, num_bytes: int) -> int:
        """A copy is taken for ten pages, as ``deployment`` makes them."""
        unused = [key for key, count in self.pins.items() if count == 0][: -(-num_bytes // (10 * PAGE))]
        for key in unused:
            del self.pins[key]
        return len(unused) * 10 * PAGE

    async def get(self, ref: ArtifactRef) -> SimulatedCopy:
        if ref.key not in self.pins:
            await asyncio.sleep(self.read_s)
            if ref.key in self.broken:
                raise ArtifactError(f"{ref.key} is corrupt")
            if self.starved or not self.can_hold(ref.num_bytes):
                raise InsufficientMemoryError(f"there is no host memory for {ref.key}")
        if ref.key not in self.pins:
            while len(self.pins) >= self.max_copies:
                unused = [key for key, count in self.pins.items() if count == 0]
                if not unused:
                    raise InsufficientMemoryError("the host cache is full of copies in use")
                del self.pins[unused[0]]
            self.pins[ref.key] = 0
        self.pins[ref.key] += 1
        return SimulatedCopy(self, ref.key)


@dataclass
class _Held:
    spec: DeploymentSpec
    weights_bytes: int
    resident: bool


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
    ) -> None:
        self.worker_id = worker_id
        self.device = device
        self._capabilities = Capabilities("simulated", device, sleep, elastic_kv, warm, False, 0)
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
        """For a settled worker: its KV lease covers what its resident models were promised."""
        promised = sum(each.spec.kv_guarantee_bytes for each in self.held.values() if each.resident)
        assert promised + PAGE <= self.kv_lease_bytes

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
        self, replica_id: str, deployment: DeploymentSpec, host_copy_fd: int, checksum: int | None = None
    ) -> int:
        # The pages are taken as the copy begins: that is when a lease must be there.
        self.calls.append(("load", replica_id))
        self.held[replica_id] = _Held(deployment, deployment.weights_bytes, True)
        self._grow()
        self._check()
        try:
            await self._call("load", replica_id, self.copy_s)
        except (ArtifactError, HostCopyAlteredError):
            del self.held[replica_id]
            raise
        return deployment.weights_bytes

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
        before_bytes = self._held_bytes(held)
        held.resident = False
        return before_bytes - self._held_bytes(held)

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


def deployment(name: str, weights_pages: int = 10, kv_pages: int = 2, **policy: Any) -> DeploymentSpec:
    """A deployment whose sizes are given in pages."""
    artifact = ArtifactRef(f"artifact-{name}", Path(f"{name}.bin"), weights_pages * PAGE, b"{}")
    return DeploymentSpec(
        name, artifact, weights_pages * PAGE, kv_pages * PAGE, 128, DeploymentPolicy(**policy)
    )
