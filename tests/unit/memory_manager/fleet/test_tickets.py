"""Requests that wait for a replica or have one: who is counted, and until when each can be left alone."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

import pytest

from memory_manager.fleet.tickets import Places, ReplicaTicket, Waiter
from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.pace import Pace


@dataclass(eq=False)
class Held:
    """A ticket, the clock that it reads, and those that were released."""

    ticket: ReplicaTicket
    released: list[ReplicaTicket]
    now_s: float
    progress: list[int] = field(default_factory=list)


def held(
    *,
    asked_at_s: float = 10.0,
    deadline_s: float = 11.0,
    tpot_target_s: float = 0.1,
    pace: Pace | None = None,
) -> Held:
    released: list[ReplicaTicket] = []
    ticket = ReplicaTicket(
        replica_id="a/0",
        worker_id="w",
        artifact_key="key",
        claim=RequestClaim("a", 0, asked_at_s, deadline_s, tpot_target_s),
        asked_at_s=asked_at_s,
        pace=Pace() if pace is None else pace,
        predicted_ttft_s=None,
        clock=lambda: found.now_s,
        on_tokens=lambda ticket, num_new: found.progress.append(num_new),
        on_release=released.append,
    )
    found = Held(ticket, released, asked_at_s)
    return found


def ticket_of(tenant: str) -> ReplicaTicket:
    ticket = held().ticket
    ticket.claim.tenant = tenant
    return ticket


def test_places_are_counted_by_tenant() -> None:
    places: Places[ReplicaTicket] = Places()
    first, second, other, nobodys = map(ticket_of, ("t", "t", "u", ""))
    for each in (first, second, other, nobodys, first):
        places.add(each)
    assert list(places) == [first, second, other, nobodys]
    assert [places.num_of(each) for each in ("t", "u", "", "v")] == [2, 1, 1, 0]
    places.discard(first)
    places.discard(first)
    assert places.num_of("t") == 1
    assert first not in places
    assert second in places
    places.clear()
    assert not places
    assert places.num_of("t") == places.num_of("") == 0


def test_a_waiter_has_until_its_deadline_less_what_its_first_token_takes() -> None:
    with asyncio.Runner() as runner:
        ticket: asyncio.Future[ReplicaTicket] = runner.get_loop().create_future()
        waiter = Waiter("a", 0, 10.0, 12.0, 0.1, ticket=ticket)
        assert waiter.latest_s(Pace(first_token_s=0.5)) == pytest.approx(11.5)


def test_a_ticket_has_until_its_deadline_before_its_first_token_and_then_what_its_tokens_leave() -> None:
    running = held(pace=Pace(first_token_s=0.25, token_s=0.02, output_tokens=101.0))
    assert running.ticket.latest_s() == pytest.approx(10.75)
    running.now_s = 10.5
    running.ticket.note_tokens(1)
    assert running.ticket.latest_s() == pytest.approx(10.5 + 100 * 0.1 - 100 * 0.02)
    running.now_s = 11.5
    running.ticket.note_tokens(51)
    assert running.ticket.latest_s() == pytest.approx(10.5 + 100 * 0.1 - 50 * 0.02)
    slower = held(tpot_target_s=0.2, pace=running.ticket.pace)
    slower.now_s = 10.5
    slower.ticket.note_tokens(1)
    assert slower.ticket.latest_s() == pytest.approx(10.5 + 100 * 0.2 - 100 * 0.02)
    running.ticket.note_tokens(3)  # of another choice, which is behind
    assert running.ticket.latest_s() == pytest.approx(10.5 + 100 * 0.1 - 50 * 0.02)


def test_who_gave_the_ticket_hears_of_its_tokens() -> None:
    running = held()
    for num_tokens in (1, 1, 4, 3, 9):  # of two choices
        running.ticket.note_tokens(num_tokens)
    assert running.progress == [0, 3, 5]


def test_a_ticket_whose_first_token_came_late_has_nothing_to_lose() -> None:
    late = held(deadline_s=11.0)
    late.now_s = 11.5
    late.ticket.note_tokens(1)
    assert late.ticket.latest_s() == -math.inf


def test_what_a_request_took_enters_its_deployments_pace() -> None:
    pace, expected = Pace(), Pace()
    running = held(pace=pace)
    running.now_s = 10.2
    running.ticket.note_tokens(1)
    running.now_s = 12.2
    running.ticket.note_tokens(21)
    running.ticket.note_pace(1.0)
    expected.note_first_token(0.2, 1.0)
    expected.note_tokens(20, 10.2, 12.2)
    expected.note_end(21)
    assert pace.first_token_s == pytest.approx(expected.first_token_s)
    assert pace.token_s == pytest.approx(expected.token_s)
    assert pace.output_tokens == expected.output_tokens


def test_of_a_request_that_moved_only_further_tokens_are_timed() -> None:
    pace = Pace(first_token_s=0.25, token_s=0.02, output_tokens=101.0)
    moved = held(pace=pace)
    moved.now_s = 10.5
    moved.ticket.note_tokens(41)
    assert moved.ticket.latest_s() == pytest.approx(10.5 + 60 * 0.1 - 60 * 0.02)
    moved.now_s = 11.5
    moved.ticket.note_tokens(91)
    moved.ticket.note_pace(1.0)
    assert pace.token_s == pytest.approx(0.02)


def test_an_output_of_a_few_tokens_is_timed_at_its_end() -> None:
    pace = Pace()
    running = held(pace=pace)
    running.ticket.note_tokens(1)
    running.now_s += 0.3
    running.ticket.note_tokens(4)
    assert pace.token_s == 0
    running.ticket.note_pace(1.0)
    assert pace.token_s == pytest.approx(0.1)


def test_a_request_without_a_token_says_nothing_of_the_pace() -> None:
    pace = Pace()
    held(pace=pace).ticket.note_pace(1.0)
    assert pace == Pace()


def test_a_ticket_is_released_at_the_end_of_its_block() -> None:
    running = held()
    with running.ticket as ticket:
        assert not running.released
    assert running.released == [ticket]
