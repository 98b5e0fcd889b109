"""However a sequence ends, no book of the runner keeps anything of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bare_runner import VOCAB_SIZE, runner_without_a_model, step

from engines.api import FinishReason, SamplingParams, SequenceRequest
from engines.torch.scheduling.compose import least_urgent
from engines.torch.scheduling.runner import SequenceRunner
from mooring.errors import ModelUnavailableError

samplings = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 12)},
    optional={
        "presence_penalty": st.just(0.5),
        "logit_bias": st.just(((3, 1.0),)),
        "bad_words_ids": st.just(((5,), (1, 2))),
        "prompt_logprobs": st.integers(0, 2),
        "stop_token_ids": st.just((0,)),
    },
)
actions = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 40), samplings, st.booleans()),
    st.tuples(st.just("submit"), st.integers(1, 40), samplings, st.booleans()),
    st.tuples(st.just("step"), st.integers(1, 5)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("preempt")),
    st.tuples(st.just("drain")),
)


class _Sequences:
    """Carries out actions and remembers who was submitted and who has ended."""

    def __init__(self, runner: SequenceRunner) -> None:
        self.runner = runner
        self.num_submitted = 0
        self.ended: dict[int, FinishReason] = {}

    def submit(self, num_prompt: int, sampling: dict[str, Any], shares: bool) -> None:
        prompt = ((self.num_submitted + np.arange(num_prompt)) % VOCAB_SIZE).astype(np.int32)
        scope = b"" if shares else None
        request = SequenceRequest(
            self.num_submitted, "m", prompt, SamplingParams(**sampling), cache_scope=scope
        )
        self.runner.submit(request, self.num_submitted)
        self.num_submitted += 1

    def step(self, num_steps: int) -> None:
        for number in range(num_steps):
            output = step(self.runner, number)
            self.end(output.finished if output is not None else [])

    def cancel(self, sequence_id: int) -> None:
        self.runner.cancel(sequence_id)
        self.end(self.runner.take_ended())

    def preempt(self) -> None:
        sequences = self.runner.preemptible()
        row = least_urgent(sequences, 1.0)
        if row is not None:
            self.runner.preempt(int(sequences.slots[row]))

    def drain(self) -> None:
        self.end(self.runner.drain(ModelUnavailableError("it sleeps")))

    def end(self, ends: list[Any]) -> None:
        for end in ends:
            assert end.sequence_id not in self.ended
            self.ended[end.sequence_id] = end.reason


@settings(max_examples=60)
@given(st.lists(actions, min_size=3, max_size=30), st.booleans())
def test_after_every_end_all_books_are_empty(script: list[tuple[Any, ...]], runs_to_the_end: bool) -> None:
    with runner_without_a_model() as runner:
        sequences = _Sequences(runner)
        for action, *arguments in script:
            getattr(sequences, action)(*arguments)
            runner.check_integrity()
        if runs_to_the_end:
            for _ in range(1000):
                if not runner.has_sequences:
                    break
                sequences.step(1)
        sequences.drain()
        assert sequences.ended.keys() == set(range(sequences.num_submitted))
        assert [book.slots() for book in runner.books] == [set()] * len(runner.books)
        assert (runner.live_kv_bytes, runner.swapped_bytes) == (0, 0)


def test_a_book_that_keeps_a_sequence_which_is_gone_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with runner_without_a_model() as runner:
        sequences = _Sequences(runner)
        sequences.submit(4, {"max_tokens": 2, "logit_bias": ((3, 1.0),)}, False)
        edits = next(book for book in runner.books if type(book).__name__ == "LogitEdits")
        monkeypatch.setattr(type(edits), "end", lambda book, slot: None)
        sequences.step(3)
        assert sequences.ended == {0: FinishReason.LENGTH}
        with pytest.raises(AssertionError, match="LogitEdits keeps slots"):
            runner.check_integrity()
