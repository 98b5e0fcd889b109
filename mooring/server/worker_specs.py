"""What the settings say of the workers, one for each device, and of the memory manager's policy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from engines.config import WorkerSpec
from memory_manager.config import DeviceBudget, ManagerConfig, PlannerConfig
from memory_manager.cores import CoreSignal
from mooring.config import Settings
from mooring.server.devices import is_cpu

__all__ = ["manager_config", "worker_specs"]


def manager_config(settings: Settings) -> ManagerConfig:
    """The policy of the memory manager."""
    planner = settings.planner
    return ManagerConfig(
        planner=PlannerConfig(
            min_residency_s=planner.min_residency_s,
            drain_after_s=planner.drain_after_s,
            max_drain_s=planner.max_drain_s,
            prewake=planner.prewake,
            requests_per_replica=planner.requests_per_replica,
            scale_up_after_s=planner.scale_up_after_s,
            scale_down_after_s=planner.scale_down_after_s,
        ),
        max_waiting_per_deployment=planner.max_waiting_requests,
    )


def worker_specs(
    settings: Settings, budgets: Sequence[DeviceBudget], core_signals: Mapping[str, CoreSignal]
) -> list[WorkerSpec]:
    """One worker on each device, numbered in their order.

    Args:
        core_signals: of CPU devices, by name.
    """
    return [
        WorkerSpec(
            worker_id=f"{settings.engine}-{number}",
            engine=settings.engine,
            device=budget.name,
            memory_budget_bytes=budget.budget_bytes - budget.reserve_bytes,
            config=_engine_config(settings, sum(is_cpu(each.name) for each in budgets)),
            core_signal=core_signals.get(budget.name),
        )
        for number, budget in enumerate(budgets)
    ]


def _engine_config(settings: Settings, num_cpu_devices: int) -> dict[str, Any]:
    section: BaseModel = getattr(settings, settings.engine)
    config = section.model_dump(exclude_none=True)
    if num_cpu_devices > 1 and "num_threads" in type(section).model_fields:
        # They are the same cores: each takes its part, or they would wait for each other.
        num_cores = len(os.sched_getaffinity(0))
        config.setdefault("num_threads", max(1, num_cores // num_cpu_devices))
    return config
