"""The sample models' tokenizers give back what they were given."""

from __future__ import annotations

import inspect
import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from ops.samples.streams import break_leading_spaces, token_stream
from ops.samples.text_tokenizers import END_OF_TEXT, save_tokenizer, train_byte_level, train_metaspace

SOURCES = [inspect.getsource(module) for module in (textwrap, json, inspect)]


@pytest.fixture(scope="module")
def metaspace() -> Tokenizer:
    return train_metaspace(SOURCES, 1024)


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return train_byte_level(SOURCES, 2000, max_learned=1000)


def test_source_survives_to_the_last_space(metaspace: Tokenizer, byte_level: Tokenizer) -> None:
    for source in SOURCES:
        for tokenizer in (metaspace, byte_level):
            assert tokenizer.decode(tokenizer.encode(source).ids) == source


def test_sizes_are_exact_and_every_id_has_a_piece(metaspace: Tokenizer, byte_level: Tokenizer) -> None:
    for tokenizer, size in ((metaspace, 1024), (byte_level, 2000)):
        assert tokenizer.get_vocab_size() == size
        assert None not in [tokenizer.id_to_token(index) for index in range(size)]
    assert metaspace.token_to_id(END_OF_TEXT) == 0
    assert byte_level.token_to_id(END_OF_TEXT) is not None


def test_indentation_is_few_tokens_and_unknown_characters_are_bytes(metaspace: Tokenizer) -> None:
    assert "\n▁▁▁▁▁▁▁▁" in metaspace.encode("x:\n        return").tokens
    assert metaspace.encode("é").tokens == ["▁", "<0xC3>", "<0xA9>"]


def test_the_end_of_text_is_one_token_and_left_out_of_text(metaspace: Tokenizer) -> None:
    ids = metaspace.encode(f"a{END_OF_TEXT}").ids
    assert ids[-1] == 0
    assert metaspace.decode(ids) == "a"


def test_saved_files_load_in_transformers(metaspace: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(metaspace, tmp_path, 64)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    source = SOURCES[0]
    assert loaded(source).input_ids == metaspace.encode(source).ids
    assert loaded.decode(loaded(source).input_ids) == source
    assert loaded.eos_token_id == 0


def test_broken_spaces_change_the_tokens_and_not_the_text(metaspace: Tokenizer) -> None:
    stream = token_stream(SOURCES, metaspace, end_id=0)
    broken = break_leading_spaces(stream, metaspace.get_vocab(), 0.3, seed=5)
    assert len(broken) > len(stream) * 1.05
    assert metaspace.decode(broken.tolist()) == metaspace.decode(stream.tolist())
    spaces = broken == metaspace.token_to_id("▁")
    followers = {metaspace.id_to_token(index) for index in broken[1:][spaces[:-1]].tolist()}
    assert "return" in followers or "self" in followers or "import" in followers
    assert np.array_equal(broken, break_leading_spaces(stream, metaspace.get_vocab(), 0.3, seed=5))
