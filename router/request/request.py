"""The one request type that every front door makes, and the tokens that come back.

Doors turn bytes into a ``GenerationRequest``; the dispatcher turns it into sequences on replicas and
answers with tokens; ``router.text.generation`` turns those into text. Nothing here knows a protocol.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from engines.api import ChoiceTokens, SamplingParams, TokenIds
from mooring.slo import SLOClass

__all__ = ["GenerationRequest", "TokenSource", "TokenStream"]


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """A request as all doors share it.

    Attributes:
        request_id: the client's own id if it sent one.
        deployment: the registered name that clients call the model.
        prompt_ids: token ids, special tokens included.
        sampling: of choice 0; choice i differs in ``choice`` alone.
        n: number of choices wanted.
        stop: strings that end a choice.
        include_stop: whether the stop string, or the token of ``stop_token_ids``, that ended a choice is part
            of its text.
        skip_special_tokens: whether special tokens are left out of the text.
        echo: whether every choice begins with the prompt.
        prompt_text: the prompt as it was sent, if that was a plain text and ``echo`` wants it back.
        prompt_only: whether no output is wanted; the one token of each choice that the engine is asked for is
            dropped.
        tenant: name of who is served; ``"anonymous"`` if no key was needed.
        arrival_s: when the request arrived, by ``time.monotonic``.
        deadline_s: when its first token is due, on the same clock.
        tpot_target_s: seconds that each further token may take, on average; None if the planner is to say.
        priority: requests of higher priority go first.
        refuses_miss: whether it is refused if it cannot meet its targets; otherwise it waits then, after all others.
        slo_class: of the tenant, or the one that the request names, which the four before come from; None for best
            effort.
        weight: share of a device that the tenant has among those of one priority, relative to theirs.
        cache_scope: requests of one scope share computed KV; a request whose scope is None shares with none.
        artifact_key: key of the packed weights that ``prompt_ids`` are for: a deployment that serves others
            by now cannot finish the request. Empty if any weights will do.
        max_unread_tokens: tokens that may wait for the reader before the engine does, counted as in
            ``router.dispatch.unread``.
        metadata: pairs that the client noted beside the request; nothing here reads them.
    """

    request_id: str
    deployment: str
    prompt_ids: TokenIds
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
    tpot_target_s: float | None = None
    priority: int = 0
    refuses_miss: bool = False
    slo_class: SLOClass | None = None
    weight: float = 1.0
    artifact_key: str = ""
    cache_scope: bytes | None = None
    max_unread_tokens: int = 32_768
    metadata: tuple[tuple[str, str], ...] = ()


class TokenStream(Protocol):
    """The tokens of one request, with deaths of workers already mended. Closing the stream frees the
    request's blocks."""

    @property
    def predicted_ttft_s(self) -> float | None:
        """Seconds from the request's arrival to its first token, as predicted when it was accepted; None if nobody
        could tell."""
        ...

    def __aiter__(self) -> AsyncIterator[list[ChoiceTokens]]:
        """Yields the tokens that have arrived since the last turn, one entry for each step of each choice, in
        order; ends when every choice has finished, none of them by an error.

        Raises:
            MooringError: the request failed; nothing follows.
        """
        ...

    def stop(self, index: int) -> None:
        """Ends one choice early (its text reached a stop string); no further tokens of it are yielded."""
        ...

    async def aclose(self) -> None:
        """Cancels whatever still runs. Safe to call more than once."""
        ...


class TokenSource(Protocol):
    """A generator of tokens: the dispatcher (``router.dispatch.dispatch.Dispatcher``)."""

    async def generate(self, request: GenerationRequest) -> TokenStream:
        """Queues the request; returns once it is accepted.

        Raises:
            MooringError: the request cannot be served.
        """
        ...
