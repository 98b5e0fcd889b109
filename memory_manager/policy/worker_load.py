"""Late binding by credits: whether a worker can begin one more request within about two steps.

A worker is given only what it can begin soon, so that the order of the device's queue is the order of service: its
own queue is a buffer. Room is counted in tokens of prompts that are still to be computed, in KV, by the forecast that
the engine admits by (``memory_manager.policy.kv_forecast``), and in seconds of a step.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.kv_forecast import KVDemand, expected_left, making_way

__all__ = ["HeldRequest", "Shortage", "StepCostModel", "WorkerLoad"]

_PACED_SHARE = 0.75
"""Part of the tightest target for further tokens that a round of decodes may take: the rest is for prompts."""


class Shortage(enum.Enum):
    """A thing that a worker can lack to begin a request."""

    PROMPT_TOKENS = enum.auto()  # it has prompts to compute for a step and more
    DECODE_PACE = enum.auto()  # a round of decodes would take too long for those that are paced
    KV = enum.auto()  # what it has is expected to need the room


class StepCostModel(Protocol):
    """Seconds of a model's steps."""

    def seconds(self, num_decodes: int, num_prefill_tokens: int) -> float:
        """Seconds of a step with so many decodes and tokens of prompts."""
        ...

    @property
    def decode_s(self) -> float: ...


class HeldRequest(NamedTuple):
    """A request that a worker has, or that is looked at as if it had.

    Attributes:
        num_to_compute: tokens of its prompt that are not computed yet; 0 once it decodes.
        token_bytes: KV of a token of its model.
        mean_output: tokens of an output of its model.
        costs: of its model.
    """

    claim: RequestClaim
    num_to_compute: int
    token_bytes: float
    mean_output: float
    costs: StepCostModel


class WorkerLoad:
    """A worker at one moment, with the requests that it has.

    Args:
        held: of all models that share the worker's KV and are resident.
        max_step_tokens: most tokens of a step; 0 if no bound is known.
        capacity_bytes: KV of all together.
        is_short: one that is not paced made way a moment ago for some that are.
    """

    def __init__(
        self,
        held: Sequence[HeldRequest],
        max_step_tokens: int,
        capacity_bytes: float,
        now_s: float,
        *,
        is_short: bool = False,
    ) -> None:
        self._held = held
        self._costs = {each.claim.model: each.costs for each in held}
        self._max_step_tokens = max_step_tokens
        self._capacity_bytes = capacity_bytes
        self._now_s = now_s
        self._is_short = is_short
        self._num_paced = dict.fromkeys(self._costs, 0)
        self._num_unpaced = 0
        self._tightest_s = math.inf
        for each in held:
            claim = each.claim
            if claim.is_paced(now_s):
                self._num_paced[claim.model] += claim.num_choices
                self._tightest_s = min(self._tightest_s, claim.tpot_target_s)
            else:
                self._num_unpaced += claim.num_choices

    def may_begin(self, newcomer: HeldRequest) -> bool:
        """Whether it can begin this request within about two steps, at no cost to those that it should not cost."""
        return self.shortage(newcomer) is None

    def shortage(self, newcomer: HeldRequest) -> Shortage | None:
        """Returns what it lacks to begin this request; None if it may begin."""
        if not self._has_tokens(newcomer):
            return Shortage.PROMPT_TOKENS
        if not self._has_pace(newcomer):
            return Shortage.DECODE_PACE
        return None if self._has_kv(newcomer, ()) else Shortage.KV

    def waits_for_room(self, newcomer: HeldRequest, ahead: Sequence[HeldRequest]) -> bool:
        """Whether a request that comes behind these others has to wait until others have ended."""
        return not (self._has_pace(newcomer) and self._has_kv(newcomer, ahead))

    def prefill_s(self, newcomer: HeldRequest, ahead: Iterable[HeldRequest]) -> float:
        """Seconds of the steps in which all is computed that goes before this request, and its prompt itself."""
        urgency = newcomer.claim.urgency(self._now_s)
        before = [
            each for each in self._held if each.num_to_compute and each.claim.urgency(self._now_s) <= urgency
        ]
        num_tokens: dict[str, int] = {}
        for each in (*before, *ahead, newcomer):
            model = each.claim.model
            num_tokens[model] = num_tokens.get(model, 0) + each.num_to_compute
        num_decodes = dict.fromkeys(num_tokens, 0)
        for each in self._held:
            if not each.num_to_compute and each.claim.model in num_decodes:
                num_decodes[each.claim.model] += each.claim.num_choices
        costs = self._costs_with(newcomer)
        return sum(
            costs[model].seconds(num_decodes[model], num)
            for model, num in num_tokens.items()
            if model in costs
        )

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
        return {**self._costs, newcomer.claim.model: newcomer.costs}

    def _has_tokens(self, newcomer: HeldRequest) -> bool:
        if not self._max_step_tokens:
            return True
        urgency = newcomer.claim.urgency(self._now_s)
        num_tokens = sum(
            each.num_to_compute for each in self._held if each.claim.urgency(self._now_s) <= urgency
        )
        return num_tokens < self._max_step_tokens

    def _has_pace(self, newcomer: HeldRequest) -> bool:
        """Whether all paced ones keep their targets with one more beside them. A target that they would miss anyway
        holds nobody up."""
        claim = newcomer.claim
        is_paced = claim.is_paced(self._now_s)
        tightest_s = min(self._tightest_s, claim.tpot_target_s) if is_paced else self._tightest_s
        least_s = sum(each.seconds(1, 0) for each in self._costs_with(newcomer).values())
        most_s = _PACED_SHARE * tightest_s
        if least_s > most_s or tightest_s == math.inf:
            return True
        if is_paced:
            return self.round_s(newcomer) <= most_s or not any(self._num_paced.values())
        if self._is_short or not self._num_unpaced:
            return not self._is_short
        decodes_s = (self._num_unpaced + 1) * newcomer.costs.decode_s
        return self.round_s() + decodes_s <= most_s

    def _has_kv(self, newcomer: HeldRequest, ahead: Sequence[HeldRequest]) -> bool:
        """Whether the engine is expected to admit it beside what it has, and what goes before it."""
        urgency = newcomer.claim.urgency(self._now_s)
        # What has not begun and is less urgent gives way in the engine's queue.
        present = [
            each
            for each in self._held
            if not each.num_to_compute or each.claim.urgency(self._now_s) <= urgency
        ]
        rows = making_way(
            self._demand([*present, *ahead]),
            self._demand([newcomer]),
            self._capacity_bytes,
            takes_place=not newcomer.claim.is_late(self._now_s),
        )
        return rows is not None

    def _demand(self, held: Sequence[HeldRequest]) -> KVDemand:
        claims = [each.claim for each in held]
        # Of several choices one counts: the engine begins the others as room comes, and nobody waits for them all.
        token_bytes = np.array([each.token_bytes for each in held], np.float64)
        num_output = np.array([each.num_output for each in claims], np.float64)
        num_known = num_output + np.array([each.num_prompt for each in claims])
        return KVDemand(
            num_left=expected_left(
                num_output,
                np.array([each.mean_output for each in held], np.float64),
                np.maximum(num_output + 1, np.array([each.most_output for each in claims], np.float64)),
            ),
            held_bytes=num_known * token_bytes,
            token_bytes=token_bytes,
            priority=np.array([each.priority for each in claims], np.int64),
            arrival=np.array([each.arrival for each in claims], np.int64),
            num_lost_tokens=num_known.astype(np.int64),
            may_go=np.array(
                [not each.num_to_compute and each.claim.is_late(self._now_s) for each in held], np.bool_
            ),
        )
