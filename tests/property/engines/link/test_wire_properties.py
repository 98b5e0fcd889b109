"""What crosses the socket arrives as it was."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import partial

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engines.api import (
    Capabilities,
    Finished,
    FinishReason,
    FirstToken,
    SamplingParams,
    SequenceRequest,
    TokenIds,
    TopLogprobs,
)
from engines.link.wire import (
    capabilities_from_wire,
    capabilities_to_wire,
    finished_from_wire,
    finished_to_wire,
    first_token_from_wire,
    first_token_to_wire,
    ids_from_wire,
    ids_to_wire,
    sequence_from_wire,
    sequence_to_wire,
    stats_from_wire,
    stats_to_wire,
    top_logprobs_from_wire,
    top_logprobs_to_wire,
)
from memory_manager.stats import KVFragmentation, ReplicaStats, WorkerStats

ONE_ID = np.array([1], np.int32)

token_ids = st.lists(st.integers(0, 2**32 - 1), max_size=8).map(tuple)
packed_ids = st.lists(st.integers(0, 2**31 - 1), max_size=8).map(partial(np.array, dtype=np.int32))
floats32 = st.floats(-100, 100, width=32)
sampling_params = st.builds(
    SamplingParams,
    temperature=floats32,
    top_p=floats32,
    top_k=st.integers(0, 2**31 - 1),
    min_p=floats32,
    repetition_penalty=floats32,
    presence_penalty=floats32,
    frequency_penalty=floats32,
    seed=st.integers(0, 2**64 - 1),
    choice=st.integers(0, 127),
    max_tokens=st.integers(0, 2**32 - 1),
    min_tokens=st.integers(0, 2**32 - 1),
    stop_token_ids=token_ids,
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
    logit_bias=st.lists(st.tuples(st.integers(0, 2**32 - 1), floats32), max_size=4).map(tuple),
    bad_words_ids=st.lists(token_ids, max_size=4).map(tuple),
)
requests = st.builds(
    SequenceRequest,
    sequence_id=st.integers(0, 2**40 - 1),
    replica_id=st.text(max_size=8),
    prompt_ids=packed_ids,
    sampling=sampling_params,
    output_ids=packed_ids,
    deadline_s=st.just(math.inf),
    priority=st.integers(-(2**31), 2**31 - 1),
    cache_scope=st.none() | st.binary(max_size=32),
    tpot_target_s=st.just(math.inf) | st.floats(1e-6, 1e6),
)


@given(requests)
def test_sequence(request: SequenceRequest) -> None:
    message = sequence_to_wire(request, now_s=5.0)
    there = sequence_from_wire(message, request.prompt_ids, request.sequence_id, now_s=99.0)
    assert there.prompt_ids is request.prompt_ids
    assert there.output_ids.tolist() == request.output_ids.tolist()
    for field in fields(SequenceRequest):
        if field.name not in ("prompt_ids", "output_ids"):
            assert getattr(there, field.name) == getattr(request, field.name)


@given(
    st.builds(
        Capabilities,
        engine=st.text(max_size=8),
        device=st.text(max_size=8),
        pid=st.integers(0, 2**32 - 1),
        max_step_tokens=st.integers(0, 2**32 - 1),
        max_sequences=st.integers(0, 2**32 - 1),
    )
)
def test_capabilities(capabilities: Capabilities) -> None:
    assert capabilities_from_wire(capabilities_to_wire(capabilities)) == capabilities


@given(packed_ids)
def test_ids(ids: TokenIds) -> None:
    packed = ids_to_wire(ids)
    assert len(packed) == 4 * len(ids)
    assert ids_from_wire(packed).tolist() == ids.tolist()


@given(until_s=st.floats(-1e6, 1e6), sender_s=st.floats(0, 1e6), receiver_s=st.floats(0, 1e6))
def test_a_deadline_is_as_far_away_on_the_other_clock(
    until_s: float, sender_s: float, receiver_s: float
) -> None:
    request = SequenceRequest(1, "m", ONE_ID, SamplingParams(), deadline_s=sender_s + until_s)
    arrived = sequence_from_wire(sequence_to_wire(request, sender_s), ONE_ID, 1, receiver_s)
    assert np.isclose(arrived.deadline_s - receiver_s, until_s, atol=1e-6)


@given(
    st.builds(
        Finished,
        sequence_id=st.integers(0, 2**40 - 1),
        reason=st.sampled_from([FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.ERROR]),
        error_code=st.text(max_size=8),
        error_message=st.text(max_size=8),
    )
    | st.builds(
        Finished,
        sequence_id=st.integers(0, 2**40 - 1),
        reason=st.just(FinishReason.STOP),
        stop_token_id=st.integers(0, 2**32 - 1),
    )
)
def test_finished(finished: Finished) -> None:
    assert finished_from_wire(finished_to_wire(finished, finished.sequence_id)) == finished


top_logprobs = st.builds(TopLogprobs, floats32, token_ids, st.lists(floats32, max_size=8).map(tuple))


@given(top_logprobs)
def test_top_logprobs(top: TopLogprobs) -> None:
    assert top_logprobs_from_wire(top_logprobs_to_wire(top, 1)) == top


@given(
    st.builds(
        FirstToken,
        began_s=st.integers(0, 1000).map(float),
        cached_tokens=st.none() | st.integers(0, 2**32 - 1),
        prompt_logprobs=st.none() | st.lists(top_logprobs, max_size=5),
    ),
    st.integers(-1000, 1000).map(float),
)
def test_first_token(first: FirstToken, ahead_s: float) -> None:
    """``ahead_s``: by how much the reader's clock is ahead of the sender's."""
    message = first_token_to_wire(first, 7, now_s=1000.0)
    assert message.sequence_id == 7
    there = first_token_from_wire(message, 1000.0 + ahead_s)
    assert there == replace(first, began_s=first.began_s + ahead_s)


counts = st.integers(0, 2**32 - 1)
stats = st.builds(
    WorkerStats,
    **{field.name: counts for field in fields(WorkerStats)}
    | {
        "replicas": st.lists(
            st.builds(
                ReplicaStats,
                **{field.name: counts for field in fields(ReplicaStats)}
                | {"replica_id": st.text(max_size=8), "residency": st.sampled_from(["warm", "resident"])},
            ),
            max_size=3,
        ).map(tuple),
        "fragmentation": st.builds(KVFragmentation, counts, counts, counts, counts),
    },
)


@given(stats)
def test_stats(told: WorkerStats) -> None:
    assert stats_from_wire(stats_to_wire(told)) == told


def test_what_was_not_asked_for_takes_no_bytes() -> None:
    plain = sequence_to_wire(SequenceRequest(1, "m", ONE_ID, SamplingParams()), now_s=0.0).sampling
    named = {field.name for field, _ in plain.ListFields()}
    assert named.isdisjoint(("logprobs", "prompt_logprobs", "logit_bias", "bad_words"))
