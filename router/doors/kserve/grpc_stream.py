"""One stream of the KServe gRPC door: several requests at a time, with their answers interleaved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from mooring.errors import InternalError, MooringError
from router.doors.grpc.errors import Context, metadata_of
from router.doors.grpc.writing import MessageWriter
from router.doors.kserve.core import KServe
from router.doors.kserve.grpc_messages import StreamResponse, error_message, read_infer_request
from router.intake import request_id_from
from router.request.bounds import RouterConfig
from router.request.reader_watch import SlowReaderError
from router.tenancy.in_flight import InFlight
from router.tenancy.tenant import SLO_CLASS_HEADER, Tenant

__all__ = ["InferStream"]

_log = logging.getLogger(__name__)


class InferStream:
    """Answers the requests of one call, each in a task of its own.

    A request that fails is answered with its error, and the others go on. A slow reader holds back only its
    own requests: each waits until its last answer has gone out. When the call is cancelled, so is every
    request.

    Args:
        kserve: gives the answers.
        context: the context of the call.
        in_flight: counts what the tenant has in flight; each request's bytes, until it is answered.
        tenant_now: the tenant whose call it is, asked anew for each request; raises if the key is good no longer.
        config: how many requests run at a time, while further ones wait unread, and when a client that reads nothing
            is given up with all of its requests.
        strict: whether the first request that fails ends the call with its error, as Triton's clients ask for
            with the metadata ``triton_grpc_error``.
    """

    def __init__(
        self,
        kserve: KServe,
        context: Context,
        in_flight: InFlight,
        tenant_now: Callable[[], Awaitable[Tenant]],
        config: RouterConfig,
        *,
        strict: bool,
    ) -> None:
        self._kserve = kserve
        self._slo_class = metadata_of(context).get(SLO_CLASS_HEADER)
        self._writer = MessageWriter(context, config.max_reader_stall_s)
        self._in_flight = in_flight
        self._tenant_now = tenant_now
        self._strict = strict
        self._slots = asyncio.Semaphore(config.max_stream_requests)
        self._writing = asyncio.Lock()  # gRPC takes one message of a call at a time

    async def run(self, requests: AsyncIterator[Any]) -> None:
        """Returns when the client has sent its last request and all requests are answered.

        Raises:
            MooringError: a request of a strict stream failed, a message is wrong, or the client did not read.
        """
        try:
            with self._writer:
                await self._answer_all(requests)
        except* Exception as failed:  # the first ends the call; gRPC's own if the client is gone
            error: BaseException = failed
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None

    async def _answer_all(self, requests: AsyncIterator[Any]) -> None:
        async with asyncio.TaskGroup() as tasks:
            async for request in requests:
                await self._slots.acquire()
                task = tasks.create_task(self._answer(request))
                task.add_done_callback(lambda _: self._slots.release())
                del request  # nothing else keeps it while the next one is awaited

    async def _answer(self, request: Any) -> None:
        refusal = None
        try:
            tenant = await self._tenant_now()
            with self._in_flight.take(tenant, body_bytes=request.ByteSize()):
                await self._infer(request, tenant)
        except SlowReaderError:
            raise  # nobody would read that either
        except MooringError as error:
            refusal = self._refusal(request, error)
        except Exception:  # the edge of the process: a bug must end this request and no other
            _log.exception("a bug while answering ModelStreamInfer")
            refusal = self._refusal(
                request, InternalError("An error of the server's own; it has been logged.")
            )
        if refusal is not None:
            del request  # its bytes no longer count as in flight, and the client may not read for long
            await self._send(refusal)

    async def _infer(self, request: Any, tenant: Tenant) -> None:
        model = self._kserve.model(request.model_name, request.model_version)
        response = StreamResponse(model.name, str(model.version), request.id)
        answers = self._kserve.infer(
            model,
            read_infer_request(request),
            request_id=request_id_from(request.id),
            tenant=tenant,
            slo_class=self._slo_class,
        )
        async with aclosing(answers):
            async for answer in answers:
                await self._send(response.of(answer))

    def _refusal(self, request: Any, error: MooringError) -> Any:
        """The answer to a request that failed.

        Raises:
            MooringError: the error itself, if the stream is strict.
        """
        if self._strict:
            raise error
        return error_message(request.model_name, request.model_version, request.id, error.message)

    async def _send(self, message: Any) -> None:
        async with self._writing:
            await self._writer.write(message)
