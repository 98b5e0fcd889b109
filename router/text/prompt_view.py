"""The part of an answer that shows its own prompt: the text (``echo``) and the log-probabilities of its
tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engines.api import ChoiceTokens, FinishReason, TopLogprobs
from mooring.errors import InternalError
from router.request.request import GenerationRequest
from router.text.detokenizer import Detokenizer, TokenTable, token_string

__all__ = ["PromptView", "TokenLogprob", "logprobs_by_id", "spell_logprob"]

_LOWEST_LOGPROB = -9999.0  # OpenAI's floor: JSON has no infinity
_TOKENS_AT_ONCE = 2048  # that are read, or spelled with their likeliest tokens, before others have a turn


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
    """The prompt of one request, as its choices show it. It is read and spelled once for all of them, and in slices
    between which the event loop goes on.

    Attributes:
        text: the prompt's text, once ``read`` has returned; empty if it is not echoed. A prompt that was a text is
            shown as it was sent.

    Args:
        request: the accepted request.
        table: the table of the model's tokenizer.
    """

    def __init__(self, request: GenerationRequest, table: TokenTable) -> None:
        self._request = request
        self._table = table
        self._tops: Sequence[TopLogprobs] | None = None
        if request.sampling.prompt_logprobs is not None and len(request.prompt_ids) == 1:
            self._tops = []  # the first token has no log-probability
        self.text = ""
        self._after: Detokenizer | None = None  # that of the output behind an echo
        self._offsets: list[int] = []  # characters of the text before each token

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

    async def read(self) -> None:
        """Reads the prompt's tokens, if anything is to be known of them."""
        request, table = self._request, self._table
        is_spelled = request.sampling.prompt_logprobs is not None
        whole = table.detokenizer(skip_special_tokens=request.skip_special_tokens)
        text = (
            await self._read_tokens(whole)
            if is_spelled or (request.echo and request.prompt_text is None)
            else ""
        )
        if not request.echo:
            return
        if (
            request.prompt_text is None
        ):  # if the prompt ends in an incomplete character, the output continues it
            self.text, self._after = text, whole
        else:
            self.text = request.prompt_text
            self._after = table.detokenizer(skip_special_tokens=request.skip_special_tokens, at_start=False)

    def detokenizer(self) -> Detokenizer:
        """A detokenizer for the tokens of a choice after the echoed prompt; ``read`` has returned."""
        assert self._after is not None, "there is no echo, or it was not read"
        return self._after.copy()

    async def logprobs(self) -> list[TokenLogprob] | None:
        """Log-probabilities of every token of the prompt; None if they were not asked for. ``read`` has returned."""
        tops, ids = self._tops, self._request.prompt_ids.tolist()
        if tops is None:
            return None
        if len(tops) != len(ids) - 1:
            raise InternalError(f"The engine sent {len(tops)} log-probabilities of {len(ids)} prompt tokens.")
        spelled = [TokenLogprob(ids[0], self._table.token_bytes(ids[0]), None, 0, ())]
        num_at_once = max(1, _TOKENS_AT_ONCE // (1 + (self._request.sampling.prompt_logprobs or 0)))
        for start in range(1, len(ids), num_at_once):
            if start > 1:
                await asyncio.sleep(0)
            end = start + num_at_once
            entries = zip(ids[start:end], tops[start - 1 : end - 1], self._offsets[start:end], strict=True)
            spelled += [spell_logprob(self._table, *entry) for entry in entries]
        return spelled

    async def _read_tokens(self, read: Detokenizer) -> str:
        """The text of the prompt's tokens; fills ``_offsets`` on the way."""
        ids = self._request.prompt_ids.tolist()
        sent = self._request.prompt_text
        # Tokenizers normalize: the text of the tokens may be longer than the prompt as it was sent.
        most = None if sent is None else len(sent)
        pieces: list[str] = []
        num_chars = 0
        for start in range(0, len(ids), _TOKENS_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            for token_id in ids[start : start + _TOKENS_AT_ONCE]:
                self._offsets.append(num_chars if most is None else min(num_chars, most))
                pieces.append(read.push(token_id))
                num_chars += len(pieces[-1])
        return "".join(pieces)


def _without_output(new: ChoiceTokens) -> ChoiceTokens:
    finished = new.finished
    if finished is not None and finished.reason is FinishReason.STOP:
        finished = replace(finished, reason=FinishReason.LENGTH, stop_token_id=None)
    return ChoiceTokens(new.index, first=new.first, finished=finished)
