"""The torch engine: many models in one arena, taking turns at the step."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psutil
import torch

from engines.api import (
    Capabilities,
    Finished,
    LoadSpec,
    SequenceRequest,
    StepOutput,
)
from engines.config import TorchEngineConfig
from engines.ends import error_end, unloaded_error
from engines.kinds import engine_kind
from engines.kv_lease import KVLease
from engines.link.flight_recorder import FlightRecorder
from engines.torch.device_loss import is_device_lost, naming_device_loss
from engines.torch.kv.swap import SwapSpace
from engines.torch.lease import LeasedMemory
from engines.torch.preemption import WorkerPreemption
from engines.torch.replica import TorchReplica
from engines.torch.scheduling.compose import Turn, order_of_turns
from engines.torch.scheduling.runner import SequenceRunner
from engines.torch.scheduling.shared_kv import SharedKV, Sharer
from engines.torch.shrinking import KVShrinking
from engines.torch.step_fence import step_fence
from engines.torch.weights.core_turns import CoreTurns
from memory_manager.arena.protocol import Arena
from memory_manager.cores import CoreSignal
from memory_manager.kv.block_store import BlockStore
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from memory_manager.memfd import closed_on_error
from memory_manager.ports import LeaseStatus
from memory_manager.stats import WorkerStats
from mooring.errors import InternalError, NotFoundError

__all__ = ["TorchEngine"]

log = logging.getLogger(__name__)


# Of the time of a step, between two of them. Somebody waits for a wake, and it is short; who waits for a load has
# waited for storage already, so that copy may take a little longer, and neighbours feel less.
_WAKE_CORE_SHARE = 0.55
_LOAD_CORE_SHARE = 0.15


@dataclass(slots=True)
class _Place:
    """A replica's place among those that take turns.

    Attributes:
        last_step: number of the step that it last took.
        num_turns_waited: since then, while it had work.
    """

    replica: TorchReplica
    last_step: int = 0
    num_turns_waited: int = 0


class TorchEngine:
    """``engines.api.Engine`` over one arena and one KV pool.

    Threads are those of the protocol, and the residency verbs of one replica come one at a time. ``load`` and
    ``wake`` wait for no step: what they brought is let in by the step thread's next call, whichever it is.

    Args:
        config: of the engine.
        arena: of the device; its owner closes it after the engine.
        core_signal: to the server's background threads, if the device is the CPU.
        recorder: told of the sequences of each step before it runs; None if nobody looks after this process.
    """

    def __init__(
        self,
        config: TorchEngineConfig,
        arena: Arena,
        core_signal: CoreSignal | None = None,
        recorder: FlightRecorder | None = None,
    ) -> None:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self._config = config
        self._arena = arena
        self._pool = KVPool(arena, config.kv_range_bytes or arena.capacity_bytes)
        self._kv_memory = arena.tensor(self._pool.address_range)
        self._fence = step_fence(self._kv_memory.device)
        self._pool.leave_behind(self._fence)
        self._preemption = WorkerPreemption(
            lambda: [place.replica for place in self._joined()],
            self._pool.exceeds_guarantee,
            self._restarting,
        )
        self._cache = BlockStore(self._pool, self._preemption.of_parked)
        self._shared_kv = SharedKV(self._pool, self._resident_runners, self._preempt_for_another)
        self._swap_space = SwapSpace(config.kv_swap_bytes, self._kv_memory.device)
        self._core_turns = CoreTurns(core_signal)
        self._recorder = recorder
        self._lease = KVLease()
        self._shrinking = KVShrinking(self._pool, self._cache, self._preemption.for_lease)
        self._memory = LeasedMemory(arena)
        self._arrived: deque[TorchReplica] = deque()  # on the device, not let in yet
        self._may_crowd: deque[str] = deque()  # let in with what they kept asleep
        self._places: dict[str, _Place] = {}
        self._ended: dict[str, list[Finished]] = {}  # of sequences whose replica cannot report them
        self._launched: _Place | None = None
        self._turn = ExitStack()
        self._num_submitted = 0
        self._steps_total = 0
        self._step_s = 0.0  # of the last step
        self._process = psutil.Process()

    def capabilities(self) -> Capabilities:
        maps_host_copy = self._config.cpu_wake == "remap" and not self._kv_memory.is_cuda
        return dataclasses.replace(
            engine_kind("torch").capabilities(self._config.device),
            maps_host_copy=maps_host_copy,
            max_step_tokens=self._config.max_tokens_per_step,
            max_sequences=self._config.max_running_sequences,
        )

    # Residency -------------------------------------------------------------------------------------

    @naming_device_loss()
    def load(self, spec: LoadSpec, weights_fd: int) -> int:
        """See the protocol. The descriptor is the engine's from here on: it is closed when the load fails
        and when the replica is here already, which a second load wakes if it sleeps."""
        if spec.replica_id in self._places:
            os.close(weights_fd)
            return self.wake(spec.replica_id, spec.weights_lease_bytes)
        with closed_on_error(weights_fd):
            replica = TorchReplica(
                spec,
                weights_fd,
                self._arena,
                self._kv_memory,
                self._shared_kv,
                self._core_turns,
                self._config,
                self._recorder,
            )
        self._memory.lease_weights(spec.replica_id, spec.weights_lease_bytes)
        try:
            replica.restore(
                spec.weights_lease_bytes, self._cache, self._swap_space, core_share=_LOAD_CORE_SHARE
            )
        except BaseException:  # whatever stopped it, all that it holds by now goes back, the descriptor too
            replica.close()
            self._memory.lease_weights(spec.replica_id, 0)
            self._memory.settle()
            raise
        self._memory.lease_weights(spec.replica_id, replica.weights_bytes)
        self._places[spec.replica_id] = _Place(replica, last_step=self._steps_total)
        self._arrived.append(replica)
        return replica.weights_bytes

    @naming_device_loss()
    def drop_host_copy(self, replica_id: str) -> None:
        self._place(replica_id).replica.drop_host_copy()

    @naming_device_loss()
    def unload(self, replica_id: str) -> None:
        place = self._places.get(replica_id)
        if place is None:
            return
        self._detach(place.replica)
        del self._places[replica_id]
        place.replica.close()
        self._memory.lease_weights(replica_id, 0)

    @naming_device_loss()
    def sleep(self, replica_id: str) -> int:
        """See the protocol. Sequences keep their blocks until others need these, and stored prefixes stay."""
        replica = self._place(replica_id).replica
        self._let_in()
        replica.park(self._cache)
        released_bytes = replica.release()
        self._memory.lease_weights(replica_id, 0)
        return released_bytes

    @naming_device_loss()
    def wake(self, replica_id: str, weights_lease_bytes: int) -> int:
        """See the protocol. Where it fails the replica stays warm."""
        replica = self._place(replica_id).replica
        if not replica.weights_bytes:
            self._memory.lease_weights(replica_id, weights_lease_bytes)
            try:
                replica.restore(
                    weights_lease_bytes, self._cache, self._swap_space, core_share=_WAKE_CORE_SHARE
                )
            except BaseException:  # whatever stopped it, its pages have gone back
                self._memory.lease_weights(replica_id, 0)
                self._memory.settle()
                raise
            self._memory.lease_weights(replica_id, replica.weights_bytes)
            self._arrived.append(replica)
        return replica.weights_bytes

    def close(self) -> None:
        """Unloads everything and gives the KV range back."""
        for replica_id in list(self._places):
            self.unload(replica_id)
        self._arena.free_range(self._pool.address_range)

    # Sequences -------------------------------------------------------------------------------------

    def submit(self, request: SequenceRequest) -> None:
        self._let_in()
        place = self._places.get(request.replica_id)
        if place is None or place.replica.runner is None:
            end = error_end(request.sequence_id, unloaded_error(request.replica_id))
            self._ended.setdefault(request.replica_id, []).append(end)
            return
        self._num_submitted += 1
        try:
            place.replica.runner.submit(request, arrival=self._num_submitted)
        except Exception as error:  # nothing is queued before all of it is made
            log.exception("a sequence of %s could not be queued", request.replica_id)
            end = error_end(request.sequence_id, InternalError(f"the engine failed to queue it: {error!r}"))
            self._ended.setdefault(request.replica_id, []).append(end)

    @naming_device_loss()
    def cancel(self, sequence_ids: Sequence[int]) -> None:
        for sequence_id in sequence_ids:
            for place in self._joined():
                with self._restarting(place.replica):
                    if place.replica.runner is not None and place.replica.runner.cancel(sequence_id):
                        break

    def has_work(self) -> bool:
        return bool(self._ended or self._arrived or self._shrinking.is_under_way) or any(
            runner.has_ended or (place.replica.is_resident and runner.has_sequences)
            for place in self._joined()
            if (runner := place.replica.runner)
        )

    @naming_device_loss()
    def launch(self) -> None:
        self._let_in()
        self._shrinking.take_turn(self._step_s)
        self._fence.begin_step()
        with ExitStack() as turn:
            turn.enter_context(self._core_turns.step())
            with torch.inference_mode():
                self._launched = self._launch_next()
            if self._launched is not None:
                self._turn = turn.pop_all()  # the cores are the step's until it is finished

    @naming_device_loss()
    def finish(self) -> list[StepOutput]:
        outputs = []
        place, self._launched = self._launched, None
        if place is not None and place.replica.runner is not None:
            with self._turn, torch.inference_mode(), self._restarting(place.replica):
                outputs.append(place.replica.runner.finish(self._steps_total))
                self._step_s = outputs[0].seconds
        self._fence.end_step()
        ended, self._ended = self._ended, {}
        for runner in self._runners():
            if runner.has_ended:
                ended.setdefault(runner.replica_id, []).extend(runner.take_ended())
        outputs.extend(StepOutput(name, self._steps_total, finished=ends) for name, ends in ended.items())
        return outputs

    @naming_device_loss()
    def set_lease(self, kv_bytes: int, revision: int) -> LeaseStatus:
        refused = self._lease.accept(kv_bytes, revision)
        if refused is not None:
            return refused
        self._let_in()
        # Until it is applied, the larger of two leases is what the ledger has for this worker.
        self._memory.lease_kv(max(kv_bytes, self._pool.limit_bytes, self._pool.committed_bytes))
        if self._pool.open():
            self._kv_memory[:PAGE_BYTES].zero_()  # the null block is read, and what is read has to be finite
        self._cache.set_limit(kv_bytes)
        if any(runner.num_running for runner in self._resident_runners()):
            self._shrinking.let_leave()  # the rest in turns, between the steps
        else:
            self._shrinking.take_turn(self._step_s)
        if self._shrinking.is_under_way:
            return LeaseStatus.DEFERRED
        self._memory.lease_kv(kv_bytes)
        return LeaseStatus.APPLIED

    def is_giving_back(self) -> bool:
        return self._shrinking.has_more

    def set_memory_limit(self, num_bytes: int) -> int:
        return self._memory.allow(num_bytes)

    def settle(self) -> None:
        self._memory.settle()

    def stats(self) -> WorkerStats:
        """See the protocol. For the step thread, like ``finish``."""
        self._let_in()
        return WorkerStats(
            # A copy, because a load on another thread may add its replica meanwhile.
            replicas=tuple(place.replica.stats(self._pool) for place in list(self._places.values())),
            kv_lease_bytes=self._lease.num_bytes,
            kv_lease_revision=self._lease.revision,
            kv_bytes=self._pool.committed_bytes,
            steps_total=self._steps_total,
            rss_bytes=self._process.memory_info().rss,
            ready_bytes=self._arena.stock_bytes,
            fragmentation=dataclasses.replace(
                self._pool.fragmentation(),
                unfilled_bytes=sum(runner.unfilled_kv_bytes for runner in self._runners()),
            ),
            kv_swapped_bytes=self._swap_space.used_bytes,
            kv_wanted_bytes=self._kv_wanted_bytes(),
        )

    def check_integrity(self) -> None:
        """For idle moments and tests: every page and every block has exactly one owner.

        Raises:
            InternalError, AssertionError: a bug of ours.
        """
        self._let_in()
        self._pool.check_integrity()
        self._cache.check_integrity()
        for runner in self._runners():
            runner.check_integrity()
            live_bytes = self._pool.usage(runner.replica_id).live_bytes
            if live_bytes != runner.live_kv_bytes:
                raise AssertionError(
                    f"{runner.replica_id}: {live_bytes} bytes of blocks are taken from the pool, "
                    f"{runner.live_kv_bytes} are in block tables"
                )
        swapped_bytes = sum(runner.swapped_bytes for runner in self._runners())
        if swapped_bytes != self._swap_space.used_bytes:
            raise AssertionError(f"{self._swap_space.used_bytes} bytes are swapped out for {swapped_bytes}")

    # Inner workings --------------------------------------------------------------------------------

    def _runners(self) -> list[SequenceRunner]:
        return [place.replica.runner for place in self._joined() if place.replica.runner]

    def _joined(self) -> list[_Place]:
        return [place for place in list(self._places.values()) if place.replica.runner]

    def _resident_runners(self) -> list[SequenceRunner]:
        joined = (place.replica for place in self._joined())
        return [replica.runner for replica in joined if replica.is_resident and replica.runner]

    @contextmanager
    def _restarting(self, replica: TorchReplica) -> Iterator[None]:
        """Lets a model begin anew if the block raises: what one model breaks is no other's loss."""
        try:
            yield
        except Exception as error:
            if is_device_lost(error):
                raise
            log.exception("%s failed amid its books and begins anew", replica.replica_id)
            failure = InternalError(f"the engine failed with this model: {error!r}")
            ended = replica.restart(self._cache, self._swap_space, failure)
            self._ended.setdefault(replica.replica_id, []).extend(ended)

    def _place(self, replica_id: str) -> _Place:
        place = self._places.get(replica_id)
        if place is None:
            raise NotFoundError(f"no replica {replica_id} is loaded here")
        return place

    def _let_in(self) -> None:
        while self._arrived:
            replica = self._arrived.popleft()
            replica.attach(self._cache)
            self._may_crowd.append(replica.replica_id)
        # Asleep, it may have kept more than would have been its to take. While the lease shrinks nobody has room, and
        # whose pages go is decided for all models together.
        while self._may_crowd and not self._pool.pages_to_empty:
            place = self._places.get(self._may_crowd.popleft())
            while place is not None and place.replica.is_resident and self._crowds_others(place):
                if not self._preemption.of([place.replica], 1):
                    break

    def _crowds_others(self, place: _Place) -> bool:
        return self._pool.crowds_others(place.replica.replica_id)

    def _detach(self, replica: TorchReplica) -> None:
        self._let_in()
        ended = replica.detach(self._cache, unloaded_error(replica.replica_id))
        if ended:
            self._ended.setdefault(replica.replica_id, []).extend(ended)

    def _kv_wanted_bytes(self) -> int:
        waiting_bytes = sum(runner.kv_wanted_bytes for runner in self._resident_runners())
        return round_to_pages(self._lease.num_bytes + waiting_bytes) if waiting_bytes else 0

    def _launch_next(self) -> _Place | None:
        """Begins a step of the first in the order of turns that can run; None if none can."""
        busy = {
            replica_id: (place, runner)
            for replica_id, place in list(self._places.items())
            if (runner := place.replica.runner) and place.replica.is_resident and runner.has_sequences
        }
        now_s = time.monotonic()
        for _, runner in busy.values():
            runner.note_late(now_s)
        turns = [
            Turn(replica_id, runner.earliest_deadline_s(), place.last_step, place.num_turns_waited)
            for replica_id, (place, runner) in busy.items()
        ]
        for replica_id in order_of_turns(turns, self._config.max_turns_waited):
            place, runner = busy[replica_id]
            place.num_turns_waited = 0
            launched = False
            with self._restarting(place.replica):
                launched = runner.launch()
            if launched:
                self._steps_total = place.last_step = self._steps_total + 1
                for other, _ in busy.values():
                    other.num_turns_waited += other is not place
                return place
        return None

    def _preempt_for_another(self, sharer: Sharer, slot: int) -> None:
        with self._restarting(self._places[sharer.replica_id].replica):
            sharer.preempt(slot)
