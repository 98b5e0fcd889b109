"""The KServe v2 gRPC door: ``inference.GRPCInferenceService`` as Triton's clients call it."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import Any

from tritonclient.grpc import service_pb2, service_pb2_grpc

from router.doors.grpc.errors import Context, metadata_of
from router.doors.grpc.guard import caller, caller_now
from router.doors.kserve import grpc_messages as messages
from router.doors.kserve.core import KServe
from router.doors.kserve.grpc_stream import InferStream
from router.doors.kserve.metadata import EXTENSIONS, SERVER_NAME, SERVER_VERSION
from router.doors.kserve.repository import (
    check_load_parameters,
    check_repository_name,
    check_unload_parameters,
)
from router.doors.kserve.tensors import size_of
from router.doors.kserve.unsupported import (
    check_shared_memory_region,
    no_log_settings,
    no_shared_memory,
    no_trace,
)
from router.doors.prediction import prediction
from router.intake import request_id_from
from router.request.bounds import RouterConfig
from router.tenancy.in_flight import InFlight
from router.tenancy.tenant import SLO_CLASS_HEADER
from router.text.shaping import shaped

__all__ = ["KSERVE_SERVICE_NAME", "KServeService"]

KSERVE_SERVICE_NAME = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_STRICT = "triton_grpc_error"  # metadata with which the first error ends a stream, as its status


class KServeService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves every call of the protocol, behind ``CallGuard``. In a stream an error becomes the
    ``error_message`` of the request that failed, and the other requests go on.

    Args:
        kserve: gives the answers.
        in_flight: counts what each tenant has in flight.
        config: bounds of a stream.
    """

    def __init__(self, kserve: KServe, in_flight: InFlight, config: RouterConfig) -> None:
        self._kserve = kserve
        self._in_flight = in_flight
        self._config = config

    # The server --------------------------------------------------------------------------------------

    async def ServerLive(self, request: Any, context: Context) -> Any:  # noqa: N802 (gRPC's names)
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Context) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=self._kserve.is_server_ready())

    async def ServerMetadata(self, request: Any, context: Context) -> Any:  # noqa: N802
        return service_pb2.ServerMetadataResponse(
            name=SERVER_NAME, version=SERVER_VERSION, extensions=EXTENSIONS
        )

    # Models ------------------------------------------------------------------------------------------

    async def ModelReady(self, request: Any, context: Context) -> Any:  # noqa: N802
        ready = self._kserve.is_model_ready(request.name, request.version)
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ModelMetadata(self, request: Any, context: Context) -> Any:  # noqa: N802
        return messages.metadata_message(self._kserve.metadata(request.name, request.version))

    async def ModelConfig(self, request: Any, context: Context) -> Any:  # noqa: N802
        return messages.config_message(self._kserve.config(request.name, request.version))

    async def ModelStatistics(self, request: Any, context: Context) -> Any:  # noqa: N802
        return messages.statistics_message(self._kserve.statistics(request.name, request.version))

    # The repository ----------------------------------------------------------------------------------

    async def RepositoryIndex(self, request: Any, context: Context) -> Any:  # noqa: N802
        check_repository_name(request.repository_name)
        return messages.index_message(await self._kserve.index(ready_only=request.ready))

    async def RepositoryModelLoad(self, request: Any, context: Context) -> Any:  # noqa: N802
        check_repository_name(request.repository_name)
        check_load_parameters(messages.parameters_of(request.parameters))
        await self._kserve.load(request.model_name)
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Context) -> Any:  # noqa: N802
        check_repository_name(request.repository_name)
        check_unload_parameters(messages.parameters_of(request.parameters))
        await self._kserve.unload(request.model_name)
        return service_pb2.RepositoryModelUnloadResponse()

    # Inference ---------------------------------------------------------------------------------------

    async def ModelInfer(self, request: Any, context: Context) -> Any:  # noqa: N802
        metadata = metadata_of(context)
        model = self._kserve.model(request.model_name, request.model_version)
        answers = self._kserve.infer(
            model,
            messages.read_infer_request(request),
            request_id=request_id_from(request.id or metadata.get("x-request-id")),
            tenant=caller(),
            slo_class=metadata.get(SLO_CLASS_HEADER),
            whole=True,
        )
        async with aclosing(answers):
            [first, *_] = [answer async for answer in answers]
        await context.send_initial_metadata(tuple(prediction(first.predicted_ttft_s).items()))
        make = partial(messages.infer_message, model.name, str(model.version), request.id, first.outputs)
        return await shaped(make, sum(map(size_of, first.outputs)))

    async def ModelStreamInfer(self, request: Any, context: Context) -> None:  # noqa: N802
        stream = InferStream(
            self._kserve,
            context,
            self._in_flight,
            caller_now,
            self._config,
            strict=metadata_of(context).get(_STRICT) == "true",
        )
        await stream.run(request)

    # What is not here --------------------------------------------------------------------------------

    async def SystemSharedMemoryStatus(self, request: Any, context: Context) -> Any:  # noqa: N802
        check_shared_memory_region(request.name)
        return service_pb2.SystemSharedMemoryStatusResponse()

    async def CudaSharedMemoryStatus(self, request: Any, context: Context) -> Any:  # noqa: N802
        check_shared_memory_region(request.name)
        return service_pb2.CudaSharedMemoryStatusResponse()

    async def SystemSharedMemoryRegister(self, request: Any, context: Context) -> Any:  # noqa: N802
        raise no_shared_memory()

    async def SystemSharedMemoryUnregister(self, request: Any, context: Context) -> Any:  # noqa: N802
        raise no_shared_memory()

    async def CudaSharedMemoryRegister(self, request: Any, context: Context) -> Any:  # noqa: N802
        raise no_shared_memory()

    async def CudaSharedMemoryUnregister(self, request: Any, context: Context) -> Any:  # noqa: N802
        raise no_shared_memory()

    async def TraceSetting(self, request: Any, context: Context) -> Any:  # noqa: N802
        raise no_trace()

    async def LogSettings(self, request: Any, context: Context) -> Any:  # noqa: N802
        raise no_log_settings()
