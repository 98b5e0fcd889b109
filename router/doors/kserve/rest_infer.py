"""``infer`` over REST: tensors as JSON, or as bytes behind the JSON (Triton's binary data extension)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.responses import Response

from mooring.errors import InvalidRequestError, UnsupportedFieldError
from router.doors.kserve.inputs import InferRequest, check_counts, check_request_id, parse_request
from router.doors.kserve.rest_body import json_object, refuse_others
from router.doors.kserve.tensors import Tensor, check_tensor, decode_tensor, encode_values
from router.request.served_model import ServedModel

__all__ = ["HEADER_LENGTH", "InferCall", "answer_infer", "json_values", "read_infer", "request_id_of"]

HEADER_LENGTH = "inference-header-content-length"
"""The header that says how many bytes of the body are JSON, if tensor data follows it."""

_SHARED_MEMORY = "shared_memory_"
_MAX_DIGITS = 20  # Python refuses to read numbers of thousands of digits


@dataclass(frozen=True, slots=True)
class InferCall:
    """A request of ``infer``.

    Attributes:
        request_id: the client's own id; empty if it sent none.
        request: the request itself.
        is_binary: by the name of an output, whether it is to come as bytes.
        default_is_binary: whether all other outputs are.
    """

    request_id: str
    request: InferRequest
    is_binary: Mapping[str, bool]
    default_is_binary: bool


def read_infer(body: bytes, header_length: str | None) -> InferCall:
    """Reads a request.

    Args:
        header_length: value of the header ``HEADER_LENGTH``; None if there is none: then the whole body is
            JSON.

    Raises:
        InvalidRequestError: something about the request is wrong; the message names it.
    """
    num_json_bytes = _num_json_bytes(body, header_length)
    call = json_object(body[:num_json_bytes])
    refuse_others(call, ("id", "parameters", "inputs", "outputs"), "the request")
    request_id = request_id_of(call)
    parameters = dict(_optional(call, "parameters", dict, "the request"))
    default_is_binary = _flag(parameters, "binary_data_output", default=False)
    described, wanted = (_optional(call, name, list, "the request") for name in ("inputs", "outputs"))
    check_counts(len(described), len(wanted))
    inputs = _read_inputs(described, body[num_json_bytes:])
    is_binary = _read_outputs(wanted, default_is_binary)
    request = parse_request(inputs, parameters, list(is_binary))
    return InferCall(request_id, request, is_binary, default_is_binary)


def answer_infer(model: ServedModel, call: InferCall, outputs: Sequence[Tensor]) -> Response:
    """The response with all output tensors."""
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for tensor in outputs:
        shown: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if call.is_binary.get(tensor.name, call.default_is_binary):
            tail.append(encode_values(tensor.datatype, tensor.values))
            shown["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            shown["data"] = json_values(tensor)
        described.append(shown)
    named = {"id": call.request_id} if call.request_id else {}
    head = orjson.dumps(
        {**named, "model_name": model.name, "model_version": str(model.version), "outputs": described}
    )
    if not tail:
        return Response(head, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(head))}
    return Response(b"".join((head, *tail)), 200, headers, media_type="application/octet-stream")


def json_values(tensor: Tensor) -> list[Any]:
    """A tensor's values as JSON has them; outputs of ``BYTES`` are text."""
    return [value.decode() for value in tensor.values] if tensor.datatype == "BYTES" else list(tensor.values)


def request_id_of(call: Mapping[str, Any]) -> str:
    """The client's own id; empty if it sent none.

    Raises:
        InvalidRequestError: the id is no text, or too long.
    """
    request_id = call.get("id", "")
    if not isinstance(request_id, str):
        raise InvalidRequestError("Invalid 'id': it must be a text.", param="id")
    check_request_id(request_id)
    return request_id


def _num_json_bytes(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    is_number = header_length.isascii() and header_length.isdecimal() and len(header_length) <= _MAX_DIGITS
    if not is_number or int(header_length) > len(body):
        raise InvalidRequestError(
            f"Invalid header '{HEADER_LENGTH}': it must be the number of bytes of the JSON in the body.",
            param=HEADER_LENGTH,
        )
    if int(header_length) == 0:
        raise InvalidRequestError(
            "A body of tensor data alone is for models of one input, and these have several: say which it is.",
            param=HEADER_LENGTH,
        )
    return int(header_length)


def _read_inputs(described: Sequence[Any], tail: bytes) -> list[Tensor]:
    tensors = []
    at = 0
    for each in described:
        name, datatype, shape = _described(each)
        parameters = dict(_optional(each, "parameters", dict, f"input '{name}'"))
        num_bytes = parameters.pop("binary_data_size", None)
        _refuse_parameters(parameters, f"input '{name}'")
        if num_bytes is None:
            tensors.append(check_tensor(name, datatype, shape, _flat(name, each.get("data"))))
            continue
        if type(num_bytes) is not int or not 0 <= num_bytes <= len(tail) - at:
            raise _wrong(
                name, f"its 'binary_data_size' is {num_bytes!r}, and {len(tail) - at} bytes are left"
            )
        if "data" in each:
            raise _wrong(name, "it has both 'data' and 'binary_data_size'")
        tensors.append(decode_tensor(name, datatype, shape, tail[at : at + num_bytes]))
        at += num_bytes
    if at != len(tail):
        raise InvalidRequestError(f"{len(tail) - at} bytes of the body are no input's.", param="inputs")
    return tensors


def _read_outputs(described: Sequence[Any], default_is_binary: bool) -> dict[str, bool]:
    is_binary: dict[str, bool] = {}
    for each in described:
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise InvalidRequestError("Every output must be an object with a 'name'.", param="outputs")
        name = each["name"]
        where = f"output '{name}'"
        refuse_others(each, ("name", "parameters"), where)
        parameters = dict(_optional(each, "parameters", dict, where))
        if name in is_binary:
            raise InvalidRequestError(f"Output '{name}' was requested twice.", param=name)
        is_binary[name] = _flag(parameters, "binary_data", default=default_is_binary)
        _refuse_parameters(parameters, where)
    return is_binary


def _described(each: Any) -> tuple[str, str, list[int]]:
    if not isinstance(each, dict) or not isinstance(each.get("name"), str):
        raise InvalidRequestError("Every input must be an object with a 'name'.", param="inputs")
    name, datatype, shape = each["name"], each.get("datatype"), each.get("shape")
    refuse_others(each, ("name", "datatype", "shape", "parameters", "data"), f"input '{name}'")
    if not isinstance(datatype, str):
        raise _wrong(name, "it needs a 'datatype'")
    if not isinstance(shape, list) or not all(type(dim) is int for dim in shape):
        raise _wrong(name, "it needs a 'shape', a list of whole numbers")
    return name, datatype, shape


def _flat(name: str, data: Any) -> list[Any]:
    """Flattens nested lists, which the protocol allows instead of a flat one."""
    if not isinstance(data, list):
        raise _wrong(name, "it needs 'data', a list")
    while any(isinstance(each, list) for each in data):
        if not all(isinstance(each, list) for each in data):
            raise _wrong(name, "its 'data' is nested in part")
        data = [value for each in data for value in each]
    values: list[Any] = data
    return values


def _refuse_parameters(parameters: Mapping[str, Any], where: str) -> None:
    for name in parameters:
        if name.startswith(_SHARED_MEMORY):
            raise UnsupportedFieldError(
                f"'{name}' of {where}: client shared memory is not supported, send tensors in the request.",
                param=name,
            )
        raise UnsupportedFieldError(f"Parameter '{name}' of {where} is not supported.", param=name)


def _optional(fields: Mapping[str, Any], name: str, kind: type[Any], where: str) -> Any:
    """A field of this type; empty if it is missing."""
    value = fields.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InvalidRequestError(
            f"Invalid '{name}' of {where}: it must be {'an object' if kind is dict else 'a list'}.",
            param=name,
        )
    return value


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.pop(name, default)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"Invalid '{name}': it must be true or false.", param=name)
    return value


def _wrong(name: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid tensor '{name}': {what}.", param=name)
