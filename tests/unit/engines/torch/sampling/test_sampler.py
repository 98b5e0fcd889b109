"""The sampler draws from the distribution that its parameters describe, row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines.api import SamplingParams
from engines.torch.sampling.logit_edits import LogitChanges
from engines.torch.sampling.sampler import Sampler
from engines.torch.sampling.sampling_rows import SamplingRows

CPU = torch.device("cpu")
VOCAB = 40


def rows_of(*params: SamplingParams, eos_ids: tuple[int, ...] = (), num_prompt: int = 0) -> SamplingRows:
    rows = SamplingRows.empty(len(params))
    for row, one in enumerate(params):
        rows.set(row, one, num_prompt=num_prompt, eos_ids=eos_ids)
    return rows


def random_logits(num_rows: int, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn((num_rows, vocab), generator=torch.Generator().manual_seed(seed)) * 2


def draw_many(params: SamplingParams, logits: torch.Tensor, num_draws: int) -> NDArray[np.int64]:
    """Counts of the tokens drawn at ``num_draws`` positions from one row of logits."""
    rows = rows_of(params).take(np.zeros(num_draws, np.int64))
    sampled = Sampler(len(logits), CPU).sample(logits.repeat(num_draws, 1), rows, np.arange(num_draws))
    return np.bincount(sampled.token_ids, minlength=len(logits))


def expected_distribution(params: SamplingParams, logits: torch.Tensor) -> NDArray[np.float64]:
    """The distribution written out for one row, with a full sort."""
    scaled = logits.double() / params.temperature
    scaled[scaled < scaled.max() + math.log(params.min_p or 1e-300)] = -math.inf
    order = scaled.argsort(descending=True)
    if params.top_k:
        scaled[order[params.top_k :]] = -math.inf
    probabilities = scaled.softmax(-1)
    mass_before = probabilities[order].cumsum(-1) - probabilities[order]
    probabilities[order[mass_before >= params.top_p]] = 0
    return (probabilities / probabilities.sum()).numpy()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=1),
        SamplingParams(seed=2, temperature=0.4),
        SamplingParams(seed=3, temperature=2.0, top_k=7),
        SamplingParams(seed=4, top_p=0.8),
        SamplingParams(seed=5, min_p=0.05),
        SamplingParams(seed=6, temperature=1.5, top_k=20, top_p=0.9, min_p=0.02),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    logits = random_logits(1, seed=params.seed)[0]
    expected = expected_distribution(params, logits)
    num_draws = 20_000
    counts = draw_many(params, logits, num_draws)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    likely = expected * num_draws > 5
    chi_square = ((counts - expected * num_draws)[likely] ** 2 / (expected * num_draws)[likely]).sum()
    degrees = likely.sum()
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees) + 5


@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_a_nucleus_beyond_the_candidates_is_found_by_the_full_sort(spread: float) -> None:
    logits = random_logits(1, vocab=3000)[0] * spread
    params = SamplingParams(seed=1, top_p=0.95)
    counts = draw_many(params, logits, 5000)
    possible = expected_distribution(params, logits) > 0
    assert (possible.sum() > 256) == (spread < 1)
    assert counts[~possible].sum() == 0


def test_a_row_is_drawn_alike_in_any_company() -> None:
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=1),
        SamplingParams(seed=1, choice=1),
        SamplingParams(seed=2, top_k=3),
        SamplingParams(seed=3, top_p=0.5, min_p=0.1),
    ]
    logits, positions = random_logits(5), np.array([3, 9, 9, 4, 1000])
    sampler = Sampler(VOCAB, CPU)
    together = sampler.sample(logits.clone(), rows_of(*params), positions).token_ids
    order = [4, 2, 0, 3, 1]
    shuffled = sampler.sample(
        logits[order].clone(), rows_of(*params).take(np.array(order)), positions[order]
    ).token_ids
    np.testing.assert_array_equal(together[order], shuffled)
    for row, one in enumerate(params):
        alone = sampler.sample(logits[row : row + 1].clone(), rows_of(one), positions[row : row + 1])
        assert alone.token_ids[0] == together[row]


def test_greedy_rows_take_the_best_and_seeds_choices_and_positions_matter() -> None:
    logits = torch.zeros((1, 5000))
    best = random_logits(1)
    assert draw_many(SamplingParams(temperature=0.0), best[0], 1).argmax() == int(best.argmax())
    sampler = Sampler(5000, CPU)
    drawn = {
        int(sampler.sample(logits.clone(), rows_of(params), np.array([position])).token_ids[0])
        for params in (SamplingParams(seed=1), SamplingParams(seed=2), SamplingParams(seed=1, choice=1))
        for position in (0, 1)
    }
    assert len(drawn) == 6


def test_penalties_are_those_of_the_formulas_and_count_as_tokens_come() -> None:
    params = SamplingParams(
        temperature=0.0, repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=0.125
    )
    sampler = Sampler(VOCAB, CPU)
    prompt, output = np.array([1, 2, 2], np.int32), np.array([2, 3, 3], np.int32)
    rows = rows_of(params, SamplingParams(temperature=0.0))
    rows.penalty_row[0] = sampler.penalties.add(prompt, output)
    for position in range(6, 12):
        logits = random_logits(2, seed=position)
        expected = logits[0].clone()
        for token in range(VOCAB):
            num_output = int((output == token).sum())
            if num_output or token in prompt:
                expected[token] *= 1 / 1.5 if expected[token] > 0 else 1.5
            expected[token] -= 0.125 * num_output + 0.25 * (num_output > 0)
        plain = int(logits[1].argmax())
        sampled = sampler.sample(logits, rows, np.array([position, position]))
        torch.testing.assert_close(logits[0], expected)
        assert sampled.token_ids.tolist() == [int(expected.argmax()), plain]
        output = np.append(output, sampled.token_ids[0]).astype(np.int32)
    sampler.penalties.remove(int(rows.penalty_row[0]))
    assert sampler.penalties.num_rows_in_use == 0


def test_changes_come_before_penalties_and_after_the_reported_logprobs() -> None:
    sampler = Sampler(VOCAB, CPU)
    rows = rows_of(SamplingParams(temperature=0.0, repetition_penalty=2.0, logprobs=0))
    rows.penalty_row[0] = sampler.penalties.add(np.array([3], np.int32), np.empty(0, np.int32))
    logits = torch.zeros((1, VOCAB))
    logits[0, 3] = -1.0
    raw = float(logits[0].log_softmax(-1)[3])
    changes = LogitChanges(
        np.array([0, 0, 0]), np.array([3, 3, 4]), np.array([2.0, 1.0, -np.inf], np.float32)
    )
    sampled = sampler.sample(logits, rows, np.array([1]), changes)
    assert sampled.token_ids.tolist() == [3]
    assert float(logits[0, 3]) == (-1 + 3) / 2
    assert float(logits[0, 4]) == -math.inf
    assert sampled.top_logprobs[0].logprob == pytest.approx(raw)


def test_a_reused_row_of_counts_starts_anew_and_the_table_grows() -> None:
    sampler = Sampler(VOCAB, CPU)
    none = np.empty(0, np.int32)
    penalized = SamplingParams(temperature=0.0, presence_penalty=100.0)
    rows = rows_of(*[penalized] * 9)
    rows.penalty_row[:] = [sampler.penalties.add(none, np.array([i], np.int32)) for i in range(9)]
    logits = torch.zeros((9, VOCAB))
    sampler.penalties.apply_(logits, rows)
    assert logits.argmin(-1).tolist() == list(range(9))
    sampler.penalties.remove(int(rows.penalty_row[4]))
    rows.penalty_row[4] = sampler.penalties.add(none, np.array([30], np.int32))
    logits = torch.zeros((9, VOCAB))
    sampler.penalties.apply_(logits, rows)
    assert int(logits[4].argmin()) == 30
    assert float(logits.sum()) == -900


def test_stops_are_barred_until_min_tokens_and_eos_only_where_it_counts() -> None:
    logits = torch.zeros((4, VOCAB))
    logits[:, 7], logits[:, 8], logits[:, 9] = 3, 2, 1
    params = [
        SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(8,)),
        SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(8, VOCAB + 5)),
        SamplingParams(temperature=0.0, min_tokens=2, ignore_eos=True),
        SamplingParams(temperature=0.0),
    ]
    rows = rows_of(*params, eos_ids=(7,), num_prompt=10)
    sampled = Sampler(VOCAB, CPU).sample(logits, rows, np.array([11, 12, 10, 10]))
    assert sampled.token_ids.tolist() == [9, 7, 7, 7]
