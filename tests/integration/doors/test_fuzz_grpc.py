"""Any message of any call of the gRPC port: the caller's mistakes are the caller's, and nothing is left behind."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.protobuf_strategies import messages
from support.running_server import RunningServer
from support.server_probes import check_idle, check_no_fault, complete
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from tritonclient.grpc import service_pb2

from mooring.units import MIB
from mooring.v1 import inference_pb2

pytestmark = pytest.mark.integration

NATIVE: ServiceDescriptor = inference_pb2.DESCRIPTOR.services_by_name["Inference"]
KSERVE: ServiceDescriptor = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
METHODS = [method for service in (NATIVE, KSERVE) for method in service.methods]
TIMEOUT_S = 20
# What gRPC says where a server broke.
OURS_TO_MEND = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["a", "nothing"]),
    "model_name": st.sampled_from(["a", "nothing"]),
    "model_version": st.sampled_from(["", "1", "2"]),
    "prompt": st.text(st.characters(codec="ascii"), max_size=30),
    "max_tokens": st.integers(0, 600),
    "n": st.integers(0, 4),
    "name": st.sampled_from(["text_input", "max_tokens", "stop_words", "temperature", "text_output", "x"]),
    "datatype": st.sampled_from(["BYTES", "INT32", "UINT64", "FP32", "BOOL", "FP16", "x"]),
    "shape": st.sampled_from([1, 1, 1, 2, 0, -1, 2**40]),
    "raw_input_contents": st.sampled_from(
        [struct.pack("<I", 2) + b"hi", struct.pack("<i", 3), struct.pack("<f", 0.5), b"\x01", b"\xff" * 9]
    ),
    "bytes_contents": st.sampled_from([b"hi", b"", b"\xff"]),
    "parameters.key": st.sampled_from(
        ["max_tokens", "temperature", "stream", "triton_enable_empty_final_response", "priority", "x"]
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("fuzz")
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(
        root / "data", {"a": write_checkpoint(root / "a")}, flags, NULL_ENVIRONMENT
    ) as running:
        yield running
        check_idle(running)
        key = {"authorization": f"Bearer {running.admin_key}"}
        # Some message may have unloaded it.
        loaded = running.client.post(f"{running.http_url}/v2/repository/models/a/load", headers=key)
        assert loaded.status_code == 200
        assert complete(running).status_code == 200
        check_no_fault(running)


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_target) as channel:
        yield channel


def refusal_of(
    channel: grpc.Channel, method: MethodDescriptor, requests: list[bytes], key: str
) -> grpc.RpcError | None:
    """How one call ended, whatever its kind; None where it was answered to its end."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = ("stream" if method.client_streaming else "unary") + "_"
    kind += "stream" if method.server_streaming else "unary"
    answer_class = message_factory.GetMessageClass(method.output_type)
    made = getattr(channel, kind)(path, response_deserializer=answer_class.FromString)
    sent = iter(requests) if method.client_streaming else requests[0]
    try:
        answer = made(sent, timeout=TIMEOUT_S, metadata=[("authorization", f"Bearer {key}")])
        if method.server_streaming:
            deque(answer, maxlen=0)
    except grpc.RpcError as error:
        return error
    return None


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_any_message_is_answered_or_refused(
    server: RunningServer, channel: grpc.Channel, method: MethodDescriptor
) -> None:
    num_messages = 4 if method.client_streaming else 1
    # Loading and unloading want the admin key, and inference takes any that is not of our making.
    requests = st.lists(messages(method.input_type, LIKELY), min_size=1, max_size=num_messages)

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(requests)
    def refused_at_worst(requests: list[Message]) -> None:
        refusal = refusal_of(
            channel, method, [each.SerializeToString() for each in requests], server.admin_key
        )
        if refusal is not None:
            assert refusal.code() not in OURS_TO_MEND, refusal.details()
            assert refusal.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, "it hangs"
            assert refusal.details(), "a refusal says why"

    refused_at_worst()


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(method=st.sampled_from(METHODS), garbage=st.binary(min_size=1, max_size=200))
def test_bytes_that_are_no_message_end_their_own_call(
    server: RunningServer, channel: grpc.Channel, method: MethodDescriptor, garbage: bytes
) -> None:
    refusal = refusal_of(channel, method, [garbage], server.admin_key)
    if refusal is not None:
        assert refusal.code() not in OURS_TO_MEND, refusal.details()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_a_message_that_cannot_be_read_is_the_callers_mistake(
    server: RunningServer, channel: grpc.Channel, method: MethodDescriptor
) -> None:
    refusal = refusal_of(channel, method, [b"\x00"], server.admin_key)
    assert refusal is not None
    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot be read" in (refusal.details() or "")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_a_message_that_is_too_large_is_refused(
    server: RunningServer, channel: grpc.Channel, method: MethodDescriptor
) -> None:
    refusal = refusal_of(channel, method, [b"\x00" * (4 * MIB + 1)], server.admin_key)
    assert refusal is not None
    assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_call_that_does_not_exist_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/mooring.v1.Inference/Nothing", None, None)(b"", timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
