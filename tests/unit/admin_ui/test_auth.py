"""Sessions, one-time links, and how often a wrong key may be tried."""

from __future__ import annotations

import contextlib

import pytest

from admin_ui.auth import Attempts, OneTimeLinks, Sessions, check_token
from mooring.errors import AuthenticationError, PermissionDeniedError, RateLimitError


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_session_is_found_by_its_cookie_alone(clock: Clock) -> None:
    sessions = Sessions(clock, 60)
    cookie, session = sessions.open("key")
    assert sessions.get(cookie) is session
    assert session.admin_key == "key"
    for other in (None, "", session.token, cookie[:-1]):
        with pytest.raises(AuthenticationError):
            sessions.get(other)


def test_the_key_is_not_in_what_a_session_prints(clock: Clock) -> None:
    cookie, session = Sessions(clock, 60).open("very-secret")
    assert "very-secret" not in repr(session)
    assert session.token not in repr(session)
    assert cookie not in repr(session)


def test_a_session_ends_without_use_and_being_asked_for_is_none(clock: Clock) -> None:
    sessions = Sessions(clock, 60)
    cookie, session = sessions.open("key")
    clock.now_s += 59
    assert sessions.get(cookie) is session
    sessions.note_use(session)
    clock.now_s += 59
    assert sessions.get(cookie) is session
    assert sessions.is_open(session)
    clock.now_s += 1
    assert not sessions.is_open(session)
    with pytest.raises(AuthenticationError, match="without use"):
        sessions.get(cookie)


def test_a_closed_session_is_gone(clock: Clock) -> None:
    sessions = Sessions(clock, 60)
    cookie, session = sessions.open("key")
    sessions.close(cookie)
    sessions.close(cookie)
    assert not sessions.is_open(session)
    with pytest.raises(AuthenticationError):
        sessions.get(cookie)


def test_a_key_that_the_server_takes_no_longer_ends_its_sessions_alone(clock: Clock) -> None:
    sessions = Sessions(clock, 60)
    _, session = sessions.open("key")
    sessions.drop_key("another")
    assert sessions.is_open(session)
    sessions.drop_key("key")
    assert not sessions.is_open(session)


def test_the_number_of_sessions_is_bounded(clock: Clock) -> None:
    sessions = Sessions(clock, 60)
    first, _ = sessions.open("key")
    second, _ = sessions.open("key")
    sessions.get(first)
    for _ in range(255):
        sessions.open("key")
    assert sessions.get(first)
    with pytest.raises(AuthenticationError):
        sessions.get(second)


def test_a_write_needs_the_token_of_its_own_session(clock: Clock) -> None:
    sessions = Sessions(clock, 60)
    _, one = sessions.open("key")
    _, other = sessions.open("key")
    check_token(one, one.token)
    for token in (None, "", other.token):
        with pytest.raises(PermissionDeniedError):
            check_token(one, token)


def test_a_link_works_once_and_for_five_minutes(clock: Clock) -> None:
    links = OneTimeLinks(clock)
    used, old = links.make("key"), links.make("key")
    assert links.take(used) == "key"
    clock.now_s += 301
    for secret in (used, old, "nonsense"):
        with pytest.raises(AuthenticationError):
            links.take(secret)


def fail(attempts: Attempts, client: str) -> None:
    with pytest.raises(AuthenticationError), attempts.one_of(client):
        raise AuthenticationError("wrong")


def test_wrong_keys_are_limited_by_client_and_for_a_minute(clock: Clock) -> None:
    attempts = Attempts(clock)
    for _ in range(8):
        fail(attempts, "1.2.3.4")
        clock.now_s += 1
    with pytest.raises(RateLimitError) as refused, attempts.one_of("1.2.3.4"):
        pass
    assert refused.value.retry_after_s == 52
    fail(attempts, "5.6.7.8")
    clock.now_s += 52
    fail(attempts, "1.2.3.4")


def test_wrong_keys_of_many_clients_are_limited_too(clock: Clock) -> None:
    attempts = Attempts(clock)
    for number in range(64):
        fail(attempts, str(number))
    with pytest.raises(RateLimitError), attempts.one_of("another"):
        pass


def test_what_is_not_decided_counts_and_what_was_no_wrong_key_does_not(clock: Clock) -> None:
    attempts = Attempts(clock)
    for _ in range(20):
        with attempts.one_of("1.2.3.4"):
            clock.now_s += 1
        with pytest.raises(KeyError), attempts.one_of("1.2.3.4"):
            raise KeyError
    with contextlib.ExitStack() as undecided:
        for _ in range(8):
            undecided.enter_context(attempts.one_of("1.2.3.4"))
        with pytest.raises(RateLimitError), attempts.one_of("1.2.3.4"):
            pass
        clock.now_s += 61
    fail(attempts, "1.2.3.4")


def test_a_log_in_with_another_key_ends_the_sessions_of_the_one_before(clock: Clock) -> None:
    sessions = Sessions(clock, 60)
    _, old = sessions.open("old")
    _, new = sessions.open("new")
    assert (sessions.is_open(old), sessions.is_open(new)) == (False, True)
