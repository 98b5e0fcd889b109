"""A trained decoder as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ops.samples.model import Decoder
from ops.samples.recipes import DecoderShape, config_of

__all__ = ["write_checkpoint"]


def write_checkpoint(
    decoder: Decoder, shape: DecoderShape, folder: Path, bos_id: int | None, eos_id: int
) -> None:
    """Writes model.safetensors (bf16), config.json and generation_config.json."""
    state = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in decoder.state_dict().items()}
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    special = {"bos_token_id": bos_id, "eos_token_id": eos_id}
    _write_json(folder / "config.json", config_of(shape, decoder.lm_head.out_features) | special)
    _write_json(folder / "generation_config.json", special)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
