"""Turns a request's input tensors and parameters into what to generate and what to answer.

An input may come as a tensor, as a parameter of the request, or in the JSON of ``sampling_parameters``. It
means the same in each place, and may come only once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mooring.errors import InvalidRequestError, UnsupportedFieldError
from router.doors.http.json_body import read_json
from router.doors.kserve.fields import FIELDS, Field, Kind
from router.doors.kserve.outputs import OUTPUTS
from router.doors.kserve.tensors import MAX_VALUES, Tensor
from router.request.sampling import DEFAULT_COMPLETION_TOKENS, SamplingOptions

__all__ = ["InferRequest", "check_counts", "check_request_id", "parse_request"]

_RETURNS = {
    "return_finish_reason": ("finish_reason",),
    "return_num_input_tokens": ("num_input_tokens",),
    "return_num_output_tokens": ("num_output_tokens",),
    "return_cumulative_logprob": ("cumulative_logprob",),
    "return_logprobs": ("logprobs",),
    "return_log_probs": ("cum_log_probs", "output_log_probs"),
}
_NEEDS_LOGPROBS = {"cumulative_logprob", "logprobs", "cum_log_probs", "output_log_probs"}
_MAX_TIMEOUT_US = 1 << 53
_MAX_ID_CHARS = 1024  # each answer of a stream repeats the id
_MAX_SPELLED_CHARS = 64


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A KServe request, read.

    Attributes:
        stream: whether each step has an answer; otherwise one answer has everything.
        prepend_prompt: whether the text of a whole answer begins with the prompt, as it does by default in
            both backends.
        outputs: names of the answer's tensors, in order.
        empty_final: whether an answer without tensors ends the request.
        timeout_s: seconds after which the request fails; None means never.
        slo_class: the SLO class that it names, or None.
        names: the name under which each option came, for messages.
    """

    prompt: str
    options: SamplingOptions
    stream: bool
    prepend_prompt: bool
    outputs: tuple[str, ...]
    empty_final: bool
    timeout_s: float | None
    slo_class: str | None
    names: Mapping[str, str]


def parse_request(
    inputs: Sequence[Tensor], parameters: Mapping[str, Any], requested_outputs: Sequence[str] = ()
) -> InferRequest:
    """Reads a request.

    Args:
        inputs: the request's tensors.
        parameters: the request's parameters; text stands for the number or truth value that it spells. A door
            that has inputs as plain values (Triton's ``generate``) gives them here.
        requested_outputs: names of the tensors of the answer; if empty, ``text_output`` and those that the
            inputs ask for.

    Raises:
        InvalidRequestError: an input, parameter or output is unknown, of a wrong kind, missing or given
            twice; the message names it.
        UnsupportedFieldError: an input, parameter or output is known and not served.
    """
    given = _Given()
    for tensor in inputs:
        given.put(tensor.name, _value_of_tensor(tensor))
    settings = dict(parameters)
    empty_final = _flag(settings, "triton_enable_empty_final_response")
    timeout_s = _timeout_s(settings.pop("timeout", None))
    for name, value in settings.items():
        given.put(name, value)
    sampling_parameters = given.values.pop("sampling_parameters", None)
    if sampling_parameters is not None:
        for name, value in _json_object(sampling_parameters).items():
            given.put(name, value)
    return _request(given, tuple(requested_outputs), empty_final, timeout_s)


def check_counts(num_inputs: int, num_outputs: int) -> None:
    """Checks that a request has no more inputs and outputs than there are names for; to be asked before any is read.

    Raises:
        InvalidRequestError: it has.
    """
    for what, num, most in (("inputs", num_inputs, len(FIELDS)), ("outputs", num_outputs, len(OUTPUTS))):
        if num > most:
            raise InvalidRequestError(f"There are {num} {what}, and names for {most}.", param=what)


def check_request_id(request_id: str) -> None:
    """Checks the client's own id of a request.

    Raises:
        InvalidRequestError: it is too long.
    """
    if len(request_id) > _MAX_ID_CHARS:
        raise InvalidRequestError(f"Invalid 'id': it has more than {_MAX_ID_CHARS} characters.", param="id")


class _Given:
    """The values given for options, each once."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.names: dict[str, str] = {}

    def put(self, name: str, raw: Any) -> None:
        field = FIELDS.get(name)
        if field is None:
            raise InvalidRequestError(f"Unexpected input '{name}': no model here has it.", param=name)
        if raw is None:
            return
        if field.option in self.names:
            other = self.names[field.option]
            raise InvalidRequestError(
                f"Input '{name}' was given twice{f', also as {other!r}' if other != name else ''}.",
                param=name,
            )
        value = raw if field.kind is Kind.ANY else _value(field, raw)
        if field.refused and value not in field.neutral:
            raise UnsupportedFieldError(f"Input '{name}' is not supported: leave it out.", param=name)
        self.names[field.option] = name
        if not field.refused:
            self.values[field.option] = value


def _request(
    given: _Given, requested_outputs: tuple[str, ...], empty_final: bool, timeout_s: float | None
) -> InferRequest:
    values = given.values
    values.pop("pad_id", None)
    slo_class = values.pop("slo_class", None)
    if "text_input" not in values:
        raise InvalidRequestError("Missing input 'text_input'.", param="text_input")
    prompt = values.pop("text_input")
    stream = values.pop("stream", False)
    exclude_prompt = values.pop("exclude_input_in_output", stream)
    if stream and not exclude_prompt:
        raise InvalidRequestError(
            "Invalid 'exclude_input_in_output': a stream never holds the input, so it cannot be false.",
            param="exclude_input_in_output",
        )
    flagged = [name for flag, names in _RETURNS.items() if values.pop(flag, False) for name in names]
    outputs = requested_outputs or ("text_output", *flagged)
    _check_outputs(outputs)
    if not _NEEDS_LOGPROBS.isdisjoint(outputs):
        values.setdefault("logprobs", 0)
    _end_at(values, values.pop("end_id", None))
    _open_top_p(values)
    options = SamplingOptions(
        **values, default_max_tokens=DEFAULT_COMPLETION_TOKENS, prompt_field="text_input"
    )
    return InferRequest(
        prompt, options, stream, not exclude_prompt, outputs, empty_final, timeout_s, slo_class, given.names
    )


def _check_outputs(names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        if name not in OUTPUTS:
            raise InvalidRequestError(f"Unexpected output '{name}': no model here has it.", param=name)
        if name in names[:place]:
            raise InvalidRequestError(f"Output '{name}' was requested twice.", param=name)


def _end_at(values: dict[str, Any], end_id: int | None) -> None:
    """Applies TensorRT-LLM's ``end_id``, which ends the output instead of the model's own ids; -1 means no
    token at all."""
    if end_id is None:
        return
    if end_id < -1:
        raise _wrong("end_id", f"{end_id} is no token id; -1 is for none")
    values["ignore_eos"] = True
    if end_id != -1:
        values["stop_token_ids"] = (*values.get("stop_token_ids", ()), end_id)


def _open_top_p(values: dict[str, Any]) -> None:
    """Applies TensorRT-LLM's meaning of a ``top_p`` of 0: it leaves the choice to ``top_k``, and is greedy if
    that is not set either. Its clients send 0 by default."""
    if values.get("top_p") == 0:
        values["top_p"] = 1.0
        if values.get("top_k", 0) in (0, -1):
            values["top_k"] = 1


# Values -----------------------------------------------------------------------------------------------


def _value_of_tensor(tensor: Tensor) -> Any:
    field = FIELDS.get(tensor.name)
    if field is None or (not field.datatypes):
        raise InvalidRequestError(
            f"Unexpected input '{tensor.name}': no model here has such a tensor.", param=tensor.name
        )
    if field.kind is Kind.ANY:
        return tensor
    if tensor.datatype not in field.datatypes:
        raise _wrong(tensor.name, f"its datatype is {tensor.datatype} and must be {field.datatypes[0]}")
    # A first dimension of 1 is a batch of one: clients send it to models that have a batch size.
    dims = tensor.shape[1:] if len(tensor.shape) == 2 and tensor.shape[0] == 1 else tensor.shape
    if len(dims) != 1 or not (field.is_list or dims[0] == 1):
        raise _wrong(tensor.name, f"its shape is {list(tensor.shape)} and must be {_shape_of(field)}")
    values = tensor.values
    if tensor.datatype == "BYTES":
        values = [_text(tensor.name, value) for value in values]
    return list(values) if field.is_list else values[0]


def _shape_of(field: Field) -> str:
    return "[n] or [1, n]" if field.is_list else "[1] or [1, 1]"


def _text(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _wrong(name, "it is not UTF-8") from error


def _value(field: Field, raw: Any) -> Any:
    """Checks that a value is of the field's kind and returns it; parameters may spell it as text."""
    kind = field.kind
    if isinstance(raw, list) and len(raw) == 1 and not field.is_list:
        raw = raw[0]  # Triton makes the same tensor of JSON's 7 and [7]
    value = _spelled(kind, raw) if isinstance(raw, str) else raw
    if isinstance(value, list | tuple | Mapping) and len(value) > MAX_VALUES:
        raise _wrong(field.name, f"it has more than {MAX_VALUES} elements")
    if kind is Kind.TEXT and isinstance(value, str):
        return value
    if kind is Kind.FLAG and isinstance(value, bool):
        return value
    if kind is Kind.WHOLE and _is_whole(value):
        return int(value)
    if kind is Kind.NUMBER and _is_number(value):
        return _as_float(field.name, value)
    if kind is Kind.TEXTS:
        texts = [value] if isinstance(value, str) else value
        if _all(texts, lambda each: isinstance(each, str)):
            return tuple(text for text in texts if text or not field.skips_empty)
    if kind is Kind.WHOLES and _all(value, _is_whole):
        return tuple(int(each) for each in value)
    if kind is Kind.BIAS and isinstance(value, Mapping):
        return _bias(field.name, value)
    raise _wrong(field.name, f"it must be {kind.value}")


def _spelled(kind: Kind, text: str) -> Any:
    """The value that a parameter's text spells; the text itself if it spells none or the kind is text."""
    if kind in (Kind.TEXT, Kind.TEXTS):
        return text
    if kind in (Kind.FLAG, Kind.WHOLE, Kind.NUMBER) and len(text) > _MAX_SPELLED_CHARS:
        return text
    try:
        return read_json((text.lower() if kind is Kind.FLAG else text).encode())
    except (InvalidRequestError, UnicodeEncodeError):
        return text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or (math.isfinite(value) and value.is_integer()))


def _all(value: Any, test: Any) -> bool:
    return isinstance(value, list | tuple) and all(test(each) for each in value)


def _as_float(name: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise _wrong(name, "it is too large") from error


def _bias(name: str, value: Mapping[Any, Any]) -> tuple[tuple[int, float], ...]:
    pairs = {}
    for key, bias in value.items():
        token_id = int(key) if str(key).isdecimal() and len(str(key)) <= len(str(1 << 32)) else None
        if token_id is None or not _is_number(bias):
            raise _wrong(name, "it must be an object of numbers by token id")
        pairs[token_id] = _as_float(name, bias)
    return tuple(pairs.items())


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        value = read_json(text.encode())
    except (InvalidRequestError, UnicodeEncodeError) as error:
        raise _wrong(
            "sampling_parameters", "it must be a JSON object, and not one of too many parts"
        ) from error
    if not isinstance(value, dict):
        raise _wrong("sampling_parameters", "it must be a JSON object")
    for name in ("text_input", "sampling_parameters"):
        if name in value:
            raise _wrong("sampling_parameters", f"'{name}' cannot be part of it")
    return value


def _flag(settings: dict[str, Any], name: str) -> bool:
    value = settings.pop(name, False)
    if not isinstance(value, bool):
        raise _wrong(name, "it must be true or false")
    return value


def _timeout_s(timeout_us: Any) -> float | None:
    """Triton's limit for a request, which comes in microseconds; None if it is missing or 0, which means no
    limit."""
    if timeout_us is None:
        return None
    if not _is_whole(timeout_us) or not 0 <= timeout_us <= _MAX_TIMEOUT_US:
        raise _wrong("timeout", "it must be a number of microseconds")
    return timeout_us / 1e6 or None


def _wrong(name: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid input '{name}': {what}.", param=name)
