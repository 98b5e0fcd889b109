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
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from engines.api import TokenIds
from mooring.errors import InternalError, InvalidRequestError
from router.text.decoder import BYTE_TOKEN, TokenDecoder

__all__ = ["Detokenizer", "TokenTable", "token_string"]

_PLAIN = 1
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

    The vocabulary is one block of memory, as the process of the model's text wrote it: there is no object for each
    token until the token is used.

    Args:
        flags: one byte for each id up to the largest: 0 if there is no such token, 1 if it is plain and 3 if it is
            special.
        ends: for each id, place in ``spellings`` where its spelling ends; unsigned, 32 bits, of this machine.
        spellings: tokens as the vocabulary spells them, in UTF-8, one after the other.
        steps: steps of the tokenizer's decoder, as ``router.text.decoder`` has them.

    Raises:
        ArtifactError: the tokenizer's decoder is of a kind whose output cannot be streamed.
        ValueError: the parts do not fit together.
    """

    def __init__(self, flags: bytes, ends: bytes, spellings: bytes, steps: Sequence[dict[str, Any]]) -> None:
        kinds = [step["type"] for step in steps]
        self._decoder = None if kinds == ["ByteLevel"] else TokenDecoder(steps)
        self._has_byte_tokens = "ByteFallback" in kinds
        self._flags = flags
        self._known = np.frombuffer(flags, np.uint8) != 0
        self._ends = memoryview(ends).cast("I")
        self._spellings = spellings
        places = np.frombuffer(ends, np.uint32)
        if (
            len(places) != len(flags)
            or not (places[1:] >= places[:-1]).all()
            or len(spellings) != (places[-1] if len(places) else 0)
        ):
            raise ValueError("the parts of the vocabulary do not fit together")
        self._byte_of_char = _byte_of_char()
        self._cached_bytes: dict[int, bytes] = {}

    @classmethod
    def read(cls, content: dict[str, Any], raw: bytes) -> TokenTable:
        """Reads a table from a frame that ``router.text_process.vocabulary`` wrote.

        Raises:
            ArtifactError: as the class.
            ValueError, LookupError, TypeError: this is no such frame.
        """
        num_ids = int(content["num_ids"])
        flags, ends, spellings = raw[:num_ids], raw[num_ids : 5 * num_ids], raw[5 * num_ids :]
        return cls(flags, ends, spellings, content["decoder"])

    def detokenizer(self, *, skip_special_tokens: bool = True, at_start: bool = True) -> Detokenizer:
        """Makes a fresh detokenizer for one sequence.

        Args:
            skip_special_tokens: whether special tokens are left out of the text.
            at_start: whether the tokens begin a text, so that a SentencePiece-like tokenizer drops the space
                that it put there itself; False if they continue a text.
        """
        if self._decoder is None:
            return _ByteLevelDetokenizer(self, skip_special_tokens)
        return _FallbackDetokenizer(self, skip_special_tokens, at_start)

    def is_text(self, token_id: int, skip_special_tokens: bool) -> bool:
        """Whether the token is text."""
        if not 0 <= token_id < len(self._flags):
            return False
        return self._flags[token_id] == _PLAIN or (not skip_special_tokens and self._flags[token_id] != 0)

    def spelling(self, token_id: int) -> str:
        """A token as the vocabulary spells it."""
        return self._spellings[self._end(token_id - 1) : self._ends[token_id]].decode(errors="replace")

    def check_ids(self, token_ids: Sequence[int], *, param: str) -> TokenIds:
        """Checks token ids, and returns them as an array.

        Raises:
            InvalidRequestError: an id is not one of this model's tokens.
        """
        try:
            ids = np.array(token_ids, np.int64)
            inside = (ids >= 0) & (ids < len(self._known))
            if inside.all() and self._known[ids].all():
                return ids.astype(np.int32)
        except OverflowError:  # an id of more than 64 bits
            pass
        wrong = next(each for each in token_ids if not self.is_text(each, skip_special_tokens=False))
        raise InvalidRequestError(f"Invalid '{param}': {wrong} is not a token id of this model.", param=param)

    def check_known(self, ids: TokenIds) -> None:
        """Checks ids that should be this model's tokens.

        Raises:
            InternalError: an id is not.
        """
        try:
            if self._known[ids.view(np.uint32)].all():  # a negative id is then far too large
                return
        except IndexError:
            pass
        raise InternalError("The model's tokenizer gave a token that it does not have.")

    def is_byte(self, token: str) -> bool:
        """Whether the token's name says that it stands for one byte (``<0xE2>``)."""
        return self._has_byte_tokens and BYTE_TOKEN.fullmatch(token) is not None

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that the token stands for in the middle of a text, special or not."""
        known = self._cached_bytes.get(token_id)
        if known is None:
            known = self._cached_bytes[token_id] = self._spell(token_id)
        return known

    def decode_run(self, tokens: list[str], *, at_start: bool) -> str:
        """Decodes tokens together, as the start of a text or as its middle; not of a byte-level tokenizer."""
        assert self._decoder is not None
        if at_start:
            return self._decoder.decode(tokens)
        return self._decoder.decode([_ANCHOR, *tokens])[len(_ANCHOR) :]

    def _end(self, token_id: int) -> int:
        """Place where the spelling of a token ends; of -1 that is where the first one begins."""
        return self._ends[token_id] if token_id >= 0 else 0

    def _spell(self, token_id: int) -> bytes:
        if not self.is_text(token_id, skip_special_tokens=False):
            return b""
        token = self.spelling(token_id)
        if self._decoder is None:
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
        if not self._table.is_text(token_id, self._skip_special_tokens):
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
        if not self._table.is_text(token_id, self._skip_special_tokens):
            return ""
        token = self._table.spelling(token_id)
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


def _byte_of_char() -> dict[str, int]:
    """The byte alphabet of byte-level vocabularies (GPT-2): printable Latin-1 bytes are their own
    character, the others follow in order from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(others)}
