"""gRPC's standard health service, over the server's own readiness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from mooring.errors import NotFoundError
from router.doors.grpc.errors import Context, abort

__all__ = ["HEALTH_SERVICE_NAME", "HealthService"]

HEALTH_SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_WATCH_EVERY_S = 0.5


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Tells whether the server, and each of its services, can serve. All are ready together. Needs no key, as
    ``/health/ready`` needs none.

    Args:
        is_ready: whether the server can serve; answers from memory.
        service_names: services that may be asked about, beside the server itself, which has the empty name.
    """

    def __init__(self, is_ready: Callable[[], bool], service_names: Collection[str]) -> None:
        self._is_ready = is_ready
        self._names = frozenset(("", *service_names))

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802 (gRPC's names)
        if request.service not in self._names:
            await abort(context, NotFoundError(f"There is no service '{request.service}'.", param="service"))
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: N802
        """Sends the status at once and at every change, until the client goes."""
        told = None
        while True:
            status = self._status(request.service)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(_WATCH_EVERY_S)

    def _status(self, service: str) -> int:
        statuses = health_pb2.HealthCheckResponse
        if service not in self._names:
            return int(statuses.SERVICE_UNKNOWN)
        return int(statuses.SERVING if self._is_ready() else statuses.NOT_SERVING)
