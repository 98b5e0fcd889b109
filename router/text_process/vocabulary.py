"""Writes a tokenizer's vocabulary down as the one block of memory that ``router.text.detokenizer`` reads."""

from __future__ import annotations

import json
from array import array
from itertools import accumulate
from typing import Any

from tokenizers import Tokenizer

from mooring.errors import ArtifactError
from router.text.decoder import TokenDecoder, decoder_steps

__all__ = ["write_vocabulary"]

_PLAIN, _SPECIAL = 1, 3
# The table has an entry for each id up to the largest one; the largest vocabularies have 2^18.
_MAX_IDS = 1 << 22


def write_vocabulary(tokenizer: Tokenizer) -> tuple[dict[str, Any], bytes]:
    """Object and raw bytes of the frame that tells the vocabulary, for ``TokenTable.read``.

    Raises:
        ArtifactError: the decoder's output cannot be streamed, or an id is too large.
    """
    decoder = tokenizer.decoder
    steps = list(decoder_steps(None if decoder is None else json.loads(decoder.__getstate__())))
    if [step["type"] for step in steps] != ["ByteLevel"]:
        TokenDecoder(steps)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    num_ids = max(vocabulary.values(), default=-1) + 1
    if num_ids > _MAX_IDS:
        raise ArtifactError(
            f"the tokenizer has token ids up to {num_ids - 1}; at most {_MAX_IDS - 1} is served"
        )
    flags = bytearray(num_ids)
    spellings = [b""] * num_ids
    for token, token_id in vocabulary.items():
        flags[token_id] = _PLAIN
        spellings[token_id] = token.encode()
    for token_id, added in tokenizer.get_added_tokens_decoder().items():  # these hide the model's own
        flags[token_id] = _SPECIAL if added.special else _PLAIN
        # One that is looked for in normalized text is spelled as that: ``▁<tool>`` for ``<tool>``.
        spellings[token_id] = (tokenizer.id_to_token(token_id) or added.content).encode()
    ends = array("I", accumulate(map(len, spellings)))
    return {"num_ids": num_ids, "decoder": steps}, b"".join((flags, ends.tobytes(), *spellings))
