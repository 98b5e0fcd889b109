"""The samples' budget holds any two of them and never all three, whatever the precision."""

from __future__ import annotations

from collections.abc import Iterable
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
    plans = [
        plan_memory(model, context_tokens=model.config.max_model_len, batch=1, precision=precision)
        for model in models
    ]
    needed = [(each.weights_page_bytes, each.kv_bytes_per_request) for each in plans]
    assert list(sample_bytes(precision).values()) == needed

    def together(samples: Iterable[tuple[int, int]]) -> int:
        """With the pool's null page. The models of a device share that, and the KV of one full context."""
        weights_bytes, kv_bytes = zip(*samples, strict=True)
        return sum(weights_bytes) + max(kv_bytes) + PAGE_BYTES

    budget = sample_budget_bytes(precision)
    assert all(together(pair) <= budget for pair in combinations(needed, 2))
    assert together(needed) > budget


def test_fp32_takes_twice_the_memory() -> None:
    assert sample_budget_bytes("fp32") == pytest.approx(2 * sample_budget_bytes("bf16"), rel=0.06)
