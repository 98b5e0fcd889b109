"""Translates the KServe core's values into protobuf messages and back; the stubs are those of
``tritonclient``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2

from mooring.errors import InvalidRequestError, UnsupportedFieldError
from router.doors.kserve.answer import Answer
from router.doors.kserve.inputs import InferRequest, check_counts, check_request_id, parse_request
from router.doors.kserve.metadata import ModelMetadata, TensorMetadata
from router.doors.kserve.repository import IndexEntry
from router.doors.kserve.statistics import Duration, ModelStatistics
from router.doors.kserve.tensors import Tensor, check_tensor, decode_tensor, encode_values
from router.doors.prediction import whole_ms

__all__ = [
    "StreamResponse",
    "config_message",
    "error_message",
    "index_message",
    "infer_message",
    "metadata_message",
    "parameters_of",
    "read_infer_request",
    "statistics_message",
]

_FINAL = "triton_final_response"
_PREDICTED = "predicted_ttft_ms"
_MAX_QUOTED_CHARS = 1024  # an id that is accepted is no longer
# The field with the typed contents of a datatype; FP16 and BF16 have none and come raw.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def read_infer_request(message: Any) -> InferRequest:
    """Reads a ``ModelInferRequest``.

    Raises:
        InvalidRequestError: a tensor, a parameter, an output or the id is wrong; the message names it.
    """
    check_request_id(message.id)
    check_counts(len(message.inputs), len(message.outputs))
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequestError(
            f"There are {len(message.inputs)} inputs and {len(raw)} raw_input_contents.",
            param="raw_input_contents",
        )
    for tensor in (*message.inputs, *message.outputs):
        for name in tensor.parameters:
            raise UnsupportedFieldError(
                f"Parameter '{name}' of tensor '{tensor.name}' is not supported.", param=tensor.name
            )
    return parse_request(
        [_raw_tensor(*pair) for pair in zip(message.inputs, raw, strict=True)]
        if raw
        else [_typed_tensor(tensor) for tensor in message.inputs],
        parameters_of(message.parameters),
        [output.name for output in message.outputs],
    )


def parameters_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Request or repository parameters as plain values.

    Raises:
        InvalidRequestError: a parameter has no value; the message names it.
    """
    values = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidRequestError(f"Parameter '{name}' has no value.", param=name)
        values[name] = getattr(parameter, kind)
    return values


def _raw_tensor(tensor: Any, raw: bytes) -> Tensor:
    if tensor.HasField("contents"):
        raise InvalidRequestError(
            f"Invalid tensor '{tensor.name}': it has contents beside raw_input_contents, and only one of the "
            f"two can be.",
            param=tensor.name,
        )
    return decode_tensor(tensor.name, tensor.datatype, tensor.shape, raw)


def _typed_tensor(tensor: Any) -> Tensor:
    if not tensor.HasField("contents"):
        raise InvalidRequestError(f"Tensor '{tensor.name}' came without data.", param=tensor.name)
    expected = _CONTENTS.get(tensor.datatype)
    for field, _ in tensor.contents.ListFields():
        if field.name != expected:
            raise InvalidRequestError(
                f"Invalid tensor '{tensor.name}': {tensor.datatype} is not sent in {field.name}.",
                param=tensor.name,
            )
    values = getattr(tensor.contents, expected) if expected else ()
    return check_tensor(tensor.name, tensor.datatype, tensor.shape, values)


def infer_message(name: str, version: str, request_id: str, outputs: Sequence[Tensor]) -> Any:
    """A ``ModelInferResponse`` with raw tensors."""
    message = service_pb2.ModelInferResponse(model_name=name, model_version=version, id=request_id)
    _set_outputs(message, outputs)
    return message


def error_message(name: str, version: str, request_id: str, text: str) -> Any:
    """The ``ModelStreamInferResponse`` that ends a failed request; its id tells which request failed. Long texts are
    cut: they quote what the client sent."""
    name, version, request_id, text = (each[:_MAX_QUOTED_CHARS] for each in (name, version, request_id, text))
    message = service_pb2.ModelStreamInferResponse(
        error_message=text.encode("utf-8", "replace").decode(),
        infer_response=infer_message(name, version, request_id, ()),
    )
    message.infer_response.parameters[_FINAL].bool_param = True
    return message


class StreamResponse:
    """The responses of one request in a stream. One message serves for all of them, since answers mostly
    differ in a few bytes; gRPC must have serialized the message before the next answer is put into it."""

    def __init__(self, name: str, version: str, request_id: str) -> None:
        self._message = service_pb2.ModelStreamInferResponse(
            infer_response=infer_message(name, version, request_id, ())
        )
        self._response = self._message.infer_response
        self._final = self._response.parameters[_FINAL]
        self._final.bool_param = False
        self._shapes: list[tuple[int, ...]] = []

    def of(self, answer: Answer) -> Any:
        """The message with the next answer in it; the answer before it is gone."""
        outputs = answer.outputs
        shapes = [tensor.shape for tensor in outputs]
        if shapes == self._shapes:
            raw = self._response.raw_output_contents
            for place, tensor in enumerate(outputs):
                raw[place] = encode_values(tensor.datatype, tensor.values)
        else:
            _set_outputs(self._response, outputs)
            self._shapes = shapes
            if answer.predicted_ttft_s is not None:
                self._response.parameters[_PREDICTED].int64_param = whole_ms(answer.predicted_ttft_s)
        if answer.final:
            self._final.bool_param = True
        return self._message


def _set_outputs(message: Any, outputs: Sequence[Tensor]) -> None:
    del message.outputs[:]
    for tensor in outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    message.raw_output_contents[:] = [encode_values(tensor.datatype, tensor.values) for tensor in outputs]


def metadata_message(metadata: ModelMetadata) -> Any:
    """A ``ModelMetadataResponse``."""
    return service_pb2.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=[_tensor_message(tensor) for tensor in metadata.inputs],
        outputs=[_tensor_message(tensor) for tensor in metadata.outputs],
    )


def _tensor_message(tensor: TensorMetadata) -> Any:
    return service_pb2.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
    )


def config_message(config: Mapping[str, Any]) -> Any:
    """A ``ModelConfigResponse``."""
    message = json_format.ParseDict(dict(config), model_config_pb2.ModelConfig())
    return service_pb2.ModelConfigResponse(config=message)


def index_message(entries: Iterable[IndexEntry]) -> Any:
    """A ``RepositoryIndexResponse``."""
    message = service_pb2.RepositoryIndexResponse()
    for entry in entries:
        message.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
    return message


def statistics_message(models: Iterable[ModelStatistics]) -> Any:
    """A ``ModelStatisticsResponse``."""
    return service_pb2.ModelStatisticsResponse(
        model_stats=[
            service_pb2.ModelStatistics(
                name=each.name,
                version=each.version,
                last_inference=each.last_inference_ms,
                inference_count=each.inference_count,
                execution_count=each.inference_count,
                inference_stats=service_pb2.InferStatistics(
                    success=_duration(each.success),
                    fail=_duration(each.fail),
                    queue=_duration(each.queue),
                    compute_infer=_duration(each.compute_infer),
                ),
            )
            for each in models
        ]
    )


def _duration(duration: Duration) -> Any:
    return service_pb2.StatisticDuration(count=duration.count, ns=duration.total_ns)
