"""The front of the gRPC port: the key comes before the message, and what a client can make the server keep is
bounded."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from support.kserve_doors import ADMIN_KEY, KServeDoor, kserve_door
from support.router_doors import served_model, write_model_folder
from support.scripted_answer import TOKENIZER, answer
from tritonclient.grpc import service_pb2

from model_registry.records import TenantRecord
from model_registry.tenants import KEY_PREFIX, hash_key
from mooring.units import MIB
from mooring.v1 import inference_pb2 as pb
from mooring.v1 import inference_pb2_grpc
from router.doors.grpc import receiving
from router.doors.grpc.limits import GrpcLimits
from router.request.bounds import RouterConfig

pytestmark = pytest.mark.integration

SERVICES = [
    file.services_by_name[name]
    for file, name in (
        (pb.DESCRIPTOR, "Inference"),
        (service_pb2.DESCRIPTOR, "GRPCInferenceService"),
        (health_pb2.DESCRIPTOR, "Health"),
        (reflection_pb2.DESCRIPTOR, "ServerReflection"),
    )
]
METHODS = [method for service in SERVICES for method in service.methods]
OPEN = {"Check", "Watch", "ServerLive", "ServerReady", "ServerReflectionInfo"}
ADMIN = {"RepositoryModelLoad", "RepositoryModelUnload"}
GENERATE = "/mooring.v1.Inference/Generate"
TIMEOUT_S = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


KEYS = {name: KEY_PREFIX + name.ljust(43, "x") for name in ("acme", "other")}
TENANTS = {hash_key(key): TenantRecord(id, name, 0.0) for id, (name, key) in enumerate(KEYS.items())}


@contextlib.asynccontextmanager
async def running(
    folder: Path, limits: GrpcLimits | None = None, **options: Any
) -> AsyncIterator[tuple[KServeDoor, grpc.aio.Channel]]:
    keys = {"authenticate": TENANTS.get, "allow_anonymous": False}
    async with (
        kserve_door(answer, [served_model("tiny", folder)], limits, **keys, **options) as door,
        grpc.aio.insecure_channel(door.target) as channel,
    ):
        yield door, channel


def of(tenant: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {KEYS[tenant]}")]


async def nothing() -> AsyncIterator[bytes]:
    """A client that begins a call and sends no message."""
    await asyncio.Event().wait()
    yield b""


def begun(channel: grpc.aio.Channel, path: str, tenant: str) -> Any:
    """A call whose message does not come."""
    return channel.stream_stream(path)(nothing(), metadata=of(tenant), timeout=TIMEOUT_S)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


def generate(channel: grpc.aio.Channel, tenant: str, prompt: str = "hi", **fields: Any) -> Any:
    request = pb.GenerateTextRequest(model="tiny", prompt=prompt, **fields)
    return inference_pb2_grpc.InferenceStub(channel).Generate(  # type: ignore[no-untyped-call]
        request, metadata=of(tenant), timeout=TIMEOUT_S
    )


async def answered(call: Any) -> int:
    return len([message async for message in call])


@contextlib.contextmanager
def parsed_messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The messages that the server parses meanwhile."""
    parsed: list[Any] = []
    original = receiving.Receiver.parsed

    def note(self: Any, data: bytes, parse: Any) -> Any:
        parsed.append(original(self, data, parse))
        return parsed[-1]

    with monkeypatch.context() as patch:
        patch.setattr(receiving.Receiver, "parsed", note)
        yield parsed


# The key -----------------------------------------------------------------------------------------------


async def test_a_wrong_key_is_refused_before_any_message_has_come(folder: Path) -> None:
    async with running(folder) as (_, channel):
        for method in METHODS:
            path = f"/{method.containing_service.full_name}/{method.name}"
            for metadata in ([], [("authorization", "Bearer wrong")]):
                call = channel.stream_stream(path)(nothing(), metadata=metadata, timeout=TIMEOUT_S)
                if method.name in OPEN:
                    with pytest.raises(asyncio.TimeoutError):
                        await asyncio.wait_for(refusal(call), 0.1)
                else:
                    assert (await refusal(call)).code() is grpc.StatusCode.UNAUTHENTICATED, path


async def test_only_the_admin_key_opens_what_administers(folder: Path) -> None:
    async with running(folder) as (_, channel):
        for method in METHODS:
            path = f"/{method.containing_service.full_name}/{method.name}"
            admin = [("authorization", f"Bearer {ADMIN_KEY}")]
            wrong, right = (of("acme"), admin) if method.name in ADMIN else (admin, of("acme"))
            if method.name not in OPEN:
                call = channel.stream_stream(path)(nothing(), metadata=wrong, timeout=TIMEOUT_S)
                assert (await refusal(call)).code() is grpc.StatusCode.UNAUTHENTICATED, path
            status = (await refusal(whole(channel, method, right))).code()
            assert status is not grpc.StatusCode.UNAUTHENTICATED, path


def whole(channel: grpc.aio.Channel, method: MethodDescriptor, metadata: list[tuple[str, str]]) -> Any:
    """A call with a message that nothing can be done with."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    return channel.stream_stream(path)(iter([b"\x00"]), metadata=metadata, timeout=TIMEOUT_S)


async def test_a_message_of_many_parts_is_refused_unparsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 MiB of empty inputs, and a good call beside them: 4 KiB on the wire."""
    inputs = b"\x2a\x02\x22\x00" * (4 * MIB // 4 - 1)
    async with running(folder) as (_, channel):
        with parsed_messages(monkeypatch) as parsed:
            for name in ("ModelInfer", "ModelStreamInfer"):
                call = channel.stream_stream(f"/{SERVICES[1].full_name}/{name}")(
                    iter([inputs]), metadata=of("acme"), timeout=TIMEOUT_S, compression=grpc.Compression.Gzip
                )
                error = await refusal(call)
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "fields" in (error.details() or "")
        assert not parsed
        assert await answered(generate(channel, "acme")) > 1


# What is kept ------------------------------------------------------------------------------------------


async def test_a_messages_bytes_are_in_flight_until_its_call_ends(folder: Path) -> None:
    config = RouterConfig(max_tenant_body_bytes=2000)
    async with running(folder, config=config) as (door, channel):
        held = generate(channel, "acme", "hang", cache_salt="x" * 1500)
        await door.source.started(1)
        assert 1500 < door.services.in_flight.body_bytes < 2000
        error = await refusal(generate(channel, "acme", cache_salt="x" * 1500))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(error.trailing_metadata())["error-code"] == "tenant_body_bytes_in_flight"
        assert await answered(generate(channel, "other", cache_salt="x" * 1500)) > 1
        held.cancel()
        await asyncio.wait_for(door.source.streams[0].closed.wait(), TIMEOUT_S)
        assert await answered(generate(channel, "acme", cache_salt="x" * 1500)) > 1
        assert door.services.in_flight.body_bytes == 0


async def test_the_bytes_of_each_request_of_a_stream_are_in_flight(folder: Path) -> None:
    def request(text: str) -> Any:
        made = service_pb2.ModelInferRequest(model_name="tiny", id=text)
        made.parameters["text_input"].string_param = text + "." * 60
        made.parameters["stop_words"].string_param = "x" * 900
        return made

    async def requests() -> AsyncIterator[Any]:
        for text in ("hang", "hi"):
            yield request(text)
        await asyncio.Event().wait()

    async with running(folder, config=RouterConfig(max_tenant_body_bytes=1500)) as (door, channel):
        call = channel.stream_stream(
            f"/{SERVICES[1].full_name}/ModelStreamInfer",
            service_pb2.ModelInferRequest.SerializeToString,
            service_pb2.ModelStreamInferResponse.FromString,
        )(requests(), metadata=of("acme"), timeout=TIMEOUT_S)
        refused = await call.read()
        assert refused.infer_response.id == "hi"
        assert "max_tenant_body_bytes" in refused.error_message
        await door.source.started(1)
        call.cancel()
        await asyncio.wait_for(door.source.streams[0].closed.wait(), TIMEOUT_S)
        await until_none_in_flight(door)


REFUSED_ID = "x" * 4000  # longer than an id may be


async def test_a_request_of_a_stream_that_was_refused_is_not_kept(folder: Path) -> None:
    """However many answers wait for a client that does not read."""
    raw = service_pb2.ModelInferRequest(model_name="tiny", id=REFUSED_ID).SerializeToString()
    num_requests = RouterConfig().max_stream_requests
    sent = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(num_requests):
            yield raw
        sent.set()
        await asyncio.Event().wait()

    async with running(folder) as (_, channel):
        path = f"/{SERVICES[1].full_name}/ModelStreamInfer"
        call = channel.stream_stream(path)(requests(), metadata=of("acme"), timeout=2 * TIMEOUT_S)
        async with asyncio.timeout(TIMEOUT_S):
            await sent.wait()
            await asyncio.sleep(0.5)
            while num_kept():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.1)
        assert not num_kept()
        call.cancel()


def num_kept() -> int:
    """Number of refused requests that are in memory; other tests of this process may have left some of theirs."""
    # Not by ``isinstance``, which asks the objects that weak references stand for.
    kept = (each for each in gc.get_objects() if type(each) is service_pb2.ModelInferRequest)
    return sum(each.id == REFUSED_ID for each in kept)


async def until_none_in_flight(door: KServeDoor) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while door.services.in_flight.body_bytes:  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(0.01)


async def test_messages_that_do_not_come_stand_in_nobodys_way(folder: Path) -> None:
    """Of the largest size four may be arriving; further ones wait, and the slow ones are hurried then."""
    config = RouterConfig(max_body_bytes=1000, max_tenant_body_bytes=4000, max_total_body_bytes=8000)
    limits = GrpcLimits(message_s=3600, message_hurried_s=0.2)
    async with running(folder, limits, config=config) as (_, channel):
        slow = [begun(channel, GENERATE, "acme") for _ in range(4)]
        refusals = [asyncio.create_task(refusal(call)) for call in slow]
        await asyncio.sleep(0.5)
        assert not any(each.done() for each in refusals)  # nobody waits, so they may
        assert await answered(generate(channel, "other")) > 1
        assert not any(each.done() for each in refusals)
        assert await answered(generate(channel, "acme")) > 1
        codes = {(await each).code() for each in refusals}
        assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert await answered(generate(channel, "acme")) > 1


@pytest.mark.slow
async def test_silent_strangers_keep_nobody_from_asking_after_health(folder: Path) -> None:
    """Four of their messages may be arriving, and eight of an address wait."""
    config = RouterConfig(max_body_bytes=1000, max_tenant_body_bytes=4000, max_total_body_bytes=8000)
    slow = {"message_s": 3600.0, "message_hurried_s": 3600.0}
    limits = GrpcLimits(**slow, stranger_hurried_s=0.5, max_waiting_strangers=8)
    check = "/grpc.health.v1.Health/Check"
    async with (
        running(folder, limits, config=config) as (door, channel),
        from_another_address(door.target) as target,
        grpc.aio.insecure_channel(target) as stranger,
    ):
        stub = health_pb2_grpc.HealthStub(channel)

        async def is_serving() -> bool:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        def silent(channel: grpc.aio.Channel, num_calls: int) -> list[asyncio.Task[grpc.aio.AioRpcError]]:
            calls = (channel.stream_stream(check)(nothing(), timeout=TIMEOUT_S) for _ in range(num_calls))
            return [asyncio.create_task(refusal(call)) for call in calls]

        own = silent(channel, 4)
        await asyncio.sleep(0.2)
        assert await is_serving()
        assert {(await each).code() for each in own} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        strangers = silent(stranger, 12)
        await asyncio.sleep(0.2)
        assert await is_serving()
        assert not all(each.done() for each in strangers), "it was not behind all of them"
        codes = [error.code() for error in await asyncio.gather(*silent(stranger, 16))]
        assert grpc.StatusCode.UNAVAILABLE in codes


@contextlib.asynccontextmanager
async def from_another_address(target: str) -> AsyncIterator[str]:
    """An address from which connections go on to a door as if their client were elsewhere."""
    host, _, port = target.rpartition(":")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while data := await reader.read(1 << 16):
                writer.write(data)

    async def go_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, port, local_addr=("127.0.0.2", 0))
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    async with await asyncio.start_server(go_on, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_message_that_does_not_come_is_not_waited_for_for_ever(folder: Path) -> None:
    async with running(folder, GrpcLimits(message_s=0.2)) as (_, channel):
        error = await refusal(begun(channel, GENERATE, "acme"))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_streams_of_a_tenant_are_bounded(folder: Path) -> None:
    path = f"/{SERVICES[1].full_name}/ModelStreamInfer"
    async with running(folder, config=RouterConfig(max_tenant_streams=3)) as (_, channel):
        opened = [asyncio.create_task(refusal(begun(channel, path, "acme"))) for _ in range(3)]
        error = await refusal(whole(channel, SERVICES[1].methods_by_name["ModelStreamInfer"], of("other")))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        error = await refusal(begun(channel, path, "acme"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not any(each.done() for each in opened)
        for each in opened:
            each.cancel()


async def test_what_a_refusal_quotes_is_cut(folder: Path) -> None:
    async with running(folder) as (_, channel):
        request = service_pb2.ModelInferRequest(model_name="tiny")
        request.parameters["é" * MIB].string_param = "x"
        call = channel.unary_unary(
            f"/{SERVICES[1].full_name}/ModelInfer", service_pb2.ModelInferRequest.SerializeToString
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request, metadata=of("acme"), timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "Unexpected input 'ééé" in (caught.value.details() or "")
        assert len(caught.value.details() or "") <= 1000


# Connections -------------------------------------------------------------------------------------------


async def test_connections_beyond_the_bound_are_closed_and_the_others_stay(folder: Path) -> None:
    async with running(folder, GrpcLimits(max_connections=4)) as (door, channel):
        assert await answered(generate(channel, "acme")) > 1
        host, _, port = door.target.rpartition(":")
        others = [socket.create_connection((host, int(port)), timeout=5) for _ in range(10)]
        try:
            closed = [await asyncio.to_thread(is_closed, each) for each in others]
            assert closed.count(False) == 3
            assert await answered(generate(channel, "acme")) > 1
        finally:
            for each in others:
                each.close()


def is_closed(connection: socket.socket) -> bool:
    """Whether the server hangs up within two seconds, after what it says at first."""
    connection.settimeout(2)
    try:
        while connection.recv(1000):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


async def test_a_connection_that_says_nothing_or_makes_no_call_is_closed(folder: Path) -> None:
    limits = GrpcLimits(handshake_s=0.3, max_idle_s=0.3)
    async with running(folder, limits) as (door, channel):
        host, _, port = door.target.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as silent:
            assert await asyncio.to_thread(is_closed, silent)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
        with socket.create_connection((host, int(port)), timeout=5) as idle:
            idle.sendall(preface)
            assert await asyncio.to_thread(is_closed, idle)
        assert await answered(generate(channel, "acme")) > 1


async def test_a_connection_has_so_many_calls_at_a_time(folder: Path) -> None:
    async with running(folder, GrpcLimits(max_calls=2)) as (door, channel):
        hanging = [generate(channel, "acme", "hang") for _ in range(3)]
        await door.source.started(2)
        await asyncio.sleep(0.3)
        assert len(door.source.streams) == 2
        for each in hanging:
            each.cancel()


# Health ------------------------------------------------------------------------------------------------


async def test_watches_are_bounded_and_share_one_look(folder: Path) -> None:
    limits = GrpcLimits(max_watches=5, max_address_watches=3)
    async with running(folder, limits) as (_, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        watches = [stub.Watch(request, timeout=TIMEOUT_S) for _ in range(3)]
        for each in watches:
            assert (await each.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert len(lookers()) == 1
        error = await refusal(stub.Watch(request, timeout=TIMEOUT_S))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert (await stub.Check(request, timeout=TIMEOUT_S)).status == health_pb2.HealthCheckResponse.SERVING
        for each in watches:
            each.cancel()
        async with asyncio.timeout(TIMEOUT_S):
            while lookers():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        again = stub.Watch(request, timeout=TIMEOUT_S)
        assert (await again.read()).status == health_pb2.HealthCheckResponse.SERVING
        again.cancel()


def lookers() -> list[asyncio.Task[Any]]:
    """Tasks that look whether the server is ready."""
    return [task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "HealthService._look"]
