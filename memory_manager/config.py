"""Settings of the memory manager's deciding side."""

from __future__ import annotations

from dataclasses import dataclass, field

from memory_manager.kv_spec import PAGE_BYTES
from mooring.errors import ConfigurationError

__all__ = ["DeviceBudget", "ManagerConfig", "PlannerConfig"]


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """What we may use of one device.

    Attributes:
        name: as workers call it, ``"cpu"`` or ``"cuda:0"``.
        budget_bytes: everything that Mooring may hold there; rounded down to pages.
        reserve_bytes: of these, kept for contexts, workspace and graph pools; rounded up to pages.
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
    """Policy of the planner.

    Attributes:
        min_residency_s: a replica in use is not drained before it has been resident for so long.
        drain_after_s: a replica in use is drained only for demand that has waited for so long.
        max_drain_s: a replica that drains to make room is put to sleep after so long, whatever still runs on it:
            those sequences go on, from where they are, when their model is resident again.
        idle_grace_s: a replica without requests counts as in use until so long after its last one, so
            that the gap between two requests of a busy model is not taken for idleness.
        patience_s: demand without a deadline is ordered as if its deadline were so long after arrival.
        reuse_horizon_s: the chance of reuse is that of a request arriving within this time.
        prewake: warm models are woken ahead of requests that their rhythm lets expect.
        prewake_margin_s: how long before the expected time such a wake should have ended.
        expected_chance: the chance of reuse of a model whose next request is expected within the horizon.
        unexpected_chance: the most that it is for a model whose next request is expected after it.
        requests_per_replica: requests that run or wait, for each replica, beyond which another one is brought.
        scale_up_after_s: the load must have been beyond that for so long.
        scale_down_after_s: a replica goes when the others could carry the load at half of that for so long.
        kv_base_bytes: KV that a worker holds while it serves nothing (the pool's null page).
    """

    min_residency_s: float = 3.0
    drain_after_s: float = 1.0
    max_drain_s: float = 5.0
    idle_grace_s: float = 0.2
    patience_s: float = 30.0
    reuse_horizon_s: float = 60.0
    prewake: bool = True
    prewake_margin_s: float = 0.25
    expected_chance: float = 0.9
    unexpected_chance: float = 0.05
    requests_per_replica: int = 8
    scale_up_after_s: float = 1.0
    scale_down_after_s: float = 30.0
    kv_base_bytes: int = PAGE_BYTES

    def __post_init__(self) -> None:
        for name in (
            "min_residency_s",
            "drain_after_s",
            "max_drain_s",
            "idle_grace_s",
            "patience_s",
            "prewake_margin_s",
            "scale_up_after_s",
            "scale_down_after_s",
        ):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} cannot be negative", param=name)
        if self.reuse_horizon_s <= 0:
            raise ConfigurationError("reuse_horizon_s must be positive", param="reuse_horizon_s")
        if self.requests_per_replica < 1:
            raise ConfigurationError("requests_per_replica must be at least 1", param="requests_per_replica")


@dataclass(frozen=True, slots=True)
class ManagerConfig:
    """Settings of the controller.

    Attributes:
        planner: its policy.
        max_waiting_per_deployment: acquires that may wait for one deployment; further ones are refused.
        lease_poll_s: how often a deferred KV lease is asked about.
        usage_poll_s: how often the workers are asked what they hold and what they wait for.
        retry_s: first wait after a failed load, wake or sleep; doubles with each failure in a row.
        max_retry_s: longest such wait.
        wake_attempts: failed wakes in a row after which the replica is failed rather than tried again.
        rate_half_life_s: half-life of the request rate that the planner reads.
        copy_bytes_per_s: guess at the speed of loads and wakes until one has been measured.
    """

    planner: PlannerConfig = field(default_factory=PlannerConfig)
    max_waiting_per_deployment: int = 1024
    lease_poll_s: float = 0.01
    usage_poll_s: float = 0.2
    retry_s: float = 1.0
    max_retry_s: float = 60.0
    wake_attempts: int = 3
    rate_half_life_s: float = 120.0
    copy_bytes_per_s: float = 1e9

    def __post_init__(self) -> None:
        for name in ("lease_poll_s", "usage_poll_s", "retry_s", "rate_half_life_s", "copy_bytes_per_s"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"{name} must be positive", param=name)
        if self.wake_attempts < 1 or self.max_waiting_per_deployment < 1:
            raise ConfigurationError("wake_attempts and max_waiting_per_deployment must be at least 1")
