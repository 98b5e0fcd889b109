"""GGUF files written here come back as the checkpoints that they were made from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, RopeScalingType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from safetensors.numpy import load_file
from support.gguf_files import CONTROL, HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, Source, write_gguf
from tokenizers import Tokenizer

from engines.checkpoint.model_config import describe
from model_registry.importing.gguf_import import convert_gguf
from mooring.errors import ArtifactError


def convert(tmp_path: Path, source: Source) -> Path:
    folder = tmp_path / "converted"
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", source), folder)
    return folder


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_back_exactly(tmp_path: Path, architecture: str, tied: bool) -> None:
    source = Source(architecture, tied)
    folder = convert(tmp_path, source)

    written = load_file(folder / "model.safetensors")
    assert written.keys() == source.weights.keys()
    for name, value in written.items():
        assert value.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(value.astype(np.float32), source.weights[name], err_msg=name)
    description = describe(folder)  # the engine accepts the folder
    assert description.vocab_size == len(source.tokens)
    assert description.max_model_len == 512


def test_quantized_rows_are_put_back_before_they_are_dequantized(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_0
    source = Source(kind=kind)
    written = load_file(convert(tmp_path, source) / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = dequantize(quantize(source.weights[name], kind), kind).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(written[name], expected)


def test_config(tmp_path: Path) -> None:
    config = read_json(convert(tmp_path, Source(tied=False)) / "config.json")
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "max_position_embeddings": 512,
    }
    assert {name: config[name] for name in expected} == expected
    assert "rope_scaling" not in config


def test_linear_rope_scaling(tmp_path: Path) -> None:
    config = read_json(convert(tmp_path, Source(rope_scaling=RopeScalingType.LINEAR)) / "config.json")
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.5}


def llama3_factors(factor: float, high: float = 4.0) -> NDArray[np.float32]:
    """The table that llama.cpp's converter writes for Llama 3.1's rotary scaling."""
    factors = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * math.pi * 500000.0 ** (i / HEAD_DIM)
        if wavelength < 8192 / high:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (high - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def test_llama3_rope_scaling_is_read_back_from_its_table(tmp_path: Path) -> None:
    config = read_json(convert(tmp_path, Source(rope_factors=llama3_factors(32.0))) / "config.json")
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_tokenizer_and_special_tokens(tmp_path: Path) -> None:
    source = Source()
    folder = convert(tmp_path, source)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    text = "<|im_start|>hello hello 12\n<|im_end|>é"
    encoded = tokenizer.encode(text)
    pieces = ["<|im_start|>", "hello", "Ġhello", "Ġ", "1", "2", "Ċ", "<|im_end|>", "Ã", "©"]
    assert encoded.tokens == pieces
    assert encoded.ids == [source.tokens.index(piece) for piece in pieces]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert tokenizer.decode(encoded.ids) == "hello hello 12\né"

    config = read_json(folder / "tokenizer_config.json")
    assert config["eos_token"] == "<|im_end|>"
    assert config["bos_token"] == "<|im_start|>"
    assert config["chat_template"] == "{{ messages[0]['content'] }}"
    generation = read_json(folder / "generation_config.json")
    assert generation["eos_token_id"] == [2, 0]  # the named one first, then the family's others


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "12345", ["12345"]),
        ("smollm", "123", ["1", "2", "3"]),
        ("qwen2", "123", ["1", "2", "3"]),
        ("llama-bpe", "12345", ["123", "45"]),
        ("llama-bpe", "Don't!\n\n  x", ["Don", "'t", "!ĊĊ", "Ġ", "Ġx"]),
    ],
)
def test_pre_tokenizers(tmp_path: Path, pre: str, text: str, pieces: list[str]) -> None:
    folder = convert(tmp_path, Source(pre=pre, add_bos=False))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_a_family_that_begins_texts_does_so_unless_the_file_says_no(tmp_path: Path) -> None:
    for add_bos, ids in ((None, [1]), (False, [])):
        folder = tmp_path / str(add_bos)
        folder.mkdir()
        tokenizer = Tokenizer.from_file(
            str(convert(folder, Source(pre="llama-bpe", add_bos=add_bos)) / "tokenizer.json")
        )
        assert tokenizer.encode("h").ids[:-1] == ids


def test_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    letters = ["▁", "h", "e", "l", "o"]
    tokens = [*CONTROL, *(f"<0x{value:02X}>" for value in range(256)), "he", "ll", "hell", "▁hell", *letters]
    folder = convert(tmp_path, Source(tokenizer_model="llama", tokens=tokens))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = tokenizer.encode("hello é<|im_end|>")
    assert encoded.tokens == ["<|im_start|>", "▁hell", "o", "▁", "<0xC3>", "<0xA9>", "<|im_end|>"]
    assert tokenizer.decode(encoded.ids) == "hello é"


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architecture": "mamba"}, "architecture 'mamba' is not supported"),
    "experts": ({"experts": 8}, "mixture-of-experts"),
    "pre-tokenizer": ({"pre": "klingon"}, "pre-tokenizer 'klingon' is not supported"),
    "tokenizer": ({"tokenizer_model": "t5"}, "tokenizer model 't5' is not supported"),
    "merge": ({"merges": ["zz yy"]}, "merges does not fit"),
    "rope": ({"rope_scaling": RopeScalingType.YARN}, "RoPE scaling 'yarn' is not supported"),
    "rope table": ({"rope_factors": llama3_factors(8.0, high=3.0)}, "not Llama 3's RoPE scaling"),
    "heads": ({"head_dim": 32}, "a projection has 64 rows and its heads 128"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(tmp_path: Path, case: str) -> None:
    changes, reason = REFUSALS[case]
    with pytest.raises(ArtifactError, match=reason):
        convert(tmp_path, Source(**changes))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_tensors_that_lack_or_are_not_known_are_named(tmp_path: Path) -> None:
    source = Source()
    del source.weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ArtifactError, match=r"lacks 1 tensors, blk\.1\.ffn_up\.weight first"):
        convert(tmp_path, source)
    extra = Source()
    extra.weights["model.layers.9.mlp.up_proj.weight"] = np.zeros((2, 2), dtype=np.float32)
    with pytest.raises(ArtifactError, match=r"'blk\.9\.ffn_up\.weight' has no place"):
        convert(tmp_path, extra)


def test_broken_files_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf", Source()).read_bytes()
    broken = tmp_path / "broken.gguf"
    for content in (b"", b"GGUF", whole[:100], whole[: len(whole) // 2], whole[:-500], b"PK\3\4" + whole):
        broken.write_bytes(content)
        with pytest.raises(ArtifactError):
            convert_gguf(broken, tmp_path / "converted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.gguf", "tiny.gguf"]


def test_a_destination_that_exists_is_left_alone(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", Source())
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError):
        convert_gguf(path, tmp_path / "there")
