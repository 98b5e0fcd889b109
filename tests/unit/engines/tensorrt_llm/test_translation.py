"""Sampling parameters in TensorRT-LLM's words, and those that it has none for."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.api import FinishReason, SamplingParams, SequenceRequest
from engines.tensorrt_llm.surface import FEATURES, Package, SamplingArguments
from engines.tensorrt_llm.translation import (
    cache_salt,
    finish_reason,
    priority,
    sampling_arguments,
    top_logprobs,
)
from mooring.errors import InternalError, UnsupportedFieldError

EOS = (2, 9)
ALWAYS = {"end_id", "max_tokens", "stop_token_ids", "include_stop_str_in_output", "detokenize"}


def package(version: str) -> Package:
    def none(*args: Any, **arguments: Any) -> Any:
        raise AssertionError("nothing is made here")

    return Package(version, none, none, none, none, none, RuntimeError)


def arguments(version: str = "1.4.0", output_ids: tuple[int, ...] = (), **sampling: Any) -> SamplingArguments:
    request = SequenceRequest(
        1,
        "m",
        np.array([5, 6, 7], np.int32),
        SamplingParams(**sampling),
        np.array(output_ids, np.int32),
    )
    return sampling_arguments(request, 10, EOS, 16, package(version))


def test_greedy_needs_no_noise() -> None:
    made = arguments(temperature=0, seed=5, top_p=0.5, top_k=7, min_p=0.5)
    assert {name: value for name, value in made.items() if name not in ALWAYS} == {"top_k": 1}


def test_ends_are_stop_words_that_stay_in_the_output() -> None:
    made = arguments(stop_token_ids=(4, 2))
    assert made["stop_token_ids"] == [2, 9, 4]
    assert made["include_stop_str_in_output"]
    assert made["end_id"] == -1
    assert arguments(ignore_eos=True)["stop_token_ids"] == []


def test_all_that_can_be_said() -> None:
    made = arguments(
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        seed=7,
        repetition_penalty=1.5,
        presence_penalty=0.25,
        frequency_penalty=-0.25,
        logprobs=0,
        bad_words_ids=((3,), (4,)),
        logit_bias=((1, 2.0), (99, 5.0)),
        output_ids=(1, 1),
    )
    bias = made.pop("embedding_bias")
    assert bias.dtype == torch.float32
    assert bias.tolist() == [0, 2] + [0] * 14, "ids that the model does not have are no ids"
    assert {name: value for name, value in made.items() if name not in ALWAYS} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.1,
        "seed": 7,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.25,
        "prompt_ignore_length": 3,
        "logprobs": 1,
        "bad_token_ids": [3, 4],
    }


@pytest.mark.parametrize(
    ("param", "sampling"),
    [
        ("prompt_logprobs", {"prompt_logprobs": 1}),
        ("min_tokens", {"min_tokens": 3}),
        ("bad_words", {"bad_words_ids": ((1, 2),)}),
    ],
)
def test_what_no_version_has_is_refused_by_name(param: str, sampling: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFieldError) as raised:
        arguments("9.0", **sampling)
    assert raised.value.param == param
    assert param in raised.value.message


@pytest.mark.parametrize(
    ("param", "feature", "value"),
    [
        ("min_p", "min_p", 0.1),
        ("repetition_penalty", "penalties", 1.1),
        ("presence_penalty", "penalties", 1.0),
        ("frequency_penalty", "penalties", -1.0),
        ("bad_words", "bad_words", ((1,),)),
    ],
)
def test_what_a_version_would_ignore_is_refused_with_the_one_that_has_it(
    param: str, feature: str, value: Any
) -> None:
    field = "bad_words_ids" if param == "bad_words" else param
    needed = ".".join(map(str, FEATURES[feature]))
    with pytest.raises(UnsupportedFieldError, match=needed) as raised:
        arguments("1.2.1", **{field: value})
    assert raised.value.param == param
    arguments(f"{needed}.0", **{field: value})


def test_min_tokens_holds_where_nothing_ends_it_or_it_is_over() -> None:
    arguments(min_tokens=3, ignore_eos=True)
    arguments(min_tokens=3, output_ids=(1, 1, 1))


def test_every_field_has_a_say() -> None:
    """A new sampling parameter is translated or refused, and is on this list."""
    assert {field.name for field in dataclasses.fields(SamplingParams)} == {
        *("temperature", "top_p", "top_k", "min_p", "seed", "choice"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty"),
        *("min_tokens", "max_tokens", "ignore_eos", "stop_token_ids"),
        *("logprobs", "prompt_logprobs", "logit_bias", "bad_words_ids"),
    }


@given(st.integers(-(1 << 63), (1 << 64) - 1), st.integers(0, 127))
def test_seeds_are_signed_words_and_choices_differ(seed: int, choice: int) -> None:
    one = arguments(seed=seed, choice=choice)["seed"]
    assert 0 <= one < 1 << 63
    assert one != arguments(seed=seed, choice=choice + 1)["seed"]


@given(st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_priorities_keep_their_order(one: int, other: int) -> None:
    assert 0 < priority(one) < 1
    assert (priority(one) < priority(other)) == (one < other)
    assert priority(0) == 0.5


def test_salts_part_scopes() -> None:
    assert cache_salt(b"a", 1) == cache_salt(b"a", 1) != cache_salt(b"b", 1)
    assert cache_salt(b"", 0) == cache_salt(b"", 0) != cache_salt(b"", 1)
    assert cache_salt(None, 0) != cache_salt(None, 0)


@pytest.mark.parametrize(
    ("theirs", "last_id", "ours"),
    [
        ("stop", 2, FinishReason.STOP),
        ("length", 5, FinishReason.LENGTH),
        ("length", 2, FinishReason.STOP),
        ("cancelled", 5, FinishReason.CANCELLED),
        ("timeout", 5, None),
        (None, 5, None),
    ],
)
def test_finish_reasons(theirs: str | None, last_id: int, ours: FinishReason | None) -> None:
    assert finish_reason(theirs, last_id, EOS) is ours


@dataclasses.dataclass
class Entry:
    logprob: float


def test_logprobs_are_the_likeliest_and_the_tokens_own() -> None:
    entries = {3: Entry(-1.0), 1: Entry(-0.5), 7: Entry(-9.0)}
    top = top_logprobs(entries, 7, 2)
    assert (top.logprob, top.token_ids, top.logprobs) == (-9.0, (1, 3), (-0.5, -1.0))
    assert top_logprobs(entries, 7, 0).token_ids == ()
    with pytest.raises(InternalError):
        top_logprobs(entries, 8, 2)
