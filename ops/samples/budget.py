"""The memory budget that the samples share: it holds any two of them and a full context of either, and never all
three, so that a server of the samples shows models making room for each other."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any, NamedTuple

from engines.checkpoint.layout import packed_layout
from engines.checkpoint.model_config import ModelConfig, sequence_kv_bytes
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from ops.samples.recipes import DRAFT, PYTHONLM, config_of
from ops.samples.shapes import SHAPES

__all__ = ["SampleBytes", "sample_budget_bytes", "sample_bytes"]


class SampleBytes(NamedTuple):
    """Bytes of whole pages of one sample's weights, and of the KV of one full context."""

    weights_bytes: int
    longest_kv_bytes: int


def sample_bytes(precision: str) -> dict[str, SampleBytes]:
    """Bytes that each sample needs on a device.

    Args:
        precision: of weights and KV, ``bf16`` or ``fp32``.
    """
    base = SHAPES["SmolLM2-135M"]
    configs = {
        "smollm2": base,
        PYTHONLM.name: config_of(PYTHONLM.shape, PYTHONLM.vocab_size),
        DRAFT.name: config_of(DRAFT.shape, base["vocab_size"]),
    }
    return {name: _needed_bytes(config, precision) for name, config in configs.items()}


def sample_budget_bytes(precision: str) -> int:
    """Bytes of a budget half-way between the two samples that need most and all three; a multiple of the page."""
    needed = sample_bytes(precision).values()
    largest_pair = max(_together_bytes(pair) for pair in combinations(needed, 2))
    return (largest_pair + _together_bytes(needed)) // 2 // PAGE_BYTES * PAGE_BYTES


def _together_bytes(samples: Iterable[SampleBytes]) -> int:
    """KV is kept for one full context, the longest of any of them."""
    needed = list(samples)
    return sum(each.weights_bytes for each in needed) + max(each.longest_kv_bytes for each in needed)


def _needed_bytes(hf_config: dict[str, Any], precision: str) -> SampleBytes:
    config = ModelConfig.from_hf(hf_config)
    _, weights_bytes = packed_layout(config, precision)
    kv_bytes = sequence_kv_bytes(config.to_dict(), precision, config.max_model_len)
    return SampleBytes(round_to_pages(weights_bytes), round_to_pages(kv_bytes))
