"""Workers, and the groups of them that replicas are placed on."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from memory_manager.fleet.allowance import WorkerAllowance
from memory_manager.fleet.kv_lease import WorkerKVLease
from memory_manager.fleet.ledger import Ledger, Owner
from memory_manager.kv_spec import round_to_pages
from memory_manager.ports import Capabilities, DeploymentSpec, WorkerPort
from memory_manager.stats import WorkerStats
from mooring.errors import HostCopyAlteredError, InternalError, MooringError, WorkerLostError

__all__ = ["Worker", "WorkerGroup", "attempt"]

logger = logging.getLogger(__name__)
T = TypeVar("T")


async def attempt(step: Awaitable[T]) -> T | MooringError:
    """Returns what the step gave, or the error that it ended with."""
    try:
        return await step
    except MooringError as error:
        return error
    except Exception as error:  # the other side is a process or a disk, and fails in ways of its own
        logger.exception("a step of the memory manager failed")
        return InternalError(f"{type(error).__name__}: {error}")


@dataclass(slots=True, eq=False)
class Worker:
    """One worker that takes orders.

    Attributes:
        ledger: of its device.
        allowance: what it may hold beyond its leases.
        capabilities: as it told them when it came.
        takes_orders: False until the other workers of its device hold no more than their leases.
        tasks: what is under way on it; cancelled when it is lost.
        stats: its figures at the last poll.
        sampled_at_s: when that was; None before the first one.
        kv_queued_bytes: KV that requests in its device's queue would take, which wait for want of it.
        kv_wanted_since_s: since when some of its sequences, or requests in the queue, wait for KV.
        kv_wanted_at_s: when some did last, before now.
    """

    port: WorkerPort
    ledger: Ledger
    kv: WorkerKVLease
    allowance: WorkerAllowance
    capabilities: Capabilities
    takes_orders: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    stats: WorkerStats = field(default_factory=WorkerStats)
    sampled_at_s: float | None = None
    kv_queued_bytes: int = 0
    kv_wanted_since_s: float = 0.0
    kv_wanted_at_s: float = -math.inf
    _kv_told_bytes: int = 0  # wanted when a plan was last asked for
    leaves_by_s: float | None = None
    drained: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def worker_id(self) -> str:
        return self.port.worker_id

    @property
    def kv_wanted_bytes(self) -> int:
        """The KV lease under which nobody would wait for KV; 0 if nobody does."""
        queued_bytes = self.kv.lease_bytes + self.kv_queued_bytes if self.kv_queued_bytes else 0
        return max(self.stats.kv_wanted_bytes, queued_bytes)

    def note_kv_wanted(
        self, now_s: float, *, stats: WorkerStats | None = None, queued_bytes: int | None = None
    ) -> bool:
        """Takes new figures that tell whether somebody waits for KV, as far as they are given; returns whether a plan
        may turn on the change."""
        wanted_bytes = self.kv_wanted_bytes
        if stats is not None:
            self.stats, self.sampled_at_s = stats, now_s
        if queued_bytes is not None:
            self.kv_queued_bytes = queued_bytes
        if self.kv_wanted_bytes and not wanted_bytes:
            self.kv_wanted_since_s = now_s
        if wanted_bytes:
            self.kv_wanted_at_s = now_s
        told_bytes = self._kv_told_bytes
        if abs(self.kv_wanted_bytes - told_bytes) <= told_bytes / 8:
            return False
        self._kv_told_bytes = self.kv_wanted_bytes
        return True


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """The workers that hold one replica, in equal shares, on one device or several.

    Leases are all or nothing: each member has the same, or none has any. A call goes to all members at once and ends
    when all have answered. If it raises, some may have done it and some not; the caller then undoes it on all, and a
    member that has nothing to undo says that it is done. The loss of one member is the loss of the replica.

    Attributes:
        members: by rank; the first takes the requests.
    """

    members: tuple[Worker, ...]

    @property
    def first(self) -> Worker:
        return self.members[0]

    def lease_bytes(self, owner: Owner) -> int:
        """Bytes that each member was promised for the owner."""
        ledger = self.first.ledger
        return ledger.lease_bytes(owner) // sum(each.ledger is ledger for each in self.members)

    def grow(self, owner: Owner, num_bytes: int) -> bool:
        """Adds ``num_bytes``, rounded up to pages, to the owner's lease of each member; False, and nothing has
        changed, if one of the ledgers has no room."""
        added_bytes = round_to_pages(num_bytes)
        shares = {ledger: num * added_bytes for ledger, num in self._num_members().items()}
        fits = all(share_bytes <= ledger.free_bytes for ledger, share_bytes in shares.items())
        if fits:
            for ledger, share_bytes in shares.items():
                ledger.grant(owner, share_bytes)
        return fits

    def shrink(self, owner: Owner, to_bytes: int) -> None:
        """Lowers the owner's lease of each member to ``to_bytes``, rounded up to pages; 0 ends it."""
        for ledger, num in self._num_members().items():
            ledger.shrink(owner, num * round_to_pages(to_bytes))

    def without(self, lost: Worker, owner: Owner) -> WorkerGroup | None:
        """Ends the owner's lease of a member that is lost; returns the group of those that are left, whose leases
        stay, or None if none is."""
        kept_bytes = self.lease_bytes(owner)
        members = tuple(each for each in self.members if each is not lost)
        lost.ledger.shrink(owner, kept_bytes * sum(each.ledger is lost.ledger for each in members))
        return WorkerGroup(members) if members else None

    async def load(
        self,
        replica_id: str,
        spec: DeploymentSpec,
        weights_fd: int,
        checksum: int | None = None,
        from_file: bool = False,
    ) -> int:
        """See ``WorkerPort.load``; returns the bytes of the largest share."""
        return max(await self._ask(lambda port: port.load(replica_id, spec, weights_fd, checksum, from_file)))

    async def drop_host_copy(self, replica_id: str) -> None:
        """See ``WorkerPort.drop_host_copy``."""
        await self._ask(lambda port: port.drop_host_copy(replica_id))

    async def wake(self, replica_id: str, weights_lease_bytes: int) -> int:
        """See ``WorkerPort.wake``; the lease is each member's. Returns the bytes of the largest share."""
        return max(await self._ask(lambda port: port.wake(replica_id, weights_lease_bytes)))

    async def sleep(self, replica_id: str) -> int:
        """See ``WorkerPort.sleep``; returns the bytes that every member has released at least."""
        return min(await self._ask(lambda port: port.sleep(replica_id)))

    async def unload(self, replica_id: str) -> None:
        """See ``WorkerPort.unload``."""
        await self._ask(lambda port: port.unload(replica_id))

    async def _ask(self, call: Callable[[WorkerPort], Awaitable[T]]) -> list[T]:
        """Calls all members; raises the gravest of their errors once all have answered."""

        async def ask(worker: Worker) -> T | MooringError:
            return await attempt(call(worker.port))

        answers = await asyncio.gather(*map(ask, self.members))
        for kind in (WorkerLostError, HostCopyAlteredError, MooringError):
            for answer in answers:
                if isinstance(answer, kind):
                    raise answer
        return [answer for answer in answers if not isinstance(answer, MooringError)]

    def _num_members(self) -> Counter[Ledger]:
        return Counter(each.ledger for each in self.members)
