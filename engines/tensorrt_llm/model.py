"""One replica: a model in TensorRT-LLM, and the sequences that it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from engines.api import DeviceLostError, LoadSpec, SequenceRequest
from engines.checkpoint.folder import FolderManifest, folder_kv_bytes
from engines.config import TensorRtLlmConfig
from engines.tensorrt_llm.streams import LlmStream
from engines.tensorrt_llm.surface import (
    FEATURES,
    IterationStats,
    KVCacheArguments,
    Llm,
    LlmArguments,
    Package,
)
from memory_manager.kv_spec import round_to_pages
from mooring.errors import ArtifactError, ConfigurationError, InsufficientMemoryError, InternalError

__all__ = ["LlmReplica", "LlmSequence"]

# Everything that is named in none of these modes comes back from host memory too.
_RESTORE_MODES = {"model_weights": "PINNED", "kv_cache": "NONE"}


@dataclass(slots=True, eq=False)
class LlmSequence:
    """A sequence of a replica.

    Attributes:
        output_ids: tokens of this life that its router has.
        stream: its request at the package; None while it waits or is parked.
        begun_s: when the package got that request.
        is_computed: whether that request has given a token, and so all before it is computed.
    """

    request: SequenceRequest
    output_ids: list[int] = field(default_factory=list)
    stream: LlmStream | None = None
    begun_s: float = 0.0
    is_computed: bool = False

    @property
    def known_ids(self) -> list[int]:
        """Prompt and output so far."""
        return [*self.request.prompt_ids.tolist(), *self.request.output_ids.tolist(), *self.output_ids]


class LlmReplica:
    """A model, loaded or asleep.

    Args:
        spec: the order to load it.
        config: settings of the worker.
        package: the installed package.

    Raises:
        ArtifactError: the manifest is of no folder.
        ConfigurationError: a setting needs another version of the package.
        InsufficientMemoryError: the lease is smaller than the weights.
    """

    def __init__(self, spec: LoadSpec, config: TensorRtLlmConfig, package: Package) -> None:
        self.spec = spec
        self.sequences: dict[int, LlmSequence] = {}
        self.is_resident = False
        self.figures: IterationStats = {}
        self.num_wakes = 0
        self.prompt_tokens_total = 0
        self.generation_tokens_total = 0
        self.cached_tokens_total = 0
        self._config, self._package = config, package
        self._manifest = FolderManifest.from_json(spec.manifest_json)
        self._llm: Llm | None = None
        self._start(spec.weights_lease_bytes)

    @property
    def can_sleep(self) -> bool:
        """Whether it keeps its weights in host memory while it is off its device."""
        return self._config.sleep and self._package.has("sleep")

    @property
    def llm(self) -> Llm:
        """The model at the package; only while it is resident."""
        assert self._llm is not None, "it is resident"
        return self._llm

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The model's own end-of-sequence ids."""
        return tuple(self._manifest.config["eos_token_ids"])

    @property
    def vocab_size(self) -> int:
        """Token ids of the model."""
        return int(self._manifest.config["vocab_size"])

    @property
    def weights_bytes(self) -> int:
        """Bytes of its weights on each device, while it is resident."""
        return self._share_bytes if self.is_resident else 0

    @property
    def kv_bytes(self) -> int:
        """Bytes of its KV cache on each device while it is resident: its guarantee, and at least one sequence of full
        length, up to its cap."""
        if not self.is_resident:
            return 0
        longest_bytes = folder_kv_bytes(
            self._manifest.config, self._manifest.precision, self.spec.max_model_len
        )
        wanted_bytes = max(self.spec.kv_guarantee_bytes, longest_bytes)
        return round_to_pages(min(wanted_bytes, self.spec.kv_cap_bytes or wanted_bytes))

    def take_figures(self, figures: IterationStats) -> None:
        """Notes the package's newest figures. On any thread."""
        self.figures = figures

    def sleep(self) -> int:
        """Gives up its device memory; none of its requests may be under way. Returns the bytes given up.

        Raises:
            DeviceLostError: it came off in part, and can be neither used nor put back.
        """
        if not self.is_resident:
            return 0
        released_bytes = self.weights_bytes
        if self.can_sleep:
            self._move(self.llm.release)
        else:
            self.stop()
        self.is_resident = False
        return released_bytes

    def wake(self, weights_lease_bytes: int) -> int:
        """Takes its device memory again; returns the bytes of its weights.

        Raises:
            InsufficientMemoryError: the lease is smaller than the weights.
            DeviceLostError: it came back in part.
        """
        if self.is_resident:
            return self.weights_bytes
        self.num_wakes += 1
        if self._llm is None:
            self._start(weights_lease_bytes)
        else:
            self._check(weights_lease_bytes)
            self._move(self._llm.resume)
            self.is_resident = True
        return self.weights_bytes

    def stop(self) -> None:
        """Ends the model at the package."""
        llm, self._llm = self._llm, None
        self.is_resident = False
        if llm is not None:
            llm.shutdown()

    @property
    def _share_bytes(self) -> int:
        return -(-self._manifest.num_bytes // self._config.tensor_parallel_size)

    def _check(self, weights_lease_bytes: int) -> None:
        if self._share_bytes > weights_lease_bytes:
            raise InsufficientMemoryError(
                f"{self.spec.replica_id} needs {self._share_bytes} bytes for its weights and has a lease of "
                f"{weights_lease_bytes}"
            )

    def _start(self, weights_lease_bytes: int) -> None:
        self._check(weights_lease_bytes)
        if not (self._manifest.folder / "config.json").is_file():
            raise ArtifactError(f"{self._manifest.folder} is no checkpoint folder")
        self.is_resident = True
        arguments = self._arguments()
        try:
            self._llm = self._package.llm(str(self._manifest.folder), **arguments)
        except Exception as error:
            self.is_resident = False
            raise InternalError(f"TensorRT-LLM cannot load {self.spec.replica_id}: {error}") from error

    def _arguments(self) -> LlmArguments:
        config, package = self._config, self._package
        cache = KVCacheArguments(
            enable_block_reuse=True,  # within one salt
            max_gpu_total_bytes=self.kv_bytes,
        )
        if config.host_kv_bytes:
            cache["host_cache_size"] = config.host_kv_bytes
        arguments = LlmArguments(
            # Prompts come as token ids, and only a grammar needs to know their text.
            skip_tokenizer_init=config.guided_decoding_backend is None,
            tensor_parallel_size=config.tensor_parallel_size,
            max_batch_size=config.max_batch_size,
            max_num_tokens=config.max_num_tokens,
            max_seq_len=self.spec.max_model_len,
            enable_chunked_prefill=True,
            enable_iter_perf_stats=True,
            kv_cache_config=package.kv_cache_config(**cache),
        )
        if config.guided_decoding_backend is not None:
            arguments["guided_decoding_backend"] = config.guided_decoding_backend
        if config.speculative_config is not None:
            if not package.has("speculation"):
                needed = ".".join(map(str, FEATURES["speculation"]))
                raise ConfigurationError(
                    f"speculative_config needs tensorrt_llm {needed}, and this is {package.version}",
                    param="speculative_config",
                )
            arguments["speculative_config"] = json.loads(config.speculative_config)
        if package.has("priority"):
            arguments["scheduler_config"] = package.scheduler_config(waiting_queue_policy="priority")
        if self.can_sleep and package.sleep_config is not None:
            arguments["sleep_config"] = package.sleep_config(restore_modes=_RESTORE_MODES)
        return arguments

    def _move(self, move: Callable[[], None]) -> None:
        """Has the package give up its device memory or take it again.

        Raises:
            InternalError: it would not, and is as it was.
            DeviceLostError: it stopped half way, from where no way leads back.
        """
        before = self.llm.get_memory_status().state
        try:
            move()
        except Exception as error:
            after = self.llm.get_memory_status().state
            if after == before:
                raise InternalError(f"TensorRT-LLM would not move {self.spec.replica_id}: {error}") from error
            raise DeviceLostError(
                f"{self.spec.replica_id} stopped half way, in state {after}: {error}"
            ) from error
