"""Log-probabilities of prompts, logit biases and bad words of the torch engine, on tiny random models."""

from __future__ import annotations

import random

import pytest
import torch
from support.torch_engines import KINDS, VOCAB_SIZE, EngineDriver, TinyModel, engine_driver, tiny_model

from engines.api import FinishReason, TopLogprobs
from engines.torch.sampling import logprobs

TOLERANCE = 1e-4


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB_SIZE), k=length)


def assert_scores(model: TinyModel, prompt: list[int], found: list[TopLogprobs], num_likeliest: int) -> None:
    """``found`` are transformers' log-probabilities of the prompt's tokens but the first."""
    assert len(found) == len(prompt) - 1
    if not found:
        return
    wanted = model.logprobs(prompt[:1], prompt[1:])
    of_prompt = wanted.gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0]
    best = wanted.topk(num_likeliest)
    assert [top.logprob for top in found] == pytest.approx(of_prompt.tolist(), abs=TOLERANCE)
    for top, ids, values in zip(found, best.indices.tolist(), best.values.tolist(), strict=True):
        assert top.logprobs == pytest.approx(values, abs=TOLERANCE)
        assert set(top.token_ids) == set(ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_tokens_per_step", [256, 16], ids=["whole", "chunked"])
def test_prompt_logprobs_are_transformers(
    kind: str, max_tokens_per_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "_MAX_LOGITS", 7 * VOCAB_SIZE)  # a slice is less than a chunk
    model = tiny_model(kind)
    asked = {1: (prompt_of(61), 3), 2: (prompt_of(45, seed=1), 0), 3: (prompt_of(1), 2), 4: (prompt_of(2), 5)}
    with engine_driver(max_tokens_per_step=max_tokens_per_step) as driver:
        driver.load(model)
        driver.submit(0, prompt_of(30), max_tokens=30)
        for sequence_id, (prompt, num_likeliest) in asked.items():
            driver.submit(sequence_id, prompt, max_tokens=3, prompt_logprobs=num_likeliest)
        driver.run()
        assert driver.prompt_logprobs.keys() == asked.keys()
        for sequence_id, (prompt, num_likeliest) in asked.items():
            assert_scores(model, prompt, driver.prompt_logprobs[sequence_id], num_likeliest)
        driver.submit(5, asked[1][0], max_tokens=3)
        driver.run()
        assert driver.tokens[1] == driver.tokens[5]


def test_a_prompt_preempted_in_its_middle_is_scored_once() -> None:
    model, prompt = tiny_model("mistral"), prompt_of(120)
    with engine_driver(max_tokens_per_step=16) as driver:
        driver.load(model)
        driver.submit(1, prompt, max_tokens=20, prompt_logprobs=2)
        for num_steps in (3, 2, 12, 3):
            for _ in range(num_steps):
                driver.step()
            driver.shrink_to(0)
            driver.lease_pages(16)
        assert driver.preemptions() == 4
        assert driver.tokens[1], "the last preemptions came after the first token"
        driver.run()
        assert_scores(model, prompt, driver.prompt_logprobs[1], 2)
        driver.submit(2, prompt, max_tokens=20)
        driver.run()
        assert driver.tokens[1] == driver.tokens[2]


def test_more_likeliest_tokens_than_there_are_is_all_of_them() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        driver.submit(1, prompt_of(5), max_tokens=1, prompt_logprobs=VOCAB_SIZE + 5)
        driver.run()
        assert [len(top.token_ids) for top in driver.prompt_logprobs[1]] == [VOCAB_SIZE] * 4


def test_a_bias_moves_a_token_and_leaves_its_logprob() -> None:
    model, prompt = tiny_model("qwen3"), prompt_of(20)
    with engine_driver() as driver:
        driver.load(model)
        driver.submit(1, prompt, max_tokens=8)
        driver.run()
        first = driver.tokens[1][0]
        driver.submit(2, prompt, max_tokens=8, logit_bias=((77, 100.0),), logprobs=1)
        driver.submit(
            3, prompt, max_tokens=8, logit_bias=((first, -100.0), (78, 0.5)), temperature=0.5, seed=3
        )
        driver.submit(4, prompt, max_tokens=8)
        driver.run()
        assert driver.tokens[2] == [77] * 8
        assert first not in driver.tokens[3]
        assert driver.tokens[4] == driver.tokens[1]
        raw = model.logprobs(prompt, driver.tokens[2])[:, 77].tolist()
        assert [top.logprob for top in driver.logprobs[2]] == pytest.approx(raw, abs=TOLERANCE)


def draw(driver: EngineDriver, sequence_id: int, *words: tuple[int, ...], num_output: int = 0) -> None:
    """Twelve tokens of one prompt, varied and the same every time, but for the words."""
    driver.submit(
        sequence_id,
        prompt_of(20),
        output_ids=driver.tokens[1][:num_output],
        temperature=1.0,
        seed=5,
        max_tokens=12,
        bad_words_ids=words,
    )


def test_a_bad_word_is_never_completed_and_its_beginning_may_be_said() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        draw(driver, 1)
        driver.run()
        free = driver.tokens[1]
        assert len(set(free[:6])) == 6
        draw(driver, 2, (free[2],))
        draw(driver, 3, tuple(free[2:5]), (free[0], free[2]))
        draw(driver, 4, (prompt_of(20)[-1], free[0]))
        driver.run()
        assert free[2] not in driver.tokens[2]
        assert driver.tokens[2][:2] == free[:2]
        assert driver.tokens[3][:4] == free[:4]
        assert driver.tokens[3][4] != free[4]
        assert driver.tokens[4] == free, "the prompt's end does not begin a word, as in vLLM"


def test_bad_words_hold_over_preemption_and_a_workers_death() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        draw(driver, 1)
        driver.run()
        free = driver.tokens[1]
        word = tuple(free[2:5])
        draw(driver, 2, word)
        driver.run()
        draw(driver, 3, word)
        for _ in range(4):
            driver.step()
        driver.shrink_to(0)
        driver.lease_pages(16)
        draw(driver, 4, word, num_output=4)
        driver.run()
        assert driver.preemptions() == 1
        assert driver.tokens[2][:5] != free[:5]
        assert driver.tokens[3] == driver.tokens[2]
        assert driver.tokens[4] == driver.tokens[2][4:]


def test_min_tokens_bars_a_stop_that_a_bias_wants_and_bad_words_stay_barred() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        driver.submit(
            1,
            prompt_of(9),
            max_tokens=10,
            min_tokens=4,
            stop_token_ids=(50,),
            logit_bias=((50, 100.0), (51, 90.0), (52, 80.0)),
            bad_words_ids=((51,), (52, 52, 52)),
        )
        driver.run()
        assert driver.tokens[1][:2] == [52, 52]
        assert driver.tokens[1][2] not in (50, 51, 52)
        assert driver.tokens[1][4:] == [50]
        assert driver.finished[1].reason is FinishReason.STOP


def test_edits_beyond_the_vocabulary_end_their_sequence_alone() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        driver.submit(1, [5], logit_bias=((VOCAB_SIZE, 1.0),))
        driver.submit(2, [5], bad_words_ids=((5,), (6, VOCAB_SIZE)))
        driver.submit(3, [5], bad_words_ids=((),))
        driver.submit(4, [5], logit_bias=((VOCAB_SIZE - 1, 1.0),), max_tokens=2)
        driver.run()
        assert {i: driver.finished[i].error_code for i in (1, 2, 3)} == dict.fromkeys(
            (1, 2, 3), "invalid_value"
        )
        assert "logit_bias" in driver.finished[1].error_message
        assert "bad_words" in driver.finished[2].error_message
        assert driver.finished[4].reason is FinishReason.LENGTH
