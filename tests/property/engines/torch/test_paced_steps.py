"""Paced sequences keep their pace in virtual time, and those beside them go on all the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.torch.scheduling.compose import (
    ModelPace,
    RunningSequences,
    choose_chunks,
    most_unpaced_decodes,
)

NUM_ROUNDS = 60
LEAST_STEP_S, LEAST_DECODE_S = 0.005, 0.0005


@dataclass
class Model:
    """A model whose sequences decode, one row each; those with a finite target are paced."""

    step_s: float
    decode_s: float
    target_s: NDArray[np.float64]
    priority: NDArray[np.int64]

    def __post_init__(self) -> None:
        self.due_s = self.target_s.copy()
        self.num_given = np.zeros(len(self.target_s), np.int64)

    @property
    def is_paced(self) -> NDArray[np.bool_]:
        return self.target_s < math.inf

    def pace(self) -> ModelPace:
        paced = self.is_paced
        step_s = self.step_s + self.decode_s * int(paced.sum())
        return ModelPace(self.due_s.min(initial=math.inf), self.target_s.min(initial=math.inf), step_s)

    def running(self) -> RunningSequences:
        rows = np.arange(len(self.target_s))
        return RunningSequences(
            slots=rows,
            priority=self.priority,
            deadline_s=np.full(len(rows), math.inf),
            arrival=rows,
            num_tokens=self.num_given + 2,
            num_computed=self.num_given + 1,
            is_late=np.zeros(len(rows), np.bool_),
            is_unpaced=~self.is_paced,
        )


@st.composite
def workers(draw: Callable[..., Any]) -> list[Model]:
    """Models that could keep all targets by themselves, one sequence that is not paced beside each."""
    models = []
    for _ in range(draw(st.integers(1, 3))):
        paced = draw(st.lists(st.floats(1.0, 5.0), max_size=6))
        num_unpaced = draw(st.integers(0, 20))
        target_s = np.array([*paced, *(math.inf for _ in range(num_unpaced))])
        if len(target_s):
            priority = np.array(
                draw(st.lists(st.integers(0, 2), min_size=len(target_s), max_size=len(target_s)))
            )
            step_s, decode_s = draw(st.floats(LEAST_STEP_S, 0.05)), draw(st.floats(LEAST_DECODE_S, 0.005))
            models.append(Model(step_s, decode_s, target_s, priority))
    least_s = sum(each.pace().step_s for each in models)
    least_s += len(models) * max((each.decode_s for each in models), default=0.0)
    tightest_s = draw(st.floats(1 / 0.75, 4.0)) * least_s
    for each in models:
        each.target_s *= tightest_s
        each.due_s = each.target_s.copy()
    return models


@given(workers(), st.randoms(use_true_random=False))
def test_paced_ones_keep_their_pace_and_others_go_on(models: list[Model], draw: Any) -> None:
    now_s = 0.0
    for _ in range(NUM_ROUNDS):
        for model in models:
            paces = [each.pace() for each in models]
            plan = choose_chunks(
                model.running(), 100, max_unpaced=most_unpaced_decodes(paces, model.decode_s, now_s)
            )
            now_s += (model.step_s + model.decode_s * len(plan)) * draw.uniform(0.9, 1.1)
            assert (now_s <= model.due_s[plan.slots]).all()
            assert set(np.flatnonzero(model.is_paced)) <= set(plan.slots.tolist())
            model.num_given[plan.slots] += 1
            model.due_s[plan.slots] += model.target_s[plan.slots]
    for model in models:
        unpaced = np.flatnonzero(~model.is_paced)
        if len(unpaced):
            first = min(unpaced.tolist(), key=lambda row: (-model.priority[row], row))
            assert model.num_given[first] == NUM_ROUNDS
    if not any(model.is_paced.any() for model in models):
        assert all((model.num_given == NUM_ROUNDS).all() for model in models)
