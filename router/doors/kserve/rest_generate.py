"""Triton's generate extension: text in, text out, as plain JSON or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from mooring.errors import InvalidRequestError
from router.doors.http.sse import event
from router.doors.kserve.answer import Answer
from router.doors.kserve.inputs import InferRequest, parse_request
from router.doors.kserve.rest_body import json_object
from router.doors.kserve.rest_infer import json_values, request_id_of
from router.doors.kserve.tensors import Tensor
from router.request.served_model import ServedModel

__all__ = ["GenerateCall", "answer_generate", "generate_events", "read_generate"]


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """A request of ``generate`` or ``generate_stream``. ``request_id`` is empty if the client sent none."""

    request_id: str
    request: InferRequest


def read_generate(body: bytes) -> GenerateCall:
    """Reads a request, whose inputs and parameters stand side by side in one object, or under ``parameters``.

    Raises:
        InvalidRequestError: something about it is wrong; the message names it.
    """
    fields = json_object(body)
    request_id = request_id_of(fields)
    fields.pop("id", None)
    nested = fields.pop("parameters", None) or {}
    if not isinstance(nested, dict):
        raise InvalidRequestError("Invalid 'parameters': it must be an object.", param="parameters")
    for name in nested:
        if name in fields:
            raise InvalidRequestError(f"Input '{name}' was given twice, also under 'parameters'.", param=name)
    return GenerateCall(request_id, parse_request([], {**fields, **nested}))


def answer_generate(model: ServedModel, call: GenerateCall, outputs: Sequence[Tensor]) -> bytes:
    """An answer as JSON, with each output by its name: a single value by itself, several in a list."""
    named = {"id": call.request_id} if call.request_id else {}
    return orjson.dumps(
        {
            **named,
            "model_name": model.name,
            "model_version": str(model.version),
            **{tensor.name: _value(tensor) for tensor in outputs},
        }
    )


async def generate_events(
    model: ServedModel, call: GenerateCall, first: Answer, rest: AsyncGenerator[Answer, None]
) -> AsyncIterator[bytes]:
    """Yields an event for each answer that has outputs."""
    yield event(answer_generate(model, call, first.outputs))
    async for answer in rest:
        if answer.outputs:
            yield event(answer_generate(model, call, answer.outputs))


def _value(tensor: Tensor) -> Any:
    values = json_values(tensor)
    return values[0] if len(values) == 1 else values
