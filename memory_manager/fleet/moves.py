"""Carrying plans out: the moves of one replica between residencies, each with its bytes.

The rule of every move: the ledger's lease is taken before the worker is asked, and given back only when
the worker has said that it holds nothing. A move that is cancelled therefore leaves bytes promised that
may be in use, never the other way round; they leave the ledger with the worker. So do those of a move whose
worker turns out to be gone: only its supervisor knows when its process has ended and its memory is free.

A move of a group is all or nothing: what fails on one worker is undone on all of them. If that fails too, the replica
has failed, all leases stay, and the planner has it unloaded from every worker that is left.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from memory_manager.config import ManagerConfig
from memory_manager.fleet.events import EventKind, Reporter
from memory_manager.fleet.records import HostCopies, Replica
from memory_manager.fleet.worker_group import WorkerGroup, attempt
from memory_manager.kv_spec import round_to_pages
from memory_manager.policy.plan_types import Figures
from memory_manager.policy.residency import ON_DEVICE, Residency, ResidencyEvent
from memory_manager.ports import WarmPlace
from mooring.errors import (
    HostCopyAlteredError,
    InsufficientMemoryError,
    InternalError,
    MooringError,
    WorkerLostError,
)
from mooring.units import format_bytes

__all__ = ["Moves"]

logger = logging.getLogger(__name__)


class Moves:
    """Moves replicas. Each coroutine runs as a task of the workers that it concerns.

    Args:
        replicas: all there are, to find those whose host copies can go.
        emit: told of every transition.
        reporter: told how moves ended.
        on_failed: told when a replica has failed; its error goes to whoever waits.
        spawn: runs a step as a task of a group's workers.
    """

    def __init__(
        self,
        host_cache: HostCopies,
        config: ManagerConfig,
        clock: Callable[[], float],
        replicas: Callable[[], Iterable[Replica]],
        emit: Callable[[ResidencyEvent], None],
        reporter: Reporter,
        on_failed: Callable[[Replica, MooringError], None],
        spawn: Callable[[WorkerGroup, Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._host_cache = host_cache
        self._config = config
        self._clock = clock
        self._replicas = replicas
        self._emit = emit
        self._reporter = reporter
        self._on_failed = on_failed
        self._spawn = spawn

    def enter(self, replica: Replica, after: Residency, reason: str) -> None:
        """Makes one transition, tells of it, and answers an operator who waits for it."""
        replica.deployment.stirred = True
        replica.is_leaving = False
        before, now_s = replica.residency, self._clock()
        duration_s = replica.state.move(after, now_s, reason)
        replica.deployment.note_presence(now_s)
        if after is Residency.RESIDENT and before is not Residency.DRAINING:
            assert replica.group is not None, "what has arrived is on a worker"
            replica.deployment.asked_in_vain_since_s = None
            exchange, replica.deployment.exchange = replica.deployment.exchange, None
            replica.is_guest = exchange is not None and exchange.as_guest
            replica.deployment.note_reload(before, replica.group.first.port.device, duration_s)
        if after not in ON_DEVICE and replica.asleep is not None:
            if not replica.asleep.done():
                replica.asleep.set_result(None)
            replica.asleep = None
        where = replica.spec.name, replica.replica_id, replica.worker_id
        self._emit(ResidencyEvent(now_s, *where, before, after, duration_s, reason))

    def off_device(self, replica: Replica) -> Residency:
        """Returns warm if the weights are in memory (its worker's, or the host cache's), else cold."""
        sleeps = replica.group is not None and replica.group.first.capabilities.warm is WarmPlace.WORKER
        in_cache = replica.host_copy is not None or self._host_cache.contains(replica.spec.artifact.key)
        return Residency.WARM if sleeps or in_cache else Residency.COLD

    def follow_host_cache(self, replica: Replica) -> None:
        """A replica that no worker knows is warm or cold as the host cache has it."""
        if replica.group is None and replica.residency in (Residency.WARM, Residency.COLD):
            now = self.off_device(replica)
            if now is replica.residency:
                return
            if now is Residency.COLD:
                figures: Figures = {
                    "host_copy_bytes": replica.spec.artifact.num_bytes,
                    "unused_s": self._clock() - max(replica.last_used_s, replica.state.since_s),
                }
                self._reporter.of_replica(EventKind.DROP, replica, "host copy evicted", figures)
            self.enter(replica, now, "host copy made" if now is Residency.WARM else "host copy evicted")

    def begin_leaving(self, replica: Replica) -> None:
        """Notes that a replica is about to be put to sleep or unloaded: it takes no more requests."""
        replica.deployment.stirred = replica.in_flight = replica.is_leaving = True
        replica.deployment.note_presence(self._clock())

    # Bringing in.

    def begin_bringing(
        self, replica: Replica, group: WorkerGroup, reason: str, from_file: bool = False
    ) -> int:
        """Takes the leases and begins a load or wake; returns the lease that there was, of what a sleeper kept on the
        device. A load has a lease of host memory too, unless the weights come ``from_file``.

        Raises:
            InternalError, InsufficientMemoryError: a ledger has no room, which the planner should have known.
        """
        kept_bytes = replica.lease_bytes
        missing_bytes = replica.spec.weights_bytes - kept_bytes
        if not group.grow(replica.owner, missing_bytes):
            raise InternalError(f"no room for the weights of {replica.replica_id}: {missing_bytes} bytes")
        if replica.num_failures:
            reason = f"tried again after {replica.num_failures} failures in a row: {replica.state.reason}"
            self._reporter.of_replica(
                EventKind.RETRY, replica, reason, {"num_failures": replica.num_failures}
            )
        if replica.residency is Residency.FAILED:
            self.enter(replica, Residency.COLD, "tried again")
            if self.off_device(replica) is Residency.WARM:
                self.enter(replica, Residency.WARM, "host copy kept")
        if replica.group is None and not from_file:
            replica.host_copy = self._host_cache.hold(replica.spec.artifact)
        replica.group = group
        replica.in_flight = True
        is_warm = replica.residency is Residency.WARM
        self.enter(replica, Residency.WAKING if is_warm else Residency.LOADING, reason)
        return kept_bytes

    async def load(self, replica: Replica, group: WorkerGroup) -> None:
        """Brings a replica that no worker knows to a group."""
        held_bytes = await attempt(self._load(replica, group))
        await self._arrive(replica, group, held_bytes, None)

    async def wake(self, replica: Replica, group: WorkerGroup, kept_bytes: int) -> None:
        """Brings back a replica that sleeps in this group and kept so much on each device."""
        held_bytes = await attempt(group.wake(replica.replica_id, replica.lease_bytes))
        await self._arrive(replica, group, held_bytes, kept_bytes)

    async def _load(self, replica: Replica, group: WorkerGroup) -> int:
        ref, copy = replica.spec.artifact, replica.host_copy
        if copy is None:
            file_fd = self._host_cache.open_file(ref)
            try:
                return await group.load(replica.replica_id, replica.spec, file_fd, from_file=True)
            finally:
                os.close(file_fd)
        try:
            await copy.read()
        except InsufficientMemoryError:  # the host has less memory than the budget
            self._host_cache.give_up(ref.num_bytes)  # for the next attempt
            raise
        held_bytes = await group.load(replica.replica_id, replica.spec, copy.fd, copy.checksum)
        if group.first.capabilities.warm is not WarmPlace.HOST_CACHE:
            replica.let_host_copy_go()
        return held_bytes

    # Host copies that others' memory is wanted for.

    def with_copies_to_drop(self) -> list[Replica]:
        """Replicas that can do without their host copies, the longest unused first, and last those that sleep and
        that requests wait for or are parked on."""
        now_s = self._clock()
        can_go = (each for each in self._replicas() if each.can_drop_copy(now_s))
        return sorted(can_go, key=lambda each: (each.is_awaited_asleep, each.copy_unused_since_s))

    def drop_copy(self, replica: Replica, reason: str, wanted_bytes: int) -> asyncio.Task[None]:
        """Begins to make a replica's workers let go of its host copy, so that it can be evicted; those of a sleeper
        forget it. A task of those workers: it goes on where who wanted the memory, ``wanted_bytes`` of it, is gone
        meanwhile."""
        group = replica.group
        assert group is not None, "its workers hold the copy"
        figures: Figures = {
            "wanted_bytes": wanted_bytes,
            "host_copy_bytes": replica.spec.artifact.num_bytes,
            "unused_s": self._clock() - replica.copy_unused_since_s,
        }
        replica.in_flight = True
        if replica.residency is Residency.RESIDENT:
            self._reporter.of_replica(EventKind.DROP, replica, reason, figures)
            return self._spawn(group, self._drop_residents_copy(replica, group))
        self._reporter.of_replica(EventKind.UNLOAD, replica, reason, figures)
        return self._spawn(group, self.unload(replica, group, reason))

    async def _drop_residents_copy(self, replica: Replica, group: WorkerGroup) -> None:
        answer = await attempt(group.drop_host_copy(replica.replica_id))
        if isinstance(answer, WorkerLostError):
            return
        replica.in_flight = False
        if isinstance(answer, MooringError):
            self.count_failure(replica, answer)
        else:
            replica.let_host_copy_go()

    async def _arrive(
        self, replica: Replica, group: WorkerGroup, held_bytes: int | MooringError, kept_bytes: int | None
    ) -> None:
        """Ends a load, or the wake of what kept so many bytes asleep, well or badly."""
        if isinstance(held_bytes, WorkerLostError):
            return
        if isinstance(held_bytes, MooringError):
            await self._roll_back(replica, group, held_bytes, kept_bytes)
        else:
            group.shrink(replica.owner, held_bytes)
            replica.in_flight = False
            replica.num_failures = 0
            seconds = self._clock() - replica.state.since_s
            figures = {"seconds": seconds, "weights_bytes": held_bytes, "move": replica.residency.value}
            reason = (
                f"{format_bytes(held_bytes)} of weights after {seconds:.3f} s of {replica.residency.value}"
            )
            self._reporter.of_replica(EventKind.READY, replica, reason, figures)
            self.enter(replica, Residency.RESIDENT, "ready")

    async def _roll_back(
        self, replica: Replica, group: WorkerGroup, error: MooringError, kept_bytes: int | None
    ) -> None:
        """Puts a replica back to where it came from, and its bytes back into the ledger."""
        self.count_failure(replica, error)
        altered = isinstance(error, HostCopyAlteredError)
        comes_again = altered or replica.residency is Residency.WAKING
        retry = comes_again and replica.num_failures < self._config.wake_attempts
        if not retry or altered:
            kept_bytes = None  # it does not go back to sleep
        undo = group.unload if kept_bytes is None else group.sleep
        answer = await attempt(undo(replica.replica_id))
        if isinstance(answer, WorkerLostError):
            return
        replica.in_flight = False
        if isinstance(answer, MooringError):
            # Its bytes stay promised until the planner has it unloaded, or the worker ends.
            logger.error("%s cannot undo the load of %s: %s", replica.worker_id, replica.replica_id, answer)
            self.fail(replica, error)
            return
        group.shrink(replica.owner, kept_bytes or 0)
        if kept_bytes is None:
            replica.forget_group()
        if altered:
            self._host_cache.discard(replica.spec.artifact.key)
        if retry:
            self.enter(replica, self.off_device(replica), error.message)
        else:
            self.fail(replica, error)

    def fail(self, replica: Replica, error: MooringError) -> None:
        self.enter(replica, Residency.FAILED, error.message)
        self._on_failed(replica, error)

    def count_failure(self, replica: Replica, error: MooringError) -> None:
        """Sets the time of the next attempt, twice as far off for each failure in a row."""
        wait_s = min(self._config.max_retry_s, self._config.retry_s * 2.0 ** min(replica.num_failures, 32))
        replica.num_failures += 1
        replica.retry_at_s = self._clock() + wait_s
        figures: Figures = {
            "num_failures": replica.num_failures,
            "retry_in_s": wait_s,
            "code": error.code,
            "while": replica.residency.value,
            "lease_bytes": replica.lease_bytes,
        }
        self._reporter.of_replica(EventKind.FAILURE, replica, error.message, figures)

    # Taking off.

    async def sleep(self, replica: Replica, group: WorkerGroup, reason: str) -> None:
        """Takes a replica off the device, its requests parked; what the worker keeps of its weights stays leased."""
        released = await attempt(group.sleep(replica.replica_id))
        if isinstance(released, WorkerLostError):
            return
        if isinstance(released, MooringError):
            # Members that do sleep come back to those that would not.
            is_one = len(group.members) == 1
            undone = None if is_one else await attempt(group.wake(replica.replica_id, replica.lease_bytes))
            if not isinstance(undone, WorkerLostError):
                self._stay(replica, released, is_whole=not isinstance(undone, MooringError))
        else:
            replica.kept_bytes = max(0, replica.lease_bytes - round_to_pages(released))
            group.shrink(replica.owner, replica.kept_bytes)
            replica.in_flight = False
            replica.num_failures = 0
            self.enter(replica, self.off_device(replica), reason)

    async def unload(self, replica: Replica, group: WorkerGroup, reason: str) -> None:
        """Makes the workers forget a replica, wherever it is; what runs there or is parked goes on elsewhere."""
        answer = await attempt(group.unload(replica.replica_id))
        if isinstance(answer, WorkerLostError):
            return
        if isinstance(answer, MooringError):
            self._stay(replica, answer, is_whole=len(group.members) == 1)
        else:
            group.shrink(replica.owner, 0)
            replica.in_flight = False
            replica.forget_group()
            if replica.residency in ON_DEVICE:
                self.enter(replica, self.off_device(replica), reason)
            else:
                self.follow_host_cache(replica)

    def _stay(self, replica: Replica, error: MooringError, is_whole: bool) -> None:
        """Leaves a replica that its workers would not let go where it is; they are asked again later. One that some
        of them have let go has failed, and is unloaded from them all."""
        logger.error("%s could not be taken off its device: %s", replica.replica_id, error)
        self.count_failure(replica, error)
        replica.in_flight = replica.is_leaving = False
        replica.deployment.note_presence(self._clock())
        if replica.asleep is not None:
            if not replica.asleep.done():
                replica.asleep.set_exception(error)
            replica.asleep = None
        if not is_whole and replica.residency is not Residency.FAILED:
            self.fail(replica, error)
        elif replica.residency is Residency.DRAINING:
            self.enter(replica, Residency.RESIDENT, error.message)
