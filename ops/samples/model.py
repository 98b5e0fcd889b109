"""The decoder that the samples are trained with: Llama or Qwen3, small enough to read at a glance.

Parameter names are those of Hugging Face checkpoints, so that the state dict is the checkpoint.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ops.samples.recipes import DecoderShape

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """A causal language model with separate input and output embeddings.

    Args:
        shape: sizes of the decoder.
        vocab_size: rows of both embeddings.
    """

    def __init__(self, shape: DecoderShape, vocab_size: int) -> None:
        super().__init__()
        self.model = _Trunk(shape, vocab_size)
        self.lm_head = nn.Linear(shape.hidden_size, vocab_size, bias=False)

    def hidden(self, token_ids: Tensor) -> Tensor:
        """Final normed states ``[batch, length, hidden]`` of ``token_ids`` ``[batch, length]`` (int64)."""
        return cast(Tensor, self.model(token_ids))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Logits ``[batch, length, vocab]`` of ``token_ids`` ``[batch, length]`` (int64)."""
        return cast(Tensor, self.lm_head(self.hidden(token_ids)))


class _Trunk(nn.Module):
    def __init__(self, shape: DecoderShape, vocab_size: int) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def forward(self, token_ids: Tensor) -> Tensor:
        states = self.embed_tokens(token_ids)
        rotation = _rotation(self.shape, token_ids.shape[1])
        for layer in self.layers:
            states = layer(states, rotation)
        return cast(Tensor, self.norm(states))


class _Layer(nn.Module):
    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = _GatedMLP(shape)

    def forward(self, states: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        states = states + self.self_attn(self.input_layernorm(states), rotation)
        return cast(Tensor, states + self.mlp(self.post_attention_layernorm(states)))


class _Attention(nn.Module):
    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)
        if shape.qk_norm:
            self.q_norm = nn.RMSNorm(shape.head_dim, eps=shape.rms_norm_eps)
            self.k_norm = nn.RMSNorm(shape.head_dim, eps=shape.rms_norm_eps)

    def forward(self, states: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, _ = states.shape
        split = (batch, length, -1, self.shape.head_dim)
        query, key = self.q_proj(states).view(split), self.k_proj(states).view(split)
        value = self.v_proj(states).view(split)
        if self.shape.qk_norm:
            query, key = self.q_norm(query.float()), self.k_norm(key.float())
        attended = functional.scaled_dot_product_attention(
            _rotate(query, rotation).to(value.dtype).transpose(1, 2),
            _rotate(key, rotation).to(value.dtype).transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
            enable_gqa=True,
        )
        return cast(Tensor, self.o_proj(attended.transpose(1, 2).reshape(batch, length, -1)))


class _GatedMLP(nn.Module):
    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(functional.silu(self.gate_proj(states)) * self.up_proj(states)))


def _rotation(shape: DecoderShape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[length, 1, head_dim]``: the second half of each repeats the first."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return angles.cos(), angles.sin()


def _rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates ``[batch, length, heads, head_dim]``; dimension i is paired with i + head_dim / 2."""
    first, second = heads.chunk(2, dim=-1)
    return heads * rotation[0] + torch.cat((-second, first), dim=-1) * rotation[1]
