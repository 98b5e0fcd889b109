"""Looks through the bytes of a message before it is parsed: parsing 4 MiB of empty messages takes hundreds of
milliseconds and megabytes, which nothing can interrupt."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mooring.errors import InvalidRequestError, UnsupportedFieldError

__all__ = ["check_wire"]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_WIRE_TYPES = {
    **dict.fromkeys((FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64), _FIXED64),
    **dict.fromkeys((FieldDescriptor.TYPE_SFIXED64,), _FIXED64),
    **dict.fromkeys((FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_FIXED32), _FIXED32),
    **dict.fromkeys((FieldDescriptor.TYPE_SFIXED32,), _FIXED32),
    **dict.fromkeys((FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES), _LENGTH),
    **dict.fromkeys((FieldDescriptor.TYPE_MESSAGE,), _LENGTH),
}
_MAX_VARINT_BYTES = 10
_MAX_TAG = (1 << 32) - 1
_NOT_LAST = bytes(range(128, 256))  # bytes of a varint that another one follows


@dataclass(frozen=True, slots=True)
class _Field:
    """A field as it may come.

    Attributes:
        message: type of the message that it holds, if it holds one.
        packed: wire type of the numbers that it holds in a row, if it holds such.
    """

    message: Descriptor | None = None
    packed: int | None = None


def check_wire(kind: Descriptor, data: bytes, *, max_fields: int, max_numbers: int) -> None:
    """Checks a message in a time that is bounded by ``max_fields``, whatever it holds.

    Args:
        kind: type of the message.
        max_fields: most fields of the message and of all messages within it together; each element of a list
            and each entry of a map counts.
        max_numbers: most numbers in its packed lists together.

    Raises:
        InvalidRequestError: the bytes are no message, or it has too many fields or numbers.
        UnsupportedFieldError: a field is of a newer protocol, or of another type there; the server knows only
            its number.
    """
    num_fields_left, num_numbers_left = max_fields, max_numbers
    todo = [(kind, 0, len(data))]
    try:
        while todo:
            kind, at, end = todo.pop()
            fields = _fields_of(kind)
            while at < end:
                num_fields_left -= 1
                if num_fields_left < 0:
                    raise InvalidRequestError(
                        f"The message has more than {max_fields} fields, those of its parts included."
                    )
                tag = data[at]
                at += 1
                if tag > 127:
                    tag, at = _varint(data, at - 1)
                field = fields.get(tag)
                if field is None:
                    _refuse(kind, tag)
                wire_type = tag & 7
                if wire_type == _LENGTH:
                    size = data[at]
                    at += 1
                    if size > 127:
                        size, at = _varint(data, at - 1)
                    start, at = at, at + size
                    if field.message is not None:
                        todo.append((field.message, start, at))
                    elif field.packed is not None:
                        num_numbers_left -= _num_packed(data, start, min(at, end), field.packed)
                        if num_numbers_left < 0:
                            raise InvalidRequestError(f"The message has more than {max_numbers} numbers.")
                elif wire_type == _VARINT:
                    _, at = _varint(data, at)
                else:
                    at += _FIXED_BYTES[wire_type]
            if at > end:
                _cut_off()
    except IndexError:
        _cut_off()


@functools.cache
def _fields_of(kind: Descriptor) -> Mapping[int, _Field]:
    """The fields of a type of message, by the tags that they may come with."""
    fields = {}
    for field in kind.fields:
        tag = field.number << 3
        wire_type = _WIRE_TYPES.get(field.type, _VARINT)
        fields[tag | wire_type] = _Field(message=field.message_type)
        if field.is_repeated and wire_type != _LENGTH:
            fields[tag | _LENGTH] = _Field(packed=wire_type)
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at this place, and the place behind it."""
    value = 0
    for place in range(_MAX_VARINT_BYTES):
        byte = data[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise InvalidRequestError("The message cannot be read: a number in it has no end.")


def _num_packed(data: bytes, start: int, end: int, wire_type: int) -> int:
    if wire_type == _VARINT:
        return len(data[start:end].translate(None, _NOT_LAST))
    return (end - start) // _FIXED_BYTES[wire_type]


def _refuse(kind: Descriptor, tag: int) -> NoReturn:
    number = tag >> 3
    if not number or tag > _MAX_TAG or tag & 7 > _FIXED32:
        raise InvalidRequestError("The message cannot be read: a field in it has no number or no type.")
    raise UnsupportedFieldError(
        f"Field number {number} of {kind.name} is not known to this server.", param=str(number)
    )


def _cut_off() -> NoReturn:
    raise InvalidRequestError("The message cannot be read: a part of it is cut off.")
