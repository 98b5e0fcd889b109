"""What an answer shows of its own prompt: the text itself (``echo``) and its tokens' log-probabilities."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Any

from engines.api import FinishReason, TopLogprobs
from mooring.errors import InternalError
from router.request.request import ChoiceTokens, GenerationRequest
from router.text.detokenizer import Detokenizer, TokenTable, token_string

__all__ = ["PromptView", "TokenLogprob", "logprobs_by_id", "spell_logprob"]

_LOWEST_LOGPROB = -9999.0  # OpenAI's floor: JSON has no infinity


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One position's log-probabilities.

    Attributes:
        raw: the token's bytes; ``router.text.detokenizer.token_string`` prints them.
        logprob: None for the first token of a prompt, which nothing comes before.
        text_offset: characters of the choice's text before this token.
        top: the likeliest tokens, best first: token id, bytes, log-probability.
    """

    token_id: int
    raw: bytes
    logprob: float | None
    text_offset: int
    top: tuple[tuple[int, bytes, float], ...]


def spell_logprob(table: TokenTable, token_id: int, top: TopLogprobs, text_offset: int) -> TokenLogprob:
    """An engine's log-probabilities in the tokenizer's words."""
    spell = table.token_bytes
    likeliest = tuple(
        (other, spell(other), max(logprob, _LOWEST_LOGPROB))
        for other, logprob in zip(top.token_ids, top.logprobs, strict=True)
    )
    logprob = max(top.logprob, _LOWEST_LOGPROB)
    return TokenLogprob(token_id, spell(token_id), logprob, text_offset, likeliest)


def logprobs_by_id(entry: TokenLogprob) -> dict[str, Any] | None:
    """One position as vLLM prints it: by token id, the token itself and then the likeliest ones; None where nothing
    comes before it. Ranks count from 1; that of a token which is not among the likeliest is not known."""
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
        request: as it was accepted.
        table: of the model's tokenizer.
    """

    def __init__(self, request: GenerationRequest, table: TokenTable) -> None:
        self._request = request
        self._table = table
        self._tops: list[TopLogprobs] | None = None
        if request.sampling.prompt_logprobs is not None and len(request.prompt_ids) == 1:
            self._tops = []  # the engine has nothing to say of the first token

    @staticmethod
    def is_wanted(request: GenerationRequest) -> bool:
        """Whether anything of the prompt is to be shown."""
        return request.echo or request.prompt_only or request.sampling.prompt_logprobs is not None

    async def before(self, stream: AsyncIterable[list[ChoiceTokens]]) -> AsyncIterator[list[ChoiceTokens]]:
        """The stream, from where the prompt can be shown; without its output where nobody wants that.

        The prompt's log-probabilities come with the first token of one choice. What other choices have by then
        waits for them, so that every choice can begin with the prompt.
        """
        held: list[ChoiceTokens] = []
        waiting = self._request.sampling.prompt_logprobs is not None and self._tops is None
        async for batch in stream:
            for new in batch:
                if new.prompt_logprobs is not None and waiting:
                    self._tops = new.prompt_logprobs
                    waiting = False
                held.append(_without_output(new) if self._request.prompt_only else new)
            if not waiting:
                yield held
                held = []
        if held:
            raise InternalError("The engine did not send the prompt's log-probabilities.")

    def detokenizer(self) -> tuple[str, Detokenizer]:
        """The prompt's text, and what reads a choice's tokens after it. A prompt that was a text is shown as it
        was sent; of token ids, a character that is not complete goes on in the output."""
        request = self._request
        skip = request.skip_special_tokens
        if request.prompt_text is not None:
            after = self._table.detokenizer(skip_special_tokens=skip, at_start=False)
            return request.prompt_text, after
        whole = self._table.detokenizer(skip_special_tokens=skip)
        return "".join(map(whole.push, request.prompt_ids)), whole

    def logprobs(self) -> list[TokenLogprob] | None:
        """Of every token of the prompt; None where they were not asked for."""
        tops, ids = self._tops, self._request.prompt_ids
        if tops is None:
            return None
        if len(tops) != len(ids) - 1:
            raise InternalError(f"The engine sent {len(tops)} log-probabilities of {len(ids)} prompt tokens.")
        offsets = self._offsets()
        first = TokenLogprob(ids[0], self._table.token_bytes(ids[0]), None, 0, ())
        rest = zip(ids[1:], tops, offsets[1:], strict=True)
        return [first, *(spell_logprob(self._table, *entry) for entry in rest)]

    def _offsets(self) -> list[int]:
        """Characters of the text before each token."""
        request = self._request
        read = self._table.detokenizer(skip_special_tokens=request.skip_special_tokens)
        offsets, num_chars = [], 0
        for token_id in request.prompt_ids:
            offsets.append(num_chars)
            num_chars += len(read.push(token_id))
        if request.prompt_text is None:
            return offsets
        # Tokenizers normalize: read back, a prompt may be longer than it was sent.
        return [min(offset, len(request.prompt_text)) for offset in offsets]


def _without_output(new: ChoiceTokens) -> ChoiceTokens:
    reason = new.finish_reason
    if reason in (FinishReason.STOP, FinishReason.LENGTH):
        reason = FinishReason.LENGTH
    return ChoiceTokens(
        new.index,
        finish_reason=reason,
        prompt_logprobs=new.prompt_logprobs,
        began_s=new.began_s,
        cached_tokens=new.cached_tokens,
    )
