"""Memory that one step takes beside weights and KV: an upper bound from the shapes of its tensors."""

from __future__ import annotations

from engines.checkpoint.model_config import ModelConfig
from mooring.units import MIB

__all__ = ["DEFAULT_WORKSPACE_BYTES", "step_workspace_bytes"]

DEFAULT_WORKSPACE_BYTES = 64 * MIB
"""Most bytes that the gathered keys, values and mask of one slice of sequences take, unless a single sequence
takes more."""


def step_workspace_bytes(
    config: ModelConfig, element_bytes: int, *, step_tokens: int, num_sequences: int, context_tokens: int
) -> int:
    """Bytes of the tensors that are alive at once in the largest phase of a step.

    Args:
        element_bytes: size of an element of weights and activations; sums over layers and logits are float32.
        step_tokens: new tokens of the step.
        num_sequences: sequences whose logits are wanted.
        context_tokens: tokens in the cache of the longest of them.
    """
    heads = config.num_heads + 2 * config.num_kv_heads
    one_sequence = 2 * config.num_kv_heads * config.head_dim * element_bytes * context_tokens
    attention = max(DEFAULT_WORKSPACE_BYTES, one_sequence)
    # The projected heads, the rotated heads, and the output of attention.
    attention += step_tokens * (2 * heads + config.num_heads) * config.head_dim * element_bytes
    # Gate and up, the activated gate, the product.
    mlp = step_tokens * 4 * config.intermediate_size * element_bytes
    logits = num_sequences * config.vocab_size * 4 * 2  # and the sampler's copy of them
    # The residual stream, a norm's copy of it in float32, and one in the weights' dtype.
    residual = step_tokens * config.hidden_size * (4 + 4 + element_bytes)
    return residual + max(attention, mlp, logits)
