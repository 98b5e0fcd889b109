"""The backlog of a reader: nothing is lost or doubled, and the engine waits from its bound until it was taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.api import ChoiceTokens, TopLogprobs
from router.dispatch.unread import Unread

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "take", "drop"]),
        st.integers(0, 3),  # choice
        st.integers(0, 3),  # tokens
        st.none() | st.integers(0, 4),  # likeliest tokens beside each
    ),
    max_size=40,
)


@given(steps=STEPS, max_tokens=st.integers(1, 20))
def test_the_backlog_of_a_reader(steps: list[tuple[str, int, int, int | None]], max_tokens: int) -> None:
    unread = Unread(max_tokens)
    there: list[ChoiceTokens] = []
    dropped: set[int] = set()
    size, is_full = 0, False
    for kind, index, num_tokens, num_likeliest in steps:
        if kind == "put":
            tops = None
            if num_likeliest is not None:
                top = TopLogprobs(-1.0, (7,) * num_likeliest, (-1.0,) * num_likeliest)
                tops = [top] * num_tokens
            new = ChoiceTokens(index, [1] * num_tokens, tops)
            unread.put(new)
            there.append(new)
            size += num_tokens * (1 if num_likeliest is None else 2 + num_likeliest)
            is_full = is_full or size >= max_tokens
        elif kind == "drop":
            unread.drop(index)
            dropped.add(index)
        else:
            taken = unread.take()
            wanted = [new for new in there if new.index not in dropped]
            assert [id(new) for new in taken] == [id(new) for new in wanted]
            there, size, is_full = [], 0, False
        assert unread.is_full == is_full
