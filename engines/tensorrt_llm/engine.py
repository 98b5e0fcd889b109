"""The engine that has TensorRT-LLM run its models.

The package batches and schedules by itself: it has no steps of ours. ``launch`` hands over what is new, ``finish``
takes away what has arrived since, and both together are what the worker calls a step.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import psutil

from engines.api import (
    Capabilities,
    DeviceLostError,
    Finished,
    FinishReason,
    FirstToken,
    LoadSpec,
    SequenceRequest,
    StepOutput,
)
from engines.config import TensorRtLlmConfig
from engines.ends import error_end, prompt_error, unloaded_error
from engines.kinds import KINDS, EngineKind
from engines.kv_lease import KVLease
from engines.link.flight_recorder import FlightRecorder
from engines.tensorrt_llm.model import LlmReplica, LlmSequence
from engines.tensorrt_llm.streams import Arrival, LlmStream, LlmStreams
from engines.tensorrt_llm.surface import GenerateArguments, Package
from engines.tensorrt_llm.translation import (
    cache_salt,
    ending_ids,
    finish_reason,
    priority,
    sampling_arguments,
)
from memory_manager.ports import LeaseStatus, WarmPlace
from memory_manager.stats import ReplicaStats, WorkerStats
from mooring.errors import (
    InternalError,
    InvalidRequestError,
    MooringError,
    NotFoundError,
)

__all__ = ["TensorRtLlmEngine"]

logger = logging.getLogger(__name__)

# Commands wait for the end of a step, and so does a new request: it may take so long at most if nothing arrives.
_WAIT_S = 4e-3
_DRAIN_S = 60.0  # aborted requests leave with the package's next iteration


class TensorRtLlmEngine:
    """An ``Engine`` around the package; see the module."""

    def __init__(
        self,
        config: TensorRtLlmConfig,
        package: Package,
        device: str,
        recorder: FlightRecorder | None = None,
        clock: Callable[[], float] = time.monotonic,
        kind: EngineKind = KINDS["tensorrt_llm"],
    ) -> None:
        self._config, self._package, self._device, self._kind = config, package, device, kind
        self._recorder, self._clock = recorder, clock
        self._streams = LlmStreams()
        self._replicas: dict[str, LlmReplica] = {}
        self._replica_of: dict[int, LlmReplica] = {}
        self._ended: dict[str, list[Finished]] = {}
        self._lease = KVLease()
        self._steps_total = 0
        self._last_news_s = clock()

    def capabilities(self) -> Capabilities:
        sleeps = self._config.sleep and self._package.has("sleep")
        return replace(
            self._kind.capabilities(self._device),
            sleep=sleeps,
            warm=WarmPlace.WORKER if sleeps else WarmPlace.NOWHERE,
            max_step_tokens=self._config.max_num_tokens,
            max_sequences=self._config.max_batch_size,
        )

    def load(self, spec: LoadSpec, weights_fd: int) -> int:
        """Has the package read the folder that the manifest names; the descriptor is not needed."""
        os.close(weights_fd)
        there = self._replicas.get(spec.replica_id)
        if there is not None:
            return there.wake(spec.weights_lease_bytes)
        loaded = LlmReplica(spec, self._config, self._package)
        self._replicas[spec.replica_id] = loaded
        return loaded.weights_bytes

    def drop_host_copy(self, replica_id: str) -> None:
        """Does nothing: what the package keeps in host memory is its own."""
        self._replica(replica_id)

    def unload(self, replica_id: str) -> None:
        replica = self._replicas.pop(replica_id, None)
        if replica is not None:
            self._stop_streams(replica)
            for sequence_id in list(replica.sequences):
                self._end(replica, error_end(sequence_id, unloaded_error(replica_id)))
            replica.stop()

    def sleep(self, replica_id: str) -> int:
        replica = self._replica(replica_id)
        self._stop_streams(replica)
        return replica.sleep()

    def wake(self, replica_id: str, weights_lease_bytes: int) -> int:
        return self._replica(replica_id).wake(weights_lease_bytes)

    def set_lease(self, kv_bytes: int, revision: int) -> LeaseStatus:
        """Takes in the KV lease. The KV of a replica is as large as it was loaded with, so a lease below that of all
        replicas is deferred until some have left."""
        refused = self._lease.accept(kv_bytes, revision)
        if refused is not None:
            return refused
        return LeaseStatus.APPLIED if self._kv_bytes() <= kv_bytes else LeaseStatus.DEFERRED

    def is_giving_back(self) -> bool:
        return False

    def set_memory_limit(self, num_bytes: int) -> int:
        return 0  # nothing is kept ready

    def settle(self) -> None:
        """Does nothing: nothing is kept ready."""

    def submit(self, request: SequenceRequest) -> None:
        replica = self._replicas.get(request.replica_id)
        if replica is None:
            ended = error_end(request.sequence_id, unloaded_error(request.replica_id))
            self._ended.setdefault(request.replica_id, []).append(ended)
            return
        sequence = LlmSequence(request)
        replica.sequences[request.sequence_id] = sequence
        self._replica_of[request.sequence_id] = replica
        try:
            self._check(replica, sequence)
        except MooringError as error:
            self._end(replica, error_end(request.sequence_id, error))
            return
        replica.prompt_tokens_total += len(request.prompt_ids)

    def cancel(self, sequence_ids: Sequence[int]) -> None:
        for sequence_id in sequence_ids:
            replica = self._replica_of.get(sequence_id)
            if replica is not None:
                self._end(replica, Finished(sequence_id, FinishReason.CANCELLED))

    def has_work(self) -> bool:
        return bool(self._ended) or self._streams.has_news() or any(self._resident_sequences())

    def launch(self) -> None:
        """Hands to the package what it does not have yet."""
        now_s = self._clock()
        running = self._resident_sequences()
        if self._recorder is not None:
            self._recorder.begin_step([each.request.sequence_id for _, each in running])
        if not any(sequence.stream for _, sequence in running):
            self._last_news_s = now_s  # the package had nothing to say
        for replica, sequence in running:
            if sequence.stream is None:
                self._begin(replica, sequence, now_s)

    def finish(self) -> list[StepOutput]:
        """Takes away what has arrived, and waits for it a little.

        Raises:
            DeviceLostError: the package has said nothing of its requests for too long.
            InternalError: it is broken.
        """
        arrivals = self._streams.take(0.0 if self._ended else _WAIT_S)
        now_s = self._clock()
        outputs: dict[str, StepOutput] = {}
        for arrival in arrivals:
            self._take(arrival, outputs)
        for replica_id, ended in self._ended.items():
            self._output_of(replica_id, outputs).finished += ended
        self._ended.clear()
        if arrivals:
            self._steps_total += 1
            for output in outputs.values():
                output.seconds = now_s - self._last_news_s
            self._last_news_s = now_s
        elif self._resident_sequences() and now_s - self._last_news_s > self._config.max_silence_s:
            raise DeviceLostError(
                f"TensorRT-LLM has said nothing for {self._config.max_silence_s:g} s while requests wait for it"
            )
        return list(outputs.values())

    def stats(self) -> WorkerStats:
        """The worker's figures. Those of blocks are the package's, from when it was asked last."""
        for replica_id, replica in list(self._replicas.items()):
            if replica.is_resident:
                self._streams.ask_stats(replica_id, replica.llm, replica.take_figures)
        return WorkerStats(
            replicas=tuple(_stats_of(name, each) for name, each in list(self._replicas.items())),
            kv_lease_bytes=self._lease.num_bytes,
            kv_lease_revision=self._lease.revision,
            kv_bytes=self._kv_bytes(),
            steps_total=self._steps_total,
            rss_bytes=psutil.Process().memory_info().rss,
        )

    def close(self) -> None:
        """Ends all models and the event loop."""
        for replica_id in list(self._replicas):
            self.unload(replica_id)
        self._streams.close()

    # Sequences -------------------------------------------------------------------------------------

    def _resident_sequences(self) -> list[tuple[LlmReplica, LlmSequence]]:
        return [
            (replica, sequence)
            for replica in list(self._replicas.values())
            if replica.is_resident
            for sequence in replica.sequences.values()
        ]

    def _check(self, replica: LlmReplica, sequence: LlmSequence) -> None:
        """Raises what is wrong with a request, before the package has it."""
        request = sequence.request
        error = prompt_error(request.prompt_ids, replica.spec.max_model_len)
        if error is not None:
            raise error
        sampling_arguments(request, 1, replica.eos_ids, replica.vocab_size, self._package)

    def _begin(self, replica: LlmReplica, sequence: LlmSequence, now_s: float) -> None:
        request = sequence.request
        known_ids = sequence.known_ids
        num_output = len(known_ids) - len(request.prompt_ids)
        max_tokens = min(
            request.sampling.max_tokens - num_output, replica.spec.max_model_len - len(known_ids)
        )
        if max_tokens <= 0:
            self._end(replica, Finished(request.sequence_id, FinishReason.LENGTH))
            return
        sampling = sampling_arguments(request, max_tokens, replica.eos_ids, replica.vocab_size, self._package)
        arguments = GenerateArguments(
            sampling_params=self._package.sampling_params(**sampling),
            streaming=True,
            cache_salt=cache_salt(request.cache_scope, replica.num_wakes),
        )
        if self._package.has("priority"):
            arguments["priority"] = priority(request.priority)
        sequence.stream = LlmStream(request.sequence_id, known_ids, request.sampling.logprobs)
        sequence.begun_s, sequence.is_computed = now_s, False
        self._streams.begin(sequence.stream, replica.llm, arguments)

    def _take(self, arrival: Arrival, outputs: dict[str, StepOutput]) -> None:
        sequence_id = arrival.stream.sequence_id
        replica = self._replica_of.get(sequence_id)
        sequence = replica.sequences[sequence_id] if replica is not None else None
        if replica is None or sequence is None or sequence.stream is not arrival.stream:
            return  # it was cancelled or parked meanwhile
        if arrival.error is not None:
            self._end(replica, error_end(sequence_id, self._judge(arrival.error)))
        elif arrival.finished:
            error = InternalError("TensorRT-LLM ended the request without saying why")
            self._end(replica, error_end(sequence_id, error))
        else:
            self._add(replica, sequence, arrival, self._output_of(replica.spec.replica_id, outputs))

    def _judge(self, error: Exception) -> MooringError:
        """The error of one request; raises if it is the package's that is broken."""
        if isinstance(error, MooringError):
            return error
        if isinstance(error, ValueError):
            return InvalidRequestError(f"TensorRT-LLM refuses the request: {error}")
        if isinstance(error, self._package.request_error):
            return InternalError(f"TensorRT-LLM failed: {error}")
        raise InternalError(f"TensorRT-LLM is broken: {error!r}") from error

    def _add(self, replica: LlmReplica, sequence: LlmSequence, arrival: Arrival, output: StepOutput) -> None:
        sequence_id = sequence.request.sequence_id
        num_new = len(arrival.token_ids)
        first = not sequence.output_ids
        for place, logprobs in enumerate(arrival.logprobs):
            output.top_logprobs[len(output.token_ids) + place] = logprobs
        output.sequence_ids += [sequence_id] * num_new
        output.token_ids += arrival.token_ids
        sequence.output_ids += arrival.token_ids
        replica.generation_tokens_total += num_new
        if first and num_new:
            cached = arrival.cached_tokens if sequence.request.cache_scope is not None else None
            output.first_tokens[sequence_id] = FirstToken(sequence.begun_s, cached)
            replica.cached_tokens_total += arrival.cached_tokens
        num_computed = num_new
        if num_new and not sequence.is_computed:
            sequence.is_computed = True
            num_computed += len(arrival.stream.prompt_ids) - arrival.cached_tokens - 1
        output.computed_tokens[sequence_id] = output.computed_tokens.get(sequence_id, 0) + num_computed
        if arrival.finish_reason is not None:
            self._finish(replica, sequence, arrival)

    def _finish(self, replica: LlmReplica, sequence: LlmSequence, arrival: Arrival) -> None:
        sequence_id = sequence.request.sequence_id
        last_id = sequence.output_ids[-1] if sequence.output_ids else None
        ends = ending_ids(sequence.request.sampling, replica.eos_ids)
        reason = finish_reason(arrival.finish_reason, last_id, ends)
        if reason is None:
            error = InternalError(f"TensorRT-LLM ended the request: {arrival.finish_reason}")
            self._end(replica, error_end(sequence_id, error))
            return
        stop_id = last_id if reason is FinishReason.STOP and last_id in ends else None
        self._end(replica, Finished(sequence_id, reason, stop_token_id=stop_id))

    def _output_of(self, replica_id: str, outputs: dict[str, StepOutput]) -> StepOutput:
        return outputs.setdefault(replica_id, StepOutput(replica_id, self._steps_total + 1))

    def _end(self, replica: LlmReplica, finished: Finished) -> None:
        """Ends a sequence; what the package still does for it is stopped."""
        sequence = replica.sequences.pop(finished.sequence_id)
        del self._replica_of[finished.sequence_id]
        if sequence.stream is not None:
            self._streams.abort([sequence.stream])
        self._ended.setdefault(replica.spec.replica_id, []).append(finished)

    def _stop_streams(self, replica: LlmReplica) -> None:
        """Takes a replica's requests back from the package; its sequences are parked.

        Raises:
            DeviceLostError: the package does not let go of them.
        """
        streams = [each.stream for each in replica.sequences.values() if each.stream is not None]
        for sequence in replica.sequences.values():
            sequence.stream = None
        self._streams.abort(streams)
        until_s = self._clock() + _DRAIN_S
        if not all(each.ended.wait(max(0.0, until_s - self._clock())) for each in streams):
            raise DeviceLostError(f"TensorRT-LLM does not let go of requests of {replica.spec.replica_id}")
        self._streams.forget(streams)

    def _kv_bytes(self) -> int:
        return sum(each.kv_bytes for each in list(self._replicas.values()))

    def _replica(self, replica_id: str) -> LlmReplica:
        replica = self._replicas.get(replica_id)
        if replica is None:
            raise NotFoundError(f"no replica {replica_id} is loaded here")
        return replica


def _stats_of(replica_id: str, replica: LlmReplica) -> ReplicaStats:
    blocks = replica.figures.get("kvCacheStats", {})
    num_blocks, num_used = blocks.get("maxNumBlocks", 0), blocks.get("usedNumBlocks", 0)
    live_bytes = replica.kv_bytes * num_used // num_blocks if num_blocks else 0
    is_resident = replica.is_resident
    return ReplicaStats(
        replica_id=replica_id,
        residency="resident" if is_resident else "warm",
        weights_bytes=replica.weights_bytes,
        kv_bytes=replica.kv_bytes,
        kv_live_bytes=live_bytes,
        num_running=len(replica.sequences) if is_resident else 0,
        num_queued=0 if is_resident else len(replica.sequences),
        prefix_query_tokens_total=replica.prompt_tokens_total,
        prefix_hit_tokens_total=replica.cached_tokens_total,
        prompt_tokens_total=replica.prompt_tokens_total,
        generation_tokens_total=replica.generation_tokens_total,
    )
