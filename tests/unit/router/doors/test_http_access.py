"""Every path of the HTTP door needs the key that it is meant to need."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute
from support.router_doors import ScriptedSource, ScriptedStream, services

from router.doors.admin.routes import AdminServices, create_admin_router
from router.doors.http.access import Access, OperatorKeys, access_of
from router.doors.http_app import create_app
from router.doors.kserve.rest import create_kserve_routes

NO_KEY = {"/health/live", "/health/ready", "/openapi.json", "/v2/health/live", "/v2/health/ready"}
KSERVE_ADMIN = {
    f"/v2/repository{repository}/models/{{name}}/{action}"
    for repository in ("", "/{repository}")
    for action in ("load", "unload")
}


def expected(template: str) -> Access:
    if template in NO_KEY:
        return Access.OPEN
    if template.startswith("/admin/v1/") or template in KSERVE_ADMIN:
        return Access.ADMIN
    return Access.METRICS if template == "/metrics" else Access.TENANT


def application() -> FastAPI:
    app = create_app(services(ScriptedSource(lambda _: ScriptedStream([])), []), OperatorKeys("admin"))
    parts: Any = [None] * len(dataclasses.fields(AdminServices))  # only answers need them
    app.include_router(create_admin_router(AdminServices(*parts)))
    return app


def templates() -> set[str]:
    """Paths of all routes, those of the admin and KServe doors included, with their parameters in braces."""
    app = application()
    (kserve, _) = create_kserve_routes(cast(Any, None), max_body_bytes=1)
    others: list[BaseRoute] = [*app.routes, *cast(Any, kserve).app.routes]
    found = {*app.openapi()["paths"], *(path for each in others if (path := getattr(each, "path", None)))}
    return {re.sub(r":path\}", "}", path) for path in found}


@pytest.mark.parametrize("template", sorted(templates()))
def test_each_route_needs_its_key_whatever_stands_in_its_path(template: str) -> None:
    for name in ("x", "org/x", "load", "a/load", "health/live", "models"):
        path = re.sub(r"\{(?!name)\w+\}", "x", template).replace("{name}", name)
        assert access_of(path) is expected(template)
        # The routers let a path end with a newline.
        if expected(template) is not Access.OPEN:
            assert access_of(f"{path}\n") is expected(template)


def test_the_page_tells_each_route_s_key() -> None:
    app = application()
    page = app.openapi()
    assert app.openapi() is page
    schemes = page["components"]["securitySchemes"]
    assert {(scheme["type"], scheme["scheme"]) for scheme in schemes.values()} == {("http", "bearer")}
    keys = {Access.TENANT: [{"tenant_key": []}, {}], Access.ADMIN: [{"admin_key": []}]}
    assert set(schemes) == {"tenant_key", "admin_key"}
    for path, operations in page["paths"].items():
        for operation in operations.values():
            assert operation.get("security") == keys.get(expected(path)), path


def test_all_doors_are_looked_at() -> None:
    assert len(templates()) > 60
    assert templates() >= KSERVE_ADMIN | NO_KEY | {"/metrics", "/tokenize", "/v1/stream", "/admin/v1/status"}


@pytest.mark.parametrize(
    ("path", "access"),
    [
        ("/nothing", Access.OPEN),
        ("/v1/nothing", Access.TENANT),
        ("/v2", Access.TENANT),
        ("/admin", Access.ADMIN),
        ("/v2/models/a/load", Access.TENANT),
        ("/v2/health/live\n", Access.TENANT),
    ],
)
def test_paths_without_a_route_are_told_by_their_beginning(path: str, access: Access) -> None:
    assert access_of(path) is access
