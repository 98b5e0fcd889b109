"""An outline of a model: what its configuration alone tells of the memory that it will take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.checkpoint.layout import packed_layout
from engines.checkpoint.model_config import ModelConfig

__all__ = ["outline", "packed_bytes"]


def outline(raw: Mapping[str, Any]) -> tuple[ModelConfig, str]:
    """The normal form of a ``config.json``, and the precision that its weights are likely to have.

    Raises:
        ArtifactError: the configuration is not supported.
    """
    dtype = raw.get("dtype", raw.get("torch_dtype", "bfloat16"))
    return ModelConfig.from_hf(raw), "fp32" if dtype in ("float32", "float64") else "bf16"


def packed_bytes(config: Mapping[str, Any], precision: str) -> int:
    """Bytes of the packed weights of a model. ``config``: a normal form, as ``ModelConfig.to_dict`` gives it."""
    return packed_layout(ModelConfig.from_dict(config), precision)[1]
