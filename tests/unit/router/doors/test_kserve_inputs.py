"""What a KServe request's inputs mean, wherever they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from support.paths import ROOT
from support.router_doors import served_model
from tritonclient.grpc import model_config_pb2

from mooring.errors import InvalidRequestError, UnsupportedFieldError
from router.doors.kserve.fields import FIELDS
from router.doors.kserve.inputs import InferRequest, parse_request
from router.doors.kserve.metadata import model_config, model_metadata
from router.doors.kserve.outputs import OUTPUTS
from router.doors.kserve.tensors import Tensor
from router.request.sampling import SamplingOptions

PAGE = (ROOT / "docs" / "kserve.md").read_text()


def parsed(*tensors: Tensor, outputs: tuple[str, ...] = (), **parameters: Any) -> InferRequest:
    return parse_request([Tensor("text_input", "BYTES", (1,), [b"hi"]), *tensors], parameters, outputs)


def test_the_least_request() -> None:
    request = parsed()
    assert request.prompt == "hi"
    assert request.options == SamplingOptions(default_max_tokens=16, prompt_field="text_input")
    assert (request.stream, request.prepend_prompt, request.outputs) == (False, True, ("text_output",))
    assert (request.empty_final, request.timeout_s) == (False, None)


@pytest.mark.parametrize(
    ("given", "stream", "prepends"),
    [
        ({}, False, True),
        ({"exclude_input_in_output": True}, False, False),
        ({"exclude_input_in_output": False}, False, True),
        ({"stream": True}, True, False),
        ({"stream": True, "exclude_input_in_output": True}, True, False),
        ({"stream": "true"}, True, False),
    ],
)
def test_only_a_whole_answer_begins_with_the_prompt(
    given: dict[str, Any], stream: bool, prepends: bool
) -> None:
    request = parsed(**given)
    assert (request.stream, request.prepend_prompt) == (stream, prepends)


def test_a_stream_cannot_hold_the_prompt() -> None:
    with pytest.raises(InvalidRequestError, match="exclude_input_in_output"):
        parsed(stream=True, exclude_input_in_output=False)


@pytest.mark.parametrize(
    ("given", "ids", "ignores"),
    [
        ({"end_id": 7}, (7,), True),
        ({"end_id": -1}, (), True),
        ({"end_id": 7, "stop_token_ids": [1]}, (1, 7), True),
    ],
)
def test_end_id_takes_the_place_of_the_models_own(
    given: dict[str, Any], ids: tuple[int, ...], ignores: bool
) -> None:
    options = parsed(**given).options
    assert (options.stop_token_ids, options.ignore_eos) == (ids, ignores)


@pytest.mark.parametrize("empty", ["", [""], []])
def test_empty_words_say_nothing_as_tensorrt_llms_clients_send_them(empty: Any) -> None:
    assert parsed(stop_words=empty, bad_words=empty, embedding_bias_words=empty).options == parsed().options
    assert parsed(stop_words=["", "a"]).options.stop == ("a",)
    assert parsed(stop=[""]).options.stop == ("",)  # vLLM's, which is refused further on


def test_a_list_of_one_is_the_value_itself() -> None:
    given: dict[str, Any] = {
        "end_id": [7],
        "pad_id": [7],
        "max_tokens": [4],
        "stream": [True],
        "stop_token_ids": [1],
    }
    request = parsed(**given)
    assert request.stream
    assert (request.options.max_tokens, request.options.stop_token_ids) == (4, (1, 7))
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        parsed(max_tokens=[1, 2])


@pytest.mark.parametrize(
    ("given", "top_k"), [({}, 1), ({"top_k": 0}, 1), ({"top_k": -1}, 1), ({"top_k": 5}, 5)]
)
def test_top_p_of_0_leaves_the_choice_to_top_k(given: dict[str, Any], top_k: int) -> None:
    options = parsed(top_p=0, **given).options
    assert (options.top_p, options.top_k) == (1.0, top_k)


def test_what_has_two_names_comes_once() -> None:
    assert parsed(min_length=3).options.min_tokens == 3
    for given in ({"seed": 1, "random_seed": 1}, {"stop": "a", "stop_words": ["b"]}):
        with pytest.raises(InvalidRequestError, match="twice"):
            parsed(**given)
    with pytest.raises(InvalidRequestError, match="'n' was given twice"):
        parsed(n=1, sampling_parameters=json.dumps({"n": 2}))


@pytest.mark.parametrize(
    ("name", "neutral", "other"),
    [
        ("beam_width", 1, 2),
        ("length_penalty", 1.0, 0.5),
        ("return_context_logits", False, True),
        ("embedding_bias_words", [], ["a"]),
        ("priority", 0, 1),
        ("detokenize", True, False),
        ("lora_name", None, "mine"),
        ("sequence_id", None, 3),
    ],
)
def test_what_is_not_served_may_say_nothing(name: str, neutral: Any, other: Any) -> None:
    assert parsed(**{name: neutral}).options == parsed().options
    with pytest.raises(UnsupportedFieldError, match=name):
        parsed(**{name: other})


@pytest.mark.parametrize(
    "given",
    [
        {"max_tokens": "many"},
        {"end_id": -2},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"top_p": "NaN or so"},
        {"stream": 1},
        {"stop_words": [1]},
        {"stop_token_ids": ["a"]},
        {"logit_bias": {"x": 1}},
        {"sampling_parameters": "[]"},
        {"sampling_parameters": '{"text_input": "again"}'},
        {"timeout": -1},
        {"timeout": 1.5},
        {"triton_enable_empty_final_response": 1},
        {"triton_other": True},
    ],
)
def test_a_wrong_value_is_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(given))):
        parsed(**given)


def test_values_of_parameters_may_be_spelled() -> None:
    options = parsed(
        max_tokens="5", temperature="0.5", logit_bias='{"3": -1.5}', stop_token_ids="[1, 2]"
    ).options
    assert (options.max_tokens, options.temperature) == (5, 0.5)
    assert (options.logit_bias, options.stop_token_ids) == (((3, -1.5),), (1, 2))


def test_outputs_that_hold_log_probabilities_ask_for_them() -> None:
    assert parsed().options.logprobs is None
    assert parsed(return_log_probs=True).options.logprobs == 0
    assert parsed(return_log_probs=True).outputs == ("text_output", "cum_log_probs", "output_log_probs")
    assert parsed(outputs=("logprobs",)).options.logprobs == 0
    assert parsed(outputs=("logprobs",), logprobs=3).options.logprobs == 3
    with pytest.raises(InvalidRequestError, match="twice"):
        parsed(outputs=("logprobs", "logprobs"))


def test_the_configuration_is_one_of_tritons(tmp_path: Path) -> None:
    model = served_model("a/b", tmp_path)
    config = json_format.ParseDict(dict(model_config(model)), model_config_pb2.ModelConfig())
    assert [each.name for each in config.output] == list(OUTPUTS)
    assert {each.name for each in model_metadata(model).inputs} == {
        name for name, field in FIELDS.items() if field.datatypes and not field.refused
    }


def test_every_input_and_output_is_in_the_page() -> None:
    for name in [*(name for name, field in FIELDS.items() if not field.refused), *OUTPUTS]:
        assert f"`{name}`" in PAGE, name
