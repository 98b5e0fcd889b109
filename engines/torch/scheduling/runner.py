"""Runs the sequences of one resident model: submit, launch, finish, preempt, cancel."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.api import Finished, FinishReason, FirstToken, SequenceRequest, StepOutput
from engines.config import TorchEngineConfig
from engines.ends import error_end
from engines.link.flight_recorder import FlightRecorder
from engines.torch.device_loss import is_device_lost
from engines.torch.kv.block_tables import BlockTables
from engines.torch.kv.prefix import Prefix
from engines.torch.kv.swap import KVSwap
from engines.torch.model.batch import ForwardBatch
from engines.torch.sampling.logit_edits import LogitEdits
from engines.torch.sampling.logprobs import score_tokens
from engines.torch.sampling.sampler import Sampled, Sampler
from engines.torch.scheduling.batch_builder import BuiltBatch, ScoredTokens, build_batch
from engines.torch.scheduling.books import FirstTokens, PenaltyRows, SequenceBook
from engines.torch.scheduling.compose import ModelPace, PreemptibleSequences, StepPlan
from engines.torch.scheduling.counters import RunnerCounters
from engines.torch.scheduling.demand import ModelDemand
from engines.torch.scheduling.output import collect_output
from engines.torch.scheduling.requests import SequenceLimits
from engines.torch.scheduling.resume import Resumption
from engines.torch.scheduling.scheduler import Scheduler
from engines.torch.scheduling.sequences import SequenceTable
from engines.torch.scheduling.shared_kv import Claim, SharedKV, SharerDemand
from engines.torch.scheduling.waiting import PendingSequence, WaitingQueue
from memory_manager.kv.block_store import BlockStore
from memory_manager.policy.step_model import StepModel
from mooring.errors import InsufficientMemoryError, InternalError, MooringError

__all__ = ["Forward", "SequenceRunner", "ToLogits"]

log = logging.getLogger(__name__)

Forward = Callable[[ForwardBatch], Tensor]
"""Final states [R, hidden_size] of a batch, the KV cache being written on the way."""

ToLogits = Callable[[Tensor], Tensor]
"""Logits float32 [R, vocab] of final states."""


@dataclass(slots=True)
class _LaunchedStep:
    """A step whose forward pass has begun.

    Attributes:
        sequence_ids: of the plan's slots.
        states: final states [D + P, hidden_size], which the device may still be computing.
        began_s: when its plan was begun.
        forward_began_s: when its blocks were taken.
    """

    plan: StepPlan
    sequence_ids: list[int]
    batch: BuiltBatch
    states: Tensor
    began_s: float
    forward_began_s: float


class SequenceRunner:
    """Everything between a model's forward and its sequences.

    Belongs to the step thread. Its model must be known to the pool before the first step.

    Attributes:
        replica_id: also the model's name in the pool.
        books: what is kept for each running sequence; a new book is added to this tuple and nowhere else.

    Args:
        forward, to_logits: the model.
        limits: of its sequences.
        eos_ids: end a sequence that does not ignore them.
        cache: gives blocks.
        shared: KV of the worker, which has it as one of its sharers once it runs.
        swap: takes the KV of preempted sequences.
        artifact: says whose weights these are.
        device: of the model.
        counters: added to.
        clock: in seconds, by which steps are timed.
        recorder: told of a step's sequences before it runs.
    """

    def __init__(
        self,
        replica_id: str,
        forward: Forward,
        to_logits: ToLogits,
        *,
        limits: SequenceLimits,
        eos_ids: tuple[int, ...],
        cache: BlockStore,
        shared: SharedKV,
        swap: KVSwap,
        artifact: bytes,
        device: torch.device,
        config: TorchEngineConfig,
        counters: RunnerCounters,
        clock: Callable[[], float],
        recorder: FlightRecorder | None = None,
    ) -> None:
        self.replica_id = replica_id
        self._forward = forward
        self._to_logits = to_logits
        self._limits = limits
        self._eos_ids = eos_ids
        self._device = device
        self._counters = counters
        self._clock = clock
        self._shared = shared
        self._recorder = recorder
        num_slots = config.max_running_sequences
        self._waiting = WaitingQueue()
        self._table = SequenceTable(num_slots, limits.max_model_len)
        self._blocks = BlockTables(cache, replica_id, limits.groups, num_slots, limits.max_model_len)
        self._resumption = Resumption(self._table, self._blocks, swap, artifact)
        self._sampler = Sampler(limits.vocab_size, device)
        self._edits = LogitEdits(num_slots)
        self._first_tokens = FirstTokens()
        self.books: tuple[SequenceBook, ...] = (
            self._resumption,
            self._first_tokens,
            PenaltyRows(self._sampler.penalties, self._table.sampling),
            self._edits,
        )
        self._costs = StepModel()
        self._demand = ModelDemand(self._table, self._blocks, counters)
        self._scheduler = Scheduler(
            self._table,
            self._blocks,
            self._waiting,
            max_tokens_per_step=config.max_tokens_per_step,
            costs=self._costs,
            demand=self._demand,
            shared=shared,
            sharer=self,
            preemptible=self._resumption.preemptible,
            find=self._resumption.find,
            admit=self._admit,
            preempt=self.preempt,
            ended_for_good=self._ended_for_good,
        )
        self._ended: list[Finished] = []
        self._launched: _LaunchedStep | None = None

    @property
    def num_running(self) -> int:
        return len(self._table)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_sequences(self) -> bool:
        return bool(len(self._table) or len(self._waiting))

    @property
    def has_ended(self) -> bool:
        """Whether ``take_ended`` would return anything."""
        return bool(self._ended)

    @property
    def swapped_bytes(self) -> int:
        """Bytes of host memory that hold the KV of sequences which wait."""
        return sum(pending.swapped.num_bytes for pending in self._waiting if pending.swapped is not None)

    @property
    def live_kv_bytes(self) -> int:
        """Bytes of all blocks in its tables."""
        return self._blocks.live_bytes

    @property
    def unfilled_kv_bytes(self) -> int:
        """Bytes in its sequences' blocks for tokens that are not computed yet."""
        slots = self._table.active_slots()
        return self._blocks.unfilled_bytes(slots, self._table.num_computed[slots])

    @property
    def kv_wanted_bytes(self) -> int:
        """Bytes of blocks that the sequences which wait are expected to take, within the model's cap; 0 while none
        waits for want of KV."""
        if not self._scheduler.is_short_of_kv:
            return 0
        waiting = self._demand.waiting(list(self._waiting))
        wanted_bytes = float((waiting.held_bytes + waiting.num_left * waiting.token_bytes).sum())
        return min(math.ceil(wanted_bytes), max(0, self._limits.kv_bytes - self.live_kv_bytes))

    def pace(self) -> ModelPace:
        """See ``Sharer``."""
        num_paced, due_s, tightest_tpot_s = self._table.paced_decodes()
        return ModelPace(due_s, tightest_tpot_s, self._costs.seconds(num_paced, 0))

    def kv_demand(self) -> SharerDemand:
        """See ``Sharer``."""
        return self._demand.running()

    def claim(self) -> Claim | None:
        """See ``Sharer``."""
        return self._scheduler.claim()

    def longest_late(self, *, for_others: bool) -> PendingSequence | None:
        """See ``Sharer``."""
        return self._scheduler.longest_late(for_others=for_others)

    def note_late(self, now_s: float) -> None:
        """Notes whose deadline for a first token has passed: others go before them.

        Args:
            now_s: on the clock of the deadlines.
        """
        if self._table.note_late(now_s):
            self._shared.note_change()
        self._waiting.note_late(now_s)

    @property
    def in_time_priority(self) -> float:
        """See ``Sharer``."""
        if not self.has_sequences:
            return -math.inf
        first = self._waiting.peek()
        waiting = -math.inf if first is None or first.is_late else first.request.priority
        return max(waiting, self._table.in_time_priority)

    def earliest_deadline_s(self) -> float:
        """The earliest deadline of all sequences without a first token that are in time; ``inf`` if none has one."""
        return min(self._waiting.earliest_deadline_s(), self._table.earliest_deadline_s())

    def submit(self, request: SequenceRequest, arrival: int) -> None:
        """Queues a sequence, or ends it if it cannot be run."""
        if request.sequence_id in self._table or request.sequence_id in self._waiting:
            # Ending it would end the one that runs, and the two could not be told apart.
            log.error("sequence %d is submitted twice and runs once", request.sequence_id)
            return
        refusal = self._limits.refusal(request)
        if refusal is not None:
            self._ended.append(refusal)
            return
        token_ids = request.prompt_ids
        if len(request.output_ids):
            token_ids = np.concatenate((token_ids, request.output_ids))
        deadline_s = request.deadline_s if not len(request.output_ids) else np.inf
        wants_scores = request.sampling.prompt_logprobs is not None
        self._waiting.push(
            PendingSequence(
                request,
                token_ids,
                arrival,
                deadline_s=deadline_s,
                first=FirstToken(time.monotonic(), prompt_logprobs=[] if wants_scores else None),
                keys=self._resumption.keys(request.cache_scope),
            )
        )

    def cancel(self, sequence_id: int) -> bool:
        """Ends a sequence and frees its blocks at once; False if there is none of that id."""
        if sequence_id in self._waiting:
            self._resumption.forget(self._waiting.remove(sequence_id))
        elif sequence_id in self._table:
            self._remove(self._table.slot_of(sequence_id))
        else:
            return False
        self._ended.append(Finished(sequence_id, FinishReason.CANCELLED))
        return True

    def take_ended(self) -> list[Finished]:
        """Ends since the last call that no step has reported."""
        ended, self._ended = self._ended, []
        return ended

    def launch(self) -> bool:
        """Plans a step, takes its blocks and starts its forward pass; False if nothing can run now.

        A failure of the model ends the sequences of this step and no others.
        """
        began_s = self._clock()
        plan = self._scheduler.plan(time.monotonic())
        if plan is None:
            return False
        sequence_ids = self._table.sequence_ids[plan.slots].tolist()
        if self._recorder is not None:
            self._recorder.begin_step(sequence_ids)
        with self._failing(sequence_ids):
            forward_began_s = self._clock()
            batch = build_batch(self._table, self._blocks, plan, self._device)
            states = self._forward(batch.forward)
            self._launched = _LaunchedStep(plan, sequence_ids, batch, states, began_s, forward_began_s)
        return True

    def finish(self, number: int) -> StepOutput:
        """Waits for the step that was launched, and draws its tokens."""
        output = StepOutput(self.replica_id, number)
        launched, self._launched = self._launched, None
        if launched is not None:
            with self._failing(launched.sequence_ids):
                output = self._finish(launched, number)
        output.finished.extend(self.take_ended())
        return output

    def preemptible(self) -> PreemptibleSequences:
        """The running sequences, with what a preemption of each would cost and free."""
        return self._resumption.preemptible()

    def preempt(self, slot: int) -> None:
        """Frees a running sequence's blocks and puts it back into the queue with all its tokens."""
        swapped = self._resumption.keep(slot)
        self._counters.preemptions += 1
        self._counters.swapped_preemptions += swapped is not None
        if self._table.due_s[slot] == math.inf:
            self._shared.note_made_way(time.monotonic())
        pending = self._remove(slot)
        pending.swapped = swapped
        self._waiting.push(pending)

    def moved(self, group: int, sources: NDArray[np.int64], destinations: NDArray[np.int64]) -> None:
        """Notes that the contents of these blocks are in the others now. Called between steps, or in another model's
        step."""
        self._blocks.moved(group, sources, destinations)

    def trim(self) -> None:
        """Gives back what it keeps ready on the device for sequences to come."""
        self._sampler.penalties.trim()

    def drain(self, error: MooringError) -> list[Finished]:
        """Ends all sequences and frees all blocks; returns every end not reported yet."""
        self._fail(self._table.active_slots(), error)
        for pending in self._waiting.drain():
            self._resumption.forget(pending)
            self._ended.append(error_end(pending.request.sequence_id, error))
        return self.take_ended()

    def abandon(self, error: MooringError) -> list[Finished]:
        """Ends all sequences after a failure amid a change of the books: their blocks are left to whoever drops the
        model from the store, and nothing else of this object is used again. Returns every end not reported yet."""
        waiting = [pending.request.sequence_id for pending in self._waiting]
        running = self._table.sequence_ids[self._table.active_slots()].tolist()
        self._resumption.forget_all()
        told = {end.sequence_id for end in self._ended}
        present = dict.fromkeys((*running, *waiting))  # one whose admission failed is both
        return [*self.take_ended(), *(error_end(number, error) for number in present if number not in told)]

    def check_integrity(self) -> None:
        """Checks that every block belongs to a sequence, and that no book keeps anything of who is gone.

        Raises:
            AssertionError: a bug of ours.
        """
        slots = self._table.active_slots()
        self._blocks.check_integrity(slots)
        for book in self.books:
            if not book.slots() <= set(slots.tolist()):
                raise AssertionError(
                    f"{type(book).__name__} keeps slots {book.slots()}, and {slots.tolist()} run"
                )

    @contextmanager
    def _failing(self, sequence_ids: list[int]) -> Iterator[None]:
        """Ends these sequences if the block raises: it is the boundary of what one model's kernels and one batch's
        contents can break."""
        try:
            yield
        except Exception as error:
            if is_device_lost(error):
                raise
            log.exception("a step of %s failed with %d sequences", self.replica_id, len(sequence_ids))
            failure = InternalError(f"the engine failed in a step of this model: {error!r}")
            # Nobody was told of the end of one that is gone already.
            gone = [number for number in sequence_ids if number not in self._table]
            self._ended.extend(error_end(number, failure) for number in gone)
            present = [self._table.slot_of(number) for number in sequence_ids if number in self._table]
            self._fail(np.array(present, np.int64), failure)

    def _finish(self, launched: _LaunchedStep, number: int) -> StepOutput:
        table, plan = self._table, launched.plan
        output = StepOutput(self.replica_id, number)
        sampled = self._sample(launched)
        done_s = self._clock()
        output.seconds = done_s - launched.began_s
        output.computed_tokens = dict(zip(launched.sequence_ids, plan.num_new.tolist(), strict=True))
        self._costs.note(plan.num_decodes, plan.num_new_tokens - plan.num_decodes, output.seconds)
        table.num_computed[plan.slots] += plan.num_new
        self._resumption.store(plan.slots)
        self._resumption.note_step(plan.num_new_tokens, plan.num_decodes, done_s - launched.forward_began_s)
        if sampled is not None:
            sampling = launched.batch.sampling_slots
            self._counters.generation_tokens += len(sampling)
            output.first_tokens = self._first_tokens.take(sampling)
            for slot in collect_output(table, sampling, sampled, output, time.monotonic()).tolist():
                self._counters.note_output(int(table.num_tokens[slot] - table.num_prompt[slot]))
                self._remove(slot)
        self._free_behind_windows(plan.slots)
        return output

    def _sample(self, launched: _LaunchedStep) -> Sampled | None:
        """Draws the tokens of a step, which waits for the device; None, and it is waited for as well, if the step
        gives none."""
        table, batch, states = self._table, launched.batch, launched.states
        sampling = batch.sampling_slots
        if batch.scored is not None:
            self._score(states[len(sampling) :], batch.scored)
        if not len(sampling):
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
            return None
        return self._sampler.sample(
            self._to_logits(states[: len(sampling)]),
            table.sampling.take(sampling),
            table.num_tokens[sampling],
            self._edits.changes(sampling, table.token_ids, table.num_tokens, table.num_prompt),
        )

    def _score(self, states: Tensor, scored: ScoredTokens) -> None:
        table = self._table
        tops = score_tokens(
            states,
            self._to_logits,
            self._limits.vocab_size,
            scored.token_ids,
            table.num_prompt_logprobs[scored.slots],
        )
        self._first_tokens.add_prompt_logprobs(scored.slots, tops)

    def _free_behind_windows(self, slots: NDArray[np.int64]) -> None:
        # A slot that was just emptied has no blocks: its counts are zero and must stay so.
        running = slots[self._table.is_active(slots)]
        self._blocks.free_behind_windows(running, self._table.num_computed[running])

    def _admit(self, pending: PendingSequence, prefix: Prefix) -> int:
        if pending.first is not None and not pending.preempted:
            num_cached = self._count_prompt(pending, prefix)
            pending.first = replace(pending.first, began_s=time.monotonic(), cached_tokens=num_cached)
        pending.found = prefix
        slot = self._table.insert(pending, self._eos_ids, prefix.num_tokens)
        for book in self.books:
            book.begin(slot, pending)
        return slot

    def _count_prompt(self, pending: PendingSequence, prefix: Prefix) -> int | None:
        """Returns the tokens of the prompt that were found; None if they were not looked up."""
        counters = self._counters
        counters.prompt_tokens += pending.num_prompt
        if pending.keys is None or pending.request.sampling.prompt_logprobs is not None:
            return None
        num_cached = min(prefix.num_tokens, pending.num_prompt)
        counters.prefix_query_tokens += pending.num_prompt
        counters.prefix_hit_tokens += num_cached
        return num_cached

    def _remove(self, slot: int) -> PendingSequence:
        """Takes a sequence out of the table and all books."""
        for book in self.books:
            book.end(slot)
        self._shared.note_change()
        return self._table.remove(slot)

    def _fail(self, slots: NDArray[np.int64], error: MooringError) -> None:
        for slot in slots.tolist():
            self._ended.append(error_end(self._remove(slot).request.sequence_id, error))

    def _ended_for_good(self, slot: int) -> bool:
        num_tokens = int(self._table.num_tokens[slot])
        if self._limits.could_fit(num_tokens):
            return False
        message = f"the sequence grew to {num_tokens} tokens, beyond the KV this replica may ever hold"
        self._fail(np.array([slot]), InsufficientMemoryError(message))
        return True
