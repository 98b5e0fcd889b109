"""A sampling parameter that is declared once is there at every door and on the way to the engine."""

from __future__ import annotations

import numpy as np
import pytest

from engines.api import SamplingParams, SequenceRequest
from engines.link.wire import sequence_from_wire, sequence_to_wire
from mooring.v1 import engine_pb2, inference_pb2
from router.doors.kserve.fields import FIELDS
from router.doors.kserve.inputs import parse_request
from router.doors.openai.bodies import ChatCompletionRequest, CompletionRequest
from router.request.bounds import RouterConfig
from router.request.sampling import (
    PLAIN_OPTIONS,
    GenerationDefaults,
    SamplingOptions,
    check_options,
    resolve_sampling,
)

OTHERS = {
    "temperature": 0.5,
    "top_p": 0.25,
    "top_k": 7,
    "min_p": 0.125,
    "repetition_penalty": 2.0,
    "presence_penalty": -1.5,
    "frequency_penalty": 1.5,
    "min_tokens": 3,
    "seed": 11,
    "ignore_eos": True,
}
"""A value of each that is not its default, exact in single precision."""


def resolved(options: SamplingOptions) -> SamplingParams:
    check_options(options, RouterConfig())
    return resolve_sampling(
        options,
        GenerationDefaults(),
        num_prompt_tokens=1,
        max_model_len=64,
        new_seed=5,
        config=RouterConfig(),
    )


def test_there_is_a_value_for_each() -> None:
    assert OTHERS.keys() == PLAIN_OPTIONS.keys()
    assert all(value != PLAIN_OPTIONS[name].default for name, value in OTHERS.items())


@pytest.mark.parametrize("name", PLAIN_OPTIONS)
def test_every_door_and_the_engine_have_it(name: str) -> None:
    value = OTHERS[name]
    bodies = (
        CompletionRequest.model_validate({"model": "m", "prompt": "a", name: value}),
        ChatCompletionRequest.model_validate(
            {"model": "m", "messages": [{"role": "user", "content": "a"}], name: value}
        ),
    )
    assert [getattr(body.options(), name) for body in bodies] == [value, value]
    assert FIELDS[name].option == name
    assert getattr(parse_request((), {"text_input": "a", name: value}).options, name) == value
    grpc_request = inference_pb2.GenerateTextRequest(**{name: value})
    assert grpc_request.HasField(name)
    assert engine_pb2.SamplingParams.DESCRIPTOR.fields_by_name[name]
    params = resolved(SamplingOptions(**{name: value}))
    assert getattr(params, name) == value
    prompt_ids = np.ones(1, np.int32)
    sent = sequence_to_wire(SequenceRequest(1, "r", prompt_ids, params), now_s=0.0)
    assert sequence_from_wire(sent, prompt_ids, 1, now_s=0.0).sampling == params


def test_what_is_left_out_has_its_default() -> None:
    params = resolved(SamplingOptions())
    left_out = {name: getattr(params, name) for name in PLAIN_OPTIONS}
    assert left_out == {name: each.default for name, each in PLAIN_OPTIONS.items()} | {"seed": 5}
