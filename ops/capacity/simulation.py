"""Requests, models and one worker in virtual time: the server's own policies, and a model of what steps cost.

What is brought in and what leaves is chosen by ``memory_manager.policy.chooser``; who is computed and preempted by
``engines.torch.scheduling.compose``, and who is admitted by ``memory_manager.policy.kv_forecast``. Nothing here
has tokens, tensors or a clock: a request is two lengths, KV is a number of tokens, and time passes as steps and moves
say. While nothing but decoding happens, many steps are taken at once.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from engines.torch.scheduling import compose
from engines.torch.scheduling.compose import AdmissionOrder, ModelPace, PreemptibleSequences, Turn
from memory_manager.policy import kv_forecast
from memory_manager.policy.admission import DeviceAdmission
from memory_manager.policy.claim import Obstacle
from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.kv_forecast import KVDemand
from memory_manager.policy.pace import NUM_TIMED_AT_ONCE
from memory_manager.policy.worker_load import HeldRequest, ModelUse, WorkerLoad
from ops.capacity.machine import Machine, SimulatedModel, SimulatedRequest

__all__ = ["ResidencyPolicy", "Simulation"]

_MAX_TURNS_WAITED = 8
_SHORT_S = 1.0


class ResidencyPolicy(Protocol):
    """Decides which models are resident."""

    def begin(self, simulation: Simulation) -> None:
        """Says which are resident at first, and whose KV is whose."""
        ...

    def arrived(self, simulation: Simulation, model: SimulatedModel) -> None: ...

    def plan(self, simulation: Simulation) -> None:
        """Begins moves; called after every event, and when ``plan_at_s`` has come."""
        ...


class Simulation:
    """One run.

    Attributes:
        plan_at_s: when a plan is due, whatever happens; set by the policy.
        num_moves: models brought so far.
    """

    def __init__(self, machine: Machine, num_models: int, policy: ResidencyPolicy) -> None:
        self.machine = machine
        self.now_s = 0.0
        self.plan_at_s = math.inf
        self.num_moves = 0
        self.admission: DeviceAdmission[SimulatedRequest] = DeviceAdmission(machine.queue)
        self.models = [SimulatedModel(str(number)) for number in range(num_models)]
        self._by_name = {each.name: each for each in self.models}
        self._policy = policy
        self._held = 0  # tokens of KV
        self._coming: list[tuple[float, str]] = []
        self._short_at_s = -math.inf  # when one that is not paced last made way
        self._num_steps = 0
        self._is_stirred = True
        policy.begin(self)

    def run(self, requests: Sequence[SimulatedRequest], patience_s: float) -> None:
        """Runs until all have ended, or until so long after the last arrival."""
        num_taken = 0
        ends_at_s = requests[-1].at_s + patience_s
        while self.now_s <= ends_at_s:
            while num_taken < len(requests) and requests[num_taken].at_s <= self.now_s:
                self._take(requests[num_taken])
                self._grant()
                num_taken += 1
            while self._coming and self._coming[0][0] <= self.now_s:
                self._arrive(self._by_name[heapq.heappop(self._coming)[1]])
            if self._is_stirred or self.now_s >= self.plan_at_s:
                self._is_stirred, self.plan_at_s = False, math.inf
                self._policy.plan(self)
            self._grant()
            next_at_s = min(
                requests[num_taken].at_s if num_taken < len(requests) else math.inf,
                self._coming[0][0] if self._coming else math.inf,
                self.plan_at_s,
            )
            if not self._step(next_at_s):
                if next_at_s == math.inf:
                    return
                self.now_s = max(self.now_s, next_at_s)

    # What a policy may do.

    def model(self, name: str) -> SimulatedModel:
        return self._by_name[name]

    def bring(self, model: SimulatedModel, *, as_guest: bool = False) -> None:
        model.is_guest = as_guest
        model.coming_at_s = self.now_s + self.machine.wake_s
        heapq.heappush(self._coming, (model.coming_at_s, model.name))
        self.num_moves += 1

    def send_away(self, model: SimulatedModel) -> None:
        """Its sequences keep their KV until others want it."""
        model.is_resident, model.left_at_s = False, self.now_s

    # Events.

    def _take(self, request: SimulatedRequest) -> None:
        model = self._by_name[request.model]
        if self.machine.queue is not QueuePolicy.SLO:
            request.forget_targets()
        if not model.is_served or len(model.queued) >= self.machine.max_waiting:
            request.is_refused = True
            return
        self._policy.arrived(self, model)
        comes_in_s = 0.0 if model.is_resident else self.machine.wake_s
        if model.coming_at_s is not None:
            comes_in_s = model.coming_at_s - self.now_s
        load = self._load(model) if model.is_resident else None
        if not self.admission.arrive(request, self._use_of, load, self.now_s, comes_in_s=comes_in_s):
            request.is_refused = True
            return
        request.likely_s = self.admission.likely_s(request)
        model.queued[request] = None
        self._is_stirred = True

    def _grant(self) -> None:
        """Hands requests to the worker that it can begin."""
        while len(self.admission.queue):
            models = [each.name for each in self.models if each.is_resident and each.is_open and each.queued]
            request = self.admission.next(models, self._obstacle, self.now_s)
            if request is None:
                return
            model = self._by_name[request.model]
            del model.queued[request]
            model.waiting.append(request)

    def _obstacle(self, request: SimulatedRequest) -> Obstacle | None:
        model = self._by_name[request.model]
        obstacle = self._load(model).obstacle(self._held_by(request))
        if obstacle is Obstacle.KV:
            model.kv_wanted_at_s = self.now_s
        return obstacle

    def _held_by(self, request: SimulatedRequest) -> HeldRequest:
        return HeldRequest(request, self._use_of(request.model))

    def _use_of(self, name: str) -> ModelUse:
        model = self._by_name[name]
        return ModelUse(1.0, model.mean_output, model.num_ended, self.machine.costs)

    def _load(self, model: SimulatedModel) -> WorkerLoad:
        """The load of the worker, as far as it has the KV of a model's requests."""
        sharing = [each for each in self._sharing(model) if each.is_resident]
        return WorkerLoad(
            [
                HeldRequest(each, use)
                for owner in sharing
                for use in (self._use_of(owner.name),)
                for each in (*owner.running, *owner.waiting)
            ],
            self.machine.max_step_tokens,
            self._capacity(model),
            self.now_s,
            most_served=self.admission.most_served(self.now_s),
            is_short=self._is_short(model),
        )

    def _arrive(self, model: SimulatedModel) -> None:
        model.is_resident, model.coming_at_s, model.came_at_s = True, None, self.now_s
        self._is_stirred = True

    def _end(self, model: SimulatedModel, request: SimulatedRequest) -> None:
        request.end_at_s = self.now_s
        model.running.remove(request)
        model.last_used_s = self.now_s
        self._held -= request.num_computed
        model.mean_output = kv_forecast.mean_with(model.mean_output, model.num_ended, request.num_output)
        model.num_ended += 1
        self._is_stirred = True

    def _is_short(self, model: SimulatedModel) -> bool:
        """Whether one that is not paced made way a moment ago for some that are."""
        if self.now_s >= self._short_at_s + _SHORT_S:
            return False
        return any(
            each.is_paced(self.now_s)
            for owner in self._sharing(model)
            if owner.is_resident
            for each in (*owner.running, *owner.waiting)
        )

    # Steps.

    def _step(self, next_at_s: float) -> bool:
        """Takes a step of one model, or many of all while none can be admitted; False if none has anything to do."""
        active = {
            each.name: each for each in self.models if each.is_resident and (each.running or each.waiting)
        }
        turns = [
            Turn(name, self._earliest_deadline_s(each), each.last_step, each.num_turns_waited)
            for name, each in active.items()
        ]
        for name in compose.order_of_turns(turns, _MAX_TURNS_WAITED):
            model = active[name]
            if self._compose(model):
                self._num_steps += 1
                for each in active.values():
                    each.num_turns_waited = 0 if each is model else each.num_turns_waited + 1
                model.last_step = self._num_steps
                if not self._leap(model, list(active.values()), next_at_s):
                    self._compute(model)
                return True
        return False

    def _earliest_deadline_s(self, model: SimulatedModel) -> float:
        return min(
            (
                each.deadline_s
                for each in model.requests()
                if each.first_at_s is None and each.deadline_s >= self.now_s
            ),
            default=math.inf,
        )

    @property
    def _slows(self) -> float:
        """How many times as long steps take now."""
        return 1 + self.machine.move_slows if self._coming else 1.0

    def _leap(self, model: SimulatedModel, active: Sequence[SimulatedModel], next_at_s: float) -> bool:
        """Takes many steps at once of models that only decode, up to where something changes."""
        decoding = [each for each in active if each.running]
        running = [request for each in decoding for request in each.running]
        if not all(each.decodes for each in running):
            return False
        if any(each.is_paced(self.now_s) for each in running) and any(
            self._most_unpaced(each) < len(each.running) for each in decoding
        ):
            return False
        if any(
            (request := self._next(each)) is not None and self._making_way(each, request) is not None
            for each in active
        ):
            return False
        round_s = self._slows * sum(self.machine.costs.seconds(len(each.running), 0) for each in decoding)
        rooms = [
            self._free(each) // len(running if each.kv_share is None else each.running) for each in decoding
        ]
        num_rounds = min(min(each.total_output - each.num_output for each in running) - 1, min(rooms) - 1)
        if next_at_s < math.inf:
            num_rounds = min(num_rounds, int((next_at_s - self.now_s) / round_s))
        if num_rounds < 2:
            return False
        for each in running:
            each.num_output += num_rounds
            each.num_computed += num_rounds
        self._held += num_rounds * len(running)
        self.now_s += num_rounds * round_s
        for owner in decoding:
            self._charge(owner.running, num_rounds)
            self._time(owner, num_rounds)
        return True

    def _compute(self, model: SimulatedModel) -> None:
        computing = [each for each in model.running if each.chunk]
        num_decodes = sum(each.decodes for each in computing)
        num_prefill = sum(each.chunk for each in computing if not each.decodes)
        self.now_s += self._slows * self.machine.costs.seconds(num_decodes, num_prefill)
        if num_decodes:
            self._time(model, 1)
        else:
            model.timed_at_s, model.num_timed = self.now_s, 0
        self._charge(computing, 1)
        for request in computing:
            request.num_computed += request.chunk
            self._held += request.chunk
            if request.num_computed < request.num_tokens:
                continue
            request.num_output += 1
            if request.first_at_s is None:
                request.first_at_s = self.now_s
                self.admission.note_first(request, self.now_s)
                seconds = self.now_s - max(request.at_s, model.came_at_s)
                model.pace.note_first_token(seconds, self.machine.ttft_target_s)
            if request.num_output >= request.total_output:
                self._end(model, request)

    def _charge(self, computing: Sequence[SimulatedRequest], num_steps: int) -> None:
        """Splits the seconds of so many like steps among those that computed in them."""
        costs = self.machine.costs
        for each in computing:
            own_s = costs.decode_s if each.decodes else costs.prefill_token_s * each.chunk
            seconds = num_steps * (costs.step_s / len(computing) + own_s)
            self.admission.counters.charge(each.tenant, self._slows * seconds, each.weight)

    def _time(self, model: SimulatedModel, num_tokens: int) -> None:
        """Counts tokens of each request, and notes their pace once there are enough."""
        model.num_timed += num_tokens
        if model.num_timed >= NUM_TIMED_AT_ONCE:
            model.pace.note_tokens(model.num_timed, model.timed_at_s, self.now_s)
            model.timed_at_s, model.num_timed = self.now_s, 0

    # Who computes, and what gives way.

    def _order(self, request: SimulatedRequest) -> AdmissionOrder:
        return request.order(self.now_s)

    def _compose(self, model: SimulatedModel) -> bool:
        """Chooses what each sequence of a model computes next, and makes room for it; False if none can."""
        any_in_time = self._any_in_time(model)
        most_late = compose.most_late_tokens(self.machine.max_step_tokens) if any_in_time else math.inf
        while True:
            budget, model.late_budget = self.machine.max_step_tokens, most_late
            num_unpaced = self._most_unpaced(model)
            for request in sorted(
                model.running,
                key=lambda each: (not each.decodes, each.precedence(self.now_s)),
            ):
                if request.decodes and not request.is_paced(self.now_s):
                    num_unpaced -= 1
                    if num_unpaced < 0:
                        request.chunk = 0
                        continue
                is_late = not request.decodes and request.is_late(self.now_s)
                most = min(budget, model.late_budget) if is_late else budget
                request.chunk = int(min(most, request.num_tokens - request.num_computed))
                budget -= request.chunk
                model.late_budget -= request.chunk if is_late else 0
            need = sum(each.chunk for each in model.running)
            if need <= self._free(model):
                break
            if not self._give_up(model):
                return False
        while budget and (newcomer := self._next(model)) is not None:
            is_late = newcomer.is_late(self.now_s)
            if is_late and model.late_budget <= 0:
                break
            if self._is_short(model) and not newcomer.is_paced(self.now_s):
                break  # it would make way at once, and be computed again
            making_way = self._making_way(model, newcomer)
            if making_way is None:
                model.kv_wanted_at_s = self.now_s
                break
            need -= sum(each.chunk for owner, each in making_way if owner is model)
            for owner, each in making_way:
                self._preempt(owner, each)
            chunk = int(min(budget, model.late_budget if is_late else budget, newcomer.num_tokens))
            if not self._is_free(model, need + chunk):
                model.kv_wanted_at_s = self.now_s
                break
            self._admit(model, newcomer)
            newcomer.chunk = chunk
            need += chunk
            budget -= chunk
            model.late_budget -= chunk if is_late else 0
        return bool(model.running)

    def _most_unpaced(self, model: SimulatedModel) -> float:
        """Sequences that are not paced, of those that decode in the next step of a model."""
        owners = [each for each in self._sharing(model) if each.is_resident and each.running]
        return compose.most_unpaced_decodes(
            [self._pace(each) for each in owners], self.machine.costs.decode_s, self.now_s
        )

    def _pace(self, model: SimulatedModel) -> ModelPace:
        paced = [
            (each.first_at_s + each.tpot_target_s * each.num_output, each.tpot_target_s)
            for each in model.running
            if each.first_at_s is not None and each.is_paced(self.now_s)
        ]
        return ModelPace(
            min((due_s for due_s, _ in paced), default=math.inf),
            min((target_s for _, target_s in paced), default=math.inf),
            self._slows * self.machine.costs.seconds(len(paced), 0),
        )

    def _any_in_time(self, model: SimulatedModel) -> bool:
        return any(
            not each.is_late(self.now_s)
            for owner in self._sharing(model)
            if owner.is_resident
            for each in owner.requests()
        )

    def _next(self, model: SimulatedModel) -> SimulatedRequest | None:
        """The next to be admitted; None if no other is before the late one whose turn it is."""
        if not (model.is_open and model.waiting):
            return None
        if kv_forecast.is_turn_of_late(self._sharing(model)[0].num_since_late):
            late = self._longest_late(model)
            if late is not None:
                return late if late.model == model.name else None
        return min(model.waiting, key=self._order)

    def _longest_late(self, model: SimulatedModel) -> SimulatedRequest | None:
        """The late request that has waited for longest, of all models that could admit theirs to this model's KV."""
        late = (
            each
            for owner in self._sharing(model)
            if owner.is_resident and owner.is_open and owner.late_budget > 0
            for each in owner.waiting
            if each.is_late(self.now_s)
        )
        return min(late, key=lambda each: each.arrival, default=None)

    def _admit(self, model: SimulatedModel, request: SimulatedRequest) -> None:
        first = self._sharing(model)[0]
        is_its_turn = kv_forecast.is_turn_of_late(first.num_since_late) and request.is_late(self.now_s)
        request.kept_until = kv_forecast.kept_until_tokens(0, request.num_tokens, is_its_turn=is_its_turn)
        first.num_since_late = 0 if is_its_turn else first.num_since_late + 1
        model.waiting.remove(request)
        model.running.append(request)

    def _sharing(self, model: SimulatedModel) -> list[SimulatedModel]:
        """Models whose sequences have the same KV."""
        return [model] if model.kv_share is not None else self.models

    def _free(self, model: SimulatedModel) -> int:
        if model.kv_share is None:
            return self.machine.kv_tokens - self._held
        return model.kv_share - sum(each.num_computed for each in model.running)

    def _is_free(self, model: SimulatedModel, num_tokens: int) -> bool:
        """Whether so much is free, once the parked have given up what is missing."""
        num_tokens += len(model.running) + 1
        while self._free(model) < num_tokens:
            if not self._preempt_parked(model):
                return False
        return True

    def _capacity(self, model: SimulatedModel) -> int:
        return self.machine.kv_tokens if model.kv_share is None else model.kv_share

    def _making_way(
        self, model: SimulatedModel, request: SimulatedRequest
    ) -> list[tuple[SimulatedModel, SimulatedRequest]] | None:
        """Requests that are preempted to admit another; None if it has to wait."""
        sharing = [each for each in self._sharing(model) if each.is_resident]
        running = [(owner, each) for owner in sharing for each in owner.running]
        newcomer = self._demand([(model, request)])
        takes_place = any(not each.is_late(self.now_s) for each in model.waiting)
        rows = kv_forecast.making_way(
            self._demand(running), newcomer, self._capacity(model), takes_place=takes_place
        )
        return None if rows is None else [running[row] for row in rows.tolist()]

    def _demand(self, sequences: Sequence[tuple[SimulatedModel, SimulatedRequest]]) -> KVDemand:
        done = np.array([each.num_output for _, each in sequences], float)
        means = np.array([owner.mean_output for owner, _ in sequences])
        return KVDemand(
            num_left=kv_forecast.expected_left(done, means, np.full(len(done), math.inf)),
            held_bytes=np.array([each.num_tokens for _, each in sequences], float),
            token_bytes=np.ones(len(done)),
            priority=np.array([each.priority for _, each in sequences], np.int64),
            arrival=np.array([each.arrival for _, each in sequences], np.int64),
            num_lost_tokens=np.array([each.num_computed for _, each in sequences], np.int64),
            may_go=np.array(
                [each.num_computed >= each.kept_until and each.is_late(self.now_s) for _, each in sequences],
                bool,
            ),
        )

    def _preempt_parked(self, model: SimulatedModel) -> bool:
        """Preempts a sequence of a model that is away, for one that is there; False if none has KV."""
        parked = [each for each in self._sharing(model) if not each.is_resident and each.running]
        if parked:
            self._preempt_least(parked)
        return bool(parked)

    def _give_up(self, model: SimulatedModel) -> bool:
        """Preempts one for sequences that run: a parked one, else whoever loses least, the earliest spared; False if
        there is no other."""
        if self._preempt_parked(model):
            return True
        owners = [each for each in self._sharing(model) if each.running]
        if sum(len(each.running) for each in owners) < 2:
            return False
        self._preempt_least(owners)
        return True

    def _preempt_least(self, owners: Sequence[SimulatedModel]) -> None:
        running = [(owner, each) for owner in owners for each in owner.running]
        computed = np.array([each.num_computed for _, each in running], np.float64)
        least_urgent = compose.least_urgent(
            PreemptibleSequences(
                model=np.zeros(len(running), np.int64),
                slots=np.arange(len(running)),
                priority=np.array([each.priority for _, each in running], np.int64),
                is_late=np.array([each.is_late(self.now_s) for _, each in running], bool),
                arrival=np.array([each.arrival for _, each in running], np.int64),
                redo_s=computed,  # the models are alike, and so is a second for each token
                freed_bytes=computed,
            ),
            wanted_bytes=1.0,  # a step lacks few tokens
        )
        assert least_urgent is not None, "somebody runs"
        self._preempt(*running[least_urgent])

    def _preempt(self, model: SimulatedModel, request: SimulatedRequest) -> None:
        model.running.remove(request)
        model.waiting.append(request)
        self._held -= request.num_computed
        request.num_computed = request.chunk = 0
        if not request.is_paced(self.now_s):
            self._short_at_s = self.now_s
