"""The network: one decoder, of which every supported architecture is a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.checkpoint.layout import packed_tensors
from engines.checkpoint.model_config import ModelConfig
from engines.torch.model.attention import DEFAULT_WORKSPACE_BYTES, PagedAttention
from engines.torch.model.batch import ForwardBatch
from engines.torch.model.kv_view import KVCacheView
from engines.torch.model.linear import project, project_to_logits
from engines.torch.model.rope import Rotation, inverse_frequencies
from mooring.errors import ArtifactError

__all__ = ["TransformerModel"]


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one decoder layer; matrices are [out, in], and parts that the model does not have are
    None."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # [2 * head_dim]: the queries' norm, then the keys'
    out: Tensor
    out_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class TransformerModel:
    """A decoder over weights that it does not own: they stay in the arena.

    Args:
        config: the model's configuration.
        weights: tensors by their packed names (``engines.checkpoint.layout``), all of one dtype, on one
            device.
        kv: the cache that the model will run on; its dtype is checked here so that a mismatch shows at load.
        workspace_bytes: most bytes of attention's gathered copies in one step.
        give_way: called before each layer and before the logits, so that other work may run between them.

    Raises:
        ArtifactError: a tensor is missing or has another shape.
        ValueError: the cache has another dtype.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        kv: KVCacheView | None = None,
        workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
        give_way: Callable[[], None] = lambda: None,
    ) -> None:
        for name, packed in packed_tensors(config).items():
            found = tuple(weights[name].shape) if name in weights else None
            if found != packed.shape:
                raise ArtifactError(
                    f"packed tensor {name} has shape {found}, not {packed.shape}: pack it again"
                )
        self.config = config
        self._workspace_bytes = workspace_bytes
        self._give_way = give_way
        self._embed = weights["embed"]
        self._final_norm = weights["final_norm"]
        self._lm_head = self._embed if config.tied_embeddings else weights["lm_head"]
        self._layers = [_layer(weights, f"layers.{i}") for i in range(config.num_layers)]
        self._eps = torch.tensor(config.rms_norm_eps, device=self._embed.device)
        self._frequencies = inverse_frequencies(config.rope, config.head_dim).to(self._embed.device)
        if kv is not None and kv.dtype != self._embed.dtype:
            raise ValueError(f"weights of {self._embed.dtype} over a KV cache of {kv.dtype}")

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv: KVCacheView) -> Tensor:
        """Runs the new tokens of one step and stores their keys and values.

        Returns:
            [R, hidden_size] final states of ``batch.logits_rows``, for ``logits``.
        """
        # The sum over layers is kept in float32: otherwise each addition would round to bfloat16 again.
        hidden = F.embedding(batch.token_ids, self._embed).float()
        attention = PagedAttention(batch, kv, self._workspace_bytes)
        rotation = Rotation(batch.positions, self._frequencies, self._embed.dtype)
        for i, layer in enumerate(self._layers):
            self._give_way()
            hidden += self._attend(i, layer, hidden, attention, rotation)
            hidden += self._mlp(layer, hidden)
        return self._norm(hidden[batch.logits_rows], self._final_norm)

    @torch.inference_mode()
    def logits(self, states: Tensor) -> Tensor:
        """float32 [R, vocab_size] logits of final states [R, hidden_size]. A call of its own, because the
        logits of a whole prompt are too many to be made at once."""
        self._give_way()
        return project_to_logits(states, self._lm_head)

    def _attend(
        self, index: int, layer: _Layer, hidden: Tensor, attention: PagedAttention, rotation: Rotation
    ) -> Tensor:
        num_heads, num_kv_heads = self.config.num_heads, self.config.num_kv_heads
        qkv = project(self._norm(hidden, layer.input_norm), layer.qkv, layer.qkv_bias)
        heads = qkv.reshape(-1, num_heads + 2 * num_kv_heads, self.config.head_dim)
        qk, v = heads[:, : num_heads + num_kv_heads], heads[:, num_heads + num_kv_heads :]
        if layer.qk_norm is not None:
            q_norm, k_norm = layer.qk_norm.chunk(2)
            qk = torch.cat(
                (self._norm(qk[:, :num_heads], q_norm), self._norm(qk[:, num_heads:], k_norm)), dim=1
            )
        qk = rotation.apply(qk)
        attended = attention.attend(index, qk[:, :num_heads], qk[:, num_heads:], v)
        return project(attended, layer.out, layer.out_bias)

    def _mlp(self, layer: _Layer, hidden: Tensor) -> Tensor:
        gate_up = project(self._norm(hidden, layer.post_norm), layer.gate_up, layer.gate_up_bias)
        gate, up = gate_up.chunk(2, dim=-1)
        return project(F.silu(gate) * up, layer.down, layer.down_bias)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm over the last dimension, in float32; the result has the weights' dtype."""
        x = x.float()
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(weight).to(weight.dtype)


def _layer(weights: Mapping[str, Tensor], prefix: str) -> _Layer:
    return _Layer(
        input_norm=weights[f"{prefix}.input_norm"],
        qkv=weights[f"{prefix}.qkv"],
        qkv_bias=weights.get(f"{prefix}.qkv_bias"),
        qk_norm=weights.get(f"{prefix}.qk_norm"),
        out=weights[f"{prefix}.out"],
        out_bias=weights.get(f"{prefix}.out_bias"),
        post_norm=weights[f"{prefix}.post_norm"],
        gate_up=weights[f"{prefix}.gate_up"],
        gate_up_bias=weights.get(f"{prefix}.gate_up_bias"),
        down=weights[f"{prefix}.down"],
        down_bias=weights.get(f"{prefix}.down_bias"),
    )
