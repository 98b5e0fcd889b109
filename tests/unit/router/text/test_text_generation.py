"""Tokens to text: detokenizers, stop strings, usage, and who is told what when a choice ends."""

from __future__ import annotations

from contextlib import aclosing

import pytest
from support.router_doors import (
    ScriptedStream,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    one_token_a_step,
    token_table,
)
from tokenizers import decoders

from engines.api import ChoiceTokens, Finished, FinishReason, SamplingParams, TopLogprobs
from mooring.errors import ArtifactError, InternalError
from router.request.request import GenerationRequest
from router.telemetry.metrics import Gauges, Metrics
from router.telemetry.waits import Waited
from router.text.detokenizer import token_string
from router.text.generation import TextDelta, TextGeneration, Usage, by_step

TOKENIZER = byte_level_tokenizer()
TABLE = token_table(TOKENIZER)
END = TOKENIZER.token_to_id("<|im_end|>")
AT_LENGTH, STOPPED = Finished(1, FinishReason.LENGTH), Finished(1, FinishReason.STOP)


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def request_for(*, n: int = 1, stop: tuple[str, ...] = (), **sampling: object) -> GenerationRequest:
    params = SamplingParams(**{"max_tokens": 100, **sampling})  # type: ignore[arg-type]
    return GenerationRequest("r1", "m", (1, 2, 3), params, n=n, stop=stop)


def metrics() -> Metrics:
    return Metrics(Gauges)


def generation(
    request: GenerationRequest, stream: ScriptedStream, measured: Metrics | None = None
) -> TextGeneration:
    return TextGeneration(request, stream, TABLE, (measured or metrics()).request(request, Waited(), None))


async def test_an_emoji_split_over_tokens_appears_when_it_is_complete() -> None:
    request = request_for()
    stream = ScriptedStream(one_token_a_step(request, ids_of("a🦀b"), reason=FinishReason.LENGTH))
    pieces = [delta.text for batch in [b async for b in generation(request, stream)] for delta in batch]
    assert pieces[0] == "a"
    assert pieces[-1] == "b"
    assert "".join(pieces) == "a🦀b"
    assert set(pieces[1:-1]) == {"", "🦀"}


async def test_an_incomplete_character_at_the_end_is_what_the_whole_decode_gives() -> None:
    ids = ids_of("🦀")[:-1]
    request = request_for()
    [choice] = await generation(request, ScriptedStream(one_token_a_step(request, ids))).whole()
    assert choice.text == TOKENIZER.decode(ids) == "�"


async def test_a_stop_string_over_several_tokens_never_leaks_and_ends_only_its_choice() -> None:
    request = request_for(n=2, stop=("<end>",))
    left, right = ids_of("hi <en<end> more"), ids_of("hi <enough> moor")
    steps = [
        [ChoiceTokens(0, [a]), ChoiceTokens(1, [b], finished=end)]
        for a, b, end in zip(left, right, [None] * (len(left) - 1) + [AT_LENGTH], strict=True)
    ]
    stream = ScriptedStream(steps)
    texts, reasons = ["", ""], [None, None]
    async for batch in (made := generation(request, stream)):
        for delta in batch:
            texts[delta.index] += delta.text
            reasons[delta.index] = delta.finish_reason
            assert "<end>" not in texts[delta.index]
    assert texts == ["hi <en", "hi <enough> moor"]
    assert reasons == ["stop", "length"]
    assert stream.stopped == [0]
    assert made.usage == Usage(3, len(ids_of("hi <en<end>")) + len(right))


async def test_tokens_after_a_stop_string_in_the_same_step_are_not_counted() -> None:
    request = request_for(stop=("ll",))
    stream = ScriptedStream([[ChoiceTokens(0, ids_of("hello world"))]])
    made = generation(request, stream)
    [choice] = await made.whole()
    assert (choice.text, choice.finish_reason) == ("he", "stop")
    assert made.usage.completion_tokens == len(ids_of("hell"))


async def test_stop_strings_wait_for_min_tokens() -> None:
    ids = ids_of("xaxaxa")
    request = request_for(stop=("a",), min_tokens=4)
    [choice] = await generation(request, ScriptedStream(one_token_a_step(request, ids))).whole()
    assert choice.text == "xax"
    assert len(ids_of("xaxa")) == 4


async def test_a_tail_held_for_a_stop_string_that_never_came_is_shown_at_the_end() -> None:
    request = request_for(stop=("###",))
    [choice] = await generation(request, ScriptedStream(one_token_a_step(request, ids_of("a##")))).whole()
    assert choice.text == "a##"


async def test_the_token_that_ended_it_is_billed_but_is_no_text() -> None:
    ids = [*ids_of("ok"), ids_of("x")[0]]
    request = request_for(logprobs=1)
    steps = one_token_a_step(request, ids, stop_token_id=ids[-1])
    made = generation(request, ScriptedStream(steps))
    [choice] = await made.whole()
    assert choice.text == "ok"
    assert made.usage.completion_tokens == 3
    assert choice.logprobs is not None
    assert [entry.raw for entry in choice.logprobs] == [b"o", b"k", b"x"]
    assert [entry.text_offset for entry in choice.logprobs] == [0, 1, 2]


async def test_logprobs_spell_partial_characters_as_bytes() -> None:
    ids = ids_of("🦀")
    top = TopLogprobs(-1.0, (ids[0], ids[1]), (-1.0, float("-inf")))
    stream = ScriptedStream([[ChoiceTokens(0, [ids[0]], [top], finished=AT_LENGTH)]])
    [choice] = await generation(request_for(logprobs=1), stream).whole()
    assert choice.logprobs is not None
    raw = choice.logprobs[0].raw
    assert choice.logprobs[0].top[1][2] == -9999.0  # JSON has no infinity
    assert "🦀".encode().startswith(raw)
    assert token_string(raw) == "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
    assert token_string("é".encode()) == "é"


async def test_a_stream_that_ends_without_an_end_is_an_error() -> None:
    with pytest.raises(InternalError):
        await generation(request_for(), ScriptedStream([[ChoiceTokens(0, ids_of("a"))]])).whole()


async def test_what_happened_is_measured_once() -> None:
    request = request_for(n=2)
    measured = metrics()
    steps = [
        [ChoiceTokens(0, ids_of("ab"), finished=STOPPED), ChoiceTokens(1, ids_of("a"))],
        [ChoiceTokens(1, ids_of("b"))],
    ]
    made = generation(request, ScriptedStream(steps), measured)
    with pytest.raises(InternalError):
        await made.whole()
    await made.aclose()
    await made.aclose()
    text = measured.expose().decode()
    for line in (
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="m",tenant="anonymous"} 1.0',
        'vllm:request_success_total{engine="0",finished_reason="error",model_name="m",tenant="anonymous"} 1.0',
        'vllm:generation_tokens_total{engine="0",model_name="m",tenant="anonymous"} 4.0',
        'vllm:prompt_tokens_total{engine="0",model_name="m",tenant="anonymous"} 3.0',
        'vllm:time_to_first_token_seconds_count{engine="0",model_name="m",tenant="anonymous"} 1.0',
        'vllm:inter_token_latency_seconds_count{engine="0",model_name="m",tenant="anonymous"} 1.0',
        'vllm:e2e_request_latency_seconds_count{engine="0",model_name="m",tenant="anonymous"} 1.0',
    ):
        assert line in text


async def test_what_the_client_cancelled_is_no_error() -> None:
    request, measured = request_for(n=2), metrics()
    ended = ChoiceTokens(0, ids_of("a"), finished=STOPPED)
    made = generation(request, ScriptedStream([[ended, ChoiceTokens(1, ids_of("a"))]]), measured)
    async with aclosing(aiter(made)) as deltas:
        await anext(deltas)
    await made.aclose()
    counted = [line for line in measured.expose().decode().splitlines() if "request_success_total{" in line]
    assert sorted(counted) == [
        'vllm:request_success_total{engine="0",finished_reason="abort",model_name="m",tenant="anonymous"} 1.0',
        'vllm:request_success_total{engine="0",finished_reason="error",model_name="m",tenant="anonymous"} 0.0',
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="m",tenant="anonymous"} 0.0',
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="m",tenant="anonymous"} 1.0',
    ]


def test_a_run_of_byte_tokens_is_shown_when_it_ends_and_judged_as_one() -> None:
    tokenizer = byte_fallback_tokenizer()
    detokenizer = token_table(tokenizer).detokenizer()
    euro = [tokenizer.token_to_id(name) for name in ("<0xE2>", "<0x82>", "<0xAC>")]
    the = tokenizer.token_to_id("▁the")
    assert [detokenizer.push(i) for i in (the, *euro, the)] == ["the", "", "", "", "€ the"]
    detokenizer.push(euro[0])
    assert detokenizer.finish() == "�"


@pytest.mark.parametrize(
    "decoder",
    [decoders.WordPiece(), decoders.CTC(), decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)])],
)
def test_decoders_that_cannot_be_streamed_are_refused(decoder: decoders.Decoder) -> None:
    with pytest.raises(ArtifactError, match="cannot be streamed"):
        token_table(byte_fallback_tokenizer(decoder))


def test_a_turn_falls_apart_into_steps_with_each_choice_once() -> None:
    batch = [TextDelta(index, text) for index, text in ((0, "a"), (1, "b"), (0, "c"), (0, "d"), (1, "e"))]
    assert [[delta.text for delta in step] for step in by_step(batch)] == [["a", "b"], ["c"], ["d", "e"]]
    assert list(by_step([])) == []
