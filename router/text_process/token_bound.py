"""Fewest tokens that a text can have, known before it is tokenized: so a text that cannot fit a model costs little.

A token stands for a limited number of bytes. From that follows a bound on the tokens of a text, if nothing of the
text is lost on its way to the tokens. Tokenizers of which that is not certain have no bound.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

__all__ = ["TokenBound", "token_bound"]

_COMPOSED_BYTES = 4  # bytes that canonical composition makes one of, at most (3.5, for U+0390)
_KEEPING_PRE_TOKENIZERS = {"ByteLevel", "Digits", "Metaspace"}


@dataclass(frozen=True, slots=True)
class TokenBound:
    """The bound of one tokenizer.

    Attributes:
        longest_token_bytes: most bytes of text that one token stands for.
        composes: whether characters are composed (NFC) before they are tokenized, which makes them fewer bytes.
    """

    longest_token_bytes: int
    composes: bool

    def fewest_tokens(self, text: str) -> int:
        """Number of tokens that the text has at least."""
        num_bytes = len(text.encode())
        if self.composes and not text.isascii():
            num_bytes //= _COMPOSED_BYTES
        return -(-num_bytes // self.longest_token_bytes)


def token_bound(tokenizer: Tokenizer) -> TokenBound | None:
    """The bound of a tokenizer; None if its tokens may leave out some of the text."""
    splits = list(_parts(tokenizer.pre_tokenizer, "pretokenizers"))
    normalizers = list(_parts(tokenizer.normalizer, "normalizers"))
    added = tokenizer.get_added_tokens_decoder().values()
    byte_level = any(part["type"] == "ByteLevel" for part in splits)
    keeps_all = (
        _model_keeps_all(tokenizer, byte_level)
        and all(map(_pre_tokenizer_keeps_all, splits))
        and all(map(_normalizer_keeps_all, normalizers))
        and all(map(_post_processor_keeps_all, _parts(tokenizer.post_processor, "processors")))
        and not any(token.lstrip or token.rstrip for token in added)  # these take spaces around them
    )
    if not keeps_all:
        return None
    # A character of a byte-level vocabulary is one byte of text.
    longest = max(len(token) if byte_level else len(token.encode()) for token in tokenizer.get_vocab())
    contents = [token.content for token in added]
    if tokenizer.normalizer is not None:  # some are looked for in the normalized text, as normalized texts
        contents += [tokenizer.normalizer.normalize_str(content) for content in contents]
    longest = max([longest, *(len(content.encode()) for content in contents)])
    return TokenBound(longest, any(part["type"] == "NFC" for part in normalizers))


def _parts(component: Any, list_name: str) -> Iterator[dict[str, Any]]:
    """The steps of a tokenizer's component, with nested sequences flattened."""
    return _flat(json.loads(component.__getstate__()), list_name) if component is not None else iter(())


def _flat(part: dict[str, Any], list_name: str) -> Iterator[dict[str, Any]]:
    if part["type"] == "Sequence":
        for each in part[list_name]:
            yield from _flat(each, list_name)
    else:
        yield part


def _model_keeps_all(tokenizer: Tokenizer, byte_level: bool) -> bool:
    model = tokenizer.model
    if not isinstance(model, models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    if byte_level:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif model.byte_fallback:
        alphabet = [f"<0x{byte:02X}>" for byte in range(0x100)]
    else:
        return False
    return all(model.token_to_id(token) is not None for token in alphabet)


def _pre_tokenizer_keeps_all(part: dict[str, Any]) -> bool:
    if part["type"] == "Split":
        return bool(part["behavior"] != "Removed")
    return part["type"] in _KEEPING_PRE_TOKENIZERS


def _normalizer_keeps_all(part: dict[str, Any]) -> bool:
    if part["type"] == "Replace":
        replaced = part["pattern"].get("String")
        return replaced is not None and len(part["content"].encode()) >= len(replaced.encode())
    return part["type"] in ("NFC", "Prepend")


def _post_processor_keeps_all(part: dict[str, Any]) -> bool:
    if part["type"] == "TemplateProcessing":
        return any("Sequence" in piece for piece in part["single"])
    return bool(part["type"] == "ByteLevel")
