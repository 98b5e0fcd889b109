"""Step costs are found again among noise, whatever they are."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from memory_manager.policy.step_model import StepModel

Costs = tuple[float, float, float]
costs = st.tuples(st.floats(2e-4, 0.1), st.floats(0.0, 2e-3), st.floats(0.0, 5e-4))


def seconds_of(costs: Costs, num_decodes: int, num_prefill_tokens: int) -> float:
    return costs[0] + costs[1] * num_decodes + costs[2] * num_prefill_tokens


def load_of(draw: random.Random) -> tuple[int, int]:
    """Decodes, and a chunk of a prompt beside them in one step of four."""
    return draw.randint(1, 64), draw.choice([0, 0, 0, draw.randint(2, 512)])


def note_steps(model: StepModel, costs: Costs, num_steps: int, draw: random.Random) -> None:
    """Steps that take up to a tenth more or less than they should, and a few that take twenty times as long."""
    for _ in range(num_steps):
        load = load_of(draw)
        seconds = seconds_of(costs, *load) * draw.uniform(0.9, 1.1)
        model.note(*load, seconds * (20 if draw.random() < 0.01 else 1))


def assert_foretells(model: StepModel, costs: Costs, draw: random.Random) -> None:
    """Each step within three tenths of it, or of a middling one, which noise hides the smallest behind."""
    for _ in range(50):
        load = load_of(draw)
        seconds = seconds_of(costs, *load)
        assert abs(model.seconds(*load) - seconds) <= 0.3 * max(seconds, seconds_of(costs, 32, 64))


@given(costs, st.integers(0, 2**32))
def test_costs_are_found_among_noise(costs: Costs, seed: int) -> None:
    draw, model = random.Random(seed), StepModel()
    note_steps(model, costs, 600, draw)
    assert_foretells(model, costs, draw)


@given(costs, st.floats(0.2, 5.0), st.integers(0, 2**32))
def test_a_change_is_followed(costs: Costs, factor: float, seed: int) -> None:
    draw, model = random.Random(seed), StepModel()
    note_steps(model, costs, 300, draw)
    changed = (costs[0] * factor, costs[1] * factor, costs[2] * factor)
    note_steps(model, changed, 1500, draw)
    assert_foretells(model, changed, draw)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9000), st.floats(1e-7, 1e4)), max_size=60))
def test_no_cost_is_negative_or_lost(steps: list[tuple[int, int, float]]) -> None:
    model = StepModel()
    for step in steps:
        model.note(*step)
        assert min(model.step_s, model.decode_s, model.prefill_token_s) >= 0
        assert 0 < model.seconds(300, 9000) < 1e6
