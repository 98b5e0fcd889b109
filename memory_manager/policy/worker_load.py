"""Late binding by credits: whether a worker can begin one more request within about two steps.

A worker is given only what it can begin soon, so that the order of the device's queue is the order of service: its
own queue is a buffer. Room is counted in tokens of prompts that are still to be computed, in KV, by the forecast that
the engine admits by (``memory_manager.policy.kv_forecast``), and in seconds of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from memory_manager.policy.claim import Backlog, Obstacle, RequestClaim
from memory_manager.policy.kv_forecast import LEAST_LEFT_TOKENS, KVDemand, expected_left, making_way

__all__ = ["HeldBacklog", "HeldRequest", "ModelUse", "StepCostModel", "WorkerLoad"]

_STEPS_OF_PROMPTS = 2
_PACED_SHARE = 0.75
"""Part of the tightest target for further tokens that a round of decodes may take: the rest is for prompts."""
_SPARE_PART = 0.3
"""Part of the KV and of the pace that tenants leave to each other."""
_LEAST_GROWTH = 1.5
"""Times as long as with one sequence of each model a round may take in any case: a step that just keeps a target
would else be no more than one sequence's."""


class StepCostModel(Protocol):
    """Seconds of a model's steps."""

    def seconds(self, num_decodes: int, num_prefill_tokens: int) -> float:
        """Seconds of a step with so many decodes and tokens of prompts."""
        ...

    @property
    def decode_s(self) -> float: ...


class ModelUse(NamedTuple):
    """A model, as far as its requests take something of a worker.

    Attributes:
        token_bytes: KV of a token.
        mean_output: tokens of an output, over those that have ended, of which there were ``num_ended``.
        kv_cap_bytes: all KV that it may have.
    """

    token_bytes: float
    mean_output: float
    num_ended: int
    costs: StepCostModel
    kv_cap_bytes: float = math.inf


class HeldRequest(NamedTuple):
    """A request that a worker has, or that is looked at as if it had."""

    claim: RequestClaim
    model: ModelUse

    @property
    def expected_bytes(self) -> float:
        """KV that it is expected to have at its end."""
        claim, model = self.claim, self.model
        num_output = min(max(model.mean_output, claim.num_output + LEAST_LEFT_TOKENS), claim.most_output)
        return (claim.num_prompt + num_output) * model.token_bytes

    def is_before(self, other: HeldRequest, now_s: float) -> bool:
        """Whether the worker computes what is left of its prompt before another's."""
        claim = self.claim
        return claim.num_to_compute > 0 and claim.precedence(now_s) <= other.claim.precedence(now_s)


class HeldBacklog(NamedTuple):
    """Requests for one model that are looked at as if a worker had them."""

    backlog: Backlog
    model: ModelUse

    @property
    def num_left(self) -> float:
        """Tokens that each is expected to give."""
        most_output = self.backlog.most_output / self.backlog.num_requests
        return min(max(self.model.mean_output, LEAST_LEFT_TOKENS), most_output)

    @property
    def expected_bytes(self) -> float:
        """KV that they are expected to have at their ends."""
        num_output = self.backlog.num_requests * self.num_left
        return (self.backlog.num_tokens + num_output) * self.model.token_bytes


class WorkerLoad:
    """A worker at one moment, with the requests that it has.

    Args:
        held: of all models that share the worker's KV and are resident.
        max_step_tokens: most tokens of a step; 0 if no bound is known.
        max_sequences: most sequences of one model that run at a time; 0 if no bound is known.
        capacity_bytes: KV of all together.
        most_served: by priority, the tenant that has had most of several that have sent requests of that priority or
            a higher one lately.
        is_short: one that is not paced made way a moment ago for some that are.
    """

    def __init__(
        self,
        held: Iterable[HeldRequest],
        max_step_tokens: int,
        capacity_bytes: float,
        now_s: float,
        *,
        max_sequences: int = 0,
        most_served: Mapping[int, str] | None = None,
        is_short: bool = False,
    ) -> None:
        self._held: list[HeldRequest] = []
        self._with_prompts: list[HeldRequest] = []
        self._costs: dict[str, StepCostModel] = {}
        self._max_step_tokens = max_step_tokens
        self._max_sequences = max_sequences
        self._capacity_bytes = capacity_bytes
        self._now_s = now_s
        self._is_short = is_short
        self._most_served = most_served or {}
        self._num_sequences: dict[str, int] = {}
        self._num_paced: dict[str, int] = {}
        self._num_unpaced = 0
        self._tightest_s = math.inf
        self._expected_bytes: float | None = None
        self._demand_of_all: KVDemand | None = None
        for each in held:
            self.add(each)

    def add(self, request: HeldRequest) -> None:
        """Counts one request more."""
        claim = request.claim
        model, num_choices = claim.model, claim.num_choices
        self._held.append(request)
        if model not in self._costs:
            self._costs[model] = request.model.costs
            self._num_sequences[model] = self._num_paced[model] = 0
        self._num_sequences[model] += num_choices
        if claim.is_paced(self._now_s):
            self._num_paced[model] += num_choices
            if claim.tpot_target_s < self._tightest_s:
                self._tightest_s = claim.tpot_target_s
        else:
            self._num_unpaced += num_choices
        if claim.first_at_s is None:
            self._with_prompts.append(request)
        self._expected_bytes = self._demand_of_all = None

    def obstacle(self, newcomer: HeldRequest) -> Obstacle | None:
        """Tells why it cannot begin this request within about two steps, at no cost to those that it should not cost;
        None if it can."""
        if not self._has_slot(newcomer):
            return Obstacle.SLOTS
        if not self._has_kv_of_model(newcomer, {}):
            return Obstacle.KV_CAP
        if not self._has_tokens(newcomer):
            return Obstacle.PROMPT_TOKENS
        if not self._has_pace(newcomer):
            return Obstacle.DECODE_PACE
        if not self._has_kv(newcomer, {}):
            return Obstacle.KV
        if self._leaves_spare(newcomer) and not (
            self._has_pace(newcomer, _SPARE_PART) and self._has_kv(newcomer, {}, _SPARE_PART)
        ):
            return Obstacle.SHARE
        return None

    def waits_for_room(self, newcomer: HeldRequest, ahead: Mapping[str, HeldBacklog]) -> bool:
        """Whether a request that comes behind these others, by model, has to wait until others have ended."""
        own = ahead.get(newcomer.claim.model)
        num_ahead = 0 if own is None else own.backlog.num_choices
        spare_part = _SPARE_PART if self._leaves_spare(newcomer) else 0.0
        return not (
            self._has_slot(newcomer, num_ahead)
            and self._has_pace(newcomer, spare_part)
            and self._has_kv_of_model(newcomer, ahead)
            and self._has_kv(newcomer, ahead, spare_part)
        )

    def prefill_s(self, newcomer: HeldRequest, ahead: Mapping[str, HeldBacklog]) -> float:
        """Seconds of the steps in which all is computed that goes before this request, and its prompt itself.

        Args:
            ahead: of what waits, by model.
        """
        num_tokens = {model: each.backlog.num_to_compute for model, each in ahead.items()}
        for each in (*self._prompts_before(newcomer), newcomer):
            model = each.claim.model
            num_tokens[model] = num_tokens.get(model, 0) + each.claim.num_to_compute
        num_decodes = self._num_sequences.copy()
        for each in self._with_prompts:
            num_decodes[each.claim.model] -= each.claim.num_choices
        costs = self._costs_with(newcomer)
        return sum(
            costs[model].seconds(num_decodes.get(model, 0), num)
            for model, num in num_tokens.items()
            if model in costs
        )

    def end_interval_s(self) -> float:
        """Seconds from the end of one of its sequences to that of the next, if their outputs are as long as their
        models' usually are; what nobody knows yet counts as 0."""
        num_sequences = sum(self._num_sequences.values())
        if not num_sequences:
            return 0.0
        round_s = sum(costs.seconds(self._num_sequences[model], 0) for model, costs in self._costs.items())
        num_tokens = sum(each.model.mean_output for each in self._held if each.model.num_ended)
        return num_tokens / len(self._held) * round_s / num_sequences

    def round_s(self, newcomer: HeldRequest | None = None) -> float:
        """Seconds in which each model that has requests takes a step with its paced ones.

        Args:
            newcomer: counted among them, with one choice: the others follow as there is room.
        """
        costs, num_paced = self._costs, self._num_paced
        if newcomer is not None:
            model = newcomer.claim.model
            costs = self._costs_with(newcomer)
            num_paced = {**num_paced, model: num_paced.get(model, 0) + 1}
        return sum(costs[model].seconds(num, 0) for model, num in num_paced.items())

    def _costs_with(self, newcomer: HeldRequest) -> dict[str, StepCostModel]:
        """Costs by model, that of a newcomer included."""
        return {**self._costs, newcomer.claim.model: newcomer.model.costs}

    def _has_slot(self, newcomer: HeldRequest, num_ahead: int = 0) -> bool:
        num_sequences = self._num_sequences.get(newcomer.claim.model, 0) + num_ahead
        return not self._max_sequences or num_sequences < self._max_sequences

    def _has_tokens(self, newcomer: HeldRequest) -> bool:
        if not self._max_step_tokens:
            return True
        num_tokens = sum(each.claim.num_to_compute for each in self._prompts_before(newcomer))
        return num_tokens < _STEPS_OF_PROMPTS * self._max_step_tokens

    def _prompts_before(self, newcomer: HeldRequest) -> list[HeldRequest]:
        return [each for each in self._with_prompts if each.is_before(newcomer, self._now_s)]

    def _has_pace(self, newcomer: HeldRequest, spare_part: float = 0.0) -> bool:
        """Whether all paced ones keep their targets with one more beside them. A target that they would miss anyway
        holds nobody up, and one that they barely keep may be missed by a little."""
        claim = newcomer.claim
        is_paced = claim.is_paced(self._now_s)
        tightest_s = min(self._tightest_s, claim.tpot_target_s) if is_paced else self._tightest_s
        least_s = sum(each.seconds(1, 0) for each in self._costs_with(newcomer).values())
        if least_s > tightest_s or tightest_s == math.inf:
            return True
        most_s = max(_PACED_SHARE * tightest_s, _LEAST_GROWTH * least_s)
        most_s -= spare_part * (most_s - least_s)
        if is_paced:
            return self.round_s(newcomer) <= most_s or not any(self._num_paced.values())
        if self._is_short or not self._num_unpaced:
            return not self._is_short
        decodes_s = (self._num_unpaced + 1) * newcomer.model.costs.decode_s
        return self.round_s() + decodes_s <= most_s

    def _has_kv(
        self, newcomer: HeldRequest, ahead: Mapping[str, HeldBacklog], spare_part: float = 0.0
    ) -> bool:
        """Whether the engine is expected to admit it beside what it has, and what goes before it."""
        capacity_bytes = self._capacity_bytes * (1 - spare_part)
        if self._expected_bytes is None:
            self._expected_bytes = sum(each.expected_bytes for each in self._held)
        bytes_ahead = sum(each.expected_bytes for each in ahead.values())
        if self._expected_bytes + bytes_ahead + newcomer.expected_bytes <= capacity_bytes:
            return True  # even if none ended before another has all of its own
        if self._demand_of_all is None:
            self._demand_of_all = self._demand(self._held)
        present = self._demand_of_all
        # What has not begun and is less urgent gives way in the engine's queue.
        urgency = newcomer.claim.urgency(self._now_s)
        behind = {
            id(each)
            for each in self._with_prompts
            if not each.claim.num_computed and each.claim.urgency(self._now_s) > urgency
        }
        if behind:
            rows = [row for row, each in enumerate(self._held) if id(each) in behind]
            present = present.without(np.array(rows, np.int64))
        return self._fits(newcomer, KVDemand.joined((present, _demand_of(ahead.values()))), capacity_bytes)

    def _leaves_spare(self, newcomer: HeldRequest) -> bool:
        """Whether a request leaves a part of the worker free for other tenants: its tenant has had most of all, and
        it would wait rather than be refused. So whoever sends little finds room beside one that floods.

        To keep the last of what is free from those that have most is trunk reservation, of telephone networks (Key,
        *Optimal Control and Trunk Reservation in Loss Networks*, 1990).
        """
        claim = newcomer.claim
        return self._most_served.get(claim.priority) == claim.tenant and not claim.refuses_miss

    def _has_kv_of_model(self, newcomer: HeldRequest, ahead: Mapping[str, HeldBacklog]) -> bool:
        """Whether its model may have so much KV."""
        if newcomer.model.kv_cap_bytes == math.inf:
            return True
        model = newcomer.claim.model
        held = self._demand([each for each in self._held if each.claim.model == model])
        waiting = _demand_of(each for name, each in ahead.items() if name == model)
        return self._fits(newcomer, KVDemand.joined((held, waiting)), newcomer.model.kv_cap_bytes)

    def _fits(self, newcomer: HeldRequest, present: KVDemand, capacity_bytes: float) -> bool:
        takes_place = not newcomer.claim.is_late(self._now_s)
        rows = making_way(present, self._demand([newcomer]), capacity_bytes, takes_place=takes_place)
        return rows is not None

    def _demand(self, held: Sequence[HeldRequest]) -> KVDemand:
        claims = [each.claim for each in held]
        # Of several choices one counts: the engine begins the others as room comes, and nobody waits for them all.
        token_bytes = np.array([each.model.token_bytes for each in held], np.float64)
        num_output = np.array([each.num_output for each in claims], np.float64)
        num_known = num_output + np.array([each.num_prompt for each in claims])
        return KVDemand(
            num_left=expected_left(
                num_output,
                np.array([each.model.mean_output for each in held], np.float64),
                np.maximum(num_output + 1, np.array([each.most_output for each in claims], np.float64)),
            ),
            held_bytes=num_known * token_bytes,
            token_bytes=token_bytes,
            priority=np.array([each.priority for each in claims], np.int64),
            arrival=np.array([each.arrival for each in claims], np.int64),
            num_lost_tokens=num_known.astype(np.int64),
            may_go=np.array(
                [not each.num_to_compute and each.is_late(self._now_s) for each in claims], np.bool_
            ),
        )


def _demand_of(backlogs: Iterable[HeldBacklog]) -> KVDemand:
    """KV of requests that go before another: one row for each model, since they go on at one pace to like ends. None
    of them makes way."""
    backlogs = list(backlogs)
    num = len(backlogs)
    return KVDemand(
        num_left=np.array([each.num_left for each in backlogs], np.float64),
        held_bytes=np.array(
            [each.backlog.num_tokens * each.model.token_bytes for each in backlogs], np.float64
        ),
        token_bytes=np.array(
            [each.backlog.num_requests * each.model.token_bytes for each in backlogs], np.float64
        ),
        priority=np.full(num, np.iinfo(np.int64).max),
        arrival=np.arange(num),
        num_lost_tokens=np.zeros(num, np.int64),
        may_go=np.zeros(num, np.bool_),
    )
