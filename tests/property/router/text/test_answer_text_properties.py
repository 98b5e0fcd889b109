"""What a choice shows, whatever its tokens and options are: the definition in one line, against the stream."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.router_doors import ScriptedStream, byte_fallback_tokenizer, byte_level_tokenizer, token_table
from tokenizers import Tokenizer

from engines.api import ChoiceTokens, Finished, FinishReason, FirstToken, SamplingParams, TopLogprobs
from router.request.request import GenerationRequest
from router.telemetry.metrics import Gauges, Metrics
from router.telemetry.waits import Waited
from router.text.generation import TextDelta, TextGeneration

TOKENIZERS = {"byte-level": byte_level_tokenizer(), "byte-fallback": byte_fallback_tokenizer()}
TABLES = {name: token_table(tokenizer) for name, tokenizer in TOKENIZERS.items()}
METRICS = Metrics(Gauges)
KINDS = pytest.mark.parametrize("kind", TOKENIZERS)
IDS = st.lists(st.integers(0, 305), min_size=1, max_size=24)
# Texts in which the stops below come about, cut into tokens in many ways.
WORDY = st.lists(st.sampled_from(["the", " the", "he", "l", "ll", "t", " ", "é", "🦀"]), max_size=10).map(
    "".join
)
STOPS = st.lists(st.sampled_from(["the", "ll", "hel", " t", "é", "🦀", "eé", "tt"]), max_size=3).map(tuple)


def request_for(
    prompt_ids: list[int], *, n: int = 1, stop: tuple[str, ...] = (), include: bool = False, skip: bool = True,
    echo: bool = False, **sampling: int,
) -> GenerationRequest:  # fmt: skip
    return GenerationRequest(
        "r", "m", np.array(prompt_ids, np.int32), SamplingParams(**{"max_tokens": 100, **sampling}),  # type: ignore[arg-type]
        n=n, stop=stop, include_stop=include, skip_special_tokens=skip, echo=echo,
    )  # fmt: skip


def read(kind: str, request: GenerationRequest, steps: list[list[ChoiceTokens]]) -> list[TextDelta]:
    async def all_of_it() -> list[TextDelta]:
        stream = ScriptedStream(steps)
        generation = TextGeneration(request, stream, TABLES[kind], METRICS.request(request, Waited(), None))
        return [delta for batch in [batch async for batch in generation] for delta in batch]

    return asyncio.run(all_of_it())


def said(ids: list[int], reason: FinishReason = FinishReason.LENGTH) -> list[list[ChoiceTokens]]:
    steps = [[ChoiceTokens(0, [token_id])] for token_id in ids]
    steps[-1][0].finished = Finished(1, reason)
    return steps


def decoded(kind: str, ids: list[int], *, skip: bool = True) -> str:
    tokenizer: Tokenizer = TOKENIZERS[kind]
    return str(tokenizer.decode(ids, skip_special_tokens=skip))


def cut(text: str, stops: tuple[str, ...], *, include: bool) -> tuple[str, str]:
    """The text as it is shown, and the reason that it ended for."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: end if include else min(starts)], "stop"
    return text, "length"


@KINDS
@settings(max_examples=200)
@given(text=WORDY.filter(bool), stops=STOPS, include=st.booleans(), skip=st.booleans())
def test_no_stop_string_leaks_wherever_tokens_cut_it(
    kind: str, text: str, stops: tuple[str, ...], include: bool, skip: bool
) -> None:
    ids = TOKENIZERS[kind].encode(text, add_special_tokens=False).ids
    deltas = read(kind, request_for([1], stop=stops, include=include, skip=skip), said(ids))
    shown, reason = cut(decoded(kind, ids, skip=skip), stops, include=include)
    assert "".join(delta.text for delta in deltas) == shown
    assert deltas[-1].finish_reason == reason


@KINDS
@settings(max_examples=200)
@given(
    ids=IDS, stops=st.lists(st.sampled_from([" ", "a", "e", "the", "�"]), max_size=2).map(tuple),
    min_tokens=st.integers(0, 24), include=st.booleans(),
)  # fmt: skip
def test_stop_strings_are_looked_for_from_min_tokens_on(
    kind: str, ids: list[int], stops: tuple[str, ...], min_tokens: int, include: bool
) -> None:
    """The text that is certain before that many tokens is shown; what comes then is cut."""
    request = request_for([1], stop=stops, include=include, min_tokens=min_tokens)
    deltas = read(kind, request, said(ids))
    detokenizer = TABLES[kind].detokenizer()
    free = "".join(detokenizer.push(token_id) for token_id in ids[: max(min_tokens - 1, 0)])
    whole = decoded(kind, ids)
    if len(ids) < min_tokens:
        free = whole
    assert whole.startswith(free)
    shown, reason = cut(whole[len(free) :], stops, include=include)
    assert "".join(delta.text for delta in deltas) == free + shown
    assert deltas[-1].finish_reason == reason


@KINDS
@settings(max_examples=200)
@given(prompt_ids=IDS, ids=IDS, skip=st.booleans())
def test_an_echo_and_its_continuation_are_one_text(
    kind: str, prompt_ids: list[int], ids: list[int], skip: bool
) -> None:
    """Also where a character begins in the prompt and ends in the output."""
    deltas = read(kind, request_for(prompt_ids, echo=True, skip=skip), said(ids))
    assert "".join(delta.text for delta in deltas) == decoded(kind, prompt_ids + ids, skip=skip)


@KINDS
@settings(max_examples=100)
@given(
    prompt_ids=IDS, ids=IDS, n=st.integers(1, 3), late=st.integers(0, 5), split=st.booleans(),
)  # fmt: skip
def test_every_choice_begins_with_the_prompt_whichever_comes_first(
    kind: str, prompt_ids: list[int], ids: list[int], n: int, late: int, split: bool
) -> None:
    """The engine tells the prompt's log-probabilities with choice 0, which may be the last to begin."""
    request = request_for(prompt_ids, n=n, echo=True, logprobs=0, prompt_logprobs=0)
    first, *others = [
        [[ChoiceTokens(index, [token_id], [TopLogprobs(-1.0, (), ())])] for token_id in ids]
        for index in range(n)
    ]
    for steps in (first, *others):
        steps[-1][0].finished = Finished(1, FinishReason.LENGTH)
    tops = [TopLogprobs(-2.0, (), ()) for _ in prompt_ids[1:]]
    first[0][0].first = FirstToken(0.0, prompt_logprobs=tops)
    before = [step for steps in others for step in (steps[:late] if split else steps)]
    after = [step for steps in others for step in (steps[late:] if split else [])]
    deltas = read(kind, request, [*before, *first, *after])
    for index in range(n):
        parts = [delta for delta in deltas if delta.index == index]
        assert parts[0].token_ids == []
        entries = [entry for part in parts for entry in part.logprobs or ()]
        assert [entry.token_id for entry in entries] == prompt_ids + ids
        assert [entry.logprob for entry in entries] == [
            None,
            *[-2.0] * (len(prompt_ids) - 1),
            *[-1.0] * len(ids),
        ]
        offsets = [entry.text_offset for entry in entries]
        assert offsets == sorted(offsets)
        assert offsets[0] == 0
        assert offsets[-1] <= len(decoded(kind, prompt_ids + ids))
