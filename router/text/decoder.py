"""Decoders of SentencePiece-like tokenizers: they put tokens together to a text.

The steps are those of the ``tokenizers`` library, as far as their text can be streamed. They are carried out here,
since the library's own would be a stranger's program in this process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mooring.errors import ArtifactError

__all__ = ["BYTE_TOKEN", "TokenDecoder", "decoder_steps"]

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""Name of a token that stands for one byte."""

Step = Callable[[list[str]], list[str]]


def decoder_steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a decoder as ``tokenizer.json`` has it, with nested sequences flattened."""
    if decoder is None:
        yield {"type": "none"}
    elif decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from decoder_steps(step)
    else:
        yield decoder


class TokenDecoder:
    """Turns tokens into text by steps.

    Args:
        steps: each as ``tokenizer.json`` has it.

    Raises:
        ArtifactError: a step is of a kind whose output cannot be streamed.
    """

    def __init__(self, steps: Sequence[dict[str, Any]]) -> None:
        self._steps = [_step(step) for step in steps]

    def decode(self, tokens: list[str]) -> str:
        """The text of tokens that are decoded together."""
        for step in self._steps:
            tokens = step(tokens)
        return "".join(tokens)


def _step(step: dict[str, Any]) -> Step:
    match step:
        case {"type": "Replace", "pattern": {"String": str(replaced)}, "content": str(by)} if replaced:
            return lambda tokens: [token.replace(replaced, by) for token in tokens]
        case {"type": "ByteFallback"}:
            return _join_bytes
        case {"type": "Fuse"}:
            return lambda tokens: ["".join(tokens)]
        # It may take the one leading space; a strip at the end cannot be known before the text ends.
        case {"type": "Strip", "content": str(char), "start": 0 | 1 as most, "stop": 0} if char:
            return lambda tokens: [token[most:] if token.startswith(char) else token for token in tokens]
        case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": scheme} if mark:
            return lambda tokens: [
                token.replace(mark, "" if place == 0 and scheme != "never" else " ")
                for place, token in enumerate(tokens)
            ]
    raise ArtifactError(
        f"the tokenizer's decoder has a step {json.dumps(step, ensure_ascii=False)[:200]}, whose text cannot be "
        f"streamed: use a byte-level or a SentencePiece-like tokenizer"
    )


def _join_bytes(tokens: list[str]) -> list[str]:
    """Makes a text of each run of byte tokens: U+FFFD for every byte of a run that is not UTF-8."""
    joined: list[str] = []
    run = bytearray()
    for token in [*tokens, None]:
        found = None if token is None else BYTE_TOKEN.fullmatch(token)
        if found:
            run.append(int(found[1], 16))
            continue
        if run:
            try:
                joined.append(run.decode())
            except UnicodeDecodeError:
                joined += "\ufffd" * len(run)
            run.clear()
        if token is not None:
            joined.append(token)
    return joined
