"""The memory budget that the samples share: it holds any two of them, each with a full context, and never all
three, so that a server of the samples shows models making room for each other."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from engines.checkpoint.layout import packed_layout
from engines.checkpoint.model_config import ModelConfig, sequence_kv_bytes
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from ops.samples.recipes import DRAFT, PYTHONLM, config_of
from ops.samples.shapes import SHAPES

__all__ = ["sample_budget_bytes", "sample_bytes"]


def sample_bytes(precision: str) -> dict[str, int]:
    """Bytes of whole pages that each sample needs on a device: its weights, and the KV of one full context.

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
    """Bytes of a budget half-way between the two largest samples and all three; a multiple of the page."""
    needed = sample_bytes(precision).values()
    largest_pair = max(sum(pair) for pair in combinations(needed, 2))
    return (largest_pair + sum(needed)) // 2 // PAGE_BYTES * PAGE_BYTES


def _needed_bytes(hf_config: dict[str, Any], precision: str) -> int:
    config = ModelConfig.from_hf(hf_config)
    _, weights_bytes = packed_layout(config, precision)
    kv_bytes = sequence_kv_bytes(config.to_dict(), precision, config.max_model_len)
    return round_to_pages(weights_bytes) + round_to_pages(kv_bytes)
