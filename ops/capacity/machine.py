"""A machine in virtual time, and the models and requests on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from engines.torch.scheduling import compose
from engines.torch.scheduling.compose import AdmissionOrder
from memory_manager.policy import kv_forecast
from memory_manager.policy.arrivals import ArrivalPattern, ArrivalRate
from memory_manager.policy.pace import Pace

__all__ = ["Machine", "SimulatedModel", "SimulatedRequest", "StepCosts"]


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds that a step takes: as much for each step, each decode and each token of a prefill."""

    step_s: float
    decode_s: float
    prefill_token_s: float

    def of(self, num_decodes: int, num_prefill_tokens: int) -> float:
        return self.step_s + self.decode_s * num_decodes + self.prefill_token_s * num_prefill_tokens


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and the worker on it.

    Attributes:
        num_resident: models that fit beside each other; all are of one size.
        kv_tokens: tokens of KV beside the weights.
        wake_s: seconds to bring a model.
        move_slows: share by which steps take longer meanwhile.
        ttft_target_s, tpot_target_s: as in the settings of those names.
    """

    costs: StepCosts
    num_resident: int
    kv_tokens: int
    wake_s: float
    ttft_target_s: float
    tpot_target_s: float
    move_slows: float = 0.3
    max_step_tokens: int = 512


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """A request and what became of it; times in seconds of the simulation.

    Attributes:
        num_computed: tokens whose KV is there.
        chunk: tokens that it computes in the present step.
        kept_until: computed tokens up to which it makes way for nobody, though it is late.
    """

    model: int
    arrival: int
    at_s: float
    deadline_s: float
    num_prompt: int
    num_output: int
    num_done: int = 0
    num_computed: int = 0
    chunk: int = 0
    kept_until: int = 0
    first_at_s: float | None = None
    end_at_s: float | None = None

    @property
    def num_tokens(self) -> int:
        return self.num_prompt + self.num_done

    @property
    def decodes(self) -> bool:
        """Whether it computes its last known token next, and no other."""
        return self.num_tokens - self.num_computed == 1

    def is_late(self, now_s: float) -> bool:
        """Whether its first token came after its deadline, or can only come after it."""
        return (now_s if self.first_at_s is None else self.first_at_s) > self.deadline_s

    def order(self, now_s: float) -> AdmissionOrder:
        has_begun = self.first_at_s is not None
        deadline_s = math.inf if has_begun else self.deadline_s
        return compose.admission_order(0, self.is_late(now_s), has_begun, deadline_s, self.arrival)

    def meets(self, machine: Machine) -> bool:
        if self.first_at_s is None or self.end_at_s is None or self.is_late(self.end_at_s):
            return False
        tpot_s = (self.end_at_s - self.first_at_s) / max(1, self.num_output - 1)
        return tpot_s <= machine.tpot_target_s


@dataclass(slots=True, eq=False)
class SimulatedModel:
    """A model.

    Attributes:
        is_served: whether its requests are taken; else they are refused.
        is_open: whether its waiting requests may be admitted.
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

    index: int
    is_served: bool = True
    is_open: bool = True
    is_resident: bool = False
    coming_at_s: float | None = None
    came_at_s: float = 0.0
    kv_share: int | None = None
    running: list[SimulatedRequest] = field(default_factory=list)
    waiting: list[SimulatedRequest] = field(default_factory=list)
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
        return (*self.running, *self.waiting)
