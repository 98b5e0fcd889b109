"""The engine that runs no model.

The null engine obeys every verb, keeps every promise of ``engines.api.Engine`` and gives each sequence one
token a step, a function of the prompt and the position alone. With it the router's benchmark measures
everything but the model, and tests of failover know what each token has to be.

It accepts whatever the torch engine accepts; parameters that only change the choice of a token (temperature,
penalties, biases, bad words) have no effect. Log-probabilities are always the same: the token that is there
has half of the probability, and each further one half of what is left.
"""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np
import psutil

from engines.api import (
    Capabilities,
    Finished,
    FinishReason,
    FirstToken,
    LoadSpec,
    SequenceRequest,
    StepOutput,
    TokenIds,
    TopLogprobs,
)
from engines.config import NullEngineConfig, WorkerOptions
from engines.ends import error_end, prompt_error, unloaded_error
from engines.kinds import KINDS, EngineKind
from engines.kv_lease import KVLease
from engines.link.flight_recorder import FlightRecorder
from memory_manager.ports import LeaseStatus
from memory_manager.stats import ReplicaStats, WorkerStats
from mooring.errors import (
    ConflictError,
    InsufficientMemoryError,
    NotFoundError,
)

__all__ = ["NullEngine", "null_engine", "null_token"]


def null_engine(options: WorkerOptions, recorder: FlightRecorder) -> NullEngine:
    """Makes the engine in its worker."""
    return NullEngine(NullEngineConfig(**options.config), options.device, recorder)


def null_token(prompt_ids: TokenIds | Sequence[int], index: int, config: NullEngineConfig) -> int:
    """Output token ``index`` (from 0) of every sequence with this prompt."""
    digest = zlib.crc32(np.asarray(prompt_ids, np.int64).tobytes())
    return config.first_token_id + (digest + index) % config.num_token_ids


@dataclass(slots=True)
class _Sequence:
    request: SequenceRequest
    start: int  # token 0 of the output, before it is wrapped
    num_output: int
    ends_at: int  # output tokens
    has_spoken: bool = False  # in this life


@dataclass(slots=True)
class _Replica:
    spec: LoadSpec
    host_copy_fd: int | None
    weights_bytes: int
    resident: bool = True
    running: dict[int, _Sequence] = field(default_factory=dict)
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0


class NullEngine:
    """An ``Engine`` with no model; see the module."""

    def __init__(
        self,
        config: NullEngineConfig,
        device: str = "cpu",
        recorder: FlightRecorder | None = None,
        sleep: Callable[[float], None] = time.sleep,
        kind: EngineKind = KINDS["null"],
    ) -> None:
        self._kind = kind
        self._config = config
        self._device = device
        self._recorder = recorder
        self._sleep = sleep
        self._replicas: dict[str, _Replica] = {}
        self._replica_of: dict[int, _Replica] = {}
        self._ended: dict[str, list[Finished]] = {}
        self._lease = KVLease()
        self._steps_total = 0
        self._launched: _Replica | None = None
        self._step_began_s = 0.0

    def capabilities(self) -> Capabilities:
        return self._kind.capabilities(self._device)

    def load(self, spec: LoadSpec, weights_fd: int) -> int:
        """Keeps a host copy's descriptor, though the weights are bytes on paper only."""
        replica = self._replicas.get(spec.replica_id)
        if replica is not None:
            os.close(weights_fd)
            replica.resident = True
            replica.weights_bytes = spec.weights_lease_bytes
            return replica.weights_bytes
        num_bytes = os.fstat(weights_fd).st_size
        if num_bytes > spec.weights_lease_bytes:
            os.close(weights_fd)
            raise InsufficientMemoryError(
                f"{num_bytes} bytes of weights do not fit a lease of {spec.weights_lease_bytes}"
            )
        self._replicas[spec.replica_id] = _Replica(spec, weights_fd, spec.weights_lease_bytes)
        if spec.from_file:
            self.drop_host_copy(spec.replica_id)
        return spec.weights_lease_bytes

    def drop_host_copy(self, replica_id: str) -> None:
        replica = self._replica(replica_id)
        if replica.host_copy_fd is not None:
            os.close(replica.host_copy_fd)
            replica.host_copy_fd = None

    def unload(self, replica_id: str) -> None:
        replica = self._replicas.get(replica_id)
        if replica is not None:
            for sequence_id in list(replica.running):
                self._end(replica, sequence_id, error_end(sequence_id, unloaded_error(replica_id)))
            self.drop_host_copy(replica_id)
            del self._replicas[replica_id]

    def sleep(self, replica_id: str) -> int:
        replica = self._replica(replica_id)
        replica.resident = False
        released_bytes, replica.weights_bytes = replica.weights_bytes, 0
        return released_bytes

    def wake(self, replica_id: str, weights_lease_bytes: int) -> int:
        replica = self._replica(replica_id)
        if replica.host_copy_fd is None and not replica.resident:
            raise ConflictError(f"{replica_id} has no host copy to wake from: unload it")
        replica.weights_bytes = weights_lease_bytes
        replica.resident = True
        return weights_lease_bytes

    def set_lease(self, kv_bytes: int, revision: int) -> LeaseStatus:
        return self._lease.accept(kv_bytes, revision) or LeaseStatus.APPLIED  # no KV is ever committed

    def is_giving_back(self) -> bool:
        return False

    def set_memory_limit(self, num_bytes: int) -> int:
        return 0  # nothing is kept ready

    def settle(self) -> None:
        """Does nothing: nothing is kept ready."""

    def submit(self, request: SequenceRequest) -> None:
        sequence_id = request.sequence_id
        replica = self._replicas.get(request.replica_id)
        if replica is None:
            self._ended.setdefault(request.replica_id, []).append(
                error_end(sequence_id, unloaded_error(request.replica_id))
            )
            return
        error = prompt_error(request.prompt_ids, replica.spec.max_model_len)
        if error is not None:
            self._ended.setdefault(request.replica_id, []).append(error_end(sequence_id, error))
            return
        ends_at = min(request.sampling.max_tokens, replica.spec.max_model_len - len(request.prompt_ids))
        start = null_token(request.prompt_ids, 0, self._config) - self._config.first_token_id
        replica.running[sequence_id] = _Sequence(request, start, len(request.output_ids), ends_at)
        replica.prompt_tokens_total += len(request.prompt_ids)
        self._replica_of[sequence_id] = replica

    def cancel(self, sequence_ids: Sequence[int]) -> None:
        for sequence_id in sequence_ids:
            replica = self._replica_of.get(sequence_id)
            if replica is not None:
                self._end(replica, sequence_id, Finished(sequence_id, FinishReason.CANCELLED))

    def has_work(self) -> bool:
        return bool(self._ended or self._busy())

    def launch(self) -> None:
        busy = self._busy()
        if busy:
            self._step_began_s = time.monotonic()
            self._steps_total += 1
            self._launched = busy[self._steps_total % len(busy)]
            if self._recorder is not None:
                self._recorder.begin_step(list(self._launched.running))

    def finish(self) -> list[StepOutput]:
        """Gives one token to every sequence of the replica whose turn it was."""
        outputs = [
            StepOutput(replica_id, self._steps_total, finished=ended)
            for replica_id, ended in self._ended.items()
        ]
        self._ended.clear()
        if self._launched is not None:
            self._sleep(self._config.step_time_s)
            outputs.append(self._advance(self._launched))
            self._launched = None
        return outputs

    def stats(self) -> WorkerStats:
        return WorkerStats(
            replicas=tuple(_stats_of(replica) for replica in self._replicas.values()),
            kv_lease_bytes=self._lease.num_bytes,
            kv_lease_revision=self._lease.revision,
            steps_total=self._steps_total,
            rss_bytes=psutil.Process().memory_info().rss,
        )

    def _busy(self) -> list[_Replica]:
        return [each for each in self._replicas.values() if each.resident and each.running]

    def _advance(self, replica: _Replica) -> StepOutput:
        config = self._config
        output = StepOutput(replica.spec.replica_id, self._steps_total)
        for sequence_id, sequence in list(replica.running.items()):
            known = len(sequence.request.prompt_ids) + len(sequence.request.output_ids)
            output.computed_tokens[sequence_id] = 1 if sequence.has_spoken else known
            finished = None
            if sequence.num_output < sequence.ends_at:
                token_id = (
                    config.first_token_id + (sequence.start + sequence.num_output) % config.num_token_ids
                )
                finished = self._emit(output, sequence, token_id)
            if finished is None and sequence.num_output >= sequence.ends_at:
                finished = Finished(sequence_id, FinishReason.LENGTH)
            if finished is not None:
                output.finished.append(finished)
                del replica.running[sequence_id], self._replica_of[sequence_id]
        replica.generation_tokens_total += len(output.token_ids)
        output.seconds = time.monotonic() - self._step_began_s
        return output

    def _emit(self, output: StepOutput, sequence: _Sequence, token_id: int) -> Finished | None:
        """Appends a token; the end of the sequence, if it is a stop token."""
        sampling = sequence.request.sampling
        if sampling.logprobs is not None:
            output.top_logprobs[len(output.token_ids)] = self._top_logprobs(token_id, sampling.logprobs)
        if not sequence.has_spoken:
            sequence.has_spoken = True
            output.first_tokens[sequence.request.sequence_id] = self._first_token(sequence.request)
        output.sequence_ids.append(sequence.request.sequence_id)
        output.token_ids.append(token_id)
        sequence.num_output += 1
        if token_id in sampling.stop_token_ids and sequence.num_output > sampling.min_tokens:
            return Finished(sequence.request.sequence_id, FinishReason.STOP, stop_token_id=token_id)
        return None

    def _first_token(self, request: SequenceRequest) -> FirstToken:
        num_likeliest = request.sampling.prompt_logprobs
        tops = None
        if num_likeliest is not None:
            tops = [
                self._top_logprobs(prompt_id, num_likeliest) for prompt_id in request.prompt_ids[1:].tolist()
            ]
        return FirstToken(self._step_began_s, prompt_logprobs=tops)

    def _top_logprobs(self, token_id: int, num_likeliest: int) -> TopLogprobs:
        config = self._config
        others = range(config.first_token_id, config.first_token_id + config.num_token_ids)
        likeliest = chain((token_id,), (other for other in others if other != token_id))
        token_ids = tuple(islice(likeliest, num_likeliest))
        logprobs = tuple(math.log(0.5) * rank for rank in range(1, len(token_ids) + 1))
        return TopLogprobs(math.log(0.5), token_ids, logprobs)

    def _end(self, replica: _Replica, sequence_id: int, finished: Finished) -> None:
        del replica.running[sequence_id], self._replica_of[sequence_id]
        self._ended.setdefault(replica.spec.replica_id, []).append(finished)

    def _replica(self, replica_id: str) -> _Replica:
        replica = self._replicas.get(replica_id)
        if replica is None:
            raise NotFoundError(f"no replica {replica_id} is loaded here")
        return replica


def _stats_of(replica: _Replica) -> ReplicaStats:
    return ReplicaStats(
        replica_id=replica.spec.replica_id,
        residency="resident" if replica.resident else "warm",
        weights_bytes=replica.weights_bytes,
        num_running=len(replica.running) if replica.resident else 0,
        num_queued=0 if replica.resident else len(replica.running),
        prompt_tokens_total=replica.prompt_tokens_total,
        generation_tokens_total=replica.generation_tokens_total,
    )
