"""Turns a GGUF file into an ordinary Hugging Face folder: bf16 safetensors, config and tokenizer.

Weights are dequantized a few rows at a time straight into
the output file, so converting takes little memory whatever the model's size.

In ``llama`` files the rows of Q and K are stored in the order that llama.cpp's rotary embedding wants
(pairs side by side); Hugging Face's layout has the halves apart. Rows are put back before they are
dequantized, which is possible because quantization never splits a row.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from model_registry.importing.gguf_config import (
    ARCHITECTURES,
    ROPE_FACTORS,
    WHOLE_MODEL_NAMES,
    GgufMetadata,
    build_config,
)
from model_registry.importing.gguf_reader import GgufFile, GgufTensor, read_gguf
from model_registry.importing.gguf_tokenizer import write_tokenizer
from model_registry.progress import Progress, no_progress
from model_registry.safetensors_format import encode_header
from mooring.errors import ArtifactError
from mooring.units import format_bytes

__all__ = ["convert_gguf", "gguf_outline"]

CHUNK_ELEMENTS = 4 << 20  # elements dequantized at a time: 16 MiB of float32


def convert_gguf(source: Path, destination: Path, on_progress: Progress | None = None) -> None:
    """Writes the model of a GGUF file as a Hugging Face folder.

    The folder appears whole or not at all: it is built beside its place and then renamed.

    Args:
        source: a ``.gguf`` file of architecture llama (Mistral included), qwen2 or qwen3, of any quantization
            that the gguf library can undo.
        destination: the folder to make; it must not exist.
        on_progress: called with stage ``"convert"`` and the bytes written.

    Raises:
        ArtifactError: the source is not a GGUF file, is broken, or is of a kind that is not supported; the
            message says which.
        FileExistsError: the destination exists.
    """
    if destination.exists():
        raise FileExistsError(f"{destination} exists already")
    destination.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        _convert(read_gguf(source), building, on_progress or no_progress)
        building.rename(destination)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # A file with false sizes or types causes any of these, in the gguf library or here.
        raise ArtifactError(f"{source.name} is truncated or corrupt: {error!r}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)  # gone already if the rename was reached


def gguf_outline(source: Path) -> dict[str, Any]:
    """The model's config.json, in Hugging Face's names, from the header alone. Raises as ``convert_gguf`` does."""
    try:
        file = read_gguf(source)
        return build_config(GgufMetadata(file), file.tensors)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{source.name} is truncated or corrupt: {error!r}") from error


def _convert(file: GgufFile, folder: Path, on_progress: Progress) -> None:
    metadata, tensors = GgufMetadata(file), file.tensors
    config = build_config(metadata, tensors)
    tokens = write_tokenizer(metadata, folder)
    config |= {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_ids[0]}
    generation = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": list(tokens.eos_token_ids),
        "pad_token_id": tokens.pad_token_id,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation)
    _write_model_card(metadata, folder / "README.md")
    _write_weights(tensors, config, folder / "model.safetensors", on_progress)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    known = {key: item for key, item in value.items() if item is not None}
    path.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_model_card(metadata: GgufMetadata, path: Path) -> None:
    """Writes a README.md whose front matter names the licence, if the GGUF file does."""
    name = metadata.get("general.name", "A model")
    terms = metadata.get("general.license")
    front_matter = f"---\nlicense: {terms}\n---\n" if terms else ""
    path.write_text(f"{front_matter}# {name}\n\nConverted from GGUF.\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Conversion:
    """One tensor to write. ``row_order`` puts rotary rows back in order if the file has them permuted, else
    None."""

    tensor: GgufTensor
    row_order: NDArray[np.intp] | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape[::-1]  # GGUF lists the fastest first


def _plan_weights(tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, _Conversion]:
    """Hugging Face's names and row orders for all tensors; refuses a file with unknown or missing tensors."""
    architecture = next(a for a in ARCHITECTURES.values() if a.model_type == config["model_type"])
    names = dict(WHOLE_MODEL_NAMES)
    for layer in range(
        min(config["num_hidden_layers"], len(tensors))
    ):  # a false number of layers costs no time
        prefix, target = f"blk.{layer}.", f"model.layers.{layer}."
        names |= {prefix + ours: target + theirs for ours, theirs in architecture.layer_names.items()}
    present = tensors.keys() - {ROPE_FACTORS}
    if unknown := sorted(present - names.keys()):
        raise ArtifactError(f"tensor {unknown[0]!r} has no place in a {architecture.model_type} model")
    if missing := sorted(names.keys() - present - {"output.weight"}):
        raise ArtifactError(f"the GGUF file lacks {len(missing)} tensors, {missing[0]} first")
    orders = _row_orders(config) if architecture.permuted else {}
    return {
        names[name]: _Conversion(tensors[name], orders.get(name.split(".", 2)[-1]))
        for name in tensors
        if name in names
    }


def _row_orders(config: Mapping[str, Any]) -> dict[str, NDArray[np.intp]]:
    """For each row of Q and K, its row in the file: pairs are side by side there, and halves apart here."""
    head_dim = config["head_dim"]

    def order(num_heads: int) -> NDArray[np.intp]:
        rows = np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
        return rows.swapaxes(1, 2).reshape(-1)

    return {
        "attn_q.weight": order(config["num_attention_heads"]),
        "attn_k.weight": order(config["num_key_value_heads"]),
    }


def _write_weights(
    tensors: Mapping[str, GgufTensor], config: Mapping[str, Any], path: Path, on_progress: Progress
) -> None:
    plan = _plan_weights(tensors, config)
    total_bytes = sum(2 * math.prod(item.shape) for item in plan.values())
    free_bytes = shutil.disk_usage(path.parent).free
    if total_bytes > free_bytes:
        raise ArtifactError(
            f"the converted model needs {format_bytes(total_bytes)} of disk, {format_bytes(free_bytes)} are free"
        )
    with path.open("wb") as file:
        file.write(encode_header({name: ("BF16", item.shape) for name, item in plan.items()}))
        done_bytes = 0
        on_progress("convert", 0, total_bytes)
        for name, item in plan.items():
            try:
                _write_tensor(item, file)
            except NotImplementedError as error:
                kind = item.tensor.kind.name
                raise ArtifactError(f"tensor {name} has type {kind}, which is not supported") from error
            done_bytes += 2 * math.prod(item.shape)
            on_progress("convert", done_bytes, total_bytes)


def _write_tensor(item: _Conversion, file: IO[bytes]) -> None:
    data, shape = item.tensor.data, item.shape
    if item.row_order is not None and len(item.row_order) != shape[0]:
        raise ArtifactError(f"a projection has {shape[0]} rows and its heads {len(item.row_order)}")
    chunk_rows = max(1, CHUNK_ELEMENTS // math.prod(shape[1:]))
    for start in range(0, shape[0], chunk_rows):
        stop = min(start + chunk_rows, shape[0])
        rows = data[start:stop] if item.row_order is None else data[item.row_order[start:stop]]
        values = dequantize(rows, item.tensor.kind)
        file.write(values.astype(ml_dtypes.bfloat16).tobytes())
