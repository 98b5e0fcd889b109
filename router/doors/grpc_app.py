"""The gRPC server: the native service, KServe v2, health and reflection side by side, behind one guard."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2_grpc

from mooring.v1 import inference_pb2, inference_pb2_grpc
from router.doors.grpc.guard import CallGuard, Key
from router.doors.grpc.health import HEALTH_SERVICE_NAME, HealthService
from router.doors.grpc.inference import InferenceService
from router.doors.grpc.limits import GrpcLimits
from router.doors.kserve.core import KServe
from router.doors.kserve.grpc_service import KSERVE_SERVICE_NAME, KServeService
from router.intake import Intake
from router.services import RouterServices

__all__ = ["create_grpc_server"]

_NATIVE_NAME = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
_KEYS: Mapping[str, Key] = MappingProxyType(
    {
        f"/{HEALTH_SERVICE_NAME}/Check": Key.NONE,
        f"/{HEALTH_SERVICE_NAME}/Watch": Key.NONE,
        f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": Key.NONE,
        f"/{KSERVE_SERVICE_NAME}/ServerLive": Key.NONE,
        f"/{KSERVE_SERVICE_NAME}/ServerReady": Key.NONE,
        f"/{KSERVE_SERVICE_NAME}/RepositoryModelLoad": Key.ADMIN,
        f"/{KSERVE_SERVICE_NAME}/RepositoryModelUnload": Key.ADMIN,
    }
)
"""The key of each call that needs another one than a tenant's."""


def create_grpc_server(
    services: RouterServices,
    intake: Intake,
    kserve: KServe,
    admin_key: str,
    limits: GrpcLimits | None = None,
) -> grpc.aio.Server:
    """The server, which listens nowhere yet and does not run. It describes its services to anybody, unless
    strangers can reach it.

    Args:
        services: the models that are served, and the tenants.
        intake: shared with the other doors, so that tokenizers are read once.
        kserve: shared with the KServe REST door, together with its statistics.
        admin_key: the key to load and unload models.
        limits: bounds on what clients send and hold.
    """
    config, exposure, limits = services.config, services.exposure, limits or GrpcLimits()
    server = grpc.aio.server(
        interceptors=[CallGuard(services, admin_key, _KEYS, limits)],
        options=limits.options(config.max_body_bytes),
    )
    native = InferenceService(services, intake)
    inference_pb2_grpc.add_InferenceServicer_to_server(native, server)  # type: ignore[no-untyped-call]
    triton = KServeService(kserve, services.in_flight, config)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    names = (_NATIVE_NAME, KSERVE_SERVICE_NAME)
    health = HealthService(services.is_ready, names, limits, behind_proxy=exposure.behind_proxy)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if not exposure.is_public:
        reflection.enable_server_reflection((*names, HEALTH_SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server
