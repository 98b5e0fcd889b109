"""Turns a GGUF file into an ordinary Hugging Face folder: bf16 safetensors, config and tokenizer.

The file is mapped, never unpickled or executed. Weights are dequantized a few rows at a time straight into
the output file, so converting takes little memory whatever the model's size.

In ``llama`` files the rows of Q and K are stored in the order that llama.cpp's rotary embedding wants
(pairs side by side); Hugging Face's layout has the halves apart. Rows are put back before they are
dequantized, since a row is never split by quantization.
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
from gguf import GGUFReader, ReaderTensor
from gguf.constants import GGUFEndian, GGUFValueType
from gguf.quants import dequantize
from numpy.typing import NDArray

from model_registry.gguf_tokenizer import write_tokenizer
from model_registry.progress import Progress, no_progress
from model_registry.safetensors_format import encode_header
from mooring.errors import ArtifactError

__all__ = ["GgufMetadata", "convert_gguf"]

ROPE_FACTORS = "rope_freqs.weight"
WHOLE_MODEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",  # absent where it is the embedding
}
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
QKV_BIAS_NAMES = {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"}
QK_NORM_NAMES = {f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"}


@dataclass(frozen=True, slots=True)
class _Architecture:
    """What one ``general.architecture`` becomes.

    Attributes:
        class_name, model_type: Hugging Face's names.
        layer_names: every tensor of a layer, GGUF's name to Hugging Face's; all are required.
        permuted: the rows of Q and K are in llama.cpp's rotary order.
    """

    class_name: str
    model_type: str
    layer_names: Mapping[str, str]
    permuted: bool = False


ARCHITECTURES = {
    "llama": _Architecture("LlamaForCausalLM", "llama", LAYER_NAMES, permuted=True),
    "qwen2": _Architecture("Qwen2ForCausalLM", "qwen2", LAYER_NAMES | QKV_BIAS_NAMES),
    "qwen3": _Architecture("Qwen3ForCausalLM", "qwen3", LAYER_NAMES | QK_NORM_NAMES),
}
CHUNK_ELEMENTS = 4 << 20  # dequantized at a time: 16 MiB of float32


class GgufMetadata:
    """The key-value part of a GGUF file, read with errors that name the key."""

    def __init__(self, reader: GGUFReader) -> None:
        self._fields = reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def require(self, key: str) -> Any:
        """The value of a key.

        Raises:
            ArtifactError: the file lacks it.
        """
        if key not in self._fields:
            raise ArtifactError(f"the GGUF file lacks {key}")
        return self.get(key)

    def require_int(self, key: str) -> int:
        """A single whole number.

        Raises:
            ArtifactError: missing, or an array (models whose layers differ are not supported).
        """
        value = self.require(key)
        if not isinstance(value, int):
            kind = "one value for each layer" if isinstance(value, list) else repr(value)
            raise ArtifactError(f"{key} has {kind} where one whole number is supported")
        return value

    def is_array(self, key: str) -> bool:
        field = self._fields.get(key)
        return field is not None and field.types[0] == GGUFValueType.ARRAY


def convert_gguf(source: Path, destination: Path, on_progress: Progress | None = None) -> None:
    """Writes the model of a GGUF file as a Hugging Face folder.

    The folder appears whole or not at all: it is built beside its place and then renamed.

    Args:
        source: a ``.gguf`` file of architecture llama (Mistral included), qwen2 or qwen3, of any
            quantization that the gguf library can undo.
        destination: the folder to make; it must not exist.
        on_progress: called with stage ``"convert"`` and bytes written.

    Raises:
        ArtifactError: not a GGUF file, broken, or of a kind that is not supported; the message says what.
        FileExistsError: the destination exists.
    """
    if destination.exists():
        raise FileExistsError(f"{destination} exists already")
    reader = _open(source)
    destination.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        metadata = GgufMetadata(reader)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        config = _build_config(metadata, tensors)
        tokens = write_tokenizer(metadata, building)
        config |= {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_ids[0]}
        generation = {
            "bos_token_id": tokens.bos_token_id,
            "eos_token_id": list(tokens.eos_token_ids),
            "pad_token_id": tokens.pad_token_id,
        }
        _write_json(building / "config.json", config)
        _write_json(building / "generation_config.json", generation)
        _write_weights(tensors, config, building / "model.safetensors", on_progress or no_progress)
        building.chmod(0o755)  # mkdtemp makes it private
        building.rename(destination)
    finally:
        shutil.rmtree(building, ignore_errors=True)  # gone already where the rename was reached


def _open(source: Path) -> GGUFReader:
    try:
        with source.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ArtifactError(f"{source.name} is not a GGUF file")
        reader = GGUFReader(source)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{source.name} is truncated or corrupt: {error}") from error
    if reader.endianess == GGUFEndian.BIG:
        raise ArtifactError(f"{source.name} is a big-endian GGUF file, which is not supported")
    return reader


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    known = {key: item for key, item in value.items() if item is not None}
    path.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _build_config(metadata: GgufMetadata, tensors: Mapping[str, ReaderTensor]) -> dict[str, Any]:
    """config.json of the model, in Hugging Face's names."""
    name = str(metadata.require("general.architecture"))
    if name not in ARCHITECTURES:
        raise ArtifactError(f"GGUF architecture {name!r} is not supported ({', '.join(ARCHITECTURES)} are)")
    if metadata.get(f"{name}.expert_count", 0):
        raise ArtifactError("mixture-of-experts models are not supported")
    if "token_embd.weight" not in tensors:
        raise ArtifactError("the GGUF file lacks tensor token_embd.weight")
    architecture = ARCHITECTURES[name]
    hidden = metadata.require_int(f"{name}.embedding_length")
    num_heads = metadata.require_int(f"{name}.attention.head_count")
    if num_heads < 1 or hidden < 1:
        raise ArtifactError(f"{name}.attention.head_count and {name}.embedding_length must be positive")
    config = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_size": hidden,
        "intermediate_size": metadata.require_int(f"{name}.feed_forward_length"),
        "num_hidden_layers": metadata.require_int(f"{name}.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads
        if metadata.get(f"{name}.attention.head_count_kv") is None
        else metadata.require_int(f"{name}.attention.head_count_kv"),
        "head_dim": _head_dim(metadata, name, hidden // num_heads),
        "hidden_act": "silu",
        "rms_norm_eps": _shortest_float32(metadata.require(f"{name}.attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": metadata.require_int(f"{name}.context_length"),
        "vocab_size": int(tensors["token_embd.weight"].shape[-1]),
        "rope_theta": _shortest_float32(metadata.get(f"{name}.rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    config["rope_scaling"] = _rope_scaling(metadata, name, config, tensors.get(ROPE_FACTORS))
    return config


def _shortest_float32(value: float) -> float:
    """The number that was meant: GGUF keeps 1e-05 as float32, which reads back as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _head_dim(metadata: GgufMetadata, name: str, default: int) -> int:
    head_dim = int(metadata.get(f"{name}.attention.key_length", default))
    for key in (f"{name}.attention.value_length", f"{name}.rope.dimension_count"):
        value = metadata.get(key, head_dim)
        if value != head_dim:
            raise ArtifactError(f"{key} is {value} and the head dimension {head_dim}: they must be equal")
    return head_dim


def _rope_scaling(
    metadata: GgufMetadata, name: str, config: Mapping[str, Any], factors: ReaderTensor | None
) -> dict[str, Any] | None:
    kind = metadata.get(f"{name}.rope.scaling.type", "none")
    if factors is not None:
        return _llama3_scaling(np.asarray(factors.data, np.float64), config)
    if kind == "none":
        return None
    if kind == "linear":
        factor = _shortest_float32(metadata.require(f"{name}.rope.scaling.factor"))
        return {"rope_type": "linear", "factor": factor}
    raise ArtifactError(f"RoPE scaling {kind!r} is not supported (linear and llama3 are)")


def _llama3_scaling(factors: NDArray[np.float64], config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3.1's scaling back from the table of factors that GGUF keeps in place of its parameters.

    The largest factor is ``factor``; the other parameters are the same in every published model, and the
    table they give is compared with the file's, so that anything else is refused and not misread.
    """
    head_dim = int(config["head_dim"])
    low, high, original = 1.0, 4.0, 8192
    factor = float(factors.max())
    wavelengths = 2 * math.pi * config["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise ArtifactError(f"{ROPE_FACTORS} is not Llama 3's RoPE scaling, the only one supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


@dataclass(frozen=True, slots=True)
class _Conversion:
    """One tensor to write: ``row_order`` puts rotary rows back where the file has them permuted."""

    tensor: ReaderTensor
    row_order: NDArray[np.intp] | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self.tensor.shape))  # GGUF lists the fastest first


def _plan_weights(tensors: Mapping[str, ReaderTensor], config: Mapping[str, Any]) -> dict[str, _Conversion]:
    """Hugging Face's names and row orders for all tensors; refuses what it does not know or what lacks."""
    architecture = next(a for a in ARCHITECTURES.values() if a.model_type == config["model_type"])
    names = dict(WHOLE_MODEL_NAMES)
    for layer in range(config["num_hidden_layers"]):
        prefix, target = f"blk.{layer}.", f"model.layers.{layer}."
        names |= {prefix + ours: target + theirs for ours, theirs in architecture.layer_names.items()}
    present = tensors.keys() - {ROPE_FACTORS}
    if unknown := sorted(present - names.keys()):
        raise ArtifactError(f"tensor {unknown[0]!r} has no place in a {architecture.model_type} model")
    if missing := sorted(names.keys() - present - {"output.weight"}):
        raise ArtifactError(f"the GGUF file lacks {len(missing)} tensors, {missing[0]} first")
    orders = _row_orders(config) if architecture.permuted else {}
    return {
        names[name]: _Conversion(tensors[name], orders.get(name.rpartition("attn_")[2]))
        for name in tensors
        if name in names
    }


def _row_orders(config: Mapping[str, Any]) -> dict[str, NDArray[np.intp]]:
    """Which row of the file each row of Q and K is: pairs side by side there, halves apart here."""
    head_dim = config["head_dim"]

    def order(num_heads: int) -> NDArray[np.intp]:
        rows = np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
        return rows.swapaxes(1, 2).reshape(-1)

    return {
        "q.weight": order(config["num_attention_heads"]),
        "k.weight": order(config["num_key_value_heads"]),
    }


def _write_weights(
    tensors: Mapping[str, ReaderTensor], config: Mapping[str, Any], path: Path, on_progress: Progress
) -> None:
    plan = _plan_weights(tensors, config)
    total_bytes = sum(2 * math.prod(item.shape) for item in plan.values())
    with path.open("wb") as file:
        file.write(encode_header({name: ("BF16", item.shape) for name, item in plan.items()}))
        done_bytes = 0
        on_progress("convert", 0, total_bytes)
        for name, item in plan.items():
            try:
                _write_tensor(item, file)
            except (NotImplementedError, ValueError, IndexError) as error:
                raise ArtifactError(
                    f"tensor {name} cannot be dequantized from {item.tensor.tensor_type.name}: {error}"
                ) from error
            done_bytes += 2 * math.prod(item.shape)
            on_progress("convert", done_bytes, total_bytes)


def _write_tensor(item: _Conversion, file: IO[bytes]) -> None:
    data, shape = item.tensor.data, item.shape
    if item.row_order is not None and len(item.row_order) != shape[0]:
        raise ValueError(f"it has {shape[0]} rows where the head counts give {len(item.row_order)}")
    chunk_rows = max(1, CHUNK_ELEMENTS // math.prod(shape[1:]))
    for start in range(0, shape[0], chunk_rows):
        stop = min(start + chunk_rows, shape[0])
        rows = data[start:stop] if item.row_order is None else data[item.row_order[start:stop]]
        values = dequantize(rows, item.tensor.tensor_type)
        file.write(values.astype(ml_dtypes.bfloat16).tobytes())
