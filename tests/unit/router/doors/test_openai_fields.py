"""Every field of OpenAI's and vLLM's requests is served, or refused by its name; none is ignored."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from pydantic import BaseModel, ValidationError
from support.paths import ROOT

from mooring.errors import MooringError
from router.doors.http.errors import error_from_validation
from router.doors.openai.bodies import ChatCompletionRequest, CompletionRequest

# vLLM's vllm/entrypoints/openai/{completion,chat_completion}/protocol.py, of November 2026.
_VLLM_SHARED = [
    *("model", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n"),
    *("presence_penalty", "seed", "stop", "stream", "stream_options", "temperature", "top_p"),
    *("user", "use_beam_search", "top_k", "min_p", "repetition_penalty", "watermarking"),
    *("length_penalty", "stop_token_ids", "include_stop_str_in_output", "ignore_eos"),
    *("min_tokens", "skip_special_tokens", "spaces_between_special_tokens"),
    *("truncate_prompt_tokens", "truncation_side", "allowed_token_ids", "prompt_logprobs"),
    *("logprob_token_ids", "bad_words", "add_special_tokens", "response_format"),
    *("structured_outputs", "priority", "request_id", "session_id", "return_tokens_as_token_ids"),
    *("return_token_ids", "routed_experts_prompt_start", "return_token_offsets"),
    *("return_mm_kwargs", "cache_salt", "kv_transfer_params", "ec_transfer_params", "vllm_xargs"),
    *("repetition_detection", "thinking_token_budget", "stream_interval", "echo"),
]
_VLLM: dict[type[BaseModel], list[str]] = {
    CompletionRequest: [*_VLLM_SHARED, "prompt", "suffix", "prompt_embeds"],
    ChatCompletionRequest: [
        *_VLLM_SHARED,
        *("messages", "top_logprobs", "max_completion_tokens", "tools", "tool_choice", "reasoning_effort"),
        *("include_reasoning", "parallel_tool_calls", "add_generation_prompt", "continue_final_message"),
        *("documents", "chat_template", "chat_template_kwargs", "media_io_kwargs", "mm_processor_kwargs"),
        "return_prompt_text",
    ],
}
_OPENAI: dict[type[BaseModel], set[str]] = {
    CompletionRequest: completion_params.CompletionCreateParamsNonStreaming.__annotations__.keys()
    | completion_params.CompletionCreateParamsBase.__annotations__.keys(),
    ChatCompletionRequest: chat_params.CompletionCreateParamsNonStreaming.__annotations__.keys()
    | chat_params.CompletionCreateParamsBase.__annotations__.keys(),
}
# What a client may always send: vLLM's defaults that its own tools write out, and OpenAI's.
_DEFAULTS: dict[str, Any] = {
    "best_of": 1, "include_reasoning": True, "length_penalty": 1.0, "priority": 0, "stream_interval": 1,
    "skip_special_tokens": True, "spaces_between_special_tokens": True, "thinking_token_budget": -1,
    "parallel_tool_calls": True, "tool_choice": "none", "use_beam_search": False, "echo": False, "suffix": "",
    "return_token_ids": False, "return_mm_kwargs": True, "store": False, "service_tier": "auto",
    "response_format": {"type": "text"}, "modalities": ["text"], "tools": [], "vllm_xargs": {},
}  # fmt: skip
_SERVED_BY_BOTH = {
    *("model", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty", "seed"),
    *("stop", "stream", "stream_options", "temperature", "top_p", "user", "top_k", "min_p", "min_tokens"),
    *("repetition_penalty", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "bad_words"),
    *("skip_special_tokens", "truncate_prompt_tokens", "prompt_logprobs", "add_special_tokens"),
    *("return_tokens_as_token_ids", "safety_identifier", "cache_salt", "service_tier"),
}
_SERVED: dict[type[BaseModel], set[str]] = {
    CompletionRequest: {*_SERVED_BY_BOTH, "prompt", "echo", "best_of"},
    ChatCompletionRequest: {
        *_SERVED_BY_BOTH,
        *("messages", "top_logprobs", "max_completion_tokens", "add_generation_prompt"),
        *("continue_final_message", "chat_template_kwargs", "metadata"),
    },
}
_BASE: dict[type[BaseModel], dict[str, Any]] = {
    CompletionRequest: {"model": "m", "prompt": "hi"},
    ChatCompletionRequest: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}
_CASES = [
    (body, field)
    for body in (CompletionRequest, ChatCompletionRequest)
    for field in sorted({*_VLLM[body], *_OPENAI[body]})
]


def refusal(body: type[BaseModel], **fields: Any) -> MooringError | None:
    try:
        body.model_validate({**_BASE[body], **fields})
    except ValidationError as error:
        return error_from_validation([{**each, "loc": ("body", *each["loc"])} for each in error.errors()])
    return None


def test_the_lists_are_those_of_the_bodies() -> None:
    for body, served in _SERVED.items():
        assert set(body.model_fields) == served


@pytest.mark.parametrize(("body", "field"), _CASES)
def test_a_field_is_served_or_refused_by_name(body: type[BaseModel], field: str) -> None:
    if field in _SERVED[body]:
        return
    # No value of such a field asks for this; one that is unknown altogether is refused with any value.
    error = refusal(body, **{field: {"ask": "for something"}})
    assert error is not None
    assert (error.param, error.code) == (field, "unsupported_parameter")


@pytest.mark.parametrize(("body", "field"), _CASES)
def test_null_asks_for_nothing(body: type[BaseModel], field: str) -> None:
    if field not in _BASE[body]:
        assert refusal(body, **{field: None}) is None


@pytest.mark.parametrize("body", [CompletionRequest, ChatCompletionRequest])
def test_defaults_may_be_written_out(body: type[BaseModel]) -> None:
    known = {*_VLLM[body], *_OPENAI[body]}
    assert refusal(body, **{name: value for name, value in _DEFAULTS.items() if name in known}) is None
    assert refusal(body, stream=True, stream_options={"include_obfuscation": False}) is None


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "image_url"),
        ({"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}, "input_audio"),
        ({"type": "file", "file": {"file_id": "x"}}, "file"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "video_url"),
    ],
)
def test_a_part_that_is_no_text_is_refused_where_it_stands(part: dict[str, Any], field: str) -> None:
    content = [{"type": "text", "text": "look"}, part]
    error = refusal(ChatCompletionRequest, messages=[{"role": "user", "content": content}])
    assert error is not None
    assert (error.param, error.code) == (f"messages[0].content[1].{field}", "unsupported_parameter")


@pytest.mark.parametrize(
    ("metadata", "param"),
    [
        ({f"k{number}": "v" for number in range(17)}, "metadata"),
        ({"k" * 65: "v"}, "metadata." + "k" * 65),
        ({"long": "v" * 513}, "metadata.long"),
        ({"number": 7}, "metadata.number"),
        (["a", "b"], "metadata"),
    ],
    ids=["too many", "a long key", "a long value", "no text", "no object"],
)
def test_metadata_beyond_openais_limits_is_refused_where_it_stands(metadata: Any, param: str) -> None:
    error = refusal(ChatCompletionRequest, metadata=metadata)
    assert error is not None
    assert error.param == param
    assert error.code in ("invalid_value", "invalid_type")


def test_metadata_within_openais_limits_is_taken() -> None:
    most = {f"{number:064}": "v" * 512 for number in range(16)}
    body = ChatCompletionRequest.model_validate({**_BASE[ChatCompletionRequest], "metadata": most})
    assert body.metadata_pairs() == tuple(most.items())


def test_the_page_names_every_field() -> None:
    page = (ROOT / "docs" / "http.md").read_text()
    fields = {field for body in _BASE for field in (*_VLLM[body], *_OPENAI[body])}
    assert sorted(field for field in fields if f"`{field}`" not in page) == []


def test_options_of_streams_are_refused_by_name() -> None:
    error = refusal(CompletionRequest, stream=True, stream_options={"include_obfuscation": True})
    assert error is not None
    assert error.param == "stream_options.include_obfuscation"


def test_tools_of_an_old_answer_are_refused_where_they_stand() -> None:
    answer = {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}
    error = refusal(ChatCompletionRequest, messages=[*_BASE[ChatCompletionRequest]["messages"], answer])
    assert error is not None
    assert (error.param, error.code) == ("messages[1].tool_calls", "unsupported_parameter")


def test_a_message_of_a_tool_is_refused_by_its_role() -> None:
    message = {"role": "tool", "tool_call_id": "1", "content": "x"}
    error = refusal(ChatCompletionRequest, messages=[*_BASE[ChatCompletionRequest]["messages"], message])
    assert error is not None
    assert (error.param, error.code) == ("messages[1].role", "unsupported_parameter")


def test_a_message_may_say_that_it_is_text() -> None:
    message = {"type": "text", "role": "user", "content": "x"}  # as lm-eval's local-chat-completions does
    assert refusal(ChatCompletionRequest, messages=[message]) is None
    error = refusal(ChatCompletionRequest, messages=[{**message, "type": "image"}])
    assert error is not None
    assert (error.param, error.code) == ("messages[0].type", "unsupported_parameter")
