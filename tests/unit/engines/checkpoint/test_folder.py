"""Checkpoint folders as artifacts: how they are described and sized, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_checkpoint import write_checkpoint

from engines.checkpoint.folder import (
    FolderManifest,
    describe_folder,
    folder_artifact,
    folder_kv_bytes,
    folder_weights_bytes,
    outline_folder,
)
from engines.kinds import KINDS
from memory_manager.host.copy_file import open_artifact
from memory_manager.ports import ArtifactRef
from mooring.errors import ArtifactError

DIGEST = "0123456789abcdef" * 4


def quantized(folder: Path, **quantization: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return folder


@pytest.mark.parametrize(
    ("quantization", "scheme"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "awq-int4"),
    ],
)
def test_a_quantized_folder_names_its_scheme(
    tmp_path: Path, quantization: dict[str, Any], scheme: str
) -> None:
    folder = quantized(write_checkpoint(tmp_path / "m"), **quantization)
    found = describe_folder(folder)
    assert found.default_precision == scheme
    assert outline_folder(json.loads((folder / "config.json").read_text()))[1] == scheme
    assert folder_weights_bytes(found.config, scheme) < folder_weights_bytes(found.config, "bf16")
    assert folder_kv_bytes(found.config, scheme, 100) == folder_kv_bytes(found.config, "bf16", 100)


def test_modelopt_says_it_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "W4A16_AWQ"}}))
    assert describe_folder(folder).default_precision == "awq-int4"


@pytest.mark.parametrize("quantization", [{"quant_method": "gguf"}, {}, {"quant_method": 3}])
def test_other_quantizations_are_refused_by_name(tmp_path: Path, quantization: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"supported are fp8"):
        describe_folder(quantized(write_checkpoint(tmp_path / "m"), **quantization))


def artifact_of(folder: Path, precision: str) -> ArtifactRef:
    taken = folder_artifact(folder / "packed", "plain", folder, DIGEST, precision, lambda done, total: None)
    return asyncio.run(taken)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_artifact_is_the_folder_as_it_is(tmp_path: Path, dtype: type[Any]) -> None:
    folder = write_checkpoint(tmp_path / "m", dtype=dtype)
    ref = artifact_of(folder, "auto")
    assert (ref.is_folder, ref.weights_path) == (True, folder.resolve())
    assert ref.num_bytes == (folder / "model.safetensors").stat().st_size
    manifest = FolderManifest.from_json(ref.manifest_json)
    assert (manifest.folder, manifest.precision) == (folder.resolve(), "bf16")
    assert manifest == FolderManifest.from_json(manifest.to_json())
    assert not (folder / "packed").exists()
    descriptor = open_artifact(ref)
    assert os.path.samefile(f"/proc/self/fd/{descriptor}", folder)
    os.close(descriptor)


def test_it_is_served_in_no_other_precision(tmp_path: Path) -> None:
    folder = quantized(write_checkpoint(tmp_path / "m"), quant_method="fp8")
    with pytest.raises(ArtifactError, match="fp8"):
        artifact_of(folder, "bf16")


def test_what_is_no_manifest_is_refused() -> None:
    for text in (b"", b"{}", b"[]", b'{"folder": 3}'):
        with pytest.raises(ArtifactError):
            FolderManifest.from_json(text)
    with pytest.raises(ArtifactError):
        folder_weights_bytes({}, "int2")


def test_the_row_of_tensorrt_llm_reads_folders(tmp_path: Path) -> None:
    folder, kind = write_checkpoint(tmp_path / "m"), KINDS["tensorrt_llm"]
    found = kind.describe(folder)
    config, precision, max_model_len = kind.outline(json.loads((folder / "config.json").read_text()))
    assert (precision, max_model_len) == (found.default_precision, found.max_model_len)
    assert kind.kv_bytes(config, precision, 10) > 0
    assert kind.weights_bytes(config, precision) > 0
    assert kind.layout("cuda:0") == "plain"
