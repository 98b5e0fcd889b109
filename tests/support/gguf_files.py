"""GGUF files for tests, written by the gguf library from random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType
from gguf.quants import quantize
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, LAYERS = 64, 4, 2, 16, 96, 2
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LAYER_NAMES = {  # as llama.cpp's converter writes them
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


@dataclass
class Source:
    """What a GGUF file is written from."""

    architecture: str = "llama"
    tied: bool = True
    kind: GGMLQuantizationType = GGMLQuantizationType.F32
    pre: str = "smollm"
    tokenizer_model: str = "gpt2"
    rope_factors: NDArray[np.float32] | None = None
    rope_scaling: RopeScalingType | None = None
    head_dim: int = HEAD_DIM
    merges: list[str] = field(default_factory=lambda: ["h e", "l l", "he ll", "hell o", "Ġ hello"])
    experts: int = 0
    add_bos: bool | None = None
    tokens: list[str] = field(default_factory=list)
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tokens:
            self.tokens = [*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
            self.tokens += [merge.replace(" ", "") for merge in self.merges]
        self.weights = self.weights or random_weights(self)


def random_weights(source: Source) -> dict[str, NDArray[np.float32]]:
    """Weights under Hugging Face's names, exact in bf16."""
    rng = np.random.default_rng(7)

    def draw(*shape: int) -> NDArray[np.float32]:
        values = rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
        return values.astype(np.float32)

    vocab = len(source.tokens)
    weights = {"model.embed_tokens.weight": draw(vocab, HIDDEN), "model.norm.weight": draw(HIDDEN)}
    if not source.tied:
        weights["lm_head.weight"] = draw(vocab, HIDDEN)
    for layer in range(LAYERS):
        part = {
            "input_layernorm.weight": (HIDDEN,),
            "self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            "post_attention_layernorm.weight": (HIDDEN,),
            "mlp.gate_proj.weight": (INNER, HIDDEN),
            "mlp.up_proj.weight": (INNER, HIDDEN),
            "mlp.down_proj.weight": (HIDDEN, INNER),
        }
        if source.architecture == "qwen2":
            for name in "qkv":
                part[f"self_attn.{name}_proj.bias"] = part[f"self_attn.{name}_proj.weight"][:1]
        if source.architecture == "qwen3":
            part |= {"self_attn.q_norm.weight": (HEAD_DIM,), "self_attn.k_norm.weight": (HEAD_DIM,)}
        weights |= {f"model.layers.{layer}.{name}": draw(*shape) for name, shape in part.items()}
    return weights


def interleave(rows: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Rows of Q or K in llama.cpp's rotary order, written out by hand."""
    head_dim = len(rows) // num_heads
    out = np.empty_like(rows)
    for head in range(num_heads):
        for i in range(head_dim // 2):
            out[head * head_dim + 2 * i] = rows[head * head_dim + i]
            out[head * head_dim + 2 * i + 1] = rows[head * head_dim + i + head_dim // 2]
    return out


def gguf_tensor(source: Source, name: str, value: NDArray[np.float32]) -> tuple[str, NDArray[np.float32]]:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if not name.startswith("model.layers."):
        return whole.get(name, "output.weight"), value
    _, _, layer, rest = name.split(".", 3)
    if source.architecture == "llama" and rest == "self_attn.q_proj.weight":
        value = interleave(value, HEADS)
    if source.architecture == "llama" and rest == "self_attn.k_proj.weight":
        value = interleave(value, KV_HEADS)
    return f"blk.{layer}.{LAYER_NAMES[rest]}", value


def write_gguf(path: Path, source: Source) -> Path:
    writer = GGUFWriter(path, source.architecture)
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(source.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    if source.experts:
        writer.add_expert_count(source.experts)
    if source.rope_scaling is not None:
        writer.add_rope_scaling_type(source.rope_scaling)
        writer.add_rope_scaling_factor(2.5)
    writer.add_tokenizer_model(source.tokenizer_model)
    writer.add_tokenizer_pre(source.pre)
    writer.add_token_list(source.tokens)
    kinds = [TokenType.CONTROL if token in CONTROL else TokenType.NORMAL for token in source.tokens]
    writer.add_token_types(kinds)
    writer.add_token_scores([-float(rank) for rank in range(len(source.tokens))])
    writer.add_token_merges(source.merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    if source.add_bos is not None:
        writer.add_add_bos_token(source.add_bos)
    for name, value in source.weights.items():
        target, data = gguf_tensor(source, name, value)
        if source.kind != GGMLQuantizationType.F32 and data.ndim == 2:
            writer.add_tensor(target, quantize(data, source.kind), raw_dtype=source.kind)
        else:
            writer.add_tensor(target, data)
    if source.rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", source.rope_factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
