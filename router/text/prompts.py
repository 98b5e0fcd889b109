"""Prompts as doors understand them, and as a model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.api import TokenIds

__all__ = ["ChatPrompt", "EncodedPrompt", "Prompt"]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation for the chat template.

    Attributes:
        messages: each with ``role`` and ``content``, both text.
        add_generation_prompt: whether the prompt ends where the assistant's answer begins.
        continue_final_message: whether the prompt ends with the last message's content, which the model
            continues.
        template_variables: further names that the template finds.
    """

    messages: tuple[Mapping[str, str], ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_variables: Mapping[str, Any] = field(default_factory=dict)


Prompt = str | tuple[int, ...] | ChatPrompt


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPrompt:
    """A prompt as token ids.

    Attributes:
        ids: the ids that are wanted, int32; none if the prompt has too many.
        num_tokens: length of the whole prompt in tokens.
        is_exact: whether that is its length, or only the least that it can be.
    """

    ids: TokenIds
    num_tokens: int
    is_exact: bool = True
