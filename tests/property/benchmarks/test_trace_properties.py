"""Traces: in order, within bounds, the same for one seed, and the same bursts at every load."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.traces import TraceSpec, draw_trace, model_shares, read_trace, write_trace
from mooring.errors import ConfigurationError

SPEC = TraceSpec(("a", "b", "c"), 5.0, 20.0, 100, prompt_tokens=(2, 9), output_tokens=(1, 7))
specs = st.builds(
    TraceSpec,
    models=st.sampled_from([("a",), ("a", "b"), ("a", "b", "c", "d")]),
    requests_per_s=st.floats(0.1, 20),
    duration_s=st.floats(0.5, 20),
    vocab_size=st.integers(1, 1000),
    zipf_exponent=st.floats(0, 3),
    mean_on_s=st.floats(0.1, 10),
    mean_off_s=st.one_of(st.just(0.0), st.floats(0.1, 10)),
    prompt_tokens=st.just((3, 12)),
    output_tokens=st.just((1, 5)),
    seed=st.integers(0, 2**32),
)


@settings(max_examples=60)
@given(spec=specs)
def test_requests_are_in_order_and_within_what_was_asked_for(spec: TraceSpec) -> None:
    requests = draw_trace(spec)
    assert requests == draw_trace(spec)
    times = [each.at_s for each in requests]
    assert times == sorted(times)
    for each in requests:
        assert 0 <= each.at_s <= spec.duration_s
        assert each.model in spec.models
        assert 3 <= len(each.prompt_token_ids) <= 12
        assert 1 <= each.max_tokens <= 5
        assert all(0 <= token < spec.vocab_size for token in each.prompt_token_ids)


@settings(max_examples=30)
@given(spec=specs, factor=st.floats(1.0, 4.0))
def test_a_higher_load_is_the_same_requests_in_the_same_bursts_and_more_of_them(
    spec: TraceSpec, factor: float
) -> None:
    low = draw_trace(spec)
    high = draw_trace(replace(spec, requests_per_s=spec.requests_per_s * factor))
    for model in spec.models:
        few = [each for each in low if each.model == model]
        many = [each for each in high if each.model == model]
        assert len(few) <= len(many)
        for slow, fast in zip(few, many, strict=False):
            assert fast.at_s <= slow.at_s + 1e-6
            assert (fast.prompt_token_ids, fast.max_tokens) == (slow.prompt_token_ids, slow.max_tokens)


@settings(max_examples=20)
@given(spec=specs)
def test_a_file_gives_back_what_was_written(
    spec: TraceSpec, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    requests = draw_trace(spec)
    write_trace(path, requests)
    assert read_trace(path) == requests


def test_load_and_popularity_are_what_was_asked_for() -> None:
    spec = replace(SPEC, duration_s=5000.0, mean_on_s=1.0, mean_off_s=2.0)
    requests = draw_trace(spec)
    assert len(requests) == pytest.approx(spec.requests_per_s * spec.duration_s, rel=0.08)
    for model, share in zip(spec.models, model_shares(3, 1.0), strict=True):
        found = sum(each.model == model for each in requests) / len(requests)
        assert found == pytest.approx(share, abs=0.04)


def test_requests_come_in_bursts() -> None:
    """Gaps vary far more than those of a Poisson process, whose coefficient of variation is 1."""
    times = [each.at_s for each in draw_trace(replace(SPEC, models=("a",), duration_s=2000.0))]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance**0.5 / mean > 2


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        '{"at_s": 1}',
        '{"at_s": -1, "model": "a", "prompt_token_ids": [1], "max_tokens": 1, "seed": 1}',
        '{"at_s": 1, "model": "", "prompt_token_ids": [1], "max_tokens": 1, "seed": 1}',
        '{"at_s": 1, "model": "a", "prompt_token_ids": [], "max_tokens": 1, "seed": 1}',
        '{"at_s": 1, "model": "a", "prompt_token_ids": [1.5], "max_tokens": 1, "seed": 1}',
        '{"at_s": 1, "model": "a", "prompt_token_ids": [1], "max_tokens": 0, "seed": 1}',
        '{"at_s": 1, "model": "a", "prompt_token_ids": [1], "max_tokens": 1, "seed": 1, "more": 1}',
    ],
)
def test_a_line_that_is_no_request_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(path, draw_trace(SPEC)[:2])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigurationError, match=r"line 3 is no request"):
        read_trace(path)


@pytest.mark.parametrize(
    "change",
    [
        {"models": ()},
        {"requests_per_s": 0},
        {"duration_s": -1},
        {"mean_off_s": -1},
        {"prompt_tokens": (5, 4)},
        {"output_tokens": (0, 4)},
    ],
)
def test_what_no_trace_can_follow_from_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        replace(SPEC, **change)
