"""The packed tensors of a model: one table from which the packer writes and the model reads.

Projections that take the same input are fused, so that a step runs four matrix products a layer: query, key
and value rows lie one behind the other, and so do gate and up. All matrices are [out, in], as in the
checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.artifact import ALIGNMENT_BYTES, TensorEntry
from engines.checkpoint.hf_files import StoredTensor
from mooring.errors import ArtifactError

if TYPE_CHECKING:
    from engines.checkpoint.model_config import ModelConfig

__all__ = ["PRECISIONS", "PackedTensor", "check_checkpoint", "packed_layout", "packed_tensors"]

PRECISIONS: Mapping[str, tuple[str, int]] = {"bf16": ("bfloat16", 2), "fp32": ("float32", 4)}
"""Torch's dtype name and the bytes of an element, by precision."""

_FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
# Old checkpoints hold the rotary frequencies too, which follow from the configuration.
_IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """One tensor of the artifact.

    Attributes:
        sources: names of checkpoint tensors, with the shape that each must have; stacked along the first
            dimension in this order.
    """

    sources: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.sources[0][1]
        return (sum(shape[0] for _, shape in self.sources), *first[1:])


def packed_tensors(config: ModelConfig) -> dict[str, PackedTensor]:
    """Every tensor of the artifact by the engine's name, in the order in which a step reads them."""
    hidden = config.hidden_size
    tensors = {"embed": PackedTensor((("model.embed_tokens.weight", (config.vocab_size, hidden)),))}
    for layer in range(config.num_layers):
        for name, tensor in _layer_tensors(config, f"model.layers.{layer}").items():
            tensors[f"layers.{layer}.{name}"] = tensor
    tensors["final_norm"] = PackedTensor((("model.norm.weight", (hidden,)),))
    if not config.tied_embeddings:
        tensors["lm_head"] = PackedTensor((("lm_head.weight", (config.vocab_size, hidden)),))
    return tensors


def _layer_tensors(config: ModelConfig, prefix: str) -> dict[str, PackedTensor]:
    hidden, intermediate, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    qkv = (
        (f"{attention}.q_proj", q_size),
        (f"{attention}.k_proj", kv_size),
        (f"{attention}.v_proj", kv_size),
    )
    gate_up = ((f"{mlp}.gate_proj", intermediate), (f"{mlp}.up_proj", intermediate))
    projections = {
        "qkv": (qkv, hidden, config.qkv_bias),
        "out": (((f"{attention}.o_proj", hidden),), q_size, config.out_bias),
        "gate_up": (gate_up, hidden, config.mlp_bias),
        "down": (((f"{mlp}.down_proj", hidden),), intermediate, config.mlp_bias),
    }
    tensors = {
        "input_norm": PackedTensor(((f"{prefix}.input_layernorm.weight", (hidden,)),)),
        "post_norm": PackedTensor(((f"{prefix}.post_attention_layernorm.weight", (hidden,)),)),
    }
    for name, (parts, in_size, has_bias) in projections.items():
        tensors[name] = PackedTensor(tuple((f"{part}.weight", (rows, in_size)) for part, rows in parts))
        if has_bias:
            tensors[f"{name}_bias"] = PackedTensor(tuple((f"{part}.bias", (rows,)) for part, rows in parts))
    if config.qk_norm:
        tensors["qk_norm"] = PackedTensor(
            tuple((f"{attention}.{part}.weight", (head_dim,)) for part in ("q_norm", "k_norm"))
        )
    return tensors


def packed_layout(config: ModelConfig, precision: str) -> tuple[dict[str, TensorEntry], int]:
    """The place of each packed tensor, and the size of all of them in bytes.

    Raises:
        ArtifactError: this packer does not write the precision.
    """
    if precision not in PRECISIONS:
        raise ArtifactError(
            f"precision {precision!r} is not supported; supported are {', '.join(PRECISIONS)}"
        )
    dtype, element_bytes = PRECISIONS[precision]
    entries: dict[str, TensorEntry] = {}
    end = 0
    for name, tensor in packed_tensors(config).items():
        offset = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        num_bytes = math.prod(tensor.shape) * element_bytes
        entries[name] = TensorEntry(dtype, tensor.shape, offset, num_bytes)
        end = offset + num_bytes
    return entries, end


def check_checkpoint(config: ModelConfig, headers: Mapping[str, StoredTensor]) -> frozenset[str]:
    """The names of the checkpoint tensors that the model uses, after checking that each is there with the
    right shape.

    Raises:
        ArtifactError: a tensor is missing, has another shape or dtype, or is not expected; the message names
            it.
    """
    expected = {name: shape for tensor in packed_tensors(config).values() for name, shape in tensor.sources}
    for name, shape in expected.items():
        tensor = headers.get(name)
        if tensor is None:
            raise ArtifactError(f"the checkpoint lacks {name}")
        if tensor.shape != shape:
            raise ArtifactError(
                f"{name} has shape {list(tensor.shape)}; the configuration asks for {list(shape)}"
            )
        if tensor.dtype not in _FLOAT_DTYPES:
            raise ArtifactError(f"{name} has dtype {tensor.dtype}, which is not supported")
    ignored = {"lm_head.weight"} if config.tied_embeddings else set()
    for name in headers:
        if name not in expected and name not in ignored and not _IGNORED.fullmatch(name):
            raise ArtifactError(
                f"the checkpoint holds {name}, which a {config.model_type} model does not have"
            )
    return frozenset(expected)
