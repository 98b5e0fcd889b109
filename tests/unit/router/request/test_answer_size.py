"""How large an answer may become: what counts, what honest callers may ask for, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.errors import InvalidRequestError
from router.request.bounds import RouterConfig
from router.request.sampling import (
    GenerationDefaults,
    SamplingOptions,
    answer_size,
    check_answer_size,
    resolve_sampling,
)

CONFIG = RouterConfig()
MODEL_LEN = 131_072


def check(num_prompt_tokens: int, max_tokens: int, num_prompts: int = 1, **options: Any) -> None:
    asked = SamplingOptions(max_tokens=max_tokens, **options)
    sizes = [answer_size(asked, num_prompt_tokens, max(1, max_tokens))] * num_prompts
    check_answer_size(asked, sizes, CONFIG)


def test_what_counts() -> None:
    assert answer_size(SamplingOptions(), 100, 7) == 7
    assert answer_size(SamplingOptions(n=3), 100, 7) == 3 * 7
    assert answer_size(SamplingOptions(n=3, logprobs=0), 100, 7) == 3 * 2 * 7
    assert answer_size(SamplingOptions(n=3, logprobs=5, echo=True), 100, 7) == 3 * 7 * 107
    assert answer_size(SamplingOptions(echo=True), 100, 7) == 107
    assert answer_size(SamplingOptions(prompt_logprobs=1), 100, 7) == 3 * 100 + 7
    assert answer_size(SamplingOptions(prompt_logprobs=1, max_tokens=0), 100, 1) == 3 * 100


@pytest.mark.parametrize(
    "asked",
    [
        {"num_prompt_tokens": 4096, "max_tokens": 0, "echo": True, "logprobs": 5},
        {"num_prompt_tokens": 4096, "max_tokens": 1, "echo": True, "logprobs": 1, "num_prompts": 16},
        {"num_prompt_tokens": 10, "max_tokens": 512, "n": 128},
        {"num_prompt_tokens": 100_000, "max_tokens": 31_000},
        {"num_prompt_tokens": 8192, "max_tokens": 4096, "logprobs": 20},
        {"num_prompt_tokens": 100, "max_tokens": 1024, "num_prompts": 256},
    ],
)
def test_what_honest_callers_ask_for(asked: dict[str, Any]) -> None:
    check(**asked)


@pytest.mark.parametrize(
    ("asked", "param", "named"),
    [
        ({"n": 128, "logprobs": 20, "max_tokens": 100}, "n", ["'n'", "'logprobs'", "'max_tokens'"]),
        ({"n": 128, "echo": True, "max_tokens": 1, "num_prompt_tokens": 4000}, "n", ["'n'", "'echo'"]),
        ({"logprobs": 20, "max_tokens": 16_000}, "logprobs", ["'logprobs'", "'max_tokens'"]),
        ({"prompt_logprobs": 20, "max_tokens": 0, "num_prompt_tokens": 16_000}, "prompt_logprobs", []),
        ({"max_tokens": 2000, "num_prompts": 256}, "max_tokens", ["'max_tokens'", "'prompt'"]),
        ({"max_tokens": 300_000}, "max_tokens", ["max_answer_tokens"]),
    ],
)
def test_what_would_be_too_large_is_refused_by_the_fields_that_it_follows_from(
    asked: dict[str, Any], param: str, named: list[str]
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check(**{"num_prompt_tokens": 10, **asked})
    assert (refused.value.param, refused.value.code) == (param, "answer_too_large")
    assert all(name in refused.value.message for name in named)


@pytest.mark.parametrize("options", [{"logprobs": 20}, {"n": 128}, {"n": 8, "logprobs": 3, "echo": True}])
def test_a_length_that_is_left_open_is_chosen_so_that_the_answer_fits(options: dict[str, Any]) -> None:
    asked = SamplingOptions(**options)
    for num_prompts in (1, 20):
        sampling = resolve_sampling(
            asked,
            GenerationDefaults(),
            num_prompt_tokens=100,
            max_model_len=MODEL_LEN,
            new_seed=7,
            config=CONFIG,
            num_prompts=num_prompts,
        )
        assert 1 <= sampling.max_tokens < MODEL_LEN - 100
        check_answer_size(asked, [answer_size(asked, 100, sampling.max_tokens)] * num_prompts, CONFIG)
        more = [answer_size(asked, 100, sampling.max_tokens + 1)] * num_prompts
        with pytest.raises(InvalidRequestError):
            check_answer_size(asked, more, CONFIG)
