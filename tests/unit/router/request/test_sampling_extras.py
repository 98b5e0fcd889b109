"""Options beyond plain sampling: what reaches the engine, and what is out of range."""

from __future__ import annotations

from typing import Any

import pytest

from engines.api import SamplingParams
from mooring.errors import ContextLengthError, InvalidRequestError
from router.request.bounds import RouterConfig
from router.request.sampling import (
    GenerationDefaults,
    SamplingOptions,
    check_options,
    num_prompt_tokens_kept,
    resolve_sampling,
    wants_prompt_only,
)


def resolved(num_prompt_tokens: int = 10, **options: Any) -> SamplingParams:
    asked = SamplingOptions(**options)
    check_options(asked, RouterConfig())
    return resolve_sampling(
        asked,
        GenerationDefaults(),
        num_prompt_tokens=num_prompt_tokens,
        max_model_len=100,
        new_seed=7,
        config=RouterConfig(),
    )


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, None),
        ({"logprobs": 3}, None),
        ({"echo": True}, None),
        ({"echo": True, "logprobs": 3}, 3),
        ({"prompt_logprobs": 0}, 0),
        ({"echo": True, "logprobs": 3, "prompt_logprobs": 5}, 5),
        ({"echo": True, "logprobs": 5, "prompt_logprobs": 3}, 5),
    ],
)
def test_prompt_logprobs_are_asked_for_where_somebody_looks(options: Any, asked: int | None) -> None:
    assert resolved(**options).prompt_logprobs == asked


def test_no_output_is_one_token_that_nobody_sees() -> None:
    assert resolved(max_tokens=0, echo=True).max_tokens == 1
    assert resolved(max_tokens=0, prompt_logprobs=1).max_tokens == 1
    assert wants_prompt_only(SamplingOptions(max_tokens=0))
    assert not wants_prompt_only(SamplingOptions())
    with pytest.raises(InvalidRequestError) as caught:
        resolved(max_tokens=0)
    assert caught.value.param == "max_tokens"
    with pytest.raises(ContextLengthError):
        resolved(num_prompt_tokens=100, max_tokens=0, echo=True)


@pytest.mark.parametrize(
    ("asked", "max_tokens", "kept"),
    [(None, 5, None), (7, 5, 7), (-1, 5, 95), (-1, None, 99), (-1, 0, 99), (1000, 5, 1000)],
)
def test_how_much_of_the_prompt_is_kept(asked: int | None, max_tokens: int | None, kept: int | None) -> None:
    options = SamplingOptions(truncate_prompt_tokens=asked, max_tokens=max_tokens)
    assert num_prompt_tokens_kept(options, 100) == kept


@pytest.mark.parametrize(("asked", "max_tokens"), [(0, 5), (-2, 5), (-1, 100), (-1, 1000)])
def test_a_prompt_of_which_nothing_would_be_kept(asked: int, max_tokens: int) -> None:
    options = SamplingOptions(truncate_prompt_tokens=asked, max_tokens=max_tokens)
    with pytest.raises(InvalidRequestError) as caught:
        num_prompt_tokens_kept(options, 100)
    assert caught.value.param == "truncate_prompt_tokens"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", ((1, 100.5),)),
        ("logit_bias", ((1, float("nan")),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", tuple((i, 1.0) for i in range(1025))),
        ("bad_words", ("",)),
        ("bad_words", ("a" * 1025,)),
        ("bad_words", ("a",) * 257),
        ("prompt_logprobs", 21),
        ("prompt_logprobs", -1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resolved(**{field: value})
    assert caught.value.param == field
