"""Paths of the HTTP door, and the key that each needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["Access", "OperatorKeys", "access_of", "describe_keys", "is_kserve", "kserve_act"]


class Access(Enum):
    """The key that a path needs."""

    OPEN = "none"
    TENANT = "a tenant's key"
    ADMIN = "the admin key"
    METRICS = "none on loopback, else the metrics key or the admin key"


@dataclass(frozen=True, slots=True)
class OperatorKeys:
    """Keys of whoever runs the server.

    Attributes:
        admin: the key to all of the admin API.
        metrics: a key that reads the metrics and nothing else; None if there is none.
    """

    admin: str
    metrics: str | None = None


_TENANT_KEY, _ADMIN_KEY = "tenant_key", "admin_key"
_OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})
# The routers match a path with a newline at its end too, and so does "$" here.
_KSERVE_ACT = re.compile(r"/v2/repository(?:/[^/]+)?/models/.*/(load|unload)$")
# By the beginning of a path, so that a path that is spelled in an unforeseen way needs a key rather than none.
_BY_PREFIX = (
    ("/admin", Access.ADMIN),
    ("/metrics", Access.METRICS),
    ("/v1", Access.TENANT),
    ("/v2", Access.TENANT),
    ("/tokenize", Access.TENANT),
    ("/detokenize", Access.TENANT),
)


def access_of(path: str) -> Access:
    """The key that a path needs, whether or not anything is there."""
    if path in _OPEN:
        return Access.OPEN
    if kserve_act(path):
        return Access.ADMIN
    return next((access for prefix, access in _BY_PREFIX if path.startswith(prefix)), Access.OPEN)


def describe_keys(page: dict[str, Any]) -> None:
    """Adds the keys, and which route needs which, to an OpenAPI page. A tenant's is optional, since only doors that
    serve without one have a page."""
    page.setdefault("components", {})["securitySchemes"] = {
        scheme: {"type": "http", "scheme": "bearer", "description": description}
        for scheme, description in (
            (_TENANT_KEY, "A tenant's API key."),
            (_ADMIN_KEY, "The admin key, as the server's data folder has it."),
        )
    }
    for path, operations in page["paths"].items():
        access = access_of(path)
        for operation in operations.values():
            if access is Access.TENANT:
                operation["security"] = [{_TENANT_KEY: []}, {}]
            elif access is Access.ADMIN:
                operation["security"] = [{_ADMIN_KEY: []}]


def is_kserve(path: str) -> bool:
    """Whether a path is of KServe's protocol, whose errors have a form of their own."""
    return path.startswith("/v2")


def kserve_act(path: str) -> str | None:
    """``load`` or ``unload`` if the path asks for that over KServe's protocol; None if it does not."""
    found = _KSERVE_ACT.match(path)
    return None if found is None else found[1]
