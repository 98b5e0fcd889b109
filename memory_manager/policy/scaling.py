"""How many replicas the present load asks for: a pure rule with hysteresis.

One replica more comes if those that are up have each had more requests than one can serve well, for a while.
One goes if the others could carry all requests at half of that number each, for a longer while. Between the
two bounds nothing changes, so a load that wobbles around one of them moves no weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from memory_manager.config import PlannerConfig

__all__ = ["Scale", "rescale"]


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas are wanted, and for how long the load has asked for another number.

    Attributes:
        num_replicas: at least 1; whether there is to be any replica at all is not decided here.
        crowded_since_s: since when the load has asked for more replicas; None if it does not.
        roomy_since_s: since when the load has asked for fewer replicas; None if it does not.
    """

    num_replicas: int = 1
    crowded_since_s: float | None = None
    roomy_since_s: float | None = None

    def due_s(self, config: PlannerConfig) -> float:
        """When the number of replicas changes if the load stays as it is; ``inf`` for never."""
        if self.crowded_since_s is not None:
            return self.crowded_since_s + config.scale_up_after_s
        if self.roomy_since_s is not None:
            return self.roomy_since_s + config.scale_down_after_s
        return math.inf


def rescale(
    scale: Scale, num_requests: int, num_up: int, max_replicas: int, now_s: float, config: PlannerConfig
) -> Scale:
    """The scale from now on.

    Args:
        num_requests: requests that run or wait, on all replicas.
        num_up: replicas that are on a device or on their way to one. A deployment without any starts with
            one.
    """
    if num_up == 0 or max_replicas == 1:
        return Scale()
    num_replicas = min(scale.num_replicas, max_replicas)
    if num_requests > num_replicas * config.requests_per_replica and num_replicas < max_replicas:
        since_s = now_s if scale.crowded_since_s is None else scale.crowded_since_s
        if now_s < since_s + config.scale_up_after_s:
            return Scale(num_replicas, crowded_since_s=since_s)
        return Scale(num_replicas + 1)
    if num_replicas > 1 and num_requests <= (num_replicas - 1) * config.requests_per_replica / 2:
        since_s = now_s if scale.roomy_since_s is None else scale.roomy_since_s
        if now_s < since_s + config.scale_down_after_s:
            return Scale(num_replicas, roomy_since_s=since_s)
        return Scale(num_replicas - 1)
    return replace(scale, num_replicas=num_replicas, crowded_since_s=None, roomy_since_s=None)
