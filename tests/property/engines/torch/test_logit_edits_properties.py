"""Biases and bad words of many sequences at once, against the words' definition for one sequence at a time."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engines.api import SamplingParams, SequenceRequest
from engines.torch.sampling.logit_edits import LogitEdits
from engines.torch.scheduling.sequences import SequenceTable
from engines.torch.scheduling.waiting import PendingSequence

VOCAB_SIZE = 4  # few tokens, so that words are often half said
NUM_SLOTS = 6
tokens = st.integers(0, VOCAB_SIZE - 1)


@dataclass(frozen=True)
class Said:
    """A sequence and what it asks for."""

    prompt: list[int]
    output: list[int]
    logit_bias: dict[int, float]
    bad_words: list[tuple[int, ...]]

    def logits(self) -> np.ndarray:
        """What is added to logits of zero."""
        logits = np.zeros(VOCAB_SIZE, np.float32)
        for token_id, bias in self.logit_bias.items():
            logits[token_id] += bias
        for *start, end in self.bad_words:
            if not start or self.output[-len(start) :] == start:
                logits[end] = -np.inf
        return logits


sequences = st.builds(
    Said,
    prompt=st.lists(tokens, min_size=1, max_size=4),
    output=st.lists(tokens, max_size=5),
    logit_bias=st.dictionaries(tokens, st.sampled_from([-100.0, -1.5, 0.25, 100.0]), max_size=3),
    bad_words=st.lists(st.lists(tokens, min_size=1, max_size=4).map(tuple), max_size=3),
)


def insert(table: SequenceTable, edits: LogitEdits, said: Said, number: int) -> int:
    params = SamplingParams(logit_bias=tuple(said.logit_bias.items()), bad_words_ids=tuple(said.bad_words))
    request = SequenceRequest(number, "m", said.prompt, params)
    token_ids = np.array([*said.prompt, *said.output], np.int32)
    sequence = PendingSequence(request, token_ids, number)
    slot = table.insert(sequence, ())
    edits.begin(slot, sequence)
    return slot


@given(st.lists(sequences, min_size=1, max_size=NUM_SLOTS), st.randoms(use_true_random=False))
def test_every_row_is_changed_as_its_own_sequence_asks(all_said: list[Said], random: object) -> None:
    table, edits = SequenceTable(NUM_SLOTS, 16), LogitEdits(NUM_SLOTS)
    of_slot = {insert(table, edits, said, number): said for number, said in enumerate(all_said)}
    gone = random.sample(sorted(of_slot), random.randrange(len(of_slot)))  # type: ignore[attr-defined]
    for slot in gone:
        edits.end(slot)
        table.remove(slot)
        del of_slot[slot]
    drawing = random.sample(sorted(of_slot), random.randrange(1, len(of_slot) + 1))  # type: ignore[attr-defined]
    changes = edits.changes(np.array(drawing), table.token_ids, table.num_tokens, table.num_prompt)
    assert (changes is None) == (not edits.slots())
    logits = np.zeros((len(drawing), VOCAB_SIZE), np.float32)
    if changes is not None:
        np.add.at(logits, (changes.rows, changes.token_ids), changes.values)
    np.testing.assert_array_equal(logits, np.array([of_slot[slot].logits() for slot in drawing]))


def test_nobody_asked() -> None:
    table, edits = SequenceTable(NUM_SLOTS, 16), LogitEdits(NUM_SLOTS)
    slot = insert(table, edits, Said([1], [], {1: 2.0}, []), 1)
    edits.end(slot)
    edits.end(slot)
    assert edits.slots() == set()
    assert edits.changes(np.array([slot]), table.token_ids, table.num_tokens, table.num_prompt) is None


def test_a_step_looks_only_at_words_whose_turn_it_may_be() -> None:
    """Not at all tokens of all words of all sequences: those would be 8 million numbers."""
    num_slots, num_words, num_tokens = 32, 256, 128
    table, edits = SequenceTable(num_slots, 256), LogitEdits(num_slots)
    words = [tuple(range(number, number + num_tokens)) for number in range(num_words)]
    output = list(range(5, 5 + num_tokens - 1))
    for number in range(num_slots):
        insert(table, edits, Said([1], output, {}, words), number)
    slots = np.arange(num_slots)
    edits.changes(slots, table.token_ids, table.num_tokens, table.num_prompt)
    tracemalloc.start()
    changes = edits.changes(slots, table.token_ids, table.num_tokens, table.num_prompt)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert changes is not None
    assert changes.rows.tolist() == list(range(num_slots))
    assert set(changes.token_ids.tolist()) == {words[5][-1]}
    assert peak_bytes < 100_000
