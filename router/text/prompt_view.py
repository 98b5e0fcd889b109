"""The part of an answer that shows its own prompt: the text (``echo``) and the log-probabilities of its
tokens."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from engines.api import ChoiceTokens, FinishReason, TopLogprobs
from mooring.errors import InternalError
from router.request.request import GenerationRequest
from router.text.detokenizer import Detokenizer, TokenTable, token_string

__all__ = ["PromptView", "TokenLogprob", "logprobs_by_id", "spell_logprob"]

_LOWEST_LOGPROB = -9999.0  # OpenAI's floor: JSON has no infinity


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One position's log-probabilities.

    Attributes:
        raw: the token's bytes; ``router.text.detokenizer.token_string`` prints them.
        logprob: None for the first token of a prompt, since no token comes before it.
        text_offset: characters of the choice's text before this token.
        top: the likeliest tokens, best first: token id, bytes, log-probability.
    """

    token_id: int
    raw: bytes
    logprob: float | None
    text_offset: int
    top: tuple[tuple[int, bytes, float], ...]


def spell_logprob(table: TokenTable, token_id: int, top: TopLogprobs, text_offset: int) -> TokenLogprob:
    """An engine's log-probabilities of one position, with the bytes of each token."""
    spell = table.token_bytes
    likeliest = tuple(
        (other, spell(other), max(logprob, _LOWEST_LOGPROB))
        for other, logprob in zip(top.token_ids, top.logprobs, strict=True)
    )
    logprob = max(top.logprob, _LOWEST_LOGPROB)
    return TokenLogprob(token_id, spell(token_id), logprob, text_offset, likeliest)


def logprobs_by_id(entry: TokenLogprob) -> dict[str, Any] | None:
    """One position as vLLM prints it: by token id, first the token itself and then the likeliest ones; None
    if no token comes before it. Ranks count from 1; the rank of a token that is not among the likeliest is
    not known."""
    if entry.logprob is None:
        return None
    ranked = {
        str(token_id): {"logprob": logprob, "rank": rank, "decoded_token": token_string(raw)}
        for rank, (token_id, raw, logprob) in enumerate(entry.top, start=1)
    }
    unranked = {"logprob": entry.logprob, "rank": None, "decoded_token": token_string(entry.raw)}
    own = str(entry.token_id)
    return {own: ranked.get(own, unranked)} | ranked


class PromptView:
    """The prompt of one request, as its choices show it.

    Args:
        request: the accepted request.
        table: the table of the model's tokenizer.
    """

    def __init__(self, request: GenerationRequest, table: TokenTable) -> None:
        self._request = request
        self._table = table
        self._tops: list[TopLogprobs] | None = None
        if request.sampling.prompt_logprobs is not None and len(request.prompt_ids) == 1:
            self._tops = []  # the first token has no log-probability

    @staticmethod
    def is_wanted(request: GenerationRequest) -> bool:
        """Whether the answer shows anything of the prompt."""
        return request.echo or request.prompt_only or request.sampling.prompt_logprobs is not None

    async def before(self, stream: AsyncIterable[list[ChoiceTokens]]) -> AsyncIterator[list[ChoiceTokens]]:
        """Yields the stream's batches from the moment when the prompt can be shown; without their output if
        the request wants the prompt only.

        The prompt's log-probabilities come with the first token of one choice. Tokens that other choices have
        by then wait for them, so that every choice can begin with the prompt.
        """
        held: list[ChoiceTokens] = []
        waiting = self._request.sampling.prompt_logprobs is not None and self._tops is None
        async for batch in stream:
            for new in batch:
                if waiting and new.first is not None and new.first.prompt_logprobs is not None:
                    self._tops = new.first.prompt_logprobs
                    waiting = False
                held.append(_without_output(new) if self._request.prompt_only else new)
            if not waiting:
                yield held
                held = []
        if held:
            raise InternalError("The engine did not send the prompt's log-probabilities.")

    def detokenizer(self) -> tuple[str, Detokenizer]:
        """The prompt's text, and a detokenizer for the tokens of a choice after it. A prompt that was a text
        is shown as it was sent; if a prompt of token ids ends in an incomplete character, the output
        continues it."""
        request = self._request
        skip = request.skip_special_tokens
        if request.prompt_text is not None:
            after = self._table.detokenizer(skip_special_tokens=skip, at_start=False)
            return request.prompt_text, after
        whole = self._table.detokenizer(skip_special_tokens=skip)
        return "".join(map(whole.push, request.prompt_ids.tolist())), whole

    def logprobs(self) -> list[TokenLogprob] | None:
        """Log-probabilities of every token of the prompt; None if they were not asked for."""
        tops, ids = self._tops, self._request.prompt_ids.tolist()
        if tops is None:
            return None
        if len(tops) != len(ids) - 1:
            raise InternalError(f"The engine sent {len(tops)} log-probabilities of {len(ids)} prompt tokens.")
        offsets = self._offsets()
        first = TokenLogprob(ids[0], self._table.token_bytes(ids[0]), None, 0, ())
        rest = zip(ids[1:], tops, offsets[1:], strict=True)
        return [first, *(spell_logprob(self._table, *entry) for entry in rest)]

    def _offsets(self) -> list[int]:
        """Number of characters of the text before each token."""
        request = self._request
        read = self._table.detokenizer(skip_special_tokens=request.skip_special_tokens)
        offsets, num_chars = [], 0
        for token_id in request.prompt_ids.tolist():
            offsets.append(num_chars)
            num_chars += len(read.push(token_id))
        if request.prompt_text is None:
            return offsets
        # Tokenizers normalize: the text of the tokens may be longer than the prompt as it was sent.
        return [min(offset, len(request.prompt_text)) for offset in offsets]


def _without_output(new: ChoiceTokens) -> ChoiceTokens:
    finished = new.finished
    if finished is not None and finished.reason is FinishReason.STOP:
        finished = replace(finished, reason=FinishReason.LENGTH, stop_token_id=None)
    return ChoiceTokens(new.index, first=new.first, finished=finished)
