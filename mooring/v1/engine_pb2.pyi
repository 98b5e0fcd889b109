from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LeaseStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEASE_STATUS_UNSPECIFIED: _ClassVar[LeaseStatus]
    LEASE_STATUS_APPLIED: _ClassVar[LeaseStatus]
    LEASE_STATUS_DEFERRED: _ClassVar[LeaseStatus]
    LEASE_STATUS_STALE: _ClassVar[LeaseStatus]
    LEASE_STATUS_CONFLICT: _ClassVar[LeaseStatus]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
    FINISH_REASON_ERROR: _ClassVar[FinishReason]
LEASE_STATUS_UNSPECIFIED: LeaseStatus
LEASE_STATUS_APPLIED: LeaseStatus
LEASE_STATUS_DEFERRED: LeaseStatus
LEASE_STATUS_STALE: LeaseStatus
LEASE_STATUS_CONFLICT: LeaseStatus
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_CANCELLED: FinishReason
FINISH_REASON_ERROR: FinishReason

class CapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CapabilitiesResponse(_message.Message):
    __slots__ = ("engine", "device", "sleep", "elastic_kv", "adapters", "pid", "warm", "maps_host_copy", "max_step_tokens", "max_sequences")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SLEEP_FIELD_NUMBER: _ClassVar[int]
    ELASTIC_KV_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    WARM_FIELD_NUMBER: _ClassVar[int]
    MAPS_HOST_COPY_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    engine: str
    device: str
    sleep: bool
    elastic_kv: bool
    adapters: bool
    pid: int
    warm: str
    maps_host_copy: bool
    max_step_tokens: int
    max_sequences: int
    def __init__(self, engine: _Optional[str] = ..., device: _Optional[str] = ..., sleep: _Optional[bool] = ..., elastic_kv: _Optional[bool] = ..., adapters: _Optional[bool] = ..., pid: _Optional[int] = ..., warm: _Optional[str] = ..., maps_host_copy: _Optional[bool] = ..., max_step_tokens: _Optional[int] = ..., max_sequences: _Optional[int] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("replica_id", "descriptor_key", "manifest_json", "max_model_len", "weights_lease_bytes", "kv_guarantee_bytes", "kv_cap_bytes", "host_copy_checksum", "from_file")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_KEY_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_LEASE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_GUARANTEE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_CAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_COPY_CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    FROM_FILE_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    descriptor_key: str
    manifest_json: bytes
    max_model_len: int
    weights_lease_bytes: int
    kv_guarantee_bytes: int
    kv_cap_bytes: int
    host_copy_checksum: int
    from_file: bool
    def __init__(self, replica_id: _Optional[str] = ..., descriptor_key: _Optional[str] = ..., manifest_json: _Optional[bytes] = ..., max_model_len: _Optional[int] = ..., weights_lease_bytes: _Optional[int] = ..., kv_guarantee_bytes: _Optional[int] = ..., kv_cap_bytes: _Optional[int] = ..., host_copy_checksum: _Optional[int] = ..., from_file: _Optional[bool] = ...) -> None: ...

class LoadResponse(_message.Message):
    __slots__ = ("weights_bytes", "seconds")
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    weights_bytes: int
    seconds: float
    def __init__(self, weights_bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ("replica_id",)
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    def __init__(self, replica_id: _Optional[str] = ...) -> None: ...

class UnloadResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SleepRequest(_message.Message):
    __slots__ = ("replica_id",)
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    def __init__(self, replica_id: _Optional[str] = ...) -> None: ...

class SleepResponse(_message.Message):
    __slots__ = ("released_bytes", "seconds")
    RELEASED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    released_bytes: int
    seconds: float
    def __init__(self, released_bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class WakeRequest(_message.Message):
    __slots__ = ("replica_id", "weights_lease_bytes")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_LEASE_BYTES_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    weights_lease_bytes: int
    def __init__(self, replica_id: _Optional[str] = ..., weights_lease_bytes: _Optional[int] = ...) -> None: ...

class WakeResponse(_message.Message):
    __slots__ = ("weights_bytes", "seconds")
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    weights_bytes: int
    seconds: float
    def __init__(self, weights_bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class DropHostCopyRequest(_message.Message):
    __slots__ = ("replica_id",)
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    def __init__(self, replica_id: _Optional[str] = ...) -> None: ...

class DropHostCopyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("replica_id", "adapter_id", "host_copy_key", "manifest_json")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_COPY_KEY_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    adapter_id: str
    host_copy_key: str
    manifest_json: bytes
    def __init__(self, replica_id: _Optional[str] = ..., adapter_id: _Optional[str] = ..., host_copy_key: _Optional[str] = ..., manifest_json: _Optional[bytes] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("replica_id", "adapter_id")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    adapter_id: str
    def __init__(self, replica_id: _Optional[str] = ..., adapter_id: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetMemoryLimitRequest(_message.Message):
    __slots__ = ("num_bytes",)
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    def __init__(self, num_bytes: _Optional[int] = ...) -> None: ...

class SetMemoryLimitResponse(_message.Message):
    __slots__ = ("released_bytes",)
    RELEASED_BYTES_FIELD_NUMBER: _ClassVar[int]
    released_bytes: int
    def __init__(self, released_bytes: _Optional[int] = ...) -> None: ...

class SetLeaseRequest(_message.Message):
    __slots__ = ("kv_bytes", "revision")
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    kv_bytes: int
    revision: int
    def __init__(self, kv_bytes: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...

class SetLeaseResponse(_message.Message):
    __slots__ = ("status", "kv_bytes_committed", "revision")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    status: LeaseStatus
    kv_bytes_committed: int
    revision: int
    def __init__(self, status: _Optional[_Union[LeaseStatus, str]] = ..., kv_bytes_committed: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...

class TokenBias(_message.Message):
    __slots__ = ("token_id", "bias")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    bias: float
    def __init__(self, token_id: _Optional[int] = ..., bias: _Optional[float] = ...) -> None: ...

class TokenSequence(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "choice", "max_tokens", "min_tokens", "stop_token_ids", "ignore_eos", "logprobs", "prompt_logprobs", "logit_bias", "bad_words")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    BAD_WORDS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    choice: int
    max_tokens: int
    min_tokens: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    logprobs: int
    prompt_logprobs: int
    logit_bias: _containers.RepeatedCompositeFieldContainer[TokenBias]
    bad_words: _containers.RepeatedCompositeFieldContainer[TokenSequence]
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., choice: _Optional[int] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ..., logit_bias: _Optional[_Iterable[_Union[TokenBias, _Mapping]]] = ..., bad_words: _Optional[_Iterable[_Union[TokenSequence, _Mapping]]] = ...) -> None: ...

class Sequence(_message.Message):
    __slots__ = ("sequence_id", "replica_id", "output_ids", "sampling", "deadline_s", "priority", "cache_scope", "tpot_target_s")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CACHE_SCOPE_FIELD_NUMBER: _ClassVar[int]
    TPOT_TARGET_S_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    replica_id: str
    output_ids: bytes
    sampling: SamplingParams
    deadline_s: float
    priority: int
    cache_scope: bytes
    tpot_target_s: float
    def __init__(self, sequence_id: _Optional[int] = ..., replica_id: _Optional[str] = ..., output_ids: _Optional[bytes] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., deadline_s: _Optional[float] = ..., priority: _Optional[int] = ..., cache_scope: _Optional[bytes] = ..., tpot_target_s: _Optional[float] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("prompt_ids", "sequences")
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    prompt_ids: bytes
    sequences: _containers.RepeatedCompositeFieldContainer[Sequence]
    def __init__(self, prompt_ids: _Optional[bytes] = ..., sequences: _Optional[_Iterable[_Union[Sequence, _Mapping]]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("sequence_ids",)
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    sequence_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("submit", "cancel")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    submit: Submit
    cancel: Cancel
    def __init__(self, submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("sequence_id", "reason", "stop_token_id", "error_code", "error_message")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    reason: FinishReason
    stop_token_id: int
    error_code: str
    error_message: str
    def __init__(self, sequence_id: _Optional[int] = ..., reason: _Optional[_Union[FinishReason, str]] = ..., stop_token_id: _Optional[int] = ..., error_code: _Optional[str] = ..., error_message: _Optional[str] = ...) -> None: ...

class TopLogprobs(_message.Message):
    __slots__ = ("sequence_id", "logprob", "token_ids", "logprobs")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    logprob: float
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sequence_id: _Optional[int] = ..., logprob: _Optional[float] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class PromptLogprobs(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[TopLogprobs]
    def __init__(self, tokens: _Optional[_Iterable[_Union[TopLogprobs, _Mapping]]] = ...) -> None: ...

class FirstToken(_message.Message):
    __slots__ = ("sequence_id", "began_ago_s", "cached_tokens", "prompt_logprobs")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    BEGAN_AGO_S_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    began_ago_s: float
    cached_tokens: int
    prompt_logprobs: PromptLogprobs
    def __init__(self, sequence_id: _Optional[int] = ..., began_ago_s: _Optional[float] = ..., cached_tokens: _Optional[int] = ..., prompt_logprobs: _Optional[_Union[PromptLogprobs, _Mapping]] = ...) -> None: ...

class StepOutput(_message.Message):
    __slots__ = ("replica_id", "step", "sequence_ids", "token_ids", "top_logprobs", "finished", "first_tokens", "following", "seconds", "computed_ids", "num_computed")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FOLLOWING_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    step: int
    sequence_ids: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedCompositeFieldContainer[TopLogprobs]
    finished: _containers.RepeatedCompositeFieldContainer[Finished]
    first_tokens: _containers.RepeatedCompositeFieldContainer[FirstToken]
    following: _containers.RepeatedCompositeFieldContainer[StepOutput]
    seconds: float
    computed_ids: _containers.RepeatedScalarFieldContainer[int]
    num_computed: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, replica_id: _Optional[str] = ..., step: _Optional[int] = ..., sequence_ids: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[_Union[TopLogprobs, _Mapping]]] = ..., finished: _Optional[_Iterable[_Union[Finished, _Mapping]]] = ..., first_tokens: _Optional[_Iterable[_Union[FirstToken, _Mapping]]] = ..., following: _Optional[_Iterable[_Union[StepOutput, _Mapping]]] = ..., seconds: _Optional[float] = ..., computed_ids: _Optional[_Iterable[int]] = ..., num_computed: _Optional[_Iterable[int]] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReplicaStats(_message.Message):
    __slots__ = ("replica_id", "residency", "weights_bytes", "kv_bytes", "kv_live_bytes", "num_running", "num_queued", "preemptions_total", "prompt_tokens_total", "generation_tokens_total", "kv_cached_bytes", "preemptions_by_swap_total", "prefix_query_tokens_total", "prefix_hit_tokens_total")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_LIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_QUEUED_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    KV_CACHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_BY_SWAP_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_QUERY_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HIT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    residency: str
    weights_bytes: int
    kv_bytes: int
    kv_live_bytes: int
    num_running: int
    num_queued: int
    preemptions_total: int
    prompt_tokens_total: int
    generation_tokens_total: int
    kv_cached_bytes: int
    preemptions_by_swap_total: int
    prefix_query_tokens_total: int
    prefix_hit_tokens_total: int
    def __init__(self, replica_id: _Optional[str] = ..., residency: _Optional[str] = ..., weights_bytes: _Optional[int] = ..., kv_bytes: _Optional[int] = ..., kv_live_bytes: _Optional[int] = ..., num_running: _Optional[int] = ..., num_queued: _Optional[int] = ..., preemptions_total: _Optional[int] = ..., prompt_tokens_total: _Optional[int] = ..., generation_tokens_total: _Optional[int] = ..., kv_cached_bytes: _Optional[int] = ..., preemptions_by_swap_total: _Optional[int] = ..., prefix_query_tokens_total: _Optional[int] = ..., prefix_hit_tokens_total: _Optional[int] = ...) -> None: ...

class KVFragmentation(_message.Message):
    __slots__ = ("free_bytes", "vacant_bytes", "tail_bytes", "unfilled_bytes")
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    VACANT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TAIL_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNFILLED_BYTES_FIELD_NUMBER: _ClassVar[int]
    free_bytes: int
    vacant_bytes: int
    tail_bytes: int
    unfilled_bytes: int
    def __init__(self, free_bytes: _Optional[int] = ..., vacant_bytes: _Optional[int] = ..., tail_bytes: _Optional[int] = ..., unfilled_bytes: _Optional[int] = ...) -> None: ...

class WorkerStats(_message.Message):
    __slots__ = ("replicas", "kv_lease_bytes", "kv_lease_revision", "kv_bytes", "steps_total", "rss_bytes", "kv_swapped_bytes", "ready_bytes", "fragmentation", "kv_wanted_bytes")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    KV_LEASE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_LEASE_REVISION_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_SWAPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    READY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTATION_FIELD_NUMBER: _ClassVar[int]
    KV_WANTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStats]
    kv_lease_bytes: int
    kv_lease_revision: int
    kv_bytes: int
    steps_total: int
    rss_bytes: int
    kv_swapped_bytes: int
    ready_bytes: int
    fragmentation: KVFragmentation
    kv_wanted_bytes: int
    def __init__(self, replicas: _Optional[_Iterable[_Union[ReplicaStats, _Mapping]]] = ..., kv_lease_bytes: _Optional[int] = ..., kv_lease_revision: _Optional[int] = ..., kv_bytes: _Optional[int] = ..., steps_total: _Optional[int] = ..., rss_bytes: _Optional[int] = ..., kv_swapped_bytes: _Optional[int] = ..., ready_bytes: _Optional[int] = ..., fragmentation: _Optional[_Union[KVFragmentation, _Mapping]] = ..., kv_wanted_bytes: _Optional[int] = ...) -> None: ...
