"""What callers may ask for: ranges, defaults, context, templates, bodies."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mooring.errors import (
    ArtifactError,
    ContextLengthError,
    InvalidRequestError,
    MooringError,
    UnsupportedFieldError,
)
from router.doors.http.errors import error_from_validation
from router.doors.openai.bodies import ChatCompletionRequest, CompletionRequest
from router.intake import request_id_from
from router.request.bounds import RouterConfig
from router.request.sampling import (
    GenerationDefaults,
    SamplingOptions,
    check_options,
    resolve_sampling,
)
from router.text.prompts import ChatPrompt


def resolved(
    options: SamplingOptions, defaults: GenerationDefaults | None = None, num_prompt_tokens: int = 10
) -> Any:
    check_options(options, RouterConfig())
    return resolve_sampling(
        options,
        defaults or GenerationDefaults(),
        num_prompt_tokens=num_prompt_tokens,
        max_model_len=100,
        new_seed=7,
        config=RouterConfig(),
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1 << 31),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3.0),
        ("max_tokens", 0),
        # A sum with it is too long for Python to print.
        pytest.param("max_tokens", 10**4300 - 1, id="max_tokens-4300 digits"),
        ("min_tokens", -1),
        ("min_tokens", 91),
        ("n", 0),
        ("n", 129),
        ("logprobs", 21),
        ("seed", 1 << 64),
        ("stop", ("",)),
        ("stop", ("a",) * 17),
        ("stop", ("a" * 1025,)),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", (1 << 32,)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resolved(SamplingOptions(**{field: value}))
    assert caught.value.param == field
    assert type(caught.value) is InvalidRequestError


def test_the_caller_comes_before_the_model_and_the_model_before_the_defaults() -> None:
    suggested = GenerationDefaults(temperature=0.2, top_k=20, repetition_penalty=1.1)
    params = resolved(SamplingOptions(temperature=0.0, top_k=-1), suggested)
    assert (params.temperature, params.top_k) == (0.0, 0)
    assert params.repetition_penalty == 1.1
    assert (params.top_p, params.min_p, params.seed) == (1.0, 0.0, 7)


def test_a_temperature_that_would_overflow_is_raised_and_zero_stays_greedy() -> None:
    assert resolved(SamplingOptions(temperature=1e-30)).temperature == 0.01
    assert resolved(SamplingOptions(temperature=0)).temperature == 0.0


def test_a_negative_seed_is_a_seed() -> None:
    assert resolved(SamplingOptions(seed=-1)).seed == (1 << 64) - 1
    assert resolved(SamplingOptions(seed=0)).seed == 0


def test_length_left_open() -> None:
    assert resolved(SamplingOptions()).max_tokens == 90
    assert resolved(SamplingOptions(), GenerationDefaults(max_new_tokens=5)).max_tokens == 5
    assert resolved(SamplingOptions(default_max_tokens=16)).max_tokens == 16
    assert resolved(SamplingOptions(default_max_tokens=16), num_prompt_tokens=95).max_tokens == 5


@pytest.mark.parametrize(
    ("num_prompt_tokens", "asked", "param"), [(100, None, "prompt"), (10, 91, "max_tokens")]
)
def test_what_does_not_fit_the_context(num_prompt_tokens: int, asked: int | None, param: str) -> None:
    with pytest.raises(ContextLengthError, match="maximum context length is 100 tokens") as caught:
        resolved(SamplingOptions(max_tokens=asked), num_prompt_tokens=num_prompt_tokens)
    assert caught.value.param == param


def test_generation_config_is_read_and_the_rest_of_it_ignored() -> None:
    assert GenerationDefaults.from_mapping({}) == GenerationDefaults()
    found = {"temperature": 0.6, "top_k": 20, "do_sample": True, "top_p": None, "eos_token_id": [1, 2]}
    assert GenerationDefaults.from_mapping(found) == GenerationDefaults(temperature=0.6, top_k=20)
    for broken in ({"top_p": 0}, {"top_k": 1.5}, {"temperature": "hot"}):
        with pytest.raises(ArtifactError, match="generation_config"):
            GenerationDefaults.from_mapping(broken)


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    )


def error_of(body: type[ChatCompletionRequest] | type[CompletionRequest], raw: Any) -> MooringError:
    """As FastAPI reports it: under ``body``."""
    try:
        body.model_validate(raw)
    except ValidationError as error:
        return error_from_validation([{**e, "loc": ("body", *e["loc"])} for e in error.errors()])
    raise AssertionError("it was accepted")


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    body = chat(
        logit_bias={}, tools=None, tool_choice="auto", response_format={"type": "text"}, store=False,
        parallel_tool_calls=True, user="me", stop=None, temperature=None,
    )  # fmt: skip
    assert body.options() == chat().options()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("echo", True),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
        ("store", True),
        ("audio", {}),
        ("modalities", ["audio"]),
    ],
)
def test_fields_we_do_not_serve_are_refused_by_name(field: str, value: Any) -> None:
    error = error_of(ChatCompletionRequest, {"model": "m", "messages": [], field: value})
    assert (type(error), error.param) == (UnsupportedFieldError, field)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"temprature": 1}, "temprature", "unsupported_parameter"),
        ({"a[b]": 1}, "a[b]", "unsupported_parameter"),
        ({"stream_options": {"nope": 1}}, "stream_options.nope", "unsupported_parameter"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"stop": ["a", 1]}, "stop[1]", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].image_url",
            "unsupported_parameter",
        ),
    ],
)
def test_a_bad_body_names_the_field(change: dict[str, Any], param: str, code: str) -> None:
    raw = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **change}
    error = error_of(ChatCompletionRequest, raw)
    assert (error.param, error.code) == (param, code)


def test_fields_that_go_together() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(top_logprobs=2).options()
    assert caught.value.param == "top_logprobs"
    with pytest.raises(InvalidRequestError) as caught:
        chat(stream_options={"include_usage": True}).options()
    assert caught.value.param == "stream_options"
    options = chat(max_tokens=5, max_completion_tokens=7, logprobs=True, stop="x").options()
    assert (options.max_tokens, options.logprobs, options.stop) == (7, 0, ("x",))


def test_prompts_of_a_completion() -> None:
    def prompt(value: Any) -> Any:
        return CompletionRequest.model_validate({"model": "m", "prompt": value}).prompts()

    assert prompt("a") == prompt(["a"]) == ["a"]
    assert prompt([1, 2]) == prompt([[1, 2]]) == [(1, 2)]
    assert prompt(["a", "b"]) == ["a", "b"]
    assert prompt([[1], [2, 3]]) == [(1,), (2, 3)]
    assert prompt([]) == [()]


def test_messages_become_what_templates_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    answer = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "audio": None}
    body = chat(
        messages=[{"role": "developer", "content": "be kind"}, answer, {"role": "user", "content": parts}]
    )
    assert body.prompts() == [
        ChatPrompt(
            (
                {"role": "system", "content": "be kind"},
                {"role": "assistant", "content": "x"},
                {"role": "user", "content": "a\nb"},
            )
        )
    ]


def test_request_ids() -> None:
    assert request_id_from("mine-1") == "mine-1"
    for bad in (None, "", "a b", "a\nb", "x" * 129, "é"):
        made = request_id_from(bad)
        assert made != bad
        assert len(made) == 32
