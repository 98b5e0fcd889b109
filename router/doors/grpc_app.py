"""The services of the gRPC port, side by side: the native one, KServe v2, health and reflection."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2_grpc

from mooring.v1 import inference_pb2, inference_pb2_grpc
from router.doors.grpc.health import HEALTH_SERVICE_NAME, HealthService
from router.doors.grpc.inference import create_grpc_service
from router.doors.kserve.core import KServe
from router.doors.kserve.grpc_service import KSERVE_SERVICE_NAME, KServeService
from router.intake import Intake
from router.services import RouterServices

__all__ = ["add_grpc_services"]

_NATIVE_NAME = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name


def add_grpc_services(
    server: grpc.aio.Server, services: RouterServices, intake: Intake, kserve: KServe, admin_key: str
) -> None:
    """Adds every service to a server that does not run yet.

    Args:
        services: the models that are served, and the tenants.
        intake: shared with the other doors, so that tokenizers are read once.
        kserve: shared with the KServe REST door, together with its statistics.
        admin_key: the key to load and unload models.
    """
    native = create_grpc_service(services, intake)
    inference_pb2_grpc.add_InferenceServicer_to_server(native, server)  # type: ignore[no-untyped-call]
    triton = KServeService(kserve, services.tenancy, admin_key, services.config)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    names = (_NATIVE_NAME, KSERVE_SERVICE_NAME)
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(services.is_ready, names), server)
    reflection.enable_server_reflection((*names, HEALTH_SERVICE_NAME, reflection.SERVICE_NAME), server)
