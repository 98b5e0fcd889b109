"""Runs the sequences of one resident model: submit, step, preempt, cancel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.api import Finished, FinishReason, FirstToken, SequenceRequest, StepOutput
from engines.config import TorchEngineConfig
from engines.torch.kv.block_tables import BlockTables
from engines.torch.kv.prefix import Prefix
from engines.torch.kv.swap import KVSwap
from engines.torch.model.batch import ForwardBatch
from engines.torch.sampling.logit_edits import LogitEdits, has_edits
from engines.torch.sampling.logprobs import score_tokens
from engines.torch.sampling.penalties import has_penalty
from engines.torch.sampling.sampler import Sampler
from engines.torch.scheduling.batch_builder import ScoredTokens, build_batch
from engines.torch.scheduling.compose import Preemptible, StepPlan
from engines.torch.scheduling.counters import RunnerCounters
from engines.torch.scheduling.output import collect_output
from engines.torch.scheduling.requests import SequenceLimits, error_end
from engines.torch.scheduling.resume import Resumption
from engines.torch.scheduling.scheduler import Scheduler
from engines.torch.scheduling.sequences import SequenceTable
from engines.torch.scheduling.waiting import PendingSequence, WaitingQueue
from memory_manager.kv.block_store import BlockStore
from mooring.errors import InsufficientMemoryError, InternalError, MooringError

__all__ = ["Forward", "SequenceRunner", "ToLogits"]

log = logging.getLogger(__name__)

Forward = Callable[[ForwardBatch], Tensor]
"""Final states [R, hidden_size] of a batch, the KV cache being written on the way."""

ToLogits = Callable[[Tensor], Tensor]
"""Logits float32 [R, vocab] of final states."""


class SequenceRunner:
    """Everything between a model's forward and its sequences.

    Belongs to the step thread. Its model must be known to the pool before the first step.

    Attributes:
        replica_id: also the model's name in the pool.

    Args:
        forward, to_logits: the model.
        limits: of its sequences.
        eos_ids: end a sequence that does not ignore them.
        cache: where blocks come from.
        swap: where the KV of preempted sequences may go.
        artifact: says whose weights these are.
        device: of the model.
        counters: added to.
        clock: in seconds, by which steps are timed.
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
        swap: KVSwap,
        artifact: bytes,
        device: torch.device,
        config: TorchEngineConfig,
        counters: RunnerCounters,
        clock: Callable[[], float],
    ) -> None:
        self.replica_id = replica_id
        self._forward = forward
        self._to_logits = to_logits
        self._limits = limits
        self._eos_ids = eos_ids
        self._device = device
        self._counters = counters
        self._clock = clock
        num_slots = config.max_running_sequences
        self._waiting = WaitingQueue()
        self._table = SequenceTable(num_slots, limits.max_model_len)
        self._blocks = BlockTables(cache, replica_id, limits.groups, num_slots, limits.max_model_len)
        self._resumption = Resumption(self._table, self._blocks, swap, artifact)
        self._sampler = Sampler(limits.vocab_size, device)
        self._edits = LogitEdits(num_slots)
        self._scheduler = Scheduler(
            self._table,
            self._blocks,
            self._waiting,
            max_tokens_per_step=config.max_tokens_per_step,
            find=self._resumption.find,
            admit=self._admit,
            preempt=self.preempt,
            ended_for_good=self._ended_for_good,
        )
        self._ended: list[Finished] = []
        self._first_tokens: dict[int, FirstToken] = {}  # of sequences that were begun and have no token yet

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
        """Of host memory, for sequences that wait."""
        return sum(pending.swapped.num_bytes for pending in self._waiting if pending.swapped is not None)

    @property
    def live_kv_bytes(self) -> int:
        """Of all blocks in its tables."""
        return self._blocks.live_bytes

    @property
    def unfilled_kv_bytes(self) -> int:
        """In its sequences' blocks, for tokens that are not computed yet."""
        slots = self._table.active_slots()
        return self._blocks.unfilled_bytes(slots, self._table.num_computed[slots])

    @property
    def kv_wanted_bytes(self) -> int:
        """Of blocks that the sequences which wait would take, as long as they may become, within the model's cap; 0
        while none waits for want of KV."""
        if not self._scheduler.is_short_of_kv:
            return 0
        wanted_bytes = sum(self._limits.most_block_bytes(each.request) for each in self._waiting)
        return min(wanted_bytes, max(0, self._limits.kv_bytes - self.live_kv_bytes))

    def earliest_deadline_s(self) -> float:
        """Of all sequences without a first token; ``inf`` if none has one."""
        return min(self._waiting.earliest_deadline_s(), self._table.earliest_deadline_s())

    def submit(self, request: SequenceRequest, arrival: int) -> None:
        """Queues a sequence, or ends it where it cannot be run."""
        if request.sequence_id in self._table or request.sequence_id in self._waiting:
            # Ending it would end the one that runs, and the two could not be told apart.
            log.error("sequence %d is submitted twice and runs once", request.sequence_id)
            return
        refusal = self._limits.refusal(request)
        if refusal is not None:
            self._ended.append(refusal)
            return
        token_ids = np.concatenate(
            (np.asarray(request.prompt_ids, np.int32), np.asarray(request.output_ids, np.int32))
        )
        deadline_s = request.deadline_s if not request.output_ids else np.inf
        wants_scores = request.sampling.prompt_logprobs is not None
        self._waiting.push(
            PendingSequence(
                request,
                token_ids,
                arrival,
                deadline_s=deadline_s,
                prompt_logprobs=[] if wants_scores else None,
                keys=self._resumption.keys(request.cache_scope),
            )
        )

    def cancel(self, sequence_id: int) -> bool:
        """Ends a sequence and frees its blocks at once; False where there is none of that id."""
        if sequence_id in self._waiting:
            self._resumption.forget(self._waiting.remove(sequence_id))
        elif sequence_id in self._table:
            self._remove(self._table.slot_of(sequence_id))
        else:
            return False
        self._forget(sequence_id)
        self._ended.append(Finished(sequence_id, FinishReason.CANCELLED))
        return True

    def take_ended(self) -> list[Finished]:
        """Ends since the last call that no step has reported."""
        ended, self._ended = self._ended, []
        return ended

    def step(self, number: int) -> StepOutput | None:
        """Runs one step; None where nothing can run now.

        A failure of the model ends the sequences of this step and no others.
        """
        plan = self._scheduler.plan()
        if plan is None:
            return None
        output = StepOutput(self.replica_id, number)
        try:
            self._run(plan, output)
        except Exception as error:
            # The boundary of what one model's kernels and one batch's contents can break.
            log.exception("a step of %s failed with %d sequences", self.replica_id, len(plan.slots))
            output = StepOutput(self.replica_id, number)
            self._fail(plan.slots, InternalError(f"the engine failed in a step of this model: {error!r}"))
        output.finished.extend(self.take_ended())
        return output

    def preemptible(self) -> Preemptible | None:
        """The running sequence to be preempted first; None if none runs."""
        return self._scheduler.preemptible()

    def preempt(self, slot: int) -> None:
        """Frees a running sequence's blocks and puts it back into the queue with all its tokens."""
        swapped = self._resumption.keep(slot)
        self._counters.preemptions += 1
        self._counters.swapped_preemptions += swapped is not None
        pending = self._remove(slot)
        pending.swapped = swapped
        self._waiting.push(pending)

    def moved(self, group: int, sources: NDArray[np.int64], destinations: NDArray[np.int64]) -> None:
        """What these blocks held is in the others now. Between steps, or in one of another model."""
        self._blocks.moved(group, sources, destinations)

    def drain(self, error: MooringError) -> list[Finished]:
        """Ends all sequences and frees all blocks; returns every end not reported yet."""
        self._fail(self._table.active_slots(), error)
        for pending in self._waiting.drain():
            self._resumption.forget(pending)
            self._forget(pending.request.sequence_id)
            self._ended.append(error_end(pending.request.sequence_id, error))
        return self.take_ended()

    def check_integrity(self) -> None:
        """Every block, every row of counts and every edit has exactly one sequence.

        Raises:
            AssertionError: a bug of ours.
        """
        slots = self._table.active_slots()
        self._blocks.check_integrity(slots)
        penalized = int((self._table.sampling.penalty_row[slots] >= 0).sum())
        if penalized != self._sampler.penalties.num_rows_in_use:
            raise AssertionError(
                f"{self._sampler.penalties.num_rows_in_use} rows of counts for {penalized} sequences"
            )
        if not self._edits.slots() <= set(slots.tolist()):
            raise AssertionError(f"edits of slots {self._edits.slots()} where {slots.tolist()} run")

    def _run(self, plan: StepPlan, output: StepOutput) -> None:
        table = self._table
        started_s = self._clock()
        batch = build_batch(table, self._blocks, plan, self._device)
        states = self._forward(batch.forward)
        sampling = batch.sampling_slots
        if batch.scored is not None:
            self._score(states[len(sampling) :], batch.scored)
        sampled = None
        if len(sampling):
            sampled = self._sampler.sample(
                self._to_logits(states[: len(sampling)]),
                table.sampling.take(sampling),
                table.num_tokens[sampling],
                self._edits.changes(sampling, table.token_ids, table.num_tokens, table.num_prompt),
            )
        table.num_computed[plan.slots] += plan.num_new
        self._resumption.store(plan.slots)
        if sampled is not None:
            # Drawing a token waits for the device, so that the time is that of the whole step.
            self._resumption.note_step(plan.num_new_tokens, plan.num_decodes, self._clock() - started_s)
            self._counters.generation_tokens += len(sampling)
            ended = collect_output(table, sampling, sampled, output)
            output.first_tokens = self._take_first_tokens(sampling)
            for slot in ended.tolist():
                self._remove(slot)
        self._free_behind_windows(plan.slots)

    def _score(self, states: Tensor, scored: ScoredTokens) -> None:
        table = self._table
        tops = score_tokens(
            states,
            self._to_logits,
            self._limits.vocab_size,
            scored.token_ids,
            table.num_prompt_logprobs[scored.slots],
        )
        table.add_prompt_logprobs(scored.slots, tops)

    def _free_behind_windows(self, slots: NDArray[np.int64]) -> None:
        # A slot that was just emptied has no blocks: its counts are zero and must stay so.
        running = slots[self._table.is_active(slots)]
        self._blocks.free_behind_windows(running, self._table.num_computed[running])

    def _take_first_tokens(self, slots: NDArray[np.int64]) -> dict[int, FirstToken]:
        """The news of those among these sequences that have their first token now."""
        if not self._first_tokens:
            return {}
        first_tokens = {
            sequence_id: self._first_tokens.pop(sequence_id)
            for sequence_id in self._table.sequence_ids[slots].tolist()
            if sequence_id in self._first_tokens
        }
        for sequence_id, tops in self._table.take_prompt_logprobs(slots).items():
            first_tokens[sequence_id] = replace(first_tokens[sequence_id], prompt_logprobs=tops)
        return first_tokens

    def _admit(self, pending: PendingSequence, prefix: Prefix) -> int:
        request = pending.request
        penalty_row = -1
        if has_penalty(request.sampling):
            num_prompt = pending.num_prompt
            penalty_row = self._sampler.penalties.add(
                pending.token_ids[:num_prompt], pending.token_ids[num_prompt:]
            )
        if not pending.preempted:
            num_cached = self._count_prompt(pending, prefix)
            self._first_tokens[request.sequence_id] = FirstToken(self._clock(), num_cached)
        slot = self._table.insert(pending, self._eos_ids, penalty_row, prefix.num_tokens)
        self._resumption.begin(slot, pending, prefix)
        if has_edits(request.sampling):
            self._edits.add(slot, request.sampling)
        return slot

    def _count_prompt(self, pending: PendingSequence, prefix: Prefix) -> int | None:
        """Returns the tokens of the prompt that were found; None if they were not looked up."""
        counters = self._counters
        counters.prompt_tokens += pending.num_prompt
        if pending.keys is None or pending.prompt_logprobs is not None:
            return None
        num_cached = min(prefix.num_tokens, pending.num_prompt)
        counters.prefix_query_tokens += pending.num_prompt
        counters.prefix_hit_tokens += num_cached
        return num_cached

    def _remove(self, slot: int) -> PendingSequence:
        """Takes a sequence out of table, blocks, counts and edits."""
        penalty_row = int(self._table.sampling.penalty_row[slot])
        if penalty_row >= 0:
            self._sampler.penalties.remove(penalty_row)
        self._edits.remove(slot)
        self._blocks.release(np.array([slot]))
        return self._table.remove(slot)

    def _forget(self, sequence_id: int) -> None:
        """It ended."""
        self._first_tokens.pop(sequence_id, None)

    def _fail(self, slots: NDArray[np.int64], error: MooringError) -> None:
        for slot in slots.tolist():
            sequence_id = self._remove(slot).request.sequence_id
            self._forget(sequence_id)
            self._ended.append(error_end(sequence_id, error))

    def _ended_for_good(self, slot: int) -> bool:
        num_tokens = int(self._table.num_tokens[slot])
        if self._limits.could_fit(num_tokens):
            return False
        message = f"the sequence grew to {num_tokens} tokens, beyond the KV this replica may ever hold"
        self._fail(np.array([slot]), InsufficientMemoryError(message))
        return True
