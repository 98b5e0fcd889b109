"""``ensure_packed`` with its real subprocess."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from engines.artifact import Manifest
from engines.checkpoint.layout import packed_tensors
from engines.checkpoint.model_config import ModelConfig
from engines.checkpoint.packer import ensure_packed
from mooring.errors import ArtifactError

pytestmark = pytest.mark.integration

DIGEST = "0123456789abcdef" * 4


def write_checkpoint(folder: Path, vocab_size: int = 50) -> Path:
    config = {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    layout = packed_tensors(ModelConfig.from_hf(config))
    tensors = {name: torch.randn(shape) for tensor in layout.values() for name, shape in tensor.sources}
    save_file(tensors, folder / "model.safetensors")
    return folder


async def test_concurrent_calls_pack_once_and_later_ones_reuse(tmp_path: Path) -> None:
    source, root = write_checkpoint(tmp_path / "hf"), tmp_path / "packed"
    progress: list[list[tuple[int, int]]] = [[], [], []]
    calls = [
        ensure_packed(
            source, DIGEST, "bf16", root, lambda done, total, i=i: progress[i].append((done, total))
        )
        for i in range(3)
    ]
    refs = await asyncio.gather(*calls)
    assert refs[0] == refs[1] == refs[2]
    ref = refs[0]
    assert ref.weights_path == root / "0123456789abcdef-bf16-plain-v1" / "weights.bin"
    assert ref.num_bytes == ref.weights_path.stat().st_size == Manifest.from_json(ref.manifest_json).num_bytes
    (told,) = [each for each in progress if each]
    assert told == sorted(told)
    assert told[-1] == (ref.num_bytes, ref.num_bytes)

    inode = ref.weights_path.stat().st_ino
    (source / "model.safetensors").unlink()
    assert await ensure_packed(source, DIGEST, "bf16", root) == ref
    assert ref.weights_path.stat().st_ino == inode


async def test_an_artifact_from_before_layouts_had_names_is_found_again(tmp_path: Path) -> None:
    source, root = write_checkpoint(tmp_path / "hf"), tmp_path / "packed"
    ref = await ensure_packed(source, DIGEST, "bf16", root)
    assert ref.layout == "plain"
    folder, inode = ref.weights_path.parent, ref.weights_path.stat().st_ino
    manifest = json.loads(ref.manifest_json)
    del manifest["layout"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    folder.rename(root / "0123456789abcdef-bf16-v1")
    (source / "model.safetensors").unlink()
    again = await ensure_packed(source, DIGEST, "bf16", root)
    assert (again.key, again.weights_path, again.num_bytes) == (ref.key, ref.weights_path, ref.num_bytes)
    assert again.weights_path.stat().st_ino == inode, "it was not packed again"
    assert not (root / "0123456789abcdef-bf16-v1").exists()


async def test_a_broken_artifact_from_before_layouts_had_names_is_packed_again(tmp_path: Path) -> None:
    source, root = write_checkpoint(tmp_path / "hf"), tmp_path / "packed"
    old = root / "0123456789abcdef-bf16-v1"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text("{")
    (old / "weights.bin").write_bytes(b"half")
    ref = await ensure_packed(source, DIGEST, "bf16", root)
    assert ref.num_bytes == ref.weights_path.stat().st_size


async def test_a_layout_that_nobody_writes_is_refused_by_name(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf")
    with pytest.raises(ArtifactError, match="'tiles'"):
        await ensure_packed(source, DIGEST, "bf16", tmp_path / "packed", layout="tiles")


async def test_auto_is_the_checkpoints_own_precision(tmp_path: Path) -> None:
    ref = await ensure_packed(write_checkpoint(tmp_path / "hf"), DIGEST, "auto", tmp_path / "packed")
    assert ref.key == "0123456789abcdef-fp32-plain-v1"


async def test_the_packers_reason_is_told(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf")
    save_file({"model.norm.weight": torch.ones(16)}, source / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"lacks model\.embed_tokens\.weight"):
        await ensure_packed(source, DIGEST, "bf16", tmp_path / "packed")


async def test_a_cancelled_call_leaves_no_process_and_no_artifact(tmp_path: Path) -> None:
    source, root = write_checkpoint(tmp_path / "hf", vocab_size=1_500_000), tmp_path / "packed"
    started = asyncio.Event()
    call = asyncio.create_task(ensure_packed(source, DIGEST, "bf16", root, lambda done, total: started.set()))
    await asyncio.wait_for(started.wait(), 60)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    packers = [
        p for p in psutil.Process().children() if "engines.checkpoint.packing" in " ".join(p.cmdline())
    ]
    assert packers == []
    assert not (root / "0123456789abcdef-bf16-plain-v1").exists()
    ref = await ensure_packed(source, DIGEST, "bf16", root)
    assert ref.num_bytes == ref.weights_path.stat().st_size
