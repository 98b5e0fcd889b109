"""Checkpoints packed byte for byte, and refused by name where they are not what they should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engines.artifact import ALIGNMENT_BYTES, Manifest
from engines.checkpoint.layout import packed_tensors
from engines.checkpoint.model_config import ModelConfig, describe
from engines.checkpoint.packing import MANIFEST_NAME, PACKER_VERSION, WEIGHTS_NAME, pack, packed_manifest
from mooring.errors import ArtifactError

DIGEST = "ab" * 32
CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 33,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "attention_bias": True,
}


def random_tensors(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    layout = packed_tensors(ModelConfig.from_hf(config))
    return {name: torch.randn(shape).to(dtype) for t in layout.values() for name, shape in t.sources}


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def unpack(dest: Path) -> tuple[Manifest, dict[str, Tensor]]:
    manifest = Manifest.from_json((dest / MANIFEST_NAME).read_bytes())
    raw = torch.frombuffer(bytearray((dest / WEIGHTS_NAME).read_bytes()), dtype=torch.uint8)
    assert len(raw) == manifest.num_bytes
    tensors = {
        name: raw[e.offset : e.offset + e.num_bytes].view(getattr(torch, e.dtype)).view(e.shape)
        for name, e in manifest.tensors.items()
    }
    return manifest, tensors


@pytest.mark.parametrize(
    ("stored", "precision", "expected"),
    [
        (torch.float32, "fp32", torch.float32),
        (torch.float32, "bf16", torch.bfloat16),
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.bfloat16, "fp32", torch.float32),
        (torch.float16, "auto", torch.bfloat16),
        (torch.float64, "auto", torch.float32),
    ],
)
def test_every_tensor_arrives_fused_and_rounded(
    tmp_path: Path, stored: torch.dtype, precision: str, expected: torch.dtype
) -> None:
    tensors = random_tensors(CONFIG, stored)
    tensors["model.norm.weight"][:2] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])  # ties go to even
    pack(write_checkpoint(tmp_path / "hf", tensors), tmp_path / "packed", precision, DIGEST)
    manifest, packed = unpack(tmp_path / "packed")
    assert ModelConfig.from_dict(manifest.config) == ModelConfig.from_hf(CONFIG)
    assert (manifest.source_digest, manifest.packer_version) == (DIGEST, PACKER_VERSION)
    for name, layout in packed_tensors(ModelConfig.from_hf(CONFIG)).items():
        whole = torch.cat([tensors[source] for source, _ in layout.sources])
        assert torch.equal(packed[name], whole.to(expected)), name
        assert manifest.tensors[name].offset % ALIGNMENT_BYTES == 0
    assert describe(tmp_path / "hf").weights_bytes(precision) == manifest.num_bytes


def test_shards_pack_like_a_single_file(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    single = write_checkpoint(tmp_path / "single", tensors)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "config.json").write_text(json.dumps(CONFIG))
    names = sorted(tensors)
    weight_map = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for folder in (single, sharded):
        pack(folder, tmp_path / f"{folder.name}-packed", "bf16", DIGEST)
    packed = [(tmp_path / f"{name}-packed" / WEIGHTS_NAME).read_bytes() for name in ("single", "sharded")]
    assert packed[0] == packed[1]


def test_a_tied_output_projection_is_left_out(tmp_path: Path) -> None:
    tied = {**CONFIG, "tie_word_embeddings": True}
    tensors = {**random_tensors(tied), "lm_head.weight": torch.randn(33, 24)}
    pack(write_checkpoint(tmp_path / "hf", tensors, tied), tmp_path / "packed", "fp32", DIGEST)
    assert "lm_head" not in unpack(tmp_path / "packed")[1]
    assert describe(tmp_path / "hf").num_parameters == sum(t.numel() for t in tensors.values()) - 33 * 24


def test_old_rotary_buffers_are_passed_over(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.randn(3)
    pack(write_checkpoint(tmp_path / "hf", tensors), tmp_path / "packed", "fp32", DIGEST)


K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({K_PROJ: None}, K_PROJ),
        ({K_PROJ: torch.zeros(12, 23)}, K_PROJ),
        ({K_PROJ: torch.zeros(12, 24, dtype=torch.int8)}, "I8"),
        ({"model.layers.2.mlp.up_proj.weight": torch.zeros(40, 24)}, "layers.2"),
        ({"lm_head.bias": torch.zeros(33)}, "lm_head.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, change: dict[str, Tensor | None], named: str
) -> None:
    tensors = {**random_tensors(CONFIG), **change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    source = write_checkpoint(tmp_path / "hf", kept)
    with pytest.raises(ArtifactError, match=named):
        describe(source)
    with pytest.raises(ArtifactError, match=named):
        pack(source, tmp_path / "out" / "packed", "fp32", DIGEST)
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix != ".lock"]


def test_broken_files_are_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf", random_tensors(CONFIG))
    whole = (source / "model.safetensors").read_bytes()
    for broken in (whole[:-1], whole[:100], b"", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"):
        (source / "model.safetensors").write_bytes(broken)
        with pytest.raises(ArtifactError, match=r"model\.safetensors|lacks"):
            pack(source, tmp_path / "packed", "fp32", DIGEST)
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ArtifactError, match="other kinds"):
        describe(source)
    (source / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        describe(source)


def test_an_index_cannot_leave_its_folder(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    write_checkpoint(tmp_path, tensors)
    source = tmp_path / "hf"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIG))
    weight_map = dict.fromkeys(tensors, "../model.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ArtifactError, match="outside"):
        describe(source)


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf", random_tensors(CONFIG))
    with pytest.raises(ArtifactError, match="int3"):
        pack(source, tmp_path / "packed", "int3", DIGEST)


def test_what_a_killed_packer_left_is_replaced(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf", random_tensors(CONFIG))
    dest = tmp_path / "packed"
    (tmp_path / ".packed.partial").mkdir()
    (tmp_path / ".packed.partial" / WEIGHTS_NAME).write_bytes(b"half")
    dest.mkdir()
    (dest / WEIGHTS_NAME).write_bytes(b"not ours")
    assert packed_manifest(dest, DIGEST) is None
    pack(source, dest, "fp32", DIGEST)
    assert packed_manifest(dest, DIGEST) is not None
    assert packed_manifest(dest, "cd" * 32) is None
    assert not (tmp_path / ".packed.partial").exists()


def test_the_packer_does_not_import_torch() -> None:
    code = (
        "import sys, engines.checkpoint.packer, engines.checkpoint.packing; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
