"""Token ids to text, one token at a time, equal in sum to decoding everything at once.

A token is not a piece of text: a byte-level token may hold half a character, and a byte-fallback token
(``<0xE2>``) is one byte of one. So text is held back until it can no longer change, and no token is
decoded twice: the cost per token does not grow with what was generated before.

The models that we serve have two kinds of tokenizer, told apart by the decoder that they name:

- byte-level (GPT-2, Llama 3, Qwen, SmolLM): each token is a string of bytes, and the text is UTF-8;
- SentencePiece-like (Llama 2, Mistral, Gemma): each token is text with ``▁`` for a space, beside one
  token for each byte. A run of byte tokens is text only as a whole (one wrong byte makes all of the run
  U+FFFD), so a run is held back until another token ends it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Protocol

from tokenizers import Tokenizer

from mooring.errors import ArtifactError

__all__ = ["Detokenizer", "TokenTable", "token_string"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_STREAMABLE = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
# A token that every decoder leaves alone: tokens after it are decoded as the middle of a text.
_ANCHOR = "a"


class Detokenizer(Protocol):
    """The text of one sequence of tokens, in pieces."""

    def push(self, token_id: int) -> str:
        """Returns the text that became certain with this token; may be empty."""
        ...

    def finish(self) -> str:
        """Returns the text that was held back; incomplete characters become U+FFFD. No token may be pushed
        afterwards."""
        ...

    def copy(self) -> Detokenizer:
        """A detokenizer that goes on from here by itself."""
        ...


class TokenTable:
    """The text or the bytes that each token of one tokenizer stands for. Shared by all sequences of a model.

    Special tokens are no text unless a caller wants them to be. Ids outside the vocabulary, which models with
    a padded embedding can sample, never are.

    Raises:
        ArtifactError: the tokenizer's decoder is of a kind whose output cannot be streamed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = tokenizer.decoder
        decoder_steps = list(_steps(json.loads(tokenizer.to_str())["decoder"]))
        kinds = [step["type"] for step in decoder_steps]
        self.is_byte_level = kinds == ["ByteLevel"]
        if not self.is_byte_level:
            _check_streamable(decoder_steps)
        self._has_byte_fallback = "ByteFallback" in kinds
        self._specials = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
        self._byte_of_char = _byte_of_char()
        self._cached_bytes: dict[int, bytes] = {}

    def detokenizer(self, *, skip_special_tokens: bool = True, at_start: bool = True) -> Detokenizer:
        """Makes a fresh detokenizer for one sequence.

        Args:
            skip_special_tokens: whether special tokens are left out of the text.
            at_start: whether the tokens begin a text, so that a SentencePiece-like tokenizer drops the space
                that it put there itself; False if they continue a text.
        """
        if self.is_byte_level:
            return _ByteLevelDetokenizer(self, skip_special_tokens)
        return _FallbackDetokenizer(self, skip_special_tokens, at_start)

    def text_token(self, token_id: int, skip_special_tokens: bool) -> str | None:
        """The token as the vocabulary spells it, or None if it is no text."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return None if token is None or (skip_special_tokens and token in self._specials) else token

    def is_byte(self, token: str) -> bool:
        """Whether the token's name says that it stands for one byte (``<0xE2>``)."""
        return self._has_byte_fallback and _BYTE_TOKEN.fullmatch(token) is not None

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that the token stands for in the middle of a text, special or not."""
        known = self._cached_bytes.get(token_id)
        if known is None:
            known = self._cached_bytes[token_id] = self._spell(token_id)
        return known

    def decode_run(self, tokens: list[str], *, at_start: bool) -> str:
        """Decodes tokens together, as the start of a text or as its middle."""
        if at_start:
            return str(self._decoder.decode(tokens))
        return str(self._decoder.decode([_ANCHOR, *tokens]))[len(_ANCHOR) :]

    def _spell(self, token_id: int) -> bytes:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self.is_byte_level:
            chars = [self._byte_of_char.get(char) for char in token]
            # An added token with characters outside the byte alphabet is plain text.
            return token.encode() if None in chars else bytes(char for char in chars if char is not None)
        if self.is_byte(token):
            return bytes([int(token[3:5], 16)])
        return self.decode_run([token], at_start=False).encode()


class _ByteLevelDetokenizer:
    """Decodes the tokens' bytes as UTF-8; the codec keeps the bytes of incomplete characters."""

    def __init__(self, table: TokenTable, skip_special_tokens: bool) -> None:
        self._table = table
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        if self._table.text_token(token_id, self._skip_special_tokens) is None:
            return ""
        return self._utf8.decode(self._table.token_bytes(token_id))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)

    def copy(self) -> _ByteLevelDetokenizer:
        made = _ByteLevelDetokenizer(self._table, self._skip_special_tokens)
        made._utf8.setstate(self._utf8.getstate())
        return made


class _FallbackDetokenizer:
    """Shows text tokens as they come, and runs of byte tokens when the runs end."""

    def __init__(self, table: TokenTable, skip_special_tokens: bool, at_start: bool) -> None:
        self._table = table
        self._skip_special_tokens = skip_special_tokens
        self._run: list[str] = []
        self._at_start = at_start  # the first token may lose its leading space

    def push(self, token_id: int) -> str:
        token = self._table.text_token(token_id, self._skip_special_tokens)
        if token is None:
            return ""
        if self._table.is_byte(token):
            self._run.append(token)
            return ""
        if self._run or self._at_start:
            return self._flush([*self._run, token])
        return self._table.token_bytes(token_id).decode()

    def finish(self) -> str:
        return self._flush(self._run) if self._run else ""

    def copy(self) -> _FallbackDetokenizer:
        made = _FallbackDetokenizer(self._table, self._skip_special_tokens, self._at_start)
        made._run = self._run.copy()
        return made

    def _flush(self, tokens: list[str]) -> str:
        text = self._table.decode_run(tokens, at_start=self._at_start)
        self._run = []
        self._at_start = False
        return text


def token_string(raw: bytes) -> str:
    """A token's bytes as answers print them: the text, or ``bytes:\\xe2\\x82`` if they are part of a
    character, as OpenAI spells it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The decoder's steps, with nested sequences flattened."""
    if decoder is None:
        yield {"type": "none"}
    elif decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _check_streamable(steps: list[dict[str, Any]]) -> None:
    for step in steps:
        kind = step["type"]
        # Strip may take the one leading space; a strip at the end cannot be known before the text ends.
        strips_too_much = kind == "Strip" and (step["start"] > 1 or step["stop"] > 0)
        if kind not in _STREAMABLE or strips_too_much:
            raise ArtifactError(
                f"the tokenizer's decoder has a step {json.dumps(step, ensure_ascii=False)}, whose text "
                f"cannot be streamed: use a byte-level or a SentencePiece-like tokenizer"
            )


def _byte_of_char() -> dict[str, int]:
    """The byte alphabet of byte-level vocabularies (GPT-2): printable Latin-1 bytes are their own
    character, the others follow in order from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(others)}
