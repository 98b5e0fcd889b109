"""Where answers are put into the form of their protocol: small ones on the event loop, large ones in a thread, so
that they delay nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from router.text.prompt_view import TokenLogprob

__all__ = ["LARGE_CHARS", "chars_of", "chars_of_logprobs", "shaped"]

LARGE_CHARS = 16_384
"""An answer with more than about so many characters is large."""

_CHARS_OF_LOGPROB = 64
T = TypeVar("T")


class _Shown(Protocol):
    """A part of an answer."""

    text: str
    logprobs: list[TokenLogprob] | None
    prompt_logprobs: list[TokenLogprob] | None


def chars_of(parts: Iterable[_Shown]) -> int:
    """About how many characters these parts of an answer become."""
    num_chars = 0
    for part in parts:
        num_chars += len(part.text)
        if part.logprobs:
            num_chars += chars_of_logprobs(part.logprobs)
        if part.prompt_logprobs:
            num_chars += chars_of_logprobs(part.prompt_logprobs)
    return num_chars


async def shaped(make: Callable[[], T], num_chars: int) -> T:
    """What ``make`` returns; it is called in a thread if the answer is large."""
    return make() if num_chars <= LARGE_CHARS else await asyncio.to_thread(make)


def chars_of_logprobs(entries: Sequence[TokenLogprob]) -> int:
    """About how many characters these log-probabilities become, likeliest tokens included."""
    return len(entries) * (1 + len(entries[-1].top)) * _CHARS_OF_LOGPROB if entries else 0
