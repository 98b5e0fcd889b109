"""The two trained samples: their shapes, and how they learn.

No torch here, so that finding a sample in the cache does not import it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["DRAFT", "PYTHONLM", "DecoderShape", "Recipe", "TrainingPlan", "config_of"]

_CODE_VERSION = 1  # raise it when the training code or the choice of text changes


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of a decoder.

    Attributes:
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated MLP.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key and value heads; a divisor of ``num_heads`` (GQA, Ainslie et al., 2023).
        head_dim: width of each head; ``num_heads * head_dim`` need not be ``hidden_size``.
        qk_norm: whether queries and keys have RMS norms: with them it is a Qwen3, without a Llama.
        rope_theta: base of the rotary frequencies (Su et al., RoFormer, 2021).
        rms_norm_eps: added under the root of every norm.
        max_positions: context in tokens that the exported model declares.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qk_norm: bool
    rope_theta: float
    rms_norm_eps: float
    max_positions: int

    @property
    def model_type(self) -> str:
        """The ``model_type`` of config.json."""
        return "qwen3" if self.qk_norm else "llama"


def config_of(shape: DecoderShape, vocab_size: int) -> dict[str, Any]:
    """config.json of a decoder, without its special tokens."""
    name = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[shape.model_type]
    return {
        "architectures": [name],
        "model_type": shape.model_type,
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": shape.rms_norm_eps,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Length and learning rates of a training.

    Attributes:
        num_steps: optimizer steps.
        batch_sequences: sequences in a step.
        sequence_tokens: tokens in a sequence.
        matrix_lr: peak rate of Muon.
        embedding_lr: peak rate of AdamW for the input embedding.
        head_lr: peak rate of AdamW for the output embedding and the norms.
        warmup_share: share of the steps over which the rates rise.
        cooldown_share: share of the steps, at the end, over which the rates fall to zero.
        seed: seed of the weights and of the order of the text.
    """

    num_steps: int
    batch_sequences: int
    sequence_tokens: int
    matrix_lr: float
    embedding_lr: float
    head_lr: float
    warmup_share: float
    cooldown_share: float
    seed: int

    def rate_at(self, step: int) -> float:
        """The learning rates' factor at ``step``: a trapezoid."""
        rising = (step + 1) / (self.warmup_share * self.num_steps)
        falling = (self.num_steps - step) / (self.cooldown_share * self.num_steps)
        return min(1.0, rising, falling)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One trained sample.

    Attributes:
        name: name of the sample.
        shape: shape of its decoder.
        plan: plan of its training.
        vocab_size: ids of the tokenizer to train; 0 takes another model's tokenizer and embeddings.
    """

    name: str
    shape: DecoderShape
    plan: TrainingPlan
    vocab_size: int

    def key_inputs(self) -> dict[str, Any]:
        """The inputs that, together with the text, decide the weights."""
        return {"code_version": _CODE_VERSION, **asdict(self)}


PYTHONLM = Recipe(
    name="pythonlm",
    shape=DecoderShape(
        hidden_size=256,
        intermediate_size=768,
        num_layers=4,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        qk_norm=True,
        rope_theta=10_000.0,
        rms_norm_eps=1e-6,
        max_positions=4096,
    ),
    plan=TrainingPlan(
        num_steps=300,
        batch_sequences=8,
        sequence_tokens=256,
        matrix_lr=0.03,
        embedding_lr=0.1,
        head_lr=0.01,
        warmup_share=0.05,
        cooldown_share=0.5,
        seed=1,
    ),
    vocab_size=4096,
)
DRAFT = Recipe(
    name="draft",
    shape=DecoderShape(
        hidden_size=192,
        intermediate_size=512,
        num_layers=2,
        num_heads=3,
        num_kv_heads=1,
        head_dim=64,
        qk_norm=False,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        max_positions=8192,
    ),
    plan=TrainingPlan(
        num_steps=200,
        batch_sequences=8,
        sequence_tokens=256,
        matrix_lr=0.03,
        embedding_lr=0.02,
        head_lr=0.01,
        warmup_share=0.05,
        cooldown_share=0.5,
        seed=2,
    ),
    vocab_size=0,
)
