"""The HTTP application: OpenAI's API, health and metrics. The server's wiring adds the admin API to it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.routing import WebSocketRoute

from mooring.errors import OverloadedError
from router.doors.http.access import OperatorKeys, describe_keys
from router.doors.http.audit import AuditMiddleware
from router.doors.http.errors import ERROR_RESPONSES, install_error_handlers
from router.doors.http.guard import Guard
from router.doors.http.middleware import RequestIdMiddleware
from router.doors.openai.routes import OpenAiApi
from router.doors.openai.tokenize import TokenizeApi
from router.doors.openai.websocket import SOCKET_PATH, OpenAiSocket
from router.intake import Intake
from router.services import RouterServices

__all__ = ["create_app"]


class _App(FastAPI):
    """FastAPI, whose page tells the keys too."""

    def openapi(self) -> dict[str, Any]:
        is_new = self.openapi_schema is None
        page = super().openapi()
        if is_new:
            describe_keys(page)
        return page


def create_app(services: RouterServices, keys: OperatorKeys, intake: Intake | None = None) -> FastAPI:
    """Builds the application; nothing runs yet. Its guard is before the routes that are added later, too.

    Args:
        services: the models that are served, and the tenants.
        keys: the keys that are no tenant's.
        intake: shared with the other doors, so that tokenizers are read once; by default one of its own.
    """
    app = _App(
        title="Mooring",
        summary="Many language models on few devices, each tenant's latency target kept.",
        openapi_url=None if services.exposure.is_public else "/openapi.json",
        docs_url=None,  # its page would load programs from elsewhere into the origin of the admin API
        redoc_url=None,
    )
    install_error_handlers(app)
    # The last one added is the outermost: the guard's refusals have their x-request-id too.
    app.add_middleware(Guard, services=services, keys=keys)
    app.add_middleware(AuditMiddleware, audit=services.metrics.audit)
    app.add_middleware(RequestIdMiddleware)
    intake = intake or Intake(services)
    app.include_router(OpenAiApi(services, intake).routes())
    app.include_router(TokenizeApi(intake).routes())
    app.router.routes.append(WebSocketRoute(SOCKET_PATH, OpenAiSocket(services, app)))

    @app.get("/health/live", tags=["health"])
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready", tags=["health"], responses=dict(ERROR_RESPONSES))
    async def ready() -> dict[str, str]:
        """The server can serve; 503 while it cannot."""
        if not services.is_ready():
            raise OverloadedError("The server is not ready to serve.", code="not_ready", retry_after_s=1)
        return {"status": "ready"}

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(services.metrics.expose(), media_type=CONTENT_TYPE_LATEST)

    return app
