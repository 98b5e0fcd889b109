"""The look through a message's bytes: what it refuses, and how little of a message it looks at for that."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2

from mooring.errors import InvalidRequestError, UnsupportedFieldError
from mooring.units import MIB
from mooring.v1 import inference_pb2 as pb
from router.doors.grpc.wire import check_wire

GENERATE = pb.GenerateTextRequest.DESCRIPTOR
INFER = service_pb2.ModelInferRequest.DESCRIPTOR
MAX_FIELDS, MAX_NUMBERS = 1000, 5000


class Watched(bytes):
    """Bytes that count how often somebody looks at one of them."""

    num_looks = 0

    def __getitem__(self, place):  # type: ignore[no-untyped-def, override]
        self.num_looks += 1
        return super().__getitem__(place)


def check(kind: object, data: bytes) -> None:
    check_wire(kind, data, max_fields=MAX_FIELDS, max_numbers=MAX_NUMBERS)  # type: ignore[arg-type]


def filled(piece: bytes) -> bytes:
    """As many pieces as go into the largest message."""
    return piece * (4 * MIB // len(piece))


def within(number: int, content: bytes) -> bytes:
    """A field that holds a message."""
    size = len(content)
    length = bytes((size >> 7 * place) & 127 | 128 for place in range(4)) + bytes([size >> 28])
    return bytes([number << 3 | 2]) + length + content


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (GENERATE, within(4, filled(b"\x0a\x00"))),
        (GENERATE, filled(b"\x7a\x00")),
        (GENERATE, filled(b"\xaa\x01\x02\x08\x05")),
        (GENERATE, filled(b"\x80\x01\x05")),
        (INFER, filled(b"\x2a\x00")),
        (INFER, filled(b"\x2a\x02\x22\x00")),
        (INFER, filled(b"\x3a\x00")),
        (INFER, filled(b"\x22\x04\x0a\x02ab")),
    ],
    ids=["messages", "stop", "logit_bias", "numbers", "inputs", "parameters within", "raw", "parameters"],
)
def test_a_message_of_many_parts_is_refused_after_so_many(kind: object, data: bytes) -> None:
    watched = Watched(data)
    with pytest.raises(InvalidRequestError, match="more than 1000 fields"):
        check(kind, watched)
    assert watched.num_looks < 12 * MAX_FIELDS


def test_packed_numbers_are_counted_and_not_looked_at() -> None:
    ids = pb.GenerateTextRequest(prompt_token_ids=pb.TokenIds(ids=range(MAX_NUMBERS)))
    watched = Watched(ids.SerializeToString())
    check(GENERATE, watched)
    assert watched.num_looks < 20
    ids.stop_token_ids.append(1)
    with pytest.raises(InvalidRequestError, match="more than 5000 numbers"):
        check(GENERATE, ids.SerializeToString())
    floats = service_pb2.InferTensorContents(fp64_contents=[0.5] * (MAX_NUMBERS + 1))
    with pytest.raises(InvalidRequestError, match="more than 5000 numbers"):
        check(INFER, within(5, within(5, floats.SerializeToString())))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"\xa0\x38\x01", "900 of GenerateTextRequest"),
        (within(4, within(1, b"\xa0\x38\x01")), "900 of ChatMessage"),
        (b"\xaa\x01\x03\xa0\x38\x01", "900 of LogitBiasEntry"),
        (b"\x08\x01", "1 of GenerateTextRequest"),  # a number, and "model" is a text
        (b"\x2a\x01\x05", "5 of GenerateTextRequest"),  # "max_tokens" is no list
        (filled(b"\xfb\x3f\xfc\x3f"), "1023 of GenerateTextRequest"),  # groups
    ],
)
def test_a_field_that_is_not_known_is_refused_by_number(data: bytes, named: str) -> None:
    with pytest.raises(UnsupportedFieldError, match=named):
        check(GENERATE, data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\x0a",
        b"\x0a\x05abc",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x28",
        b"\x28" + b"\xff" * 20,
        b"\x3d\x00\x00",
        b"\xff" * 20,
        b"\x0f",
        b"\x80\x80\x80\x80\x80\x01\x00",
        within(4, b"\x0a"),
        b"\x22\x01\x0a\x0a\x00",  # what is within reaches beyond its end
    ],
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        check(GENERATE, data)


def test_numbers_of_a_list_may_come_one_by_one() -> None:
    check(GENERATE, b"\x80\x01\x05\x80\x01\x07")
    assert list(pb.GenerateTextRequest.FromString(b"\x80\x01\x05\x80\x01\x07").stop_token_ids) == [5, 7]
