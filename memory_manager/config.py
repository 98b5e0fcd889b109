"""Configuration of the memory manager's deciding side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from memory_manager.kv_spec import PAGE_BYTES
from mooring.declared import Bounds, Setting, check_bounds
from mooring.errors import ConfigurationError

__all__ = ["DeviceBudget", "ManagerConfig", "PlannerConfig"]

_NOT_NEGATIVE = Bounds(ge=0)
_POSITIVE = Bounds(gt=0)
_AT_LEAST_ONE = Bounds(ge=1)


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """The part of one device's memory that we may use.

    Attributes:
        name: the device as workers call it, ``"cpu"`` or ``"cuda:0"``.
        budget_bytes: everything that Mooring may hold there; rounded down to pages.
        reserve_bytes: the part of it kept for contexts, workspace and graph pools; rounded up to pages.
    """

    name: str
    budget_bytes: int
    reserve_bytes: int = 0

    def __post_init__(self) -> None:
        if self.reserve_bytes < 0 or self.budget_bytes < self.reserve_bytes + PAGE_BYTES:
            raise ConfigurationError(
                f"the memory budget of {self.name} is {self.budget_bytes} bytes and its reserve "
                f"{self.reserve_bytes}: the budget must exceed the reserve by at least one page of 2 MiB"
            )


@dataclass(frozen=True, slots=True)
class PlannerConfig:
    """Policy of the planner. Settings carry their sentences; the other fields are:

    Attributes:
        patience_s: a request without a deadline is treated as if its deadline came so many seconds after arrival.
        prewake_margin_s: seconds before the expected request at which a wake ahead of it should have ended.
        expected_chance: requests that count for a model whose rhythm lets expect the next one soon.
        unexpected_share: share of its rate that counts if it is not expected soon.
        kv_base_bytes: KV that a worker holds while it serves nothing (the pool's null page).
        rate_half_life_s: half-life of the request rates that the planner reads, where they change.
        num_errors: standard errors of what rates let expect, by which a change of the resident set has to gain.
        move_slows: share by which steps take longer while weights are moved.
        kv_short_s: KV counts as short for so many seconds after sequences waited for it; who leaves loses its own.
        reweigh_s: seconds after which what was not worth while is weighed again, while requests wait.
        unused_pauses: a model is unused after a pause of so many times the longest of its last pauses.
    """

    ttft_target_s: Annotated[
        float,
        _POSITIVE,
        Setting(
            "Seconds within which a request is to have its first token, of tenants without an SLO class."
        ),
    ] = 2.0
    tpot_target_s: Annotated[
        float, _POSITIVE, Setting("Seconds that each further token of such a request may take, on average.")
    ] = 0.1

    starve_after_s: Annotated[
        float,
        _POSITIVE,
        Setting(
            "A request that is late for its target, or whose model cannot come in time, gets room at the cost of "
            "models in use once it has waited this long; until then only that of unused ones."
        ),
    ] = 600.0
    max_drain_s: Annotated[
        float,
        _NOT_NEGATIVE,
        Setting(
            "If requests wait for a model whose worker is to leave, those that it still has there move with it after "
            "this long."
        ),
    ] = 5.0
    idle_timeout_s: Annotated[
        float | None,
        _POSITIVE,
        Setting("Seconds without a request before a model sleeps; unset: only when needed."),
    ] = None
    patience_s: Annotated[float, _NOT_NEGATIVE] = 30.0
    prewake: Annotated[
        bool, Setting("Warm models are woken ahead of requests that come in a regular rhythm.")
    ] = True
    prewake_margin_s: Annotated[float, _NOT_NEGATIVE] = 0.25
    expected_chance: float = 0.9
    unexpected_share: float = 0.05
    requests_per_replica: Annotated[
        int,
        _AT_LEAST_ONE,
        Setting(
            "Requests that run or wait, for each replica, beyond which another is brought where `max_replicas` "
            "allows it."
        ),
    ] = 8
    scale_up_after_s: Annotated[
        float, _NOT_NEGATIVE, Setting("The load must have been beyond that for so long.")
    ] = 1.0
    scale_down_after_s: Annotated[
        float,
        _NOT_NEGATIVE,
        Setting("A replica goes when the others could carry the load at half of that for so long."),
    ] = 30.0
    kv_base_bytes: int = PAGE_BYTES
    rate_half_life_s: Annotated[float, _POSITIVE] = 120.0
    num_errors: Annotated[float, _NOT_NEGATIVE] = 2.0
    move_slows: Annotated[float, _NOT_NEGATIVE] = 0.3
    kv_short_s: Annotated[float, _POSITIVE] = 3.0
    reweigh_s: Annotated[float, _POSITIVE] = 0.5
    unused_pauses: Annotated[float, _NOT_NEGATIVE] = 4.0

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True)
class ManagerConfig(PlannerConfig):
    """Configuration of the controller and of its planner. The fields that are no settings are:

    Attributes:
        lease_poll_s: seconds between two questions about a deferred KV lease.
        usage_poll_s: seconds between two questions to a worker about what it holds and waits for.
        retry_s: first wait after a failed load, wake or sleep, in seconds; doubles with each failure in a row.
        max_retry_s: longest such wait.
        wake_attempts: number of failed wakes in a row after which a replica is failed rather than tried again.
        copy_bytes_per_s: guess at the speed of loads and wakes until one has been measured.
    """

    queue_policy: Annotated[
        Literal["fcfs", "sjf", "vtc", "slo"],
        Setting(
            "Order in which waiting requests are served: `slo` by SLO class, fair share and what is due, `fcfs` as "
            "they came, `sjf` the shortest first, `vtc` the tenant first that had least."
        ),
    ] = "slo"
    max_waiting_requests: Annotated[
        int,
        _AT_LEAST_ONE,
        Setting(
            "Requests that may wait for one deployment before more are refused; a tenant "
            "that has as many as are still free gets no more."
        ),
    ] = 1024
    max_requests_per_replica: Annotated[
        int,
        _AT_LEAST_ONE,
        Setting(
            "Requests that a resident replica may have, running or in its queue, before more are refused; a "
            "tenant that has as many as are still free gets no more."
        ),
    ] = 4096
    lease_poll_s: Annotated[float, _POSITIVE] = 0.01
    usage_poll_s: Annotated[float, _POSITIVE] = 0.2
    retry_s: Annotated[float, _POSITIVE] = 1.0
    max_retry_s: float = 60.0
    wake_attempts: Annotated[int, _AT_LEAST_ONE] = 3
    copy_bytes_per_s: Annotated[float, _POSITIVE] = 1e9
