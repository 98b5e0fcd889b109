"""A machine in virtual time, and the models and requests on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from engines.torch.scheduling import compose
from engines.torch.scheduling.compose import AdmissionOrder
from memory_manager.policy import kv_forecast
from memory_manager.policy.arrivals import ArrivalPattern, ArrivalRate
from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.pace import Pace
from memory_manager.policy.step_model import StepCosts

__all__ = ["Machine", "SimulatedModel", "SimulatedRequest"]


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and the worker on it.

    Attributes:
        num_resident: models that fit beside each other; all are of one size.
        kv_tokens: tokens of KV beside the weights.
        wake_s: seconds to bring a model.
        move_slows: share by which steps take longer meanwhile.
        ttft_target_s, tpot_target_s: as in the settings of those names.
        queue: the order in which waiting requests are served.
        max_waiting: requests that may wait for one model; more are refused.
    """

    costs: StepCosts
    num_resident: int
    kv_tokens: int
    wake_s: float
    ttft_target_s: float
    tpot_target_s: float
    move_slows: float = 0.3
    max_step_tokens: int = 512
    queue: QueuePolicy = QueuePolicy.SLO
    max_waiting: int = 1024


@dataclass(slots=True, eq=False)
class SimulatedRequest(RequestClaim):
    """A request and what became of it; times in seconds of the simulation.

    Attributes:
        total_output: tokens that it gives in all.
        chunk: tokens that it computes in the present step.
        kept_until: computed tokens up to which it makes way for nobody, though it is late.
        is_refused: it was refused.
        end_at_s: when it had its last token.
        promised: its deadline and its target for further tokens, whether or not the policy knows of them.
        likely_s: seconds to its first token, as its client is told when it comes.
    """

    total_output: int = 1
    chunk: int = 0
    kept_until: int = 0
    is_refused: bool = False
    end_at_s: float | None = None
    likely_s: float = math.inf
    promised: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        self.promised = self.deadline_s, self.tpot_target_s

    def forget_targets(self) -> None:
        """Leaves it to a policy that knows neither targets nor priorities."""
        self.deadline_s = self.tpot_target_s = math.inf
        self.priority = 0

    @property
    def num_tokens(self) -> int:
        return self.num_prompt + self.num_output

    @property
    def num_to_compute(self) -> int:
        return 0 if self.decodes else self.num_tokens - self.num_computed

    @property
    def decodes(self) -> bool:
        """Whether it computes its last known token next, and no other."""
        return self.num_tokens - self.num_computed == 1

    def order(self, now_s: float) -> AdmissionOrder:
        has_begun = self.first_at_s is not None
        deadline_s = math.inf if has_begun else self.deadline_s
        return compose.admission_order(
            self.priority, self.is_late(now_s), has_begun, deadline_s, self.arrival
        )

    @property
    def meets(self) -> bool:
        """Whether it has ended and met what it was promised."""
        deadline_s, tpot_s = self.promised
        if self.first_at_s is None or self.end_at_s is None or self.first_at_s > deadline_s:
            return False
        return (self.end_at_s - self.first_at_s) / max(1, self.total_output - 1) <= tpot_s


@dataclass(slots=True, eq=False)
class SimulatedModel:
    """A model.

    Attributes:
        is_served: whether its requests are taken; else they are refused.
        is_open: whether its requests may leave the device's queue.
        running: those that have a place in its batch.
        waiting: those that the worker has beside them.
        queued: those that wait in the device's queue.
        coming_at_s: when its move ends; None if none is under way.
        kv_share: tokens of KV that are its own, and all that it may have; None if KV is shared.
        mean_output: running mean of its outputs' tokens, of which there were ``num_ended``.
        kv_wanted_at_s: when one of its requests last found no room.
        num_since_late: admissions since the last one of a late request in its turn; of the first model those of all
            that share KV.
        rate, pattern: of its requests.
        pace: how soon its tokens come.
        late_budget: tokens of late prefills that its last step left.
        timed_at_s: when its requests had their last token but ``num_timed``.
        last_used_s, left_at_s: when the last of them ended, and when the model last left.
        is_guest: it came for late requests alone.
    """

    name: str
    is_served: bool = True
    is_open: bool = True
    is_resident: bool = False
    coming_at_s: float | None = None
    came_at_s: float = 0.0
    kv_share: int | None = None
    running: list[SimulatedRequest] = field(default_factory=list)
    waiting: list[SimulatedRequest] = field(default_factory=list)
    queued: dict[SimulatedRequest, None] = field(default_factory=dict)
    mean_output: float = kv_forecast.UNMEASURED_OUTPUT_TOKENS
    num_ended: int = 0
    kv_wanted_at_s: float = -math.inf
    num_since_late: int = 0
    rate: ArrivalRate = field(default_factory=ArrivalRate)
    pattern: ArrivalPattern = field(default_factory=ArrivalPattern)
    pace: Pace = field(default_factory=Pace)
    late_budget: float = math.inf
    timed_at_s: float = 0.0
    num_timed: int = 0
    last_used_s: float = 0.0
    left_at_s: float = 0.0
    is_guest: bool = False
    last_step: int = 0
    num_turns_waited: int = 0

    def requests(self) -> Iterable[SimulatedRequest]:
        return (*self.running, *self.waiting, *self.queued)

    def not_running(self) -> Iterable[SimulatedRequest]:
        return (*self.waiting, *self.queued)
