"""TensorRT-LLM's Python API, as far as the adapter uses it: every name, argument and attribute.

The package cannot be installed everywhere, so the adapter is written against these types, which mypy holds it to, and
a test holds them to the record of the package's own API. Nothing else in this room imports the package, and nothing
in it has the type Any.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, Unpack

from mooring.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

__all__ = [
    "FEATURES",
    "CompletionOutput",
    "GenerateArguments",
    "IterationStats",
    "KVCacheArguments",
    "KVCacheFigures",
    "Llm",
    "LlmArguments",
    "Logprob",
    "MemoryStatus",
    "Package",
    "RequestOutput",
    "SamplingArguments",
    "SchedulerArguments",
    "SleepArguments",
    "load_package",
]

FEATURES: Mapping[str, tuple[int, int]] = {
    "generation": (1, 2),  # by the PyTorch backend, with salted prefixes and a KV cache of a size in bytes
    "penalties": (1, 3),  # earlier versions take them and ignore them, as they do min_p and bad words
    "min_p": (1, 3),
    "bad_words": (1, 3),
    "priority": (1, 3),
    "speculation": (1, 3),  # as a mapping, whose ``decoding_type`` names its kind
    "sleep": (1, 4),
}
"""The version of the package that each feature needs."""


class SamplingArguments(TypedDict, total=False):
    """Arguments of ``SamplingParams``."""

    end_id: int
    max_tokens: int
    stop_token_ids: list[int]
    include_stop_str_in_output: bool
    bad_token_ids: list[int]
    embedding_bias: torch.Tensor
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    prompt_ignore_length: int
    logprobs: int
    detokenize: bool


class KVCacheArguments(TypedDict, total=False):
    """Arguments of ``KvCacheConfig``."""

    enable_block_reuse: bool
    host_cache_size: int
    max_gpu_total_bytes: int


class SchedulerArguments(TypedDict, total=False):
    """Arguments of ``SchedulerConfig``."""

    waiting_queue_policy: str


class SleepArguments(TypedDict, total=False):
    """Arguments of ``SleepConfig``."""

    restore_modes: Mapping[str, str]


class LlmArguments(TypedDict, total=False):
    """Arguments of ``LLM`` beside the model. The objects are made by the package's own classes."""

    skip_tokenizer_init: bool
    tensor_parallel_size: int
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    enable_chunked_prefill: bool
    enable_iter_perf_stats: bool
    guided_decoding_backend: str
    speculative_config: Mapping[str, object]
    kv_cache_config: object
    scheduler_config: object
    sleep_config: object


class GenerateArguments(TypedDict, total=False):
    """Arguments of ``LLM.generate_async`` beside the prompt."""

    sampling_params: object
    streaming: bool
    cache_salt: str
    priority: float


class Logprob(Protocol):
    """One token's log-probability."""

    @property
    def logprob(self) -> float: ...


class CompletionOutput(Protocol):
    """The output of a request so far."""

    @property
    def token_ids(self) -> list[int]: ...

    @property
    def logprobs(self) -> Sequence[Mapping[int, Logprob]]: ...

    @property
    def finish_reason(self) -> str | None: ...


class RequestOutput(Protocol):
    """A request: an iterator that gives itself whenever there is more of it."""

    @property
    def outputs(self) -> Sequence[CompletionOutput]: ...

    @property
    def finished(self) -> bool: ...

    @property
    def cached_tokens(self) -> int: ...

    def abort(self) -> None: ...

    def __aiter__(self) -> AsyncIterator[RequestOutput]: ...


class KVCacheFigures(TypedDict, total=False):
    """The package's figures of its KV blocks."""

    maxNumBlocks: int
    usedNumBlocks: int


class IterationStats(TypedDict, total=False):
    """The package's figures of one of its iterations."""

    kvCacheStats: KVCacheFigures


class MemoryStatus(Protocol):
    """Whether a model's device memory is released."""

    @property
    def state(self) -> Literal["running", "parking", "parked", "waking", "failed"]: ...


class Llm(Protocol):
    """A model, loaded."""

    def generate_async(self, inputs: list[int], **arguments: Unpack[GenerateArguments]) -> RequestOutput: ...

    def get_stats_async(self, timeout: float | None = 2) -> AsyncIterator[IterationStats]: ...

    def release(self) -> None: ...

    def resume(self) -> None: ...

    def get_memory_status(self) -> MemoryStatus: ...

    def shutdown(self) -> None: ...


class _MakesLlm(Protocol):
    def __call__(self, model: str, **arguments: Unpack[LlmArguments]) -> Llm: ...


class _MakesSamplingParams(Protocol):
    def __call__(self, **arguments: Unpack[SamplingArguments]) -> object: ...


class _MakesKVCacheConfig(Protocol):
    def __call__(self, **arguments: Unpack[KVCacheArguments]) -> object: ...


class _MakesSchedulerConfig(Protocol):
    def __call__(self, **arguments: Unpack[SchedulerArguments]) -> object: ...


class _MakesSleepConfig(Protocol):
    def __call__(self, **arguments: Unpack[SleepArguments]) -> object: ...


@dataclass(frozen=True, slots=True)
class Package:
    """The installed package.

    Attributes:
        version: its version, as text.
        llm, sampling_params, kv_cache_config, scheduler_config, sleep_config: its classes; without the feature
            ``sleep`` the last is None.
        request_error: is raised if one request failed, and others may go on.
    """

    version: str
    llm: _MakesLlm
    sampling_params: _MakesSamplingParams
    kv_cache_config: _MakesKVCacheConfig
    scheduler_config: _MakesSchedulerConfig
    sleep_config: _MakesSleepConfig | None
    request_error: type[Exception]

    def has(self, feature: str) -> bool:
        """Whether this version has one of ``FEATURES``."""
        return _numbers(self.version) >= FEATURES[feature]


def load_package() -> Package:
    """Imports TensorRT-LLM. For workers only: it brings torch and CUDA with it.

    Raises:
        ConfigurationError: it is not installed, or too old.
    """
    try:
        import tensorrt_llm
        from tensorrt_llm import llmapi
    except ImportError as error:
        raise ConfigurationError(
            f"the engine tensorrt_llm needs NVIDIA's package of that name, which cannot be imported: {error}; "
            "see docs/tensorrt-llm.md",
            param="engine",
        ) from error
    version = str(tensorrt_llm.__version__)
    if _numbers(version) < FEATURES["generation"]:
        needed = ".".join(map(str, FEATURES["generation"]))
        raise ConfigurationError(
            f"tensorrt_llm {version} is too old: {needed} or a later one is needed", param="engine"
        )
    can_sleep = _numbers(version) >= FEATURES["sleep"]
    return Package(
        version=version,
        llm=tensorrt_llm.LLM,
        sampling_params=tensorrt_llm.SamplingParams,
        kv_cache_config=llmapi.KvCacheConfig,
        scheduler_config=llmapi.SchedulerConfig,
        sleep_config=llmapi.SleepConfig if can_sleep else None,
        request_error=llmapi.RequestError,
    )


def _numbers(version: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
