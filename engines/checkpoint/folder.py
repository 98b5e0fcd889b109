"""Checkpoint folders that an engine reads by itself: described, sized and named, and not packed.

The artifact of such a model is its Hugging Face folder as it is, quantized or not. Its manifest names the folder, and
nobody copies its weights to host memory: only the engine knows how it wants them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.checkpoint.hf_files import read_headers
from engines.checkpoint.layout import packed_tensors
from engines.checkpoint.model_config import ModelConfig, ModelDescription, describe, sequence_kv_bytes
from engines.checkpoint.outline import packed_bytes
from memory_manager.ports import ArtifactRef
from mooring.errors import ArtifactError
from mooring.strangers_json import read_strangers_json

__all__ = [
    "FolderManifest",
    "describe_folder",
    "folder_artifact",
    "folder_kv_bytes",
    "folder_weights_bytes",
    "outline_folder",
]

_UNQUANTIZED = "bf16"  # engines that read folders compute in 16 bits, whatever the checkpoint has
_QUANTIZATION = "quantization_config"
_MODELOPT_NAME = "hf_quant_config.json"
# By the checkpoint's own word, a method or an algorithm: the scheme, and the bits of a weight with its scales.
_SCHEMES: Mapping[str, tuple[str, float]] = {
    "fp8": ("fp8", 8),
    "fp8_pb_wo": ("fp8", 8),
    "fp8_block_scales": ("fp8", 8),
    "nvfp4": ("nvfp4", 4.5),
    "awq": ("awq-int4", 4.5),
    "w4a16_awq": ("awq-int4", 4.5),
    "w4a8_awq": ("awq-int4", 4.5),
}
_BITS: Mapping[str, float] = dict(_SCHEMES.values())


@dataclass(frozen=True, slots=True)
class FolderManifest:
    """The description of a folder as an artifact.

    Attributes:
        folder: the folder, absolute.
        precision: ``bf16`` or the scheme of its quantization.
        config: the model's normal form.
        num_bytes: bytes of its safetensors files.
    """

    folder: Path
    precision: str
    config: Mapping[str, Any]
    num_bytes: int

    def to_json(self) -> bytes:
        fields = dataclasses.asdict(self) | {"folder": str(self.folder)}
        return json.dumps(fields, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> FolderManifest:
        """Parses what ``to_json`` gave.

        Raises:
            ArtifactError: the text is no manifest of a folder.
        """
        try:
            raw = json.loads(text)
            return cls(Path(raw["folder"]), raw["precision"], raw["config"], raw["num_bytes"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"this is no manifest of a checkpoint folder: {error!r}") from error


def describe_folder(path: Path) -> ModelDescription:
    """Reads and checks a Hugging Face folder, quantized or not, without reading its weights.

    Raises:
        ArtifactError: a file is missing or unreadable, or the architecture or its quantization is unsupported.
    """
    raw = read_strangers_json(path / "config.json")
    scheme = _scheme(raw, path)
    if scheme is None:
        return dataclasses.replace(describe(path), default_precision=_UNQUANTIZED)
    generation_path = path / "generation_config.json"
    generation_config = read_strangers_json(generation_path) if generation_path.exists() else {}
    config = ModelConfig.from_hf(_without_quantization(raw), generation_config)
    num_bytes_by_dtype: dict[str, int] = {}
    for tensor in read_headers(path).values():
        num_bytes_by_dtype[tensor.dtype] = num_bytes_by_dtype.get(tensor.dtype, 0) + tensor.num_bytes
    return ModelDescription(
        architecture=config.model_type,
        num_parameters=_num_elements(config),
        vocab_size=config.vocab_size,
        max_model_len=config.max_model_len,
        checkpoint_dtype=max(num_bytes_by_dtype, key=lambda key: num_bytes_by_dtype[key]),
        default_precision=scheme,
        eos_token_ids=config.eos_token_ids,
        config=config.to_dict(),
        generation_config=generation_config,
    )


def outline_folder(raw: Mapping[str, Any]) -> tuple[dict[str, Any], str, int]:
    """The normal form of a ``config.json``, its precision or scheme, and the longest prompt plus output in tokens.

    Raises:
        ArtifactError: the configuration or its quantization is not supported.
    """
    scheme = _scheme(raw, None) or _UNQUANTIZED
    config = ModelConfig.from_hf(_without_quantization(raw))
    return config.to_dict(), scheme, config.max_model_len


def folder_kv_bytes(config: Mapping[str, Any], precision: str, num_tokens: int) -> int:
    """Device bytes of KV that one sequence needs: 16-bit keys and values, however the weights are quantized."""
    return sequence_kv_bytes(config, _UNQUANTIZED, num_tokens)


def folder_weights_bytes(config: Mapping[str, Any], precision: str) -> int:
    """Bytes that the folder of such a model is likely to have: the matrices of its layers at the scheme's bits, and
    the rest at 16.

    Raises:
        ArtifactError: there is no such scheme.
    """
    if precision == _UNQUANTIZED:
        return packed_bytes(config, precision)
    if precision not in _BITS:
        raise ArtifactError(f"{precision!r} is not one of {', '.join((_UNQUANTIZED, *_BITS))}")
    tensors = packed_tensors(ModelConfig.from_dict(config))
    num_all = sum(math.prod(tensor.shape) for tensor in tensors.values())
    matrices = (t for name, t in tensors.items() if name.startswith("layers.") and len(t.shape) > 1)
    num_quantized = sum(math.prod(tensor.shape) for tensor in matrices)
    return int(2 * (num_all - num_quantized) + _BITS[precision] / 8 * num_quantized)


async def folder_artifact(
    packed_root: Path,
    layout: str,
    folder: Path,
    digest: str,
    precision: str,
    on_progress: Callable[[int, int], None],
) -> ArtifactRef:
    """The folder as an artifact; an ``engines.kinds.Prepare``.

    Raises:
        ArtifactError: it is asked for in a precision that its files do not have.
    """
    manifest = await asyncio.to_thread(_read_manifest, folder)
    if precision not in ("auto", manifest.precision):
        raise ArtifactError(
            f"the files of this model are {manifest.precision} and are served as they are, not in {precision}"
        )
    key = f"{digest[:16]}-{manifest.precision}-folder"
    return ArtifactRef(key, manifest.folder, manifest.num_bytes, manifest.to_json(), layout, True)


def _read_manifest(folder: Path) -> FolderManifest:
    found = describe_folder(folder)
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return FolderManifest(folder.resolve(), found.default_precision, found.config, num_bytes)


def _scheme(raw: Mapping[str, Any], folder: Path | None) -> str | None:
    """The scheme of a checkpoint's quantization; None if it has none."""
    quantization = raw.get(_QUANTIZATION)
    if quantization is None and folder is not None and (folder / _MODELOPT_NAME).exists():
        quantization = read_strangers_json(folder / _MODELOPT_NAME).get("quantization")
    if quantization is None:
        return None
    if not isinstance(quantization, dict):
        raise ArtifactError(f"{_QUANTIZATION} is no object")
    # ModelOpt names itself as the method, and how it quantizes as the algorithm.
    word = quantization.get("quant_algo") or quantization.get("quant_method")
    if not isinstance(word, str) or word.lower() not in _SCHEMES:
        raise ArtifactError(f"quantization {word!r} is not supported; supported are {', '.join(_SCHEMES)}")
    return _SCHEMES[word.lower()][0]


def _without_quantization(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key != _QUANTIZATION}


def _num_elements(config: ModelConfig) -> int:
    return sum(math.prod(tensor.shape) for tensor in packed_tensors(config).values())
