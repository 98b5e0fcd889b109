"""Work on answers: a prompt is read once for all choices, what comes at once is read in slices, and what is large is
written in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import orjson
import pytest
from support.router_doors import ScriptedStream, byte_level_tokenizer, one_token_a_step, token_table

from engines.api import ChoiceTokens, Finished, FinishReason, SamplingParams
from router.doors.openai.answers import AnswerStyle, ChatFormat, CompletionFormat
from router.request.request import GenerationRequest
from router.telemetry.metrics import Gauges, Metrics
from router.telemetry.request_metrics import Timings
from router.telemetry.waits import Spent, Waited
from router.text.detokenizer import Detokenizer, TokenTable
from router.text.generation import TextGeneration, Usage, WholeChoice
from router.text.prompt_view import TokenLogprob
from router.text.shaping import LARGE_CHARS, chars_of, shaped

TABLE = token_table(byte_level_tokenizer())
NUM_CHOICES = 16
PROMPT_IDS = np.array([70, 71, 72, 73] * 50, np.int32)


class CountingTable:
    """Counts the tokens that are pushed and spelled."""

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self.num_pushed = 0
        self.num_spelled = 0

    def detokenizer(self, **options: bool) -> Detokenizer:
        made = self._table.detokenizer(**options)
        push = made.push

        def counted(token_id: int) -> str:
            self.num_pushed += 1
            return push(token_id)

        made.push = counted  # type: ignore[method-assign]
        return made

    def token_bytes(self, token_id: int) -> bytes:
        self.num_spelled += 1
        return self._table.token_bytes(token_id)


def generation(
    request: GenerationRequest, steps: Sequence[list[ChoiceTokens]], table: TokenTable | CountingTable = TABLE
) -> TextGeneration:
    metrics = Metrics(Gauges).request(request, Waited(), None)
    return TextGeneration(request, ScriptedStream(steps), table, metrics)  # type: ignore[arg-type]


async def test_a_prompt_is_read_and_spelled_once_for_all_choices() -> None:
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=1, logprobs=1)
    request = GenerationRequest("r", "m", PROMPT_IDS, sampling, n=NUM_CHOICES, echo=True)
    table = CountingTable(TABLE)
    choices = await generation(request, one_token_a_step(request, [70, 71]), table).whole()
    assert table.num_pushed <= len(PROMPT_IDS) + NUM_CHOICES
    assert table.num_spelled <= 2 * len(PROMPT_IDS) + 2 * NUM_CHOICES
    first, *others = choices
    assert first.prompt_logprobs is not None
    assert all(each.prompt_logprobs is first.prompt_logprobs for each in others)
    text = "".join(map(TABLE.detokenizer().push, [*PROMPT_IDS.tolist(), 70]))
    assert {each.text for each in choices} == {text}


async def test_tokens_that_come_at_once_are_read_in_slices_between_which_others_have_their_turn() -> None:
    request = GenerationRequest("r", "m", np.array([1], np.int32), SamplingParams(max_tokens=500), n=8)
    turn = [ChoiceTokens(index, [70]) for _ in range(500) for index in range(8)]
    for last in turn[-8:]:
        last.finished = Finished(1, FinishReason.LENGTH)
    num_turns = 0

    async def others() -> None:
        nonlocal num_turns
        while True:
            num_turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    sizes, turns_before = [], []
    async for deltas in generation(request, [turn]):
        sizes.append(len(deltas))
        turns_before.append(num_turns)
    task.cancel()
    assert sum(sizes) == len(turn)
    assert max(sizes) <= 256 + 8
    assert all(size % 8 == 0 for size in sizes)  # whole steps
    assert len(set(turns_before)) == len(turns_before)


@pytest.mark.parametrize(("num_chars", "is_inline"), [(LARGE_CHARS, True), (LARGE_CHARS + 1, False)])
async def test_only_what_is_large_is_shaped_in_a_thread(num_chars: int, is_inline: bool) -> None:
    thread = await shaped(threading.current_thread, num_chars)
    assert (thread is threading.current_thread()) == is_inline


def entries(count: int, num_likeliest: int) -> list[TokenLogprob]:
    top = tuple((number, b"\xf0\x9f", -float(number)) for number in range(num_likeliest))
    return [TokenLogprob(place, b"t%d" % place, -0.5, place, top) for place in range(count)]


def test_log_probabilities_make_an_answer_large() -> None:
    plain = WholeChoice(0, "a" * 100, None, "stop")
    assert chars_of([plain, plain]) == 200
    assert chars_of([WholeChoice(0, "", entries(100, 20), "stop")]) > LARGE_CHARS
    assert chars_of([WholeChoice(0, "", [], "stop", prompt_logprobs=entries(500, 1))]) > LARGE_CHARS


@pytest.mark.parametrize("num_entries", [0, 1, 255, 256, 257, 600])
def test_a_list_that_is_encoded_in_slices_is_the_list(num_entries: int) -> None:
    style = AnswerStyle(prompt_logprobs=True)
    found = entries(num_entries, 2)
    choices = [WholeChoice(index, "é", found, "stop", prompt_logprobs=found) for index in range(2)]
    for form in (CompletionFormat("r", "m", style), ChatFormat("r", "m", style)):
        pieces = form.whole(choices, Usage(1, 2), Timings(None, Spent(0, 0), None))
        answer = orjson.loads(b"".join(pieces))
        assert len(pieces) == 2 + 2 * len(choices) - 1
        assert answer["usage"]["total_tokens"] == 3
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        for choice in answer["choices"]:
            logprobs = choice["logprobs"]
            if isinstance(form, ChatFormat):
                assert [entry["token"] for entry in logprobs["content"]] == [
                    f"t{place}" for place in range(num_entries)
                ]
                assert len(answer["prompt_logprobs"]) == num_entries
            else:
                assert logprobs["text_offset"] == list(range(num_entries))
                assert all(len(top) == 2 for top in logprobs["top_logprobs"])
                assert len(choice["prompt_logprobs"]) == num_entries
