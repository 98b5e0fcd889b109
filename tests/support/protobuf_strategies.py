"""Hypothesis strategies for protobuf messages, made from their descriptors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

__all__ = ["messages"]

MAX_DEPTH = 4
MAX_ITEMS = 4
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1) | st.integers(0, 20),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1) | st.integers(0, 20),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1) | st.integers(0, 20),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1) | st.integers(0, 20),
}
OTHERS: Mapping[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32) | st.floats(0, 2, width=32),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats() | st.floats(0, 2),
}


@st.composite
def messages(
    draw: st.DrawFn, descriptor: Descriptor, likely: Mapping[str, st.SearchStrategy[Any]], depth: int = 0
) -> Any:
    """Any message of a type, each of its fields left out or set.

    Args:
        likely: values by a field's name that get past the first checks. They are drawn most of the time;
            otherwise the field has any value of its type.
    """
    message: Any = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        wanted = field.name in likely
        if depth >= MAX_DEPTH or draw(st.integers(0, 9)) >= (9 if wanted else 3):
            continue
        value = likely[field.name] if wanted and draw(st.integers(0, 4)) else _values(field, likely, depth)
        if _is_map(field):
            _fill_map(draw, message, field, likely, depth)
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(value, max_size=MAX_ITEMS)))
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            getattr(message, field.name).CopyFrom(draw(value))
        else:
            setattr(message, field.name, draw(value))
    return message


def _values(field: Any, likely: Mapping[str, st.SearchStrategy[Any]], depth: int) -> st.SearchStrategy[Any]:
    """Any value of a field's type, or of one element of it."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return messages(field.message_type, likely, depth + 1)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=20) if field.type == FieldDescriptor.TYPE_BYTES else TEXTS
    return INTEGERS[kind] if kind in INTEGERS else OTHERS[kind]


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _fill_map(
    draw: st.DrawFn,
    message: Any,
    field: Any,
    likely: Mapping[str, st.SearchStrategy[Any]],
    depth: int,
) -> None:
    key_field, value_field = field.message_type.fields
    keys = likely.get(f"{field.name}.key", _values(key_field, likely, depth))
    entries = getattr(message, field.name)
    for key in draw(st.lists(keys, max_size=MAX_ITEMS, unique=True)):
        value = draw(_values(value_field, likely, depth))
        if isinstance(value, Message):
            entries[key].CopyFrom(value)
        else:
            entries[key] = value
