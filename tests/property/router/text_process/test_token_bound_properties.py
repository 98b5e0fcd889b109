"""A text never has fewer tokens than its bound says."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.router_doors import byte_fallback_tokenizer, byte_level_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from router.text_process.token_bound import token_bound


def normalized(tokenizer: Tokenizer, *steps: normalizers.Normalizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.Sequence(list(steps))
    return tokenizer


def with_added(tokenizer: Tokenizer, **options: bool) -> Tokenizer:
    tokenizer.add_tokens([AddedToken("<wide>", **options)])
    return tokenizer


BOUNDED = {
    "byte-level": byte_level_tokenizer(),
    "byte-level-nfc": normalized(byte_level_tokenizer(), normalizers.NFC()),
    "byte-level-normalized-token": with_added(byte_level_tokenizer(), normalized=True),
    "llama": byte_fallback_tokenizer(),
    "llama-with-normalizers": normalized(
        byte_fallback_tokenizer(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    ),
}
# Characters that composition shortens most, and texts of added tokens.
PIECES = st.sampled_from(
    ["the", " ", "l", "é", "語 →", "<|im_start|>", "\u1fbe\u0308\u0301", "\u212a", "<wide>", "🦀"]
)


@pytest.mark.parametrize("kind", BOUNDED)
@settings(max_examples=300)
@given(text=st.one_of(st.text(max_size=30), st.lists(PIECES, max_size=20).map("".join)))
def test_a_text_has_at_least_as_many_tokens_as_its_bound(kind: str, text: str) -> None:
    bound = token_bound(BOUNDED[kind])
    assert bound is not None
    num_tokens = len(BOUNDED[kind].encode(text, add_special_tokens=False).ids)
    assert bound.fewest_tokens(text) <= num_tokens


def test_composition_makes_one_byte_of_four_at_most() -> None:
    """Every character against the longest text that is composed to it."""
    spellings: dict[str, int] = {}
    chars = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for char in chars:
        apart = unicodedata.normalize("NFD", char)
        spellings[apart] = max(spellings.get(apart, 0), len(char.encode()))
    for char in chars:
        apart = unicodedata.normalize("NFD", char)
        longest = [0] + [-1000] * len(apart)
        for end in range(1, len(apart) + 1):
            longest[end] = max(
                longest[start] + spellings.get(apart[start:end], -1000) for start in range(end)
            )
        assert longest[-1] <= 4 * len(unicodedata.normalize("NFC", char).encode())


def test_a_bound_is_worth_having() -> None:
    bound = token_bound(byte_level_tokenizer())
    assert bound is not None
    assert bound.fewest_tokens("a" * 12_000) == 1_000  # its longest token has twelve bytes


def word_piece() -> Tokenizer:
    return Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))


def splitting_off() -> Tokenizer:
    tokenizer = byte_level_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()]
    )
    return tokenizer


def dropping_the_text() -> Tokenizer:
    tokenizer = byte_level_tokenizer()
    ids = [("<|im_end|>", tokenizer.token_to_id("<|im_end|>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<|im_end|>", special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(word_piece(), id="unknown words are one token"),
        pytest.param(splitting_off(), id="spaces are dropped"),
        pytest.param(dropping_the_text(), id="the template has no text"),
        pytest.param(with_added(byte_level_tokenizer(), lstrip=True), id="a token takes spaces"),
        pytest.param(normalized(byte_level_tokenizer(), normalizers.Strip()), id="spaces are stripped"),
        pytest.param(
            normalized(byte_level_tokenizer(), normalizers.Replace(Regex("a+"), "a")), id="runs are shortened"
        ),
        pytest.param(
            normalized(byte_level_tokenizer(), normalizers.Replace("aa", "a")), id="pairs are shortened"
        ),
    ],
)
def test_tokenizers_that_may_lose_text_have_no_bound(tokenizer: Tokenizer) -> None:
    assert token_bound(tokenizer) is None
