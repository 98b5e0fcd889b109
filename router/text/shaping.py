"""The place where answers take the form of their protocol: small ones on the event loop, large ones in a thread, so
that they delay nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from router.text.prompt_view import TokenLogprob

__all__ = ["LARGE_CHARS", "chars_of", "chars_of_logprobs", "shaped"]

LARGE_CHARS = 16_384
"""Number of characters from which an answer is large."""

_CHARS_OF_LOGPROB = 64
T = TypeVar("T")


class _Shown(Protocol):
    """A part of an answer."""

    text: str
    logprobs: list[TokenLogprob] | None
    prompt_logprobs: list[TokenLogprob] | None


def chars_of(parts: Iterable[_Shown]) -> int:
    """Number of characters that these parts of an answer become, about."""
    num_chars = 0
    for part in parts:
        num_chars += len(part.text)
        if part.logprobs:
            num_chars += chars_of_logprobs(part.logprobs)
        if part.prompt_logprobs:
            num_chars += chars_of_logprobs(part.prompt_logprobs)
    return num_chars


async def shaped(make: Callable[[], T], num_chars: int) -> T:
    """Returns what ``make`` returns; it is called in a thread if the answer is large."""
    return make() if num_chars <= LARGE_CHARS else await asyncio.to_thread(make)


def chars_of_logprobs(entries: Sequence[TokenLogprob]) -> int:
    """Number of characters that these log-probabilities become, about, likeliest tokens included."""
    return len(entries) * (1 + len(entries[-1].top)) * _CHARS_OF_LOGPROB if entries else 0
