"""Settings of the torch engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mooring.errors import ConfigurationError

__all__ = ["TorchEngineConfig"]


@dataclass(frozen=True, slots=True)
class TorchEngineConfig:
    """How a torch worker runs its models.

    Attributes:
        kv_range_bytes: virtual address range of the KV pool, the most KV that any lease can grant; None is
            the arena's capacity. Address space only: nothing is committed until blocks are taken.
        device: what ``capabilities`` reports; the tensors live where the arena's memory is.
        max_tokens_per_step: new tokens of one forward, decodes first and prefill chunks in what they leave.
            More of them fill a faster device better and make the decodes beside them wait longer.
        max_running_sequences: of one model at a time; the others wait.
        max_turns_waited: turns that other models may take before a model with work goes first whatever its
            deadlines.
        kv_swap_bytes: of host memory for the KV of preempted sequences, of all models; 0 computes it again always.
        num_threads: that torch computes with; None leaves torch's own choice.
        num_copy_threads: that copy weights from the host copy to a device that is the CPU.
        copy_chunk_bytes: of one copy from the host copy to a GPU.
        cpu_wake: how weights come to a device that is the CPU: ``remap`` puts the host copy's own pages under
            the weights' addresses, which copies nothing and holds them once; ``copy`` copies, as on a GPU.
        ready_bytes: of physical memory that is made ahead of need, so that growth costs no step anything.
    """

    kv_range_bytes: int | None = None
    device: str = "cpu"
    max_tokens_per_step: int = 512
    max_running_sequences: int = 64
    max_turns_waited: int = 8
    kv_swap_bytes: int = 64 << 20
    num_threads: int | None = None
    num_copy_threads: int = 2
    copy_chunk_bytes: int = 8 << 20
    cpu_wake: Literal["copy", "remap"] = "remap"
    ready_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name in ("max_tokens_per_step", "max_running_sequences", "num_copy_threads", "copy_chunk_bytes"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {getattr(self, name)}", param=name)
        if self.cpu_wake not in ("copy", "remap"):
            raise ConfigurationError(f"cpu_wake is copy or remap, not {self.cpu_wake!r}", param="cpu_wake")
        if self.ready_bytes < 0:
            raise ConfigurationError("ready_bytes cannot be negative", param="ready_bytes")
        if self.kv_swap_bytes < 0:
            raise ConfigurationError(f"kv_swap_bytes is {self.kv_swap_bytes}, below 0", param="kv_swap_bytes")
        if self.max_tokens_per_step < self.max_running_sequences:
            raise ConfigurationError(
                f"max_tokens_per_step ({self.max_tokens_per_step}) must be at least max_running_sequences "
                f"({self.max_running_sequences}): every running sequence decodes one token a step",
                param="max_tokens_per_step",
            )
