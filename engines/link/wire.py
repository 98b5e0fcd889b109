"""The dataclasses of ``engines.api`` as messages of ``mooring.v1`` and back.

Deadlines travel as seconds from now, because the clocks of two processes need not agree. Errors travel as
a gRPC status whose trailing metadata carries the code of ``mooring.errors``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast, overload

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import Message

from engines.api import (
    Capabilities,
    Finished,
    FinishReason,
    FirstToken,
    SamplingParams,
    SequenceRequest,
    TokenIds,
    TopLogprobs,
)
from memory_manager.ports import LeaseStatus, WarmPlace
from memory_manager.stats import KVFragmentation, ReplicaStats, WorkerStats
from mooring.declared import declared
from mooring.errors import InternalError, MooringError, WorkerLostError, error_from_code, status_of
from mooring.v1 import engine_pb2 as pb

__all__ = [
    "CHANNEL_OPTIONS",
    "ROUTER_ID_BITS",
    "ROUTER_ID_MASK",
    "abort_with",
    "capabilities_from_wire",
    "capabilities_to_wire",
    "error_from_rpc",
    "finished_from_wire",
    "finished_to_wire",
    "first_token_from_wire",
    "first_token_to_wire",
    "ids_from_wire",
    "ids_to_wire",
    "lease_status_from_wire",
    "lease_status_to_wire",
    "sequence_from_wire",
    "sequence_to_wire",
    "stats_from_wire",
    "stats_to_wire",
    "top_logprobs_from_wire",
    "top_logprobs_to_wire",
]

# A prompt of a million tokens is a message of a few MiB: longer than gRPC's own limit, and ours to bound.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)

# An engine's sequence ids have the number of the router's stream above the router's own id.
ROUTER_ID_BITS = 40
ROUTER_ID_MASK = (1 << ROUTER_ID_BITS) - 1

_PACKED_IDS = np.dtype("<i4")
_ERROR_CODE_KEY = "mooring-error-code"
_BEST_EFFORT = 0.0
_NO_SEQUENCE = 0  # the default, which takes no bytes
_DUE_NOW_S = 1e-9  # a deadline of exactly now must not read as best effort

_SAMPLING_FIELDS = tuple(declared(SamplingParams).keys() - {"logit_bias", "bad_words_ids"})
_OPTIONAL_SAMPLING_FIELDS = tuple(
    name for name in _SAMPLING_FIELDS if declared(SamplingParams)[name].is_optional
)

_REASON_TO_WIRE = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
}
_REASON_FROM_WIRE = {number: reason for reason, number in _REASON_TO_WIRE.items()}

_LEASE_TO_WIRE = {
    LeaseStatus.APPLIED: pb.LEASE_STATUS_APPLIED,
    LeaseStatus.DEFERRED: pb.LEASE_STATUS_DEFERRED,
    LeaseStatus.STALE: pb.LEASE_STATUS_STALE,
    LeaseStatus.CONFLICT: pb.LEASE_STATUS_CONFLICT,
}
_LEASE_FROM_WIRE = {number: status for status, number in _LEASE_TO_WIRE.items()}


def ids_to_wire(token_ids: TokenIds) -> bytes:
    return np.asarray(token_ids, _PACKED_IDS).tobytes()


def ids_from_wire(packed: bytes) -> TokenIds:
    """The ids, over the very bytes of the message."""
    return np.frombuffer(packed, _PACKED_IDS)


def sequence_to_wire(request: SequenceRequest, now_s: float) -> pb.Sequence:
    """All of a request but its prompt; ``now_s`` is the sender's ``time.monotonic``."""
    deadline_s = _BEST_EFFORT
    if math.isfinite(request.deadline_s):
        deadline_s = (request.deadline_s - now_s) or _DUE_NOW_S
    return pb.Sequence(
        sequence_id=request.sequence_id,
        replica_id=request.replica_id,
        output_ids=ids_to_wire(request.output_ids),
        sampling=_sampling_to_wire(request.sampling),
        deadline_s=deadline_s,
        priority=request.priority,
        cache_scope=request.cache_scope,
        tpot_target_s=request.tpot_target_s if math.isfinite(request.tpot_target_s) else _BEST_EFFORT,
    )


def sequence_from_wire(
    message: pb.Sequence, prompt_ids: TokenIds, sequence_id: int, now_s: float
) -> SequenceRequest:
    """The request in ``message`` under the worker's own ``sequence_id``; ``now_s`` is its clock."""
    return SequenceRequest(
        sequence_id=sequence_id,
        replica_id=message.replica_id,
        prompt_ids=prompt_ids,
        output_ids=ids_from_wire(message.output_ids),
        sampling=_sampling_from_wire(message.sampling),
        deadline_s=math.inf if message.deadline_s == _BEST_EFFORT else now_s + message.deadline_s,
        priority=message.priority,
        cache_scope=message.cache_scope if message.HasField("cache_scope") else None,
        tpot_target_s=message.tpot_target_s or math.inf,
    )


def _sampling_to_wire(sampling: SamplingParams) -> pb.SamplingParams:
    """The parameters as a message, whose fields have their names; what is None is left out."""
    values: dict[str, Any] = {name: getattr(sampling, name) for name in _SAMPLING_FIELDS}
    return pb.SamplingParams(
        **values,
        logit_bias=[pb.TokenBias(token_id=token_id, bias=bias) for token_id, bias in sampling.logit_bias],
        bad_words=[pb.TokenSequence(token_ids=token_ids) for token_ids in sampling.bad_words_ids],
    )


def _sampling_from_wire(message: pb.SamplingParams) -> SamplingParams:
    values: dict[str, Any] = {name: getattr(message, name) for name in _SAMPLING_FIELDS}
    values |= {name: None for name in _OPTIONAL_SAMPLING_FIELDS if not message.HasField(name)}
    values["stop_token_ids"] = tuple(message.stop_token_ids)
    return SamplingParams(
        **values,
        logit_bias=tuple((entry.token_id, entry.bias) for entry in message.logit_bias),
        bad_words_ids=tuple(tuple(word.token_ids) for word in message.bad_words),
    )


def finished_to_wire(finished: Finished, sequence_id: int) -> pb.Finished:
    """``finished`` under the router's own ``sequence_id``. A missing stop token travels as 0, which only
    ``STOP`` reads."""
    return pb.Finished(
        sequence_id=sequence_id,
        reason=_REASON_TO_WIRE[finished.reason],
        stop_token_id=finished.stop_token_id or 0,
        error_code=finished.error_code,
        error_message=finished.error_message,
    )


def finished_from_wire(message: pb.Finished) -> Finished:
    reason = _REASON_FROM_WIRE[message.reason]
    return Finished(
        sequence_id=message.sequence_id,
        reason=reason,
        stop_token_id=message.stop_token_id if reason is FinishReason.STOP else None,
        error_code=message.error_code,
        error_message=message.error_message,
    )


def top_logprobs_to_wire(top: TopLogprobs, sequence_id: int) -> pb.TopLogprobs:
    return pb.TopLogprobs(
        sequence_id=sequence_id, logprob=top.logprob, token_ids=top.token_ids, logprobs=top.logprobs
    )


def top_logprobs_from_wire(message: pb.TopLogprobs) -> TopLogprobs:
    return TopLogprobs(message.logprob, tuple(message.token_ids), tuple(message.logprobs))


def first_token_to_wire(first: FirstToken, sequence_id: int, now_s: float) -> pb.FirstToken:
    """The message under the router's own ``sequence_id``; ``now_s`` is the sender's ``time.monotonic``."""
    tops = first.prompt_logprobs
    tokens = None if tops is None else [top_logprobs_to_wire(top, _NO_SEQUENCE) for top in tops]
    return pb.FirstToken(
        sequence_id=sequence_id,
        began_ago_s=now_s - first.began_s,
        cached_tokens=first.cached_tokens,
        prompt_logprobs=None if tokens is None else pb.PromptLogprobs(tokens=tokens),
    )


def first_token_from_wire(message: pb.FirstToken, now_s: float) -> FirstToken:
    """The value in a message; ``now_s`` is the reader's ``time.monotonic``."""
    has_logprobs = message.HasField("prompt_logprobs")
    return FirstToken(
        began_s=now_s - message.began_ago_s,
        cached_tokens=message.cached_tokens if message.HasField("cached_tokens") else None,
        prompt_logprobs=_TopLogprobsOnWire(message.prompt_logprobs.tokens) if has_logprobs else None,
    )


class _TopLogprobsOnWire(Sequence[TopLogprobs]):
    """The log-probabilities in a message, made into ours as they are read: of a long prompt there are many."""

    def __init__(self, messages: Sequence[pb.TopLogprobs]) -> None:
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, place: int) -> TopLogprobs: ...

    @overload
    def __getitem__(self, place: slice) -> list[TopLogprobs]: ...

    def __getitem__(self, place: int | slice) -> TopLogprobs | list[TopLogprobs]:
        if isinstance(place, slice):
            return [top_logprobs_from_wire(message) for message in self._messages[place]]
        return top_logprobs_from_wire(self._messages[place])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


def lease_status_to_wire(status: LeaseStatus) -> pb.LeaseStatus:
    return _LEASE_TO_WIRE[status]


def lease_status_from_wire(number: pb.LeaseStatus) -> LeaseStatus:
    return _LEASE_FROM_WIRE[number]


def capabilities_to_wire(capabilities: Capabilities) -> pb.CapabilitiesResponse:
    return pb.CapabilitiesResponse(
        engine=capabilities.engine,
        device=capabilities.device,
        sleep=capabilities.sleep,
        elastic_kv=capabilities.elastic_kv,
        warm=capabilities.warm.value,
        adapters=capabilities.adapters,
        pid=capabilities.pid,
        maps_host_copy=capabilities.maps_host_copy,
        max_step_tokens=capabilities.max_step_tokens,
        max_sequences=capabilities.max_sequences,
    )


def capabilities_from_wire(message: pb.CapabilitiesResponse) -> Capabilities:
    return Capabilities(
        engine=message.engine,
        device=message.device,
        sleep=message.sleep,
        elastic_kv=message.elastic_kv,
        warm=WarmPlace(message.warm),
        adapters=message.adapters,
        pid=message.pid,
        maps_host_copy=message.maps_host_copy,
        max_step_tokens=message.max_step_tokens,
        max_sequences=message.max_sequences,
    )


def stats_to_wire(stats: WorkerStats) -> pb.WorkerStats:
    """The message; its fields have the names of the dataclasses'."""
    return pb.WorkerStats(**dataclasses.asdict(stats))


def stats_from_wire(message: pb.WorkerStats) -> WorkerStats:
    replicas = tuple(ReplicaStats(**_values(each, ReplicaStats)) for each in message.replicas)
    fragmentation = KVFragmentation(**_values(message.fragmentation, KVFragmentation))
    values = _values(message, WorkerStats)
    return WorkerStats(**{**values, "replicas": replicas, "fragmentation": fragmentation})


def _values(message: Message, kind: type[Any]) -> dict[str, Any]:
    """Values of a message's fields, those that a dataclass has too."""
    return {field.name: getattr(message, field.name) for field in dataclasses.fields(kind)}


async def abort_with(error: MooringError, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Ends the call with ``error``'s status, its message as details and its code as trailing metadata."""
    status = grpc.StatusCode[status_of(error).grpc]
    await context.abort(status, error.message, trailing_metadata=((_ERROR_CODE_KEY, error.code),))


def error_from_rpc(error: grpc.aio.AioRpcError, worker_id: str) -> MooringError:
    """Returns the error that ``abort_with`` sent; a status that nobody of ours sent is a lost worker or a bug."""
    details = error.details() or error.code().name
    # grpc.aio gives a mapping here, though its stubs say a tuple.
    metadata = cast("Mapping[str, str]", error.trailing_metadata() or {})
    code = metadata.get(_ERROR_CODE_KEY)
    if code is not None:
        return error_from_code(code, details)
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return WorkerLostError(f"worker {worker_id} is gone: {details}")
    return InternalError(f"worker {worker_id} answered {error.code().name}: {details}")
