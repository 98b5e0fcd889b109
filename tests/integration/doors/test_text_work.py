"""Work on text is bounded before it is done, and done once for each request."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.router_doors import (
    ScriptedSource,
    ScriptedStream,
    byte_level_tokenizer,
    one_token_a_step,
    served_model,
    services,
    write_model_folder,
)

from mooring.errors import ContextLengthError, InvalidRequestError
from router.intake import Intake
from router.request.bounds import RouterConfig
from router.request.sampling import SamplingOptions
from router.tenancy.tenant import ANONYMOUS
from router.text.prompts import ChatPrompt, Prompt

pytestmark = pytest.mark.integration


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path / "m", byte_level_tokenizer())


def source() -> ScriptedSource:
    return ScriptedSource(lambda request: ScriptedStream(one_token_a_step(request, [1])))


async def start(folder: Path, prompts: list[Prompt], options: SamplingOptions) -> ScriptedSource:
    given = source()
    parts = services(given, [served_model("m", folder)])
    try:
        batch = await Intake(parts).start_batch(
            model="m", prompts=prompts, options=options, request_id="r", tenant=ANONYMOUS
        )
        await batch.aclose()
    finally:
        parts.text_models.close()
    return given


async def test_a_text_that_cannot_fit_is_refused_without_being_tokenized(folder: Path) -> None:
    with pytest.raises(ContextLengthError, match=r"128 tokens.*resulted in at least 8334 tokens") as caught:
        await start(folder, ["a" * 100_000], SamplingOptions())
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("prompt", ["ab" * 70, (1,) * 140])
async def test_a_prompt_that_does_not_fit_is_refused_with_its_length(folder: Path, prompt: Prompt) -> None:
    with pytest.raises(ContextLengthError, match="resulted in 140 tokens"):
        await start(folder, [prompt], SamplingOptions())


async def test_a_prompt_of_ids_is_cut_before_it_is_looked_at(folder: Path) -> None:
    given = await start(folder, [(1 << 40,) * 100 + (7,)], SamplingOptions(truncate_prompt_tokens=1))
    assert given.requests[0].prompt_ids.tolist() == [7]


async def test_a_long_text_of_which_the_end_is_wanted_is_tokenized(folder: Path) -> None:
    given = await start(folder, ["a" * 100_000], SamplingOptions(truncate_prompt_tokens=5))
    assert len(given.requests[0].prompt_ids) == 5


async def test_bad_words_are_spelled_once_for_all_prompts(folder: Path) -> None:
    given = await start(folder, ["a", "b", "c"], SamplingOptions(bad_words=("hello",)))
    first, *others = (request.sampling.bad_words_ids for request in given.requests)
    assert len(first) == 2
    assert len(others) == 2
    assert all(each is first for each in others)


async def test_options_are_checked_before_any_text_is_read(tmp_path: Path) -> None:
    """A model whose tokenizer cannot even be read."""
    with pytest.raises(InvalidRequestError) as caught:
        await start(tmp_path, ["a"], SamplingOptions(bad_words=("a" * 10_000,)))
    assert caught.value.param == "bad_words"


async def test_a_chat_has_a_bounded_number_of_messages(folder: Path) -> None:
    most = RouterConfig().max_messages
    message = {"role": "user", "content": ""}
    await start(folder, [ChatPrompt((message,) * 20)], SamplingOptions(truncate_prompt_tokens=5))
    with pytest.raises(InvalidRequestError, match=f"at most {most}"):
        await start(folder, [ChatPrompt((message,) * (most + 1))], SamplingOptions(prompt_field="messages"))
