"""The KServe v2 gRPC door: ``inference.GRPCInferenceService`` as Triton's clients call it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mooring.errors import InternalError, MooringError
from router.doors.grpc.errors import Context, abort, metadata_of, refuse_unknown_fields
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
from router.intake import request_id_from
from router.request.bounds import RouterConfig
from router.tenancy.keys import Tenancy, api_key_of, check_admin_key
from router.tenancy.tenant import Tenant
from router.text.shaping import shaped

__all__ = ["KSERVE_SERVICE_NAME", "KServeService"]

KSERVE_SERVICE_NAME = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_STRICT = "triton_grpc_error"  # metadata with which the first error ends a stream, as its status

_log = logging.getLogger(__name__)
_Call = Callable[["KServeService", Any, Context], Awaitable[Any]]


def _guarded(call: _Call) -> _Call:
    """Refuses a message of a newer protocol, and ends a call that fails with the status of the error."""

    @functools.wraps(call)
    async def guarded(self: KServeService, request: Any, context: Context) -> Any:
        try:
            if isinstance(request, Message):  # the requests of a stream are looked at one by one
                refuse_unknown_fields(request)
            return await call(self, request, context)
        except MooringError as error:
            await abort(context, error)
        except Exception:  # the edge of the process: a bug must end this call and no other
            _log.exception("a bug while answering %s", call.__name__)
            await abort(context, InternalError("An error of the server's own; it has been logged."))

    return guarded


class KServeService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves every call of the protocol. An error ends a call as on the native door; in a stream it becomes
    the ``error_message`` of the request that failed, and the other requests go on.

    Args:
        kserve: gives the answers.
        tenancy: finds the tenant of a key; only ``ServerLive`` and ``ServerReady`` need no key.
        admin_key: the key to load and unload models.
        config: bounds of a stream.
    """

    def __init__(self, kserve: KServe, tenancy: Tenancy, admin_key: str, config: RouterConfig) -> None:
        self._kserve = kserve
        self._tenancy = tenancy
        self._admin_key = admin_key
        self._config = config

    # The server --------------------------------------------------------------------------------------

    @_guarded
    async def ServerLive(self, request: Any, context: Context) -> Any:  # noqa: N802 (gRPC's names)
        return service_pb2.ServerLiveResponse(live=True)

    @_guarded
    async def ServerReady(self, request: Any, context: Context) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=self._kserve.is_server_ready())

    @_guarded
    async def ServerMetadata(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        return service_pb2.ServerMetadataResponse(
            name=SERVER_NAME, version=SERVER_VERSION, extensions=EXTENSIONS
        )

    # Models ------------------------------------------------------------------------------------------

    @_guarded
    async def ModelReady(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        ready = self._kserve.is_model_ready(request.name, request.version)
        return service_pb2.ModelReadyResponse(ready=ready)

    @_guarded
    async def ModelMetadata(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        return messages.metadata_message(self._kserve.metadata(request.name, request.version))

    @_guarded
    async def ModelConfig(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        return messages.config_message(self._kserve.config(request.name, request.version))

    @_guarded
    async def ModelStatistics(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        return messages.statistics_message(self._kserve.statistics(request.name, request.version))

    # The repository ----------------------------------------------------------------------------------

    @_guarded
    async def RepositoryIndex(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        check_repository_name(request.repository_name)
        return messages.index_message(await self._kserve.index(ready_only=request.ready))

    @_guarded
    async def RepositoryModelLoad(self, request: Any, context: Context) -> Any:  # noqa: N802
        self._check_admin(context)
        check_repository_name(request.repository_name)
        check_load_parameters(messages.parameters_of(request.parameters))
        await self._kserve.load(request.model_name)
        return service_pb2.RepositoryModelLoadResponse()

    @_guarded
    async def RepositoryModelUnload(self, request: Any, context: Context) -> Any:  # noqa: N802
        self._check_admin(context)
        check_repository_name(request.repository_name)
        check_unload_parameters(messages.parameters_of(request.parameters))
        await self._kserve.unload(request.model_name)
        return service_pb2.RepositoryModelUnloadResponse()

    # Inference ---------------------------------------------------------------------------------------

    @_guarded
    async def ModelInfer(self, request: Any, context: Context) -> Any:  # noqa: N802
        metadata = metadata_of(context)
        tenant = await self._tenant(context)
        model = self._kserve.model(request.model_name, request.model_version)
        answers = self._kserve.infer(
            model,
            messages.read_infer_request(request),
            request_id=request_id_from(request.id or metadata.get("x-request-id")),
            tenant=tenant,
            whole=True,
        )
        async with aclosing(answers):
            outputs = [answer.outputs async for answer in answers]
        make = functools.partial(
            messages.infer_message, model.name, str(model.version), request.id, outputs[0]
        )
        return await shaped(make, sum(map(size_of, outputs[0])))

    @_guarded
    async def ModelStreamInfer(self, request: Any, context: Context) -> None:  # noqa: N802
        tenant = await self._tenant(context)
        stream = InferStream(
            self._kserve,
            context,
            tenant,
            self._config,
            strict=metadata_of(context).get(_STRICT) == "true",
        )
        await stream.run(request)

    # What is not here --------------------------------------------------------------------------------

    @_guarded
    async def SystemSharedMemoryStatus(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        check_shared_memory_region(request.name)
        return service_pb2.SystemSharedMemoryStatusResponse()

    @_guarded
    async def CudaSharedMemoryStatus(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        check_shared_memory_region(request.name)
        return service_pb2.CudaSharedMemoryStatusResponse()

    @_guarded
    async def SystemSharedMemoryRegister(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        raise no_shared_memory()

    @_guarded
    async def SystemSharedMemoryUnregister(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        raise no_shared_memory()

    @_guarded
    async def CudaSharedMemoryRegister(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        raise no_shared_memory()

    @_guarded
    async def CudaSharedMemoryUnregister(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        raise no_shared_memory()

    @_guarded
    async def TraceSetting(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        raise no_trace()

    @_guarded
    async def LogSettings(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._tenant(context)
        raise no_log_settings()

    async def _tenant(self, context: Context) -> Tenant:
        return await self._tenancy.tenant_of(api_key_of(metadata_of(context)))

    def _check_admin(self, context: Context) -> None:
        check_admin_key(api_key_of(metadata_of(context)), self._admin_key)
