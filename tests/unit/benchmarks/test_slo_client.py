"""Answers as the client of the SLO benchmark times them, however they are cut on their way."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.slo.client import AnswerReader, TimedAnswer

HEAD = b"HTTP/1.1 200 OK\r\nX-Mooring-Predicted-TTFT-Ms: 250\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


def read(data: bytes, size: int) -> tuple[TimedAnswer, AnswerReader]:
    """The answer that came in pieces of so many bytes, one a second; due at 100 s and sent at 101 s."""
    answer = TimedAnswer()
    seconds = itertools.count(0)
    now = 0.0
    reader = AnswerReader(answer, 100.0, 101.0, lambda: now)
    for start in range(0, len(data), size):
        now = 102.0 + next(seconds)
        reader.feed(data[start : start + size])
    return answer, reader


@given(st.integers(1, 400))
def test_tokens_are_counted_however_the_stream_is_cut(size: int) -> None:
    events = [b'data: {"choices":[{"text":"a"}]}\n\n'] * 3
    answer, reader = read(HEAD + chunked(events[0] + events[1], events[2], b"data: [DONE]\n\n"), size)
    assert (answer.num_tokens, answer.error, answer.predicted_s) == (3, "", 0.25)
    assert reader.is_complete
    assert answer.first_s is not None
    assert 2 <= answer.first_s <= answer.end_s
    assert answer.refused_in_s is None
    assert answer.tpot_s == pytest.approx((answer.end_s - answer.first_s) / 2)


@given(st.integers(1, 200))
def test_a_refusal_ends_with_its_last_byte(size: int) -> None:
    body = b'{"error": {"code": "slo_unattainable"}}'
    data = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    answer, _ = read(data, size)
    assert answer.error == "503 slo_unattainable"
    assert answer.refused_in_s == 1.0 + (len(data) - 1) // size
    assert (answer.num_tokens, answer.first_s) == (0, None)


def test_a_stream_that_breaks_off_has_not_finished() -> None:
    token = b'data: {"choices":[{"text":"a"}]}\n\n'
    failed, _ = read(HEAD + chunked(token, b'data: {"error":{"code":"worker_lost"}}\n\n'), 1000)
    assert (failed.num_tokens, failed.error) == (1, "worker_lost")
    cut, reader = read((HEAD + chunked(token, token))[:-20], 1000)
    assert (cut.error, reader.is_complete) == ("given up", False)
