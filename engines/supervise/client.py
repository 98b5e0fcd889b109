"""A worker as the server process sees it: the verbs, and one stream that carries every token.

Tokens cross one task on their way: the reader takes a step's message off the stream and calls the sink of
each sequence in it, at once and in order. A sink must not block.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from engines.api import (
    Capabilities,
    ChoiceTokens,
    Finished,
    FinishReason,
    SequenceRequest,
    TokenIds,
)
from engines.config import ClientConfig
from engines.link.descriptors import DescriptorSender
from engines.link.wire import (
    CHANNEL_OPTIONS,
    capabilities_from_wire,
    error_from_rpc,
    finished_from_wire,
    first_token_from_wire,
    ids_to_wire,
    lease_status_from_wire,
    sequence_to_wire,
    stats_from_wire,
    top_logprobs_from_wire,
)
from engines.supervise.death import WorkerDeath
from memory_manager.ports import DeploymentSpec, LeaseStatus
from memory_manager.stats import WorkerStats
from mooring.errors import WorkerLostError
from mooring.v1 import engine_pb2 as pb
from mooring.v1 import engine_pb2_grpc

__all__ = ["SequenceSink", "StepSink", "WorkerClient"]

logger = logging.getLogger(__name__)

# What may be under way to us, kept small: steps that we are too slow for then wait at the worker, which sends
# them together. One larger message still gets the room that it needs.
_CHANNEL_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.http2.lookahead_bytes", 8192), ("grpc.http2.bdp_probe", 0))

_TOKENS_AT_ONCE = 1024  # of the steps of one message, before the event loop has a turn


SequenceSink = Callable[[ChoiceTokens], None]
StepSink = Callable[[str, Sequence[int], float], None]
"""Told of every step: the replica, the tokens that each sequence computed in it, and the seconds that it took."""


@dataclass(slots=True)
class _Sent:
    """A sequence that was submitted and has not ended.

    Attributes:
        sink: called with its tokens.
        index: its ``SamplingParams.choice``.
    """

    sink: SequenceSink
    index: int


class WorkerClient:
    """One life of one worker. Satisfies ``memory_manager.ports.WorkerPort``.

    When the process or the stream goes, every call under way and to come raises ``WorkerLostError``, and
    ``wait_lost`` returns. Every sequence still present gets one chunk that ends it with ``worker_lost`` when the
    client is closed: only then is it known how the worker died.

    Attributes:
        death: how the worker died; set before its sequences are told.

    Args:
        descriptors: the channel on which this life of the worker receives host copies.
        clock: ``time.monotonic``, the clock of ``SequenceRequest.deadline_s``.
        on_step: told of every step; must not block.
        serves: the one deployment that it is for; empty if it is for any.
    """

    def __init__(
        self,
        worker_id: str,
        socket_path: Path,
        descriptors: DescriptorSender,
        config: ClientConfig,
        clock: Callable[[], float] = time.monotonic,
        on_step: StepSink = lambda replica_id, num_computed, seconds: None,
        serves: str = "",
    ) -> None:
        self._worker_id = worker_id
        self._serves = serves
        self._descriptors = descriptors
        self._config = config
        self._clock = clock
        self._on_step = on_step
        self._channel = grpc.aio.insecure_channel(f"unix:{socket_path}", options=_CHANNEL_OPTIONS)
        self._stub = engine_pb2_grpc.EngineStub(self._channel)  # type: ignore[no-untyped-call]
        self._capabilities: Capabilities | None = None
        self._sent: dict[int, _Sent] = {}
        self._commands: deque[pb.GenerateRequest] = deque()
        self._commands_queued = asyncio.Event()
        self._unsent_prompt: TokenIds | None = None  # that of the last command, if it submits and is not sent
        self._lost = asyncio.Event()
        self._loss = "the client was closed"
        self.death = WorkerDeath()
        self._stream: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Asks what the worker can do and opens the stream.

        Raises:
            WorkerLostError: it does not answer.
        """
        response: pb.CapabilitiesResponse = await self._call(
            self._stub.Capabilities,
            pb.CapabilitiesRequest(),
            timeout=self._config.connect_timeout_s,
            wait_for_ready=True,
        )
        self._capabilities = capabilities_from_wire(response)
        self._stream = asyncio.create_task(self._run_stream(), name=f"stream-{self._worker_id}")

    async def close(self, death: WorkerDeath = WorkerDeath()) -> None:
        """Ends the stream and the channel; sequences that were still present are lost.

        Args:
            death: how the worker died; by default by no sequence's fault.
        """
        if self._stream is not None:
            self._stream.cancel()
            await asyncio.wait([self._stream])
        self._lost.set()
        self.death = death
        self._end_sequences()
        await self._channel.close(grace=None)

    @property
    def worker_id(self) -> str:
        return self._worker_id

    @property
    def device(self) -> str:
        return self.capabilities().device

    @property
    def serves(self) -> str:
        return self._serves

    def capabilities(self) -> Capabilities:
        """Returns the worker's capabilities, as it told them at ``connect``."""
        if self._capabilities is None:
            raise WorkerLostError(f"worker {self._worker_id} was never reached")
        return self._capabilities

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    async def wait_lost(self) -> None:
        await self._lost.wait()

    # Sequences -------------------------------------------------------------------------------------

    def submit(self, request: SequenceRequest, sink: SequenceSink) -> None:
        """Sends ``request``; ``sink`` is called with its tokens, once a step; the last ones have ``finished``.

        Raises:
            WorkerLostError: the worker is gone; the sink is never called.
        """
        if self.lost:
            raise WorkerLostError(f"worker {self._worker_id} is gone")
        self._sent[request.sequence_id] = _Sent(sink, request.sampling.choice)
        sequence = sequence_to_wire(request, self._clock())
        if request.prompt_ids is self._unsent_prompt:  # a choice of the same request: the prompt goes once
            self._commands[-1].submit.sequences.append(sequence)
            return
        submit = pb.Submit(prompt_ids=ids_to_wire(request.prompt_ids), sequences=[sequence])
        self._queue(pb.GenerateRequest(submit=submit))
        self._unsent_prompt = request.prompt_ids

    def cancel(self, sequence_ids: Sequence[int]) -> None:
        """Ends sequences at the next step. Their sinks are not called again."""
        present = [number for number in sequence_ids if self._sent.pop(number, None) is not None]
        if present:
            self._queue(pb.GenerateRequest(cancel=pb.Cancel(sequence_ids=present)))

    def _queue(self, command: pb.GenerateRequest) -> None:
        self._commands.append(command)
        self._unsent_prompt = None
        self._commands_queued.set()

    # Verbs -----------------------------------------------------------------------------------------

    async def load(
        self,
        replica_id: str,
        deployment: DeploymentSpec,
        weights_fd: int,
        checksum: int | None = None,
        from_file: bool = False,
    ) -> int:
        """See ``WorkerPort.load``. The caller keeps ``weights_fd``."""
        key = await self._descriptors.send(deployment.artifact.key, weights_fd)
        request = pb.LoadRequest(
            replica_id=replica_id,
            descriptor_key=key,
            manifest_json=deployment.artifact.manifest_json,
            max_model_len=deployment.max_model_len,
            weights_lease_bytes=deployment.weights_bytes,
            kv_guarantee_bytes=deployment.kv_guarantee_bytes,
            kv_cap_bytes=deployment.policy.kv_cap_bytes or 0,
            host_copy_checksum=checksum,
            from_file=from_file,
        )
        response: pb.LoadResponse = await self._call(self._stub.Load, request)
        return response.weights_bytes

    async def drop_host_copy(self, replica_id: str) -> None:
        await self._call(self._stub.DropHostCopy, pb.DropHostCopyRequest(replica_id=replica_id))

    async def unload(self, replica_id: str) -> None:
        await self._call(self._stub.Unload, pb.UnloadRequest(replica_id=replica_id))

    async def sleep(self, replica_id: str) -> int:
        """Returns the device bytes given up."""
        request = pb.SleepRequest(replica_id=replica_id)
        response: pb.SleepResponse = await self._call(self._stub.Sleep, request)
        return response.released_bytes

    async def wake(self, replica_id: str, weights_lease_bytes: int) -> int:
        """Returns the device bytes of the weights."""
        request = pb.WakeRequest(replica_id=replica_id, weights_lease_bytes=weights_lease_bytes)
        response: pb.WakeResponse = await self._call(self._stub.Wake, request)
        return response.weights_bytes

    async def set_lease(self, kv_bytes: int, revision: int) -> LeaseStatus:
        request = pb.SetLeaseRequest(kv_bytes=kv_bytes, revision=revision)
        response: pb.SetLeaseResponse = await self._call(self._stub.SetLease, request)
        return lease_status_from_wire(response.status)

    async def set_memory_limit(self, num_bytes: int) -> int:
        """Returns the bytes that the worker gave back at once."""
        request = pb.SetMemoryLimitRequest(num_bytes=num_bytes)
        response: pb.SetMemoryLimitResponse = await self._call(self._stub.SetMemoryLimit, request)
        return response.released_bytes

    async def stats(self) -> WorkerStats:
        response: pb.WorkerStats = await self._call(
            self._stub.Stats, pb.StatsRequest(), timeout=self._config.usage_timeout_s
        )
        return stats_from_wire(response)

    async def _call(self, method: Callable[..., Awaitable[Any]], request: Message, **options: Any) -> Any:
        if self.lost:
            raise WorkerLostError(f"worker {self._worker_id} is gone")
        try:
            return await method(request, **options)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self._worker_id) from error
        except asyncio.CancelledError:
            # gRPC says "cancelled" also when ``close`` took the channel away from under a call. Only the
            # caller's own cancellation may pass as one.
            task = asyncio.current_task()
            if self._lost.is_set() and task is not None and not task.cancelling():
                raise WorkerLostError(f"worker {self._worker_id} is gone") from None
            raise

    # The stream ------------------------------------------------------------------------------------

    async def _run_stream(self) -> None:
        call = self._stub.Generate()
        writer = asyncio.create_task(self._write_commands(call), name=f"commands-{self._worker_id}")
        reason = "the worker ended the stream"
        try:
            async for message in call:
                num_tokens = self._dispatch(message)
                for step in message.following:
                    if num_tokens > _TOKENS_AT_ONCE:
                        num_tokens = 0
                        await asyncio.sleep(0)
                    num_tokens += self._dispatch(step)
        except grpc.aio.AioRpcError as error:
            reason = error.details() or error.code().name
        finally:
            writer.cancel()
            call.cancel()
            self._loss = reason
            self._lost.set()

    async def _write_commands(
        self, call: grpc.aio.StreamStreamCall[pb.GenerateRequest, pb.StepOutput]
    ) -> None:
        while True:
            await self._commands_queued.wait()
            self._commands_queued.clear()
            while self._commands:
                try:
                    command = self._commands.popleft()
                    if not self._commands:
                        self._unsent_prompt = None
                    await call.write(command)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # the stream is over: the reader says so to everybody

    def _dispatch(self, message: pb.StepOutput) -> int:
        """Tells the sinks of one step; returns the number of its tokens."""
        news = self._news_of(message)
        if message.num_computed:
            self._on_step(message.replica_id, message.num_computed, message.seconds)
        for sequence_id, new in news.items():
            sent = self._sent.get(sequence_id)
            if sent is None:  # it was cancelled here and the worker did not know yet
                continue
            if new.finished is not None:
                del self._sent[sequence_id]
            new.index = sent.index
            sent.sink(new)
        return len(message.token_ids)

    def _news_of(self, message: pb.StepOutput) -> dict[int, ChoiceTokens]:
        """The output of one step, by sequence; the choices' indices are still to be filled in."""
        news: dict[int, ChoiceTokens] = defaultdict(partial(ChoiceTokens, 0))
        for sequence_id, token_id in zip(message.sequence_ids, message.token_ids, strict=True):
            news[sequence_id].token_ids.append(token_id)
        for top in message.top_logprobs:
            new = news[top.sequence_id]
            new.logprobs = [*(new.logprobs or ()), top_logprobs_from_wire(top)]
        for first in message.first_tokens:
            news[first.sequence_id].first = first_token_from_wire(first, self._clock())
        for ended in message.finished:
            news[ended.sequence_id].finished = finished_from_wire(ended)
        return news

    def _end_sequences(self) -> None:
        sent, self._sent = self._sent, {}
        message = f"worker {self._worker_id} is gone: {self._loss}"
        for sequence_id, each in sent.items():
            ended = Finished(
                sequence_id,
                FinishReason.ERROR,
                error_code=WorkerLostError.code,
                error_message=message,
            )
            each.sink(ChoiceTokens(each.index, finished=ended))
