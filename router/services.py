"""The parts that the front doors are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from router.request.bounds import RouterConfig
from router.request.exposure import Exposure
from router.request.request import TokenSource
from router.request.served_model import ModelDirectory
from router.telemetry.metrics import Metrics
from router.tenancy.in_flight import InFlight
from router.tenancy.keys import Tenancy
from router.text.text_models import TextModels

__all__ = ["RouterServices"]


@dataclass(frozen=True, slots=True)
class RouterServices:
    """Everything that a door needs, made by the server's wiring.

    Attributes:
        tokens: generates tokens.
        models: the models that may be asked for.
        tenancy: finds the tenant of a key.
        metrics: takes the measurements.
        is_ready: whether the server can serve now; the answer of ``/health/ready``.
        config: the doors' limits.
        text_models: tokenizers and chat templates.
        in_flight: counts what each tenant has in flight.
        ttft_target_s: seconds within which a request of a tenant without an SLO class is to have its first token.
        tpot_target_s: seconds that each further token of it may take, on average.
        exposure: who can reach the doors.
    """

    tokens: TokenSource
    models: ModelDirectory
    tenancy: Tenancy
    metrics: Metrics
    is_ready: Callable[[], bool]
    config: RouterConfig
    text_models: TextModels
    in_flight: InFlight
    ttft_target_s: float
    tpot_target_s: float
    exposure: Exposure = field(default_factory=Exposure)
