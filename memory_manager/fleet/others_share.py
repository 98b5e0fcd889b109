"""Other processes' part of each device's budget: who makes room for it, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from memory_manager.config import PlannerConfig
from memory_manager.fleet.events import EventKind, Reporter
from memory_manager.fleet.ledger import Ledger
from memory_manager.fleet.moves import Moves
from memory_manager.fleet.records import HostCopies, Replica
from memory_manager.fleet.worker_group import Worker
from memory_manager.policy.residency import Residency
from mooring.units import format_bytes

__all__ = ["OthersShare"]


class OthersShare:
    """Lets other processes have parts of the budgets (``memory_manager.watch.others_watch.BudgetOwner``).

    Args:
        ledgers, workers, replicas: the controller's own, by name and id.
        on_claim: called with the device when its claim has changed: its workers may hold less, or more.
        on_change: called when a claim has changed or host copies have gone.
    """

    def __init__(
        self,
        ledgers: Mapping[str, Ledger],
        workers: Mapping[str, Worker],
        replicas: Mapping[str, Replica],
        host_cache: HostCopies,
        moves: Moves,
        reporter: Reporter,
        config: PlannerConfig,
        on_claim: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._ledgers = ledgers
        self._workers = workers
        self._replicas = replicas
        self._host_cache = host_cache
        self._moves = moves
        self._reporter = reporter
        self._config = config
        self._on_claim = on_claim
        self._on_change = on_change

    def budget_of(self, device: str) -> tuple[int, int]:
        """The configured budget of a device and the part of it that cannot be given up, in bytes."""
        ledger = self._ledgers[device]
        return ledger.budget_bytes, ledger.bytes_of("reserve") + 2 * self._config.kv_base_bytes

    def held_bytes(self, device: str) -> int:
        """Device memory that the workers on it hold, as far as they have told."""
        workers = sum(
            each.stats.kv_bytes + each.stats.ready_bytes
            for each in self._workers.values()
            if each.port.device == device
        )
        weights = sum(
            each.lease_bytes
            for each in self._replicas.values()
            if each.group is not None and each.residency in (Residency.RESIDENT, Residency.DRAINING)
            for worker in each.group.members
            if worker.port.device == device
        )
        return workers + weights

    def set_others(self, device: str, num_bytes: int, reason: str) -> None:
        """Leaves that part of a device's budget to other processes; absolute. What workers keep ready beyond their
        leases leaves at once, KV leases shrink next, and the planner puts replicas to sleep for the rest."""
        ledger = self._ledgers[device]
        before_bytes = ledger.budget_bytes - ledger.others_bytes
        ledger.set_others(num_bytes)
        figures = {
            "budget_bytes": ledger.budget_bytes,
            "before_bytes": before_bytes,
            "after_bytes": ledger.budget_bytes - ledger.others_bytes,
            "leased_bytes": ledger.leased_bytes,
        }
        self._reporter.of_device(EventKind.BUDGET, device, reason, figures)
        if device.startswith("cpu"):
            on_cpu = [each for name, each in self._ledgers.items() if name.startswith("cpu")]
            self._host_cache.allow_spare(not any(each.others_bytes for each in on_cpu))
        self._on_claim(device)
        self._on_change()

    def give_up_copies(self, num_bytes: int) -> None:
        """Gives so much host memory of copies of weights back to the system: copies that no worker knows at once,
        then those that their workers are made to let go of, the longest unused first."""
        given_bytes = self._host_cache.give_up(num_bytes)
        reason = f"the host lacks {format_bytes(num_bytes)}"
        for replica in self._moves.with_copies_to_drop():
            if given_bytes >= num_bytes:
                break
            num_copy_bytes = replica.spec.artifact.num_bytes
            given_bytes += num_copy_bytes
            dropping = self._moves.drop_copy(replica, reason, num_bytes)
            dropping.add_done_callback(partial(self._dropped, num_copy_bytes))
        self._on_change()

    def _dropped(self, num_copy_bytes: int, task: asyncio.Task[None]) -> None:
        """Gives back what nobody holds now: the replica's copy, unless its worker failed to let it go."""
        self._host_cache.give_up(num_copy_bytes)
