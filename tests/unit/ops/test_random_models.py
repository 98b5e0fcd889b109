"""Random models have the names, shapes and sizes of the published ones, and logits that are alive."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mooring.errors import ConfigurationError
from ops.samples.random_model import make_random_model
from ops.samples.random_weights import tensor_shapes, write_random_weights
from ops.samples.shapes import SHAPES
from ops.samples.text_tokenizers import save_tokenizer, train_byte_level

transformers = pytest.importorskip("transformers")

NUM_PARAMETERS = {
    "SmolLM2-135M": 134_515_008,
    "Qwen2.5-0.5B": 494_032_768,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.1-8B": 8_030_261_248,
}
SHRUNK = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes_are_those_of_transformers(name: str) -> None:
    config = SHAPES[name]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del theirs["lm_head.weight"]
    ours = tensor_shapes(config)
    assert ours == theirs
    assert sum(int(np.prod(shape)) for shape in ours.values()) == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", ["Qwen2.5-0.5B", "Llama-3.1-8B"])
def test_small_ones_give_varied_text(name: str, tmp_path: Path) -> None:
    write_random_weights(SHAPES[name] | SHRUNK, tmp_path, "fp32", seed=1)
    model = load(tmp_path)
    prompt = torch.arange(1, 33)[None]
    with torch.no_grad():
        logits = model(prompt).logits[0]
        output = model.generate(prompt, max_new_tokens=48, do_sample=False, eos_token_id=None)[0, 32:]
    assert 1.0 < float(logits.std(dim=-1).mean()) < 5.0
    assert len(set(output.tolist())) > 3


def test_shards_and_precisions_hold_the_same_values(tmp_path: Path) -> None:
    config = SHAPES["SmolLM2-135M"] | SHRUNK
    folders = {"whole": ("fp32", 1 << 30), "sharded": ("fp32", 8 << 20), "rounded": ("bf16", 1 << 30)}
    for folder_name, (precision, shard_bytes) in folders.items():
        (tmp_path / folder_name).mkdir()
        write_random_weights(
            config,
            tmp_path / folder_name,
            precision,
            seed=2,
            shard_bytes=shard_bytes,  # type: ignore[arg-type]
        )
    whole, sharded, rounded = (tensors(tmp_path / folder_name) for folder_name in folders)
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 2
    assert whole.keys() == sharded.keys() == rounded.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, sharded[name])
        assert torch.equal(tensor.bfloat16(), rounded[name])
    assert load(tmp_path / "sharded").num_parameters() == load(tmp_path / "whole").num_parameters()


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    config = SHAPES["SmolLM2-135M"] | SHRUNK
    write_random_weights(config, tmp_path, on_progress=lambda _, done, total: reports.append((done, total)))
    assert reports[-1][0] == reports[-1][1] > 0


def test_a_tokenizer_larger_than_the_shape_is_refused(tmp_path: Path) -> None:
    save_tokenizer(train_byte_level(["x = 1\n"], 60_000), tmp_path, 64)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    with pytest.raises(ConfigurationError, match="60000 ids"):
        make_random_model("SmolLM2-135M", tmp_path / "out", tokenizer=tmp_path)
    with pytest.raises(ConfigurationError, match="there are SmolLM2"):
        make_random_model("GPT-5", tmp_path / "out")


def test_a_folder_is_made_once_with_the_tokenizer_it_was_given(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_tokenizer(train_byte_level(["x = 1\n"], 400), source, 64)
    (source / "config.json").write_text(json.dumps({"bos_token_id": None, "eos_token_id": 0}))
    made = make_random_model("SmolLM2-135M", tmp_path / "out", tokenizer=source)
    assert asdict(made) == asdict(make_random_model("SmolLM2-135M", tmp_path / "out", tokenizer=source))
    assert made.weights_bytes == 2 * NUM_PARAMETERS["SmolLM2-135M"]
    assert (made.folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert json.loads((made.folder / "generation_config.json").read_text())["eos_token_id"] == 0
