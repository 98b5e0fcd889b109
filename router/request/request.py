"""The one request type that every front door makes, and the chunks that come back.

Doors turn bytes into a ``GenerationRequest``; the dispatcher turns it into sequences on replicas and
answers with tokens; ``router.text.generation`` turns those into text. Nothing here knows a protocol.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from engines.api import FinishReason, SamplingParams, TopLogprobs

__all__ = ["ChoiceTokens", "GenerationRequest", "TokenSource", "TokenStream"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request as all doors share it.

    Attributes:
        request_id: the client's own where it sent one.
        deployment: the registered name that clients call the model.
        prompt_ids: token ids, special tokens included.
        sampling: of choice 0; choice i differs in ``choice`` alone.
        n: choices wanted.
        stop: strings that end a choice.
        include_stop: what ended a choice, a string or a token of ``stop_token_ids``, is part of its text.
        skip_special_tokens: special tokens are no text.
        echo: every choice begins with the prompt.
        prompt_text: the prompt as it was sent, where that was a plain text and ``echo`` wants it back.
        prompt_only: no output is wanted; the one token of each choice that the engine is asked for is dropped.
        tenant: who is served; ``"anonymous"`` where no key was needed.
        arrival_s, deadline_s: ``time.monotonic``; the deadline is for the first token, ``inf`` is best
            effort.
        priority: higher first.
        cache_scope: requests of one scope share computed KV; None shares with none.
        artifact_key: of the weights that ``prompt_ids`` are for, since a deployment that has come to serve others
            cannot finish the request; empty where any will do.
        metadata: pairs that the client noted beside the request; nothing here reads them.
    """

    request_id: str
    deployment: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    n: int = 1
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    echo: bool = False
    prompt_text: str | None = None
    prompt_only: bool = False
    tenant: str = "anonymous"
    arrival_s: float = 0.0
    deadline_s: float = float("inf")
    priority: int = 0
    artifact_key: str = ""
    cache_scope: bytes | None = None
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class ChoiceTokens:
    """What one step of the engine gave one choice. ``token_ids`` includes the stop token that ended it, if one
    did, and ``stop_token_id`` names it so that the text can leave it out. ``prompt_logprobs`` come once, with the
    first token, where they were asked for: one for each token of the prompt but the first. ``began_s`` comes with
    the first token too, where the engine says so: when a step began with the choice, by ``time.monotonic``; and so do
    ``cached_tokens``: of the prompt, those that were found computed."""

    index: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TopLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    prompt_logprobs: list[TopLogprobs] | None = None
    began_s: float | None = None
    cached_tokens: int | None = None


class TokenStream(Protocol):
    """The tokens of one request, worker deaths already mended. Closing it frees its blocks."""

    def __aiter__(self) -> AsyncIterator[list[ChoiceTokens]]:
        """Yields what has arrived since the last turn, one entry for each step of each choice, in order; ends
        when every choice has finished.

        Raises:
            MooringError: the request failed; nothing follows.
        """
        ...

    def stop(self, index: int) -> None:
        """Ends one choice early (a stop string was seen); no further tokens of it are yielded."""
        ...

    async def aclose(self) -> None:
        """Cancels whatever still runs. Safe to call more than once."""
        ...


class TokenSource(Protocol):
    """What generates tokens: the dispatcher (``router.dispatch.dispatch.Dispatcher``)."""

    async def generate(self, request: GenerationRequest) -> TokenStream:
        """Queues the request; returns once it is accepted.

        Raises:
            MooringError: the request cannot be served.
        """
        ...
