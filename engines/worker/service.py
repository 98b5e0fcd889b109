"""The worker's gRPC service: ``mooring.v1.Engine`` over one ``Engine``.

Three kinds of thread meet here and touch each other only through queues: the event loop (this service), the
step thread (the engine's steps and its short verbs) and the copying threads (load and wake). Sequence ids
are the routers' own, each unique on its stream; the engine sees them with the stream's number above them,
so that two routers never collide and the owner of a token is read off its id.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import grpc.aio

from engines.api import DeviceLostError, Engine, Finished, LoadSpec, StepOutput, TokenIds
from engines.config import ServiceConfig
from engines.ends import error_end
from engines.link.descriptors import DescriptorReceiver
from engines.link.wire import (
    ROUTER_ID_BITS,
    ROUTER_ID_MASK,
    abort_with,
    capabilities_to_wire,
    finished_to_wire,
    first_token_to_wire,
    ids_from_wire,
    lease_status_to_wire,
    sequence_from_wire,
    stats_to_wire,
    top_logprobs_to_wire,
)
from engines.link.worker_memory import WorkerMemory
from engines.worker.step_thread import StepThread
from mooring.errors import InvalidRequestError, MooringError, ShuttingDownError, UnsupportedFieldError
from mooring.v1 import engine_pb2 as pb
from mooring.v1 import engine_pb2_grpc

__all__ = ["EngineService"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_Context = grpc.aio.ServicerContext[Any, Any]

_MAX_FOLLOWING_STEPS = 16  # the router works on a message without a pause


class _RouterStream:
    """One router's Generate call: what it has running here and what waits to be sent to it."""

    def __init__(self, number: int) -> None:
        self.base = number << ROUTER_ID_BITS
        self.live: set[int] = set()  # the engine's ids
        self.half_closed = False
        self._outbox: deque[pb.StepOutput] = deque()
        self._changed = asyncio.Event()

    def put(self, message: pb.StepOutput) -> None:
        self._outbox.append(message)
        self._changed.set()

    def half_close(self) -> None:
        self.half_closed = True
        self._changed.set()

    async def messages(self) -> AsyncIterator[pb.StepOutput]:
        """Yields messages to the router until it has closed its side and its last sequence has ended.

        A message costs both sides far more than what is in it, so what has piled up goes in one.
        """
        while True:
            while self._outbox:
                message = self._outbox.popleft()
                while self._outbox and len(message.following) < _MAX_FOLLOWING_STEPS:
                    message.following.append(self._outbox.popleft())
                yield message
            if self.half_closed and not self.live:
                return
            self._changed.clear()
            await self._changed.wait()


class EngineService(engine_pb2_grpc.EngineServicer):
    """Serves ``engine`` until ``drain``.

    Args:
        memory: shared with the server, which reads there what the step thread does.
        clock: ``time.monotonic`` of this process; deadlines are told to the engine on it.
        on_failure: called when the engine is broken and the process must end.
    """

    def __init__(
        self,
        engine: Engine,
        descriptors: DescriptorReceiver,
        memory: WorkerMemory,
        config: ServiceConfig,
        clock: Callable[[], float],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._engine = engine
        self._descriptors = descriptors
        self._config = config
        self._clock = clock
        self._on_failure = on_failure
        loop = asyncio.get_running_loop()
        self._steps = StepThread(engine, memory, loop, self._deliver, on_failure, config.step_niceness)
        self._copiers = ThreadPoolExecutor(config.max_concurrent_loads, thread_name_prefix="engine-copy")
        self._streams: dict[int, _RouterStream] = {}
        self._num_streams = 0
        self._replica_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._verbs: set[asyncio.Task[Any]] = set()
        self._draining = False
        self._drained = asyncio.Event()

    def start(self) -> None:
        self._steps.start()

    async def drain(self) -> None:
        """Refuses what is new, and ends the streams once every sequence has ended."""
        self._draining = True
        self._note_if_drained()
        await self._drained.wait()
        for stream in self._streams.values():
            stream.half_close()

    def stop(self, timeout_s: float) -> bool:
        """Ends the engine's threads; False if a step is still running after ``timeout_s``."""
        self._copiers.shutdown(wait=False, cancel_futures=True)
        return self._steps.stop(timeout_s)

    # Residency verbs -------------------------------------------------------------------------------

    async def Load(  # noqa: N802 - gRPC's names
        self, request: pb.LoadRequest, context: _Context
    ) -> pb.LoadResponse:
        async def load() -> pb.LoadResponse:
            started_s = self._clock()
            descriptor = await self._descriptors.claim(
                request.descriptor_key, self._config.descriptor_timeout_s
            )
            spec = LoadSpec(
                replica_id=request.replica_id,
                manifest_json=request.manifest_json,
                max_model_len=request.max_model_len,
                weights_lease_bytes=request.weights_lease_bytes,
                kv_guarantee_bytes=request.kv_guarantee_bytes,
                kv_cap_bytes=request.kv_cap_bytes or None,
                host_copy_checksum=(
                    request.host_copy_checksum if request.HasField("host_copy_checksum") else None
                ),
                from_file=request.from_file,
            )
            weights_bytes = await self._copying(partial(self._engine.load, spec, descriptor))
            return pb.LoadResponse(weights_bytes=weights_bytes, seconds=self._clock() - started_s)

        return await self._verb(context, request.replica_id, load)

    async def Wake(  # noqa: N802
        self, request: pb.WakeRequest, context: _Context
    ) -> pb.WakeResponse:
        async def wake() -> pb.WakeResponse:
            started_s = self._clock()
            weights_bytes = await self._copying(
                partial(self._engine.wake, request.replica_id, request.weights_lease_bytes)
            )
            return pb.WakeResponse(weights_bytes=weights_bytes, seconds=self._clock() - started_s)

        return await self._verb(context, request.replica_id, wake)

    async def Sleep(  # noqa: N802
        self, request: pb.SleepRequest, context: _Context
    ) -> pb.SleepResponse:
        async def sleep() -> pb.SleepResponse:
            started_s = self._clock()
            released_bytes = await self._stepping(partial(self._engine.sleep, request.replica_id))
            await asyncio.to_thread(self._engine.settle)
            return pb.SleepResponse(released_bytes=released_bytes, seconds=self._clock() - started_s)

        return await self._verb(context, request.replica_id, sleep)

    async def Unload(  # noqa: N802
        self, request: pb.UnloadRequest, context: _Context
    ) -> pb.UnloadResponse:
        async def unload() -> pb.UnloadResponse:
            await self._stepping(partial(self._engine.unload, request.replica_id))
            await asyncio.to_thread(self._engine.settle)
            return pb.UnloadResponse()

        return await self._verb(context, request.replica_id, unload)

    async def DropHostCopy(  # noqa: N802
        self, request: pb.DropHostCopyRequest, context: _Context
    ) -> pb.DropHostCopyResponse:
        async def drop() -> pb.DropHostCopyResponse:
            await self._copying(partial(self._engine.drop_host_copy, request.replica_id))
            return pb.DropHostCopyResponse()

        return await self._verb(context, request.replica_id, drop)

    async def LoadAdapter(  # noqa: N802
        self, request: pb.LoadAdapterRequest, context: _Context
    ) -> pb.LoadAdapterResponse:
        await abort_with(UnsupportedFieldError("this engine has no adapters", param="adapter_id"), context)
        raise AssertionError("unreachable: abort raises")

    async def UnloadAdapter(  # noqa: N802
        self, request: pb.UnloadAdapterRequest, context: _Context
    ) -> pb.UnloadAdapterResponse:
        await abort_with(UnsupportedFieldError("this engine has no adapters", param="adapter_id"), context)
        raise AssertionError("unreachable: abort raises")

    # Short verbs -----------------------------------------------------------------------------------

    async def Capabilities(  # noqa: N802
        self, request: pb.CapabilitiesRequest, context: _Context
    ) -> pb.CapabilitiesResponse:
        return capabilities_to_wire(self._engine.capabilities())

    async def SetLease(  # noqa: N802
        self, request: pb.SetLeaseRequest, context: _Context
    ) -> pb.SetLeaseResponse:
        def set_lease() -> pb.SetLeaseResponse:
            status = self._engine.set_lease(request.kv_bytes, request.revision)
            stats = self._engine.stats()
            return pb.SetLeaseResponse(
                status=lease_status_to_wire(status),
                kv_bytes_committed=stats.kv_bytes,
                revision=stats.kv_lease_revision,
            )

        async def settled() -> pb.SetLeaseResponse:
            response = await self._stepping(set_lease)
            await asyncio.to_thread(self._engine.settle)
            return response

        return await self._answering(context, settled())

    async def SetMemoryLimit(  # noqa: N802
        self, request: pb.SetMemoryLimitRequest, context: _Context
    ) -> pb.SetMemoryLimitResponse:
        def set_limit() -> pb.SetMemoryLimitResponse:
            released_bytes = self._engine.set_memory_limit(request.num_bytes)
            return pb.SetMemoryLimitResponse(released_bytes=released_bytes)

        # Giving pages back to the system takes its time, which the step thread has none to spare for.
        return await self._answering(context, asyncio.to_thread(set_limit))

    async def Stats(  # noqa: N802
        self, request: pb.StatsRequest, context: _Context
    ) -> pb.WorkerStats:
        return stats_to_wire(await self._answering(context, self._stepping(self._engine.stats)))

    # Generation ------------------------------------------------------------------------------------

    async def Generate(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.GenerateRequest], context: _Context
    ) -> AsyncIterator[pb.StepOutput]:
        self._num_streams += 1
        number = self._num_streams
        stream = self._streams[number] = _RouterStream(number)
        if self._draining:
            stream.half_close()
        reader = asyncio.create_task(self._read_commands(stream, request_iterator))
        try:
            async for message in stream.messages():
                yield message
        finally:
            reader.cancel()
            del self._streams[number]
            if stream.live:  # the router is gone: what it asked for is nobody's
                self._steps.post(partial(self._engine.cancel, list(stream.live)))
                stream.live.clear()
            self._note_if_drained()

    async def _read_commands(
        self, stream: _RouterStream, commands: AsyncIterator[pb.GenerateRequest]
    ) -> None:
        async for command in commands:
            if command.HasField("submit"):
                prompt_ids = ids_from_wire(command.submit.prompt_ids)
                for sequence in command.submit.sequences:
                    self._submit(stream, sequence, prompt_ids)
            else:
                # An id that has ended already, or was never here, is no longer live and needs no cancel.
                wanted = {stream.base | (number & ROUTER_ID_MASK) for number in command.cancel.sequence_ids}
                if present := wanted & stream.live:
                    self._steps.post(partial(self._engine.cancel, list(present)))
        stream.half_close()

    def _submit(self, stream: _RouterStream, sequence: pb.Sequence, prompt_ids: TokenIds) -> None:
        refusal: MooringError | None = None
        if self._draining:
            refusal = ShuttingDownError("this worker is shutting down")
        elif sequence.sequence_id > ROUTER_ID_MASK:
            refusal = InvalidRequestError("a sequence id has 40 bits at most", param="sequence_id")
        if refusal is not None:
            ended = finished_to_wire(error_end(0, refusal), sequence.sequence_id)
            stream.put(pb.StepOutput(replica_id=sequence.replica_id, finished=[ended]))
            return
        sequence_id = stream.base | sequence.sequence_id
        stream.live.add(sequence_id)
        request = sequence_from_wire(sequence, prompt_ids, sequence_id, self._clock())
        self._steps.post(partial(self._engine.submit, request))

    def _deliver(self, outputs: list[StepOutput]) -> None:
        """On the event loop, once a step: one message to each router that has something in it."""
        for output in outputs:
            messages: dict[int, pb.StepOutput] = {}
            for index, sequence_id in enumerate(output.sequence_ids):
                message = self._message_for(messages, sequence_id, output)
                message.sequence_ids.append(sequence_id & ROUTER_ID_MASK)
                message.token_ids.append(output.token_ids[index])
                top = output.top_logprobs.get(index)
                if top is not None:
                    message.top_logprobs.append(top_logprobs_to_wire(top, sequence_id & ROUTER_ID_MASK))
            for sequence_id, first in output.first_tokens.items():
                message = self._message_for(messages, sequence_id, output)
                number = sequence_id & ROUTER_ID_MASK
                message.first_tokens.append(first_token_to_wire(first, number, self._clock()))
            self._add_computed(messages, output)
            for finished in output.finished:
                message = self._message_for(messages, finished.sequence_id, output)
                message.finished.append(finished_to_wire(finished, finished.sequence_id & ROUTER_ID_MASK))
            self._send(messages, output.finished)
        self._note_if_drained()

    def _add_computed(self, messages: dict[int, pb.StepOutput], output: StepOutput) -> None:
        computed = output.computed_tokens
        for number in {sequence_id >> ROUTER_ID_BITS for sequence_id in computed}:
            ids = [sequence_id for sequence_id in computed if sequence_id >> ROUTER_ID_BITS == number]
            message = self._message_for(messages, ids[0], output)
            message.computed_ids.extend([sequence_id & ROUTER_ID_MASK for sequence_id in ids])
            message.num_computed.extend([computed[sequence_id] for sequence_id in ids])

    def _message_for(
        self, messages: dict[int, pb.StepOutput], sequence_id: int, output: StepOutput
    ) -> pb.StepOutput:
        number = sequence_id >> ROUTER_ID_BITS
        message = messages.get(number)
        if message is None:
            message = messages[number] = pb.StepOutput(
                replica_id=output.replica_id, step=output.step, seconds=output.seconds
            )
        return message

    def _send(self, messages: dict[int, pb.StepOutput], ended: list[Finished]) -> None:
        for number, message in messages.items():
            stream = self._streams.get(number)
            if stream is not None:  # else the router went away while the step ran
                stream.live.difference_update(finished.sequence_id for finished in ended)
                stream.put(message)

    def _note_if_drained(self) -> None:
        if self._draining and not any(stream.live for stream in self._streams.values()):
            self._drained.set()

    # Where work runs -------------------------------------------------------------------------------

    async def _verb(
        self,
        context: _Context,
        replica_id: str,
        work: Callable[[], Coroutine[Any, Any, Result]],
    ) -> Result:
        """One verb at a time for each replica. A copy cannot be interrupted, so a caller that goes away
        does not end the verb: the next one for this replica still waits for it."""

        async def exclusively() -> Result:
            async with self._replica_locks.setdefault(replica_id, asyncio.Lock()):
                return await work()

        task = asyncio.create_task(exclusively())
        self._verbs.add(task)
        task.add_done_callback(self._verbs.discard)
        return await self._answering(context, asyncio.shield(task))

    async def _answering(self, context: _Context, work: Awaitable[Result]) -> Result:
        try:
            return await work
        except MooringError as error:
            await abort_with(error, context)
            raise AssertionError("unreachable: abort raises") from error

    async def _copying(self, work: Callable[[], Result]) -> Result:
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._copiers, work)
            self._steps.look()
            return result
        except DeviceLostError as error:
            self._on_failure(error)
            raise

    async def _stepping(self, work: Callable[[], Result]) -> Result:
        return await asyncio.wrap_future(self._steps.call(work))
