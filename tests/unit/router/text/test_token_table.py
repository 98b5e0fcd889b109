"""The table of a vocabulary, as a process writes it and the server reads it."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest
from support.router_doors import byte_fallback_tokenizer, byte_level_tokenizer, token_table
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from mooring.errors import ArtifactError, InternalError, InvalidRequestError
from router.text.detokenizer import TokenTable
from router.text_process.vocabulary import write_vocabulary

BYTE_LEVEL = [{"type": "ByteLevel"}]


def normalizing_tokenizer() -> Tokenizer:
    """SentencePiece-like with Llama 2's normalizer, and with tokens that are looked for in normalized text."""
    tokenizer = byte_fallback_tokenizer()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_tokens([AddedToken("<call>", normalized=True)])
    tokenizer.add_special_tokens([AddedToken("<pad>", normalized=True)])
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer", [byte_level_tokenizer(), byte_fallback_tokenizer(), normalizing_tokenizer()]
)
def test_every_token_is_spelled_as_the_tokenizer_spells_it(tokenizer: Tokenizer) -> None:
    table = token_table(tokenizer)
    special = {each for each, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    for token_id in range(-2, tokenizer.get_vocab_size() + 2):
        token = tokenizer.id_to_token(token_id) if token_id >= 0 else None
        assert table.is_text(token_id, skip_special_tokens=False) is (token is not None)
        assert table.is_text(token_id, skip_special_tokens=True) is (
            token is not None and token_id not in special
        )
        if token is not None:
            assert table.spelling(token_id) == token


def test_a_token_looked_for_in_normalized_text_is_text_as_the_library_has_it() -> None:
    tokenizer = normalizing_tokenizer()
    ids = [tokenizer.token_to_id(token) for token in ("a", "<call>", "b", "<tool>")]
    read = token_table(tokenizer).detokenizer()
    assert "".join(map(read.push, ids)) + read.finish() == tokenizer.decode(ids) == "a <call>b<tool>"


def test_ids_may_have_gaps() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 7}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    table = token_table(tokenizer)
    assert [each for each in range(9) if table.is_text(each, skip_special_tokens=False)] == [0, 7]
    assert table.spelling(7) == "b"


def test_ids_are_checked() -> None:
    table = token_table(byte_level_tokenizer())
    assert table.check_ids([1, 2, 0], param="prompt").tolist() == [1, 2, 0]
    assert table.check_ids([], param="prompt").tolist() == []
    for wrong in (1 << 20, -1, 1 << 40, 1 << 70):
        with pytest.raises(InvalidRequestError, match=f"'prompt': {wrong} is not a token id"):
            table.check_ids([1, wrong], param="prompt")
    table.check_known(np.array([0, 5], np.int32))
    for wrong in (-1, 1 << 20):
        with pytest.raises(InternalError):
            table.check_known(np.array([0, wrong], np.int32))


@pytest.mark.parametrize(
    ("flags", "ends", "spellings"),
    [
        (b"\x01\x01", [1, 2], b"abc"),
        (b"\x01\x01", [2, 1], b"a"),
        (b"\x01", [1, 2], b"ab"),
        (b"", [], b"ab"),
    ],
)
def test_parts_that_do_not_fit_are_refused(flags: bytes, ends: list[int], spellings: bytes) -> None:
    with pytest.raises(ValueError, match="fit together"):
        TokenTable(flags, array("I", ends).tobytes(), spellings, BYTE_LEVEL)


@pytest.mark.parametrize(
    "step",
    [
        {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": " "},  # it would run in the server
        {"type": "Replace", "pattern": {"String": ""}, "content": " "},
        {"type": "Strip", "content": " ", "start": 2, "stop": 0},
        {"type": "Strip", "content": " ", "start": 0, "stop": 1},
        {"type": "WordPiece"},
    ],
)
def test_steps_that_are_not_ours_to_carry_out_are_refused(step: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="cannot be streamed"):
        TokenTable(b"", b"", b"", [step, {"type": "Fuse"}])


def test_a_tokenizer_with_such_a_step_is_refused_in_its_process() -> None:
    decoder = decoders.Sequence([decoders.Replace(Regex("a+"), "b"), decoders.Fuse()])
    with pytest.raises(ArtifactError, match="cannot be streamed"):
        write_vocabulary(byte_fallback_tokenizer(decoder))


def test_ids_too_large_for_a_table_are_refused() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1 << 31}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    with pytest.raises(ArtifactError, match="token ids up to"):
        write_vocabulary(tokenizer)


def test_an_added_token_hides_the_one_of_the_model_at_its_id() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens([AddedToken("Ġthe", special=True)])
    token_id = tokenizer.token_to_id("Ġthe")
    assert not token_table(tokenizer).is_text(token_id, skip_special_tokens=True)
