"""Turns tokens into the text that every door shows of a generation, in pieces or as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from engines.api import ChoiceTokens, FinishReason
from mooring.errors import CallerError, InternalError
from router.request.request import GenerationRequest, TokenStream
from router.telemetry.request_metrics import RequestMetrics, Timings
from router.text.detokenizer import Detokenizer, TokenTable
from router.text.prompt_view import PromptView, TokenLogprob, spell_logprob
from router.text.stop_strings import StopStrings

__all__ = ["TextDelta", "TextGeneration", "TokenLogprob", "Usage", "WholeChoice", "by_step", "join_choices"]

_SLICE = 256  # entries of one turn that become text, and go to the door, before others have theirs


class _OfChoice(Protocol):
    @property
    def index(self) -> int: ...


_Part = TypeVar("_Part", bound=_OfChoice)


@dataclass(slots=True)
class TextDelta:
    """The new part of one choice. The prompt, if the choice shows it, comes in a delta of its own before the
    first token: with ``text`` and ``logprobs`` of an echo, with ``prompt_logprobs``, and without
    ``token_ids``.

    Attributes:
        text: the new text; may be empty while a character or a stop string is incomplete.
        token_ids: the new tokens; they include the token that ended the choice, whose text is not in
            ``text``.
        logprobs: parallel to ``token_ids``; None if they were not asked for.
        finish_reason: ``stop`` or ``length`` in the choice's last delta, else None.
        stop_reason: the stop string or the token of ``stop_token_ids`` that ended the choice; None if its
            length or the model ended it.
        prompt_logprobs: log-probabilities of every token of the prompt, if they were asked for.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    stop_reason: str | int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request is billed for, of all its choices together.

    Attributes:
        cached_tokens: tokens of the prompt that the first choice found computed already.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class WholeChoice:
    """A finished choice, put together from its deltas."""

    index: int
    text: str
    logprobs: list[TokenLogprob] | None
    finish_reason: str
    prompt_logprobs: list[TokenLogprob] | None = None
    stop_reason: str | int | None = None


class TextGeneration:
    """One accepted request, read as text. Iterate it once, or take ``whole()``; in either case call
    ``aclose()`` at the end, whatever happened: it frees what the request holds.

    Args:
        request: the accepted request.
        stream: the request's tokens.
        table: the table of the model's tokenizer.
        metrics: the metrics of this request.
        on_close: called whenever it is closed; more than one call does no harm.
    """

    def __init__(
        self,
        request: GenerationRequest,
        stream: TokenStream,
        table: TokenTable,
        metrics: RequestMetrics,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.request = request
        self._stream = stream
        self._metrics = metrics
        self._on_close = on_close
        self._prompt = PromptView(request, table) if PromptView.is_wanted(request) else None
        self._choices = [_ChoiceText(index, request, table) for index in range(request.n)]
        self._failure: type[Exception] | None = None
        self._cached_tokens = 0

    @property
    def predicted_ttft_s(self) -> float | None:
        """Seconds to the first token, as in ``TokenStream``."""
        return self._stream.predicted_ttft_s

    @property
    def num_choices(self) -> int:
        """Number of choices that the request will have."""
        return len(self._choices)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        num_tokens = sum(choice.num_tokens for choice in self._choices)
        return Usage(len(self.request.prompt_ids), num_tokens, self._cached_tokens)

    @property
    def timings(self) -> Timings:
        """The request's time so far, by where it went."""
        return self._metrics.timings()

    async def __aiter__(self) -> AsyncIterator[list[TextDelta]]:
        """Yields the new parts of choices: a list for each turn of the stream, or several if it brings many.

        Raises:
            MooringError: the request failed; nothing follows.
        """
        prompt, shown = self._prompt, False
        try:
            if prompt is not None:
                await prompt.read()
            async for batch in self._stream if prompt is None else prompt.before(self._stream):
                if prompt is not None and not shown:
                    shown = True
                    yield await self._show_prompt(prompt)
                for place, part in enumerate(_steps(batch, _SLICE)):
                    if place:
                        await asyncio.sleep(0)
                    if deltas := self._read(part):
                        yield deltas
                if all(choice.finished for choice in self._choices):
                    return
            if not all(choice.finished for choice in self._choices):
                raise InternalError("The engine ended the request without saying why.")
        except Exception as error:
            self._failure = type(error)
            raise

    async def whole(self) -> list[WholeChoice]:
        """Waits until all choices have finished.

        Raises:
            MooringError: the request failed.
        """
        return await join_choices(self, self.num_choices)

    async def aclose(self) -> None:
        """Frees what the request holds. Safe to call more than once."""
        self._on_close()
        await self._stream.aclose()
        reason = "abort" if self._failure is None else "error"
        for choice in self._choices:
            if not choice.finished:
                choice.finished = True
                self._metrics.finished(choice.index, reason, choice.num_tokens)
        self._metrics.end(is_callers_fault=issubclass(self._failure or Exception, CallerError))

    async def _show_prompt(self, prompt: PromptView) -> list[TextDelta]:
        entries = await prompt.logprobs()
        if self.request.echo:
            for choice in self._choices:
                choice.begin_after(prompt.text, prompt.detokenizer())
        shown = entries if self.request.echo and self.request.sampling.logprobs is not None else None
        return [
            TextDelta(choice.index, prompt.text, logprobs=shown, prompt_logprobs=entries)
            for choice in self._choices
        ]

    def _read(self, batch: Sequence[ChoiceTokens]) -> list[TextDelta]:
        """Turns the tokens of one turn into text. A turn counts as one arrival, however many steps its tokens
        come from."""
        deltas: list[TextDelta] = []
        num_new: dict[int, int] = {}
        began_s: float | None = None
        for new in batch:
            choice = self._choices[new.index]
            if choice.finished:
                continue
            delta = choice.take(new)
            deltas.append(delta)
            num_new[new.index] = num_new.get(new.index, 0) + len(delta.token_ids)
            if began_s is None and new.first is not None:
                began_s = new.first.began_s
            if new.index == 0 and new.first is not None and new.first.cached_tokens is not None:
                self._cached_tokens = new.first.cached_tokens
            if delta.finish_reason is not None and new.finished is None:
                self._stream.stop(new.index)
        for index, num_tokens in num_new.items():
            if num_tokens or self.request.prompt_only:
                self._metrics.tokens(index, num_tokens, began_s)
        for delta in deltas:
            if delta.finish_reason is not None:
                num_tokens = self._choices[delta.index].num_tokens
                self._metrics.finished(delta.index, delta.finish_reason, num_tokens)
        return deltas


class _ChoiceText:
    """The text of one choice."""

    def __init__(self, index: int, request: GenerationRequest, table: TokenTable) -> None:
        self.index = index
        self.finished = False
        self.num_tokens = 0
        self._table = table
        self._detokenizer = table.detokenizer(skip_special_tokens=request.skip_special_tokens)
        self._include_stop = request.include_stop
        self._stops = StopStrings(request.stop, include=request.include_stop)
        self._min_tokens = request.sampling.min_tokens
        self._stop_token_ids = request.sampling.stop_token_ids
        self._num_chars = 0  # decoded so far, held back or not

    def begin_after(self, prompt_text: str, detokenizer: Detokenizer) -> None:
        """Lets the choice begin with its prompt.

        Args:
            detokenizer: that of the tokens after the prompt.
        """
        self._num_chars, self._detokenizer = len(prompt_text), detokenizer

    def take(self, new: ChoiceTokens) -> TextDelta:
        """Turns new tokens into text; sets ``finished`` at the last ones."""
        delta = TextDelta(self.index, logprobs=None if new.logprobs is None else [])
        last = len(new.token_ids) - 1
        stop_token_id = None if new.finished is None else new.finished.stop_token_id
        for place, token_id in enumerate(new.token_ids):
            ends_it = place == last and token_id == stop_token_id
            if new.logprobs is not None and delta.logprobs is not None:
                top = new.logprobs[place]
                delta.logprobs.append(spell_logprob(self._table, token_id, top, self._num_chars))
            self.num_tokens += 1
            delta.token_ids.append(token_id)
            if (not ends_it or self._include_stop) and self._show(delta, self._detokenizer.push(token_id)):
                return delta
        if new.finished is not None:
            self._finish(delta, new.finished.reason)
            if delta.stop_reason is None and stop_token_id in self._stop_token_ids:
                delta.stop_reason = stop_token_id
        return delta

    def _show(self, delta: TextDelta, text: str) -> bool:
        """Lets text through to the delta; returns True if a stop string ended the choice."""
        self._num_chars += len(text)
        if self.num_tokens < self._min_tokens:
            delta.text += text
            return False
        shown, stopped = self._stops.feed(text)
        delta.text += shown
        if stopped:
            delta.finish_reason = FinishReason.STOP.value
            delta.stop_reason = self._stops.found
            self.finished = True
        return stopped

    def _finish(self, delta: TextDelta, reason: FinishReason) -> None:
        if reason not in (FinishReason.STOP, FinishReason.LENGTH):
            raise InternalError(f"The engine ended the request with '{reason.value}'.")
        if self._show(delta, self._detokenizer.finish()):
            return
        delta.text += self._stops.finish()
        delta.finish_reason = reason.value
        self.finished = True


def by_step(batch: Sequence[TextDelta]) -> Iterator[Sequence[TextDelta]]:
    """Divides the deltas of one turn into the steps that they came from: in order, with no choice twice in
    one step. For doors that send all choices in one message, and each token in a message of its own."""
    return _steps(batch, 1)


def _steps(batch: Sequence[_Part], least: int) -> Iterator[Sequence[_Part]]:
    """Divides the parts of one turn into whole steps, several together until they have ``least`` parts."""
    start = 0
    seen: set[int] = set()
    for place, part in enumerate(batch):
        if part.index in seen:
            seen.clear()
            if place - start >= least:
                yield batch[start:place]
                start = place
        seen.add(part.index)
    if start < len(batch):
        yield batch[start:]


async def join_choices(batches: AsyncIterable[Sequence[TextDelta]], num_choices: int) -> list[WholeChoice]:
    """All choices as a whole, once their deltas have ended."""
    joined = [_Joined() for _ in range(num_choices)]
    async for batch in batches:
        for delta in batch:
            joined[delta.index].take(delta)
    return [each.whole(index) for index, each in enumerate(joined)]


class _Joined:
    """A choice as it is put together. Keeps what deltas say, and none of them."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] | None = None
        self._prompt_logprobs: list[TokenLogprob] | None = None
        self._finish_reason = ""
        self._stop_reason: str | int | None = None

    def take(self, delta: TextDelta) -> None:
        if delta.text:
            self._texts.append(delta.text)
        if delta.logprobs is not None:
            self._logprobs = self._logprobs or []
            self._logprobs += delta.logprobs
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs = delta.prompt_logprobs
        if delta.finish_reason is not None:
            self._finish_reason, self._stop_reason = delta.finish_reason, delta.stop_reason

    def whole(self, index: int) -> WholeChoice:
        return WholeChoice(
            index,
            text="".join(self._texts),
            logprobs=self._logprobs,
            finish_reason=self._finish_reason,
            prompt_logprobs=self._prompt_logprobs,
            stop_reason=self._stop_reason,
        )
