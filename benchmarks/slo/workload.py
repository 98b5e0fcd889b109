"""Four kinds of tenants, what each is promised, and traces of their requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.replay import Targets
from benchmarks.traces import TraceRequest, TraceSpec, draw_trace
from memory_manager.policy.step_model import StepCosts
from ops.capacity.machine import SimulatedRequest

__all__ = ["BATCH", "NOTHING_PROMISED", "TENANTS", "TenantKind", "TenantRequest", "TenantWorkload", "claims"]

BATCH = "batch"
NOTHING_PROMISED = Targets(math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class TenantKind:
    """A tenant that stands for its like.

    Attributes:
        share: of all requests.
        ttft_times, tpot_times: targets, as multiples of what one request takes alone on a resident model; None if
            nothing is promised: then a request counts if it has finished by the end of its trace.
        output_tokens: least and most of an output.
        mean_on_s, mean_off_s: of its bursts.
    """

    name: str
    share: float
    ttft_times: float | None
    tpot_times: float | None
    output_tokens: tuple[int, int] = (32, 128)
    mean_on_s: float = 1.0
    mean_off_s: float = 0.0

    @property
    def is_interactive(self) -> bool:
        """Whether it is promised anything: its requests have priority 1 then, and are refused if it cannot be
        kept."""
        return self.ttft_times is not None

    @property
    def priority(self) -> int:
        return int(self.is_interactive)


TENANTS = (
    TenantKind("tight", 0.3, 10.0, 10.0),
    TenantKind("loose", 0.3, 40.0, 15.0),
    TenantKind("bursty", 0.2, 40.0, 15.0, mean_on_s=2.0, mean_off_s=8.0),
    TenantKind(BATCH, 0.2, None, None, (128, 256)),
)


@dataclass(frozen=True, slots=True)
class TenantRequest:
    """A request and whose it is."""

    tenant: TenantKind
    request: TraceRequest


@dataclass(frozen=True, slots=True)
class TenantWorkload:
    """Settings of traces.

    Attributes:
        models: names, the most popular first.
        prompt_tokens: least and most of a prompt.
    """

    models: tuple[str, ...]
    vocab_size: int
    prompt_tokens: tuple[int, int] = (32, 64)
    zipf_exponent: float = 0.7
    tenants: tuple[TenantKind, ...] = TENANTS

    @property
    def num_prompt(self) -> float:
        """Mean tokens of a prompt."""
        return sum(self.prompt_tokens) / 2

    @property
    def num_output(self) -> float:
        """Mean tokens of an output, over all tenants."""
        return sum(each.share * sum(each.output_tokens) / 2 for each in self.tenants)

    def draw(self, requests_per_s: float, duration_s: float, seed: int) -> list[TenantRequest]:
        """Requests of all tenants in order of their arrival, at so many per second in all."""
        drawn = [
            TenantRequest(tenant, request)
            for number, tenant in enumerate(self.tenants)
            for request in draw_trace(
                TraceSpec(
                    self.models,
                    requests_per_s * tenant.share,
                    duration_s,
                    self.vocab_size,
                    self.zipf_exponent,
                    tenant.mean_on_s,
                    tenant.mean_off_s,
                    self.prompt_tokens,
                    tenant.output_tokens,
                    seed * len(self.tenants) + number,
                )
            )
        ]
        return sorted(drawn, key=lambda each: each.request.at_s)

    def targets(self, costs: StepCosts) -> dict[str, Targets]:
        """Targets of each tenant that is promised any."""
        ttft_s, tpot_s = costs.seconds(0, round(self.num_prompt)), costs.seconds(1, 0)
        return {
            each.name: Targets(each.ttft_times * ttft_s, each.tpot_times * tpot_s)
            for each in self.tenants
            if each.ttft_times is not None and each.tpot_times is not None
        }


def claims(
    drawn: Sequence[TenantRequest],
    models: Sequence[str],
    targets: Mapping[str, Targets],
    best_effort: Targets = NOTHING_PROMISED,
) -> list[SimulatedRequest]:
    """Requests as the simulation takes them.

    Args:
        models: names, in the order of the simulation's models.
        targets: of the tenants that are promised any.
        best_effort: targets by which requests of the others are ordered.
    """
    requests = []
    for number, each in enumerate(drawn):
        promised = targets.get(each.tenant.name, best_effort)
        requests.append(
            SimulatedRequest(
                str(models.index(each.request.model)),
                number,
                each.request.at_s,
                each.request.at_s + promised.ttft_s,
                promised.tpot_s,
                priority=each.tenant.priority,
                tenant=each.tenant.name,
                refuses_miss=each.tenant.is_interactive,
                num_prompt=len(each.request.prompt_token_ids),
                total_output=each.request.max_tokens,
            )
        )
    return requests
