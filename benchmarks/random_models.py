"""Model folders with random weights and a tokenizer that is made in a moment, for benchmarks on real
servers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mooring.config import Settings
from mooring.server.precision import auto_precision
from ops.samples.random_weights import Precision, write_random_weights
from ops.samples.shapes import SHAPES
from ops.samples.text_tokenizers import save_tokenizer, train_byte_level

__all__ = ["SMALL_SHAPE", "TINY_SHAPE", "make_random_models", "native_precision", "shape"]

TINY_SHAPE: Mapping[str, Any] = MappingProxyType(
    {
        **SHAPES["SmolLM2-135M"],
        "vocab_size": 1024,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,
    }
)
"""The shape for ``--quick``: KV of 4 KiB a token in bf16, weights of 2 MB, steps of a millisecond."""

SMALL_SHAPE: Mapping[str, Any] = MappingProxyType(
    {
        **TINY_SHAPE,
        "vocab_size": 8192,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
    }
)
"""25 million parameters: a step of a few milliseconds, which batching lengthens as little as it does on a
GPU."""

_TEXT = ("Prompts come as ids and answers are read as ids: what the ids say does not matter here. ",)


def shape(name: str) -> dict[str, Any]:
    """The config.json of a shape: a name of ``ops.samples.shapes``, or ``tiny``."""
    return dict(TINY_SHAPE) if name == "tiny" else SHAPES[name]


def native_precision() -> Precision:
    """The precision that a server on this machine chooses by itself."""
    return "bf16" if auto_precision(Settings()).precision == "bf16" else "fp32"


def make_random_models(
    root: Path, shape: Mapping[str, Any], names: Iterable[str], precision: Precision, first_seed: int = 0
) -> dict[str, Path]:
    """Makes one folder for each name; no two have the same weights. Returns the folders by name.

    Args:
        shape: a config.json, as in ``ops.samples.shapes``.
    """
    # No end-of-sequence, so that outputs have the length that is asked for.
    config = {**shape, "bos_token_id": None, "eos_token_id": None}
    tokenizer = train_byte_level(_TEXT, config["vocab_size"])
    folders = {}
    for seed, name in enumerate(names, start=first_seed):
        folder = folders[name] = root / name
        folder.mkdir(parents=True)
        write_random_weights(config, folder, precision, seed)
        save_tokenizer(tokenizer, folder, config["max_position_embeddings"])
    return folders
