"""The look through a message's bytes agrees with protobuf's own parser."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st
from support.protobuf_strategies import messages
from tritonclient.grpc import service_pb2

from mooring.errors import InvalidRequestError
from mooring.v1 import inference_pb2 as pb
from router.doors.grpc.wire import check_wire

TYPES = (pb.GenerateTextRequest, service_pb2.ModelInferRequest)
ANY_MESSAGE = st.sampled_from(TYPES).flatmap(lambda kind: messages(kind.DESCRIPTOR, {}))


def accepts(message_type: Any, data: bytes) -> bool:
    try:
        check_wire(message_type.DESCRIPTOR, data, max_fields=1 << 16, max_numbers=1 << 20)
    except InvalidRequestError:
        return False
    return True


def has_unknown_fields(message: Message) -> bool:
    """Whether a field that the parser does not know stands anywhere but in a map's entry, where it drops them."""
    if len(UnknownFieldSet(message)):
        return True
    values: list[Any] = []
    for field, value in message.ListFields():
        if field.message_type is not None:
            is_map = field.message_type.GetOptions().map_entry
            values += [value] if not field.is_repeated else value.values() if is_map else value
    return any(isinstance(each, Message) and has_unknown_fields(each) for each in values)


@given(ANY_MESSAGE)
def test_every_message_that_is_known_passes(message: Message) -> None:
    assert accepts(type(message), message.SerializeToString())


@settings(max_examples=250)
@given(ANY_MESSAGE, st.data())
def test_what_passes_parses_and_has_no_unknown_field(message: Message, data: st.DataObject) -> None:
    broken = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(broken)))
        broken[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    if not accepts(type(message), bytes(broken)):
        return
    try:
        parsed = type(message).FromString(bytes(broken))
    except DecodeError:
        return  # text that is not UTF-8
    assert not has_unknown_fields(parsed)
