"""A model's configuration in the engine's own normal form, and the description of a checkpoint folder.

Nothing here imports torch, so the server process can validate checkpoints and size their KV.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engines.checkpoint.architectures import normal_form
from engines.checkpoint.hf_files import read_headers
from engines.checkpoint.layout import check_checkpoint, packed_layout
from memory_manager.kv_spec import PAGE_BYTES, KVGroup, choose_block_tokens, kv_bytes_for_tokens
from mooring.errors import ArtifactError
from mooring.strangers_json import read_strangers_json

__all__ = ["ModelConfig", "ModelDescription", "RopeConfig", "describe", "kv_groups", "sequence_kv_bytes"]

_ELEMENT_BYTES: Mapping[str, int] = {"bf16": 2, "fp32": 4}
_AUTO_PRECISION: Mapping[str, str] = {"BF16": "bf16", "F16": "bf16", "F32": "fp32", "F64": "fp32"}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (Su et al., RoFormer, 2021) and the scaling of its frequencies.

    Attributes:
        kind: ``default``: no scaling; ``linear``: every frequency is divided by ``factor``; ``llama3``: the
            low frequencies are divided, the high ones kept, those between blended.
        theta: base of the frequencies.
        factor: factor of the scaling; 1 means none.
        low_freq_factor: with ``llama3``, frequencies are divided if their wavelengths are above the original
            context over this.
        high_freq_factor: with ``llama3``, frequencies are kept if their wavelengths are below the original
            context over this.
        original_max_tokens: with ``llama3``, the context that the model was first trained on.
    """

    kind: Literal["default", "linear", "llama3"] = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of the Llama family; its fields tell one architecture from another.

    Attributes:
        model_type: Hugging Face's name of the architecture, for messages only.
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_layers: decoder layers.
        num_heads: query heads, a multiple of ``num_kv_heads``.
        num_kv_heads: key and value heads.
        head_dim: width of a head, even.
        rms_norm_eps: added to the mean square in every norm.
        max_model_len: longest prompt plus output, in tokens.
        tied_embeddings: whether the output projection is the embedding.
        qkv_bias: whether the query, key and value projections have a bias.
        out_bias: whether attention's output projection has a bias.
        mlp_bias: whether the MLP's projections have a bias.
        qk_norm: whether queries and keys are normalized per head before the rotation.
        windows: for each layer, how many of the last tokens a token attends to, itself included; None means
            all.
        eos_token_ids: tokens that end a sequence, any of them.
        rope: the rotary embedding.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_model_len: int
    tied_embeddings: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    eos_token_ids: tuple[int, ...]
    rope: RopeConfig

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Reads a config.json. The end-of-sequence ids are taken from generation_config.json if it has any.

        Raises:
            ArtifactError: a key is missing or wrong, or something is not supported; the message names it.
        """
        return cls.from_dict(normal_form(config, generation_config or {}))

    def to_dict(self) -> dict[str, Any]:
        """The fields as ``Manifest.config`` keeps them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """The inverse of ``to_dict``, also after a trip through JSON.

        Raises:
            ArtifactError: the fields are not those of a ``ModelConfig``.
        """
        try:
            lists = {key: tuple(raw[key]) for key in ("windows", "eos_token_ids")}
            return cls(**{**raw, **lists, "rope": RopeConfig(**raw["rope"])})
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"the packed model's configuration is unreadable: {error!r}") from error


def kv_groups(config: ModelConfig, element_bytes: int) -> tuple[KVGroup, ...]:
    """The KV groups of a model whose cache elements take ``element_bytes`` each.

    Layers with the same window share a group. If a single token of a group would exceed a page, the group is
    split into as few groups of even size as fit.

    Raises:
        ArtifactError: the keys and values of one token exceed a page in a single layer already.
    """
    bytes_per_token_layer = 2 * config.num_kv_heads * config.head_dim * element_bytes
    max_layers = PAGE_BYTES // bytes_per_token_layer
    if max_layers == 0:
        raise ArtifactError(
            f"a token of one layer takes {bytes_per_token_layer} bytes of KV, more than a page ({PAGE_BYTES})"
        )
    layers_by_window: dict[int | None, list[int]] = {}
    for layer, window in enumerate(config.windows):
        layers_by_window.setdefault(window, []).append(layer)
    groups = []
    for window, layers in layers_by_window.items():
        num_parts = math.ceil(len(layers) / max_layers)
        for part in range(num_parts):
            part_layers = layers[len(layers) * part // num_parts : len(layers) * (part + 1) // num_parts]
            groups.append(
                KVGroup(
                    layers=tuple(part_layers),
                    kind="full" if window is None else "window",
                    bytes_per_token_layer=bytes_per_token_layer,
                    block_tokens=choose_block_tokens(bytes_per_token_layer * len(part_layers)),
                    window_tokens=window,
                )
            )
    return tuple(groups)


def sequence_kv_bytes(config: Mapping[str, Any], precision: str, num_tokens: int) -> int:
    """Returns the bytes of KV that one sequence of ``num_tokens`` needs at most.

    Args:
        config: ``ModelDescription.config``.
        precision: ``bf16`` or ``fp32``.

    Raises:
        ArtifactError: the configuration is unreadable, or its KV fits in no page.
    """
    groups = kv_groups(ModelConfig.from_dict(config), _ELEMENT_BYTES[precision])
    return kv_bytes_for_tokens(groups, num_tokens)


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The contents of a checkpoint folder, according to its JSON files and its safetensors headers.

    Attributes:
        architecture: the ``model_type``.
        num_parameters: elements of the tensors that the model uses; a tied embedding counts once.
        vocab_size: rows of the embedding.
        max_model_len: longest prompt plus output, in tokens.
        checkpoint_dtype: dtype of most of the parameters, by safetensors' name (``"BF16"``).
        default_precision: the precision that ``"auto"`` stands for: bf16 for 16-bit checkpoints, else fp32.
            Float16 becomes bfloat16, which has its size; it trades three bits of the mantissa for range.
        eos_token_ids: tokens that end a sequence, any of them.
        config: the engine's normal form, which ``ModelConfig.from_dict`` reads.
        generation_config: generation_config.json as it is, empty if there is none.
    """

    architecture: str
    num_parameters: int
    vocab_size: int
    max_model_len: int
    checkpoint_dtype: str
    default_precision: str
    eos_token_ids: tuple[int, ...]
    config: dict[str, Any]
    generation_config: dict[str, Any]

    def weights_bytes(self, precision: str) -> int:
        """Size of the packed weights in a precision: ``bf16``, ``fp32`` or ``auto``.

        Raises:
            ArtifactError: the precision is another one.
        """
        return packed_layout(ModelConfig.from_dict(self.config), self.resolve(precision))[1]

    def resolve(self, precision: str) -> str:
        """The precision itself, or the one that ``auto`` stands for."""
        return self.default_precision if precision == "auto" else precision


def describe(path: Path) -> ModelDescription:
    """Reads and checks a Hugging Face folder without reading its weights.

    Raises:
        ArtifactError: a file is missing or unreadable, the architecture is unsupported, or the tensors are
            not those that the configuration asks for.
    """
    generation_path = path / "generation_config.json"
    generation_config = read_strangers_json(generation_path) if generation_path.exists() else {}
    config = ModelConfig.from_hf(read_strangers_json(path / "config.json"), generation_config)
    headers = read_headers(path)
    elements_by_dtype: dict[str, int] = {}
    for name in check_checkpoint(config, headers):
        tensor = headers[name]
        elements_by_dtype[tensor.dtype] = elements_by_dtype.get(tensor.dtype, 0) + tensor.num_elements
    dtype = max(elements_by_dtype, key=lambda key: elements_by_dtype[key])
    return ModelDescription(
        architecture=config.model_type,
        num_parameters=sum(elements_by_dtype.values()),
        vocab_size=config.vocab_size,
        max_model_len=config.max_model_len,
        checkpoint_dtype=dtype,
        default_precision=_AUTO_PRECISION[dtype],
        eos_token_ids=config.eos_token_ids,
        config=config.to_dict(),
        generation_config=generation_config,
    )
