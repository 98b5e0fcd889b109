"""The tokenizer of a GGUF file, written as tokenizer.json and tokenizer_config.json.

For byte-level BPE, GGUF names the pre-tokenizer (``tokenizer.ggml.pre``) instead of describing it, so each
name is a row of a table here. A name that is not in the table is refused, because a wrong split would
silently give wrong tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model_registry.importing.gguf_sentencepiece import build_sentencepiece
from mooring.errors import ArtifactError

__all__ = ["Metadata", "TokenIds", "write_tokenizer"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # values of tokenizer.ggml.token_type
SPECIAL = (UNKNOWN, CONTROL)
END_TOKENS = {"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}


class Metadata(Protocol):
    """The keys of a GGUF file, as ``gguf_import.GgufMetadata`` reads them."""

    def get(self, key: str, default: Any = None) -> Any: ...

    def require(self, key: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class TokenIds:
    """The special ids that config files name. ``eos_token_ids`` has at least one, the main one first."""

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    unk_token_id: int | None


@dataclass(frozen=True, slots=True)
class _ByteLevel:
    """How one family of tokenizers splits text before byte-level BPE.

    Attributes:
        pre_tokenizer: makes the splitter.
        nfc: whether text is first normalized to NFC.
        whole_words: whether a word that is itself a token is taken whole instead of being built by merges
            (llama.cpp and tokenizers call this ignoring merges).
        add_bos: whether the family begins a text with its first token, if the file does not say.
    """

    pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer]
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _by_regex(digits: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    """The split that Llama 3 and Qwen share; they differ in how many digits stay together."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )

    def make() -> pre_tokenizers.PreTokenizer:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        return pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )

    return make


_LLAMA3 = _ByteLevel(_by_regex(r"\p{N}{1,3}"), whole_words=True, add_bos=True)
_QWEN2 = _ByteLevel(_by_regex(r"\p{N}"), nfc=True)
BYTE_LEVEL = {
    "gpt-2": _ByteLevel(_gpt2),
    "smollm": _ByteLevel(_smollm),
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def write_tokenizer(metadata: Metadata, folder: Path) -> TokenIds:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json into ``folder``.

    Raises:
        ArtifactError: the tokenizer is not supported (the message has its name), or its vocabulary is broken.
    """
    tokens = [str(token) for token in metadata.require("tokenizer.ggml.tokens")]
    types = list(metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens)))
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        raise ArtifactError("tokenizer.ggml.tokens has duplicates or does not match its types")
    ids = _special_ids(metadata, tokens, types)
    tokenizer, add_bos = _build(metadata, tokens, types, ids)
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (*SPECIAL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=kind in SPECIAL, normalized=False)])
            if tokenizer.token_to_id(token) != index:
                raise ArtifactError(f"token {token!r} cannot keep its id {index}")
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)) and ids.bos_token_id is not None
    if add_bos and ids.bos_token_id is not None:
        _begin_with(tokenizer, tokens[ids.bos_token_id], ids.bos_token_id)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_config(metadata, folder, tokens, ids, add_bos)
    return ids


def _special_ids(metadata: Metadata, tokens: Sequence[str], types: Sequence[int]) -> TokenIds:
    def read(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value: int | None = metadata.get(key)
        if value is not None and not 0 <= value < len(tokens):
            raise ArtifactError(f"{key} is {value}, which is not a token")
        return value

    named = [read("eos"), read("eot"), read("eom")]
    # Most files name one end token; a chat model may also end with other end tokens of its family.
    by_text = [i for i, kind in enumerate(types) if kind == CONTROL and tokens[i] in END_TOKENS]
    ends = tuple(dict.fromkeys(value for value in (*named, *by_text) if value is not None))
    if not ends:
        raise ArtifactError("the GGUF file lacks tokenizer.ggml.eos_token_id")
    return TokenIds(read("bos"), ends, read("padding"), read("unknown"))


def _build(
    metadata: Metadata, tokens: Sequence[str], types: Sequence[int], ids: TokenIds
) -> tuple[Tokenizer, bool]:
    """The tokenizer without its special tokens, and whether its family begins texts with such a token."""
    model = metadata.require("tokenizer.ggml.model")
    if model == "gpt2":
        return _build_byte_level(metadata, tokens)
    if model == "llama":
        scores = metadata.require("tokenizer.ggml.scores")
        is_piece = [kind == NORMAL for kind in types]
        unknown = None if ids.unk_token_id is None else tokens[ids.unk_token_id]
        adds_space = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        return build_sentencepiece(tokens, scores, is_piece, unknown, adds_space), True
    raise ArtifactError(f"GGUF tokenizer model {model!r} is not supported (gpt2 and llama are)")


def _build_byte_level(metadata: Metadata, tokens: Sequence[str]) -> tuple[Tokenizer, bool]:
    pre = str(metadata.get("tokenizer.ggml.pre", "default"))
    family = BYTE_LEVEL.get(pre)
    if family is None:
        raise ArtifactError(f"GGUF pre-tokenizer {pre!r} is not supported ({', '.join(BYTE_LEVEL)} are)")
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [_split_merge(merge) for merge in metadata.require("tokenizer.ggml.merges")]
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=family.whole_words))
    except Exception as error:  # tokenizers raises bare Exception for a merge whose parts are not tokens
        raise ArtifactError(f"tokenizer.ggml.merges does not fit its tokens: {error}") from error
    if family.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = family.pre_tokenizer()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, family.add_bos


def _split_merge(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right):
        raise ArtifactError(f"tokenizer.ggml.merges has {merge!r}, which is not two tokens")
    return left, right


def _begin_with(tokenizer: Tokenizer, token: str, token_id: int) -> None:
    template = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, token_id)]
    )
    before = tokenizer.post_processor
    tokenizer.post_processor = template if before is None else processors.Sequence([before, template])


def _write_config(
    metadata: Metadata, folder: Path, tokens: Sequence[str], ids: TokenIds, add_bos: bool
) -> None:
    special = {
        "bos_token": ids.bos_token_id,
        "eos_token": ids.eos_token_ids[0],
        "pad_token": ids.pad_token_id,
        "unk_token": ids.unk_token_id,
    }
    texts = {name: tokens[index] for name, index in special.items() if index is not None}
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": add_bos,
        **texts,
    }
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", texts)):
        text = json.dumps(value, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
