"""The samples' budget holds any two of them and never all three, whatever the precision."""

from __future__ import annotations

from itertools import combinations

import pytest

from engines.checkpoint.model_config import ModelConfig
from memory_manager.kv_spec import PAGE_BYTES
from ops.capacity.memory import PlannedModel, model_from_shape, plan_memory
from ops.samples.budget import sample_budget_bytes, sample_bytes
from ops.samples.recipes import DRAFT, PYTHONLM, Recipe, config_of


def planned(recipe: Recipe, vocab_size: int) -> PlannedModel:
    return PlannedModel(recipe.name, ModelConfig.from_hf(config_of(recipe.shape, vocab_size)), "bf16")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_any_two_fit_and_three_do_not(precision: str) -> None:
    models = [
        model_from_shape("smollm2-135m"),
        planned(PYTHONLM, PYTHONLM.vocab_size),
        planned(DRAFT, 49_152),
    ]
    # The planner's figures, with the pool's null page, which the models of a device share.
    needed = [
        plan_memory(
            model, context_tokens=model.config.max_model_len, batch=1, precision=precision
        ).total_bytes
        - PAGE_BYTES
        for model in models
    ]
    budget = sample_budget_bytes(precision)
    for pair in combinations(needed, 2):
        assert sum(pair) + PAGE_BYTES <= budget
    assert sum(needed) > budget
    assert list(sample_bytes(precision).values()) == needed


def test_fp32_takes_twice_the_memory() -> None:
    assert sample_budget_bytes("fp32") == pytest.approx(2 * sample_budget_bytes("bf16"), rel=0.06)
