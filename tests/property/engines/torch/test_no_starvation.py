"""Whoever waits longest ends, however many come after it and however often memory runs out: the real runner, pool
and cache over a model that computes nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bare_runner import MAX_LEN, runner_without_a_model, step

from engines.api import SamplingParams, SequenceRequest

lengths = st.tuples(st.integers(1, 50), st.integers(2, 60))


@settings(max_examples=25)
@given(first=lengths, others=st.lists(lengths, min_size=1, max_size=6), shares=st.booleans())
def test_the_earliest_always_ends(
    first: tuple[int, int], others: list[tuple[int, int]], shares: bool
) -> None:
    with runner_without_a_model() as runner:
        num_submitted = 0

        def submit(num_prompt: int, max_tokens: int) -> None:
            nonlocal num_submitted
            num_submitted += 1
            prompt = ((num_submitted * 3 + np.arange(num_prompt)) % 8).astype(np.int32)
            sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
            scope = b"" if shares else None
            runner.submit(
                SequenceRequest(num_submitted, "m", prompt, sampling, cache_scope=scope), num_submitted
            )

        ended: set[int] = set()
        submit(*first)
        for step_number in range(400):
            while runner.num_waiting < 3:
                submit(*others[num_submitted % len(others)])
            output = step(runner, step_number)
            runner.check_integrity()
            ended |= {end.sequence_id for end in output.finished} if output is not None else set()
            earliest = next(number for number in range(1, num_submitted + 1) if number not in ended)
            # Each may take as long as its tokens, once it is the earliest; all before it had their time.
            assert step_number <= 1 + earliest * (MAX_LEN + 4)
            if earliest > 4:
                return
