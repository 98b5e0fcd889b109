"""Traces of refused keys and of administrative acts."""

from __future__ import annotations

import logging

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from router.doors.http.audit import AuditMiddleware
from router.telemetry.audit import AuditTrail


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_refusals_without_end_are_counted_and_fill_no_disk(caplog: pytest.LogCaptureFixture) -> None:
    registry, clock = CollectorRegistry(), Clock()
    audit = AuditTrail(registry, clock=clock)
    for _ in range(1000):
        audit.key_refused("openai", "mk-secret", "10.0.0.9")
    assert len(caplog.messages) == 1
    clock.now_s = 1.0
    audit.key_refused("admin", None, "10.0.0.9")
    assert len(caplog.messages) == 2
    assert caplog.messages[1].startswith("1000 refused")
    assert "10.0.0.9" in caplog.messages[1]
    assert "secret" not in caplog.text
    exposed = generate_latest(registry).decode()
    assert 'mooring_refused_keys_total{door="openai",reason="wrong"} 1000.0' in exposed
    assert 'mooring_refused_keys_total{door="admin",reason="missing"} 1.0' in exposed


@pytest.mark.parametrize(
    ("method", "path", "status", "traces"),
    [
        ("POST", "/v2/repository/models/m/load", 200, {"mooring_admin_requests_total": "kserve load"}),
        ("DELETE", "/admin/v1/tenants/a", 204, {"mooring_admin_requests_total": "DELETE "}),
        ("GET", "/admin/v1/tenants", 200, {}),
        ("POST", "/v1/completions", 200, {}),
        ("POST", "/admin/v1/tenants", 401, {"mooring_refused_keys_total": "admin"}),
        ("GET", "/metrics", 401, {"mooring_refused_keys_total": "metrics"}),
        ("POST", "/v2/models/m/infer", 401, {"mooring_refused_keys_total": "kserve"}),
        ("POST", "/v1/completions", 401, {"mooring_refused_keys_total": "openai"}),
    ],
)
async def test_what_leaves_a_trace_at_the_http_door(
    method: str, path: str, status: int, traces: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        scope["endpoint"] = None
        await send({"type": "http.response.start", "status": status, "headers": []})

    async def send(message: object) -> None:
        pass

    registry = CollectorRegistry()
    scope = {"type": "http", "method": method, "path": path, "headers": [], "client": ("10.0.0.9", 1)}
    with caplog.at_level(logging.INFO, "mooring.audit"):
        await AuditMiddleware(app, AuditTrail(registry))(scope, None, send)  # type: ignore[arg-type]
    counted = {
        sample.name: next(iter(sample.labels.values()))
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    assert counted == traces
    assert len(caplog.messages) == len(traces)
    assert all("10.0.0.9" in line for line in caplog.messages)
