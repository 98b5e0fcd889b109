"""gRPC's standard health service, over the server's own readiness."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from mooring.errors import NotFoundError, OverloadedError
from router.doors.grpc.errors import Context, client_network_of
from router.doors.grpc.limits import GrpcLimits

__all__ = ["HEALTH_SERVICE_NAME", "HealthService"]

HEALTH_SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_LOOK_EVERY_S = 0.5


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Tells whether the server, and each of its services, can serve. All are ready together. Needs no key, as
    ``/health/ready`` needs none.

    Args:
        is_ready: whether the server can serve; answers from memory.
        service_names: services that may be asked about, beside the server itself, which has the empty name.
        limits: how many may watch.
        behind_proxy: whether all clients have the proxy's address.
    """

    def __init__(
        self,
        is_ready: Callable[[], bool],
        service_names: Collection[str],
        limits: GrpcLimits,
        *,
        behind_proxy: bool,
    ) -> None:
        self._is_ready = is_ready
        self._names = frozenset(("", *service_names))
        self._max = limits.max_watches
        self._max_of_network = limits.max_watches if behind_proxy else limits.max_address_watches
        self._watches = Counter[str]()  # by the client's network
        self._change = asyncio.Event()  # set at each change, and made anew
        self._looking: asyncio.Task[None] | None = None

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802 (gRPC's names)
        if request.service not in self._names:
            raise NotFoundError(f"There is no service '{request.service}'.", param="service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: N802
        """Sends the status at once and at every change, until the client goes."""
        with self._watching(client_network_of(context)):
            told = None
            while True:
                change = self._change
                status = self._status(request.service)
                if status != told:
                    told = status
                    yield health_pb2.HealthCheckResponse(status=status)
                await change.wait()

    @contextmanager
    def _watching(self, network: str) -> Iterator[None]:
        """Looks for changes while anybody watches.

        Raises:
            OverloadedError: too many watch.
        """
        if self._watches.total() >= self._max or self._watches[network] >= self._max_of_network:
            raise OverloadedError("Too many watch the server's health: use Check.", retry_after_s=60)
        self._watches[network] += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._watches[network] -= 1
            if not self._watches[network]:
                del self._watches[network]
            if not self._watches:
                self._looking.cancel()
                self._looking = None

    async def _look(self) -> None:
        was_ready = self._is_ready()
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if self._is_ready() != was_ready:
                was_ready = not was_ready
                self._change.set()
                self._change = asyncio.Event()

    def _status(self, service: str) -> int:
        statuses = health_pb2.HealthCheckResponse
        if service not in self._names:
            return int(statuses.SERVICE_UNKNOWN)
        return int(statuses.SERVING if self._is_ready() else statuses.NOT_SERVING)
