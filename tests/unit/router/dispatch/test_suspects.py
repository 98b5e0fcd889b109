"""Every branch of the rules by which the request is found that killed a worker."""

from __future__ import annotations

import pytest

from router.dispatch.suspects import Suspects


class Trials(Suspects[str]):
    """The rules, with what a test asks of them again and again."""

    def __init__(self) -> None:
        super().__init__(clear_after_tokens=8, killed_again_s=60)

    def die(self, in_step: str, *, killed: bool = False, now_s: float = 0) -> str | None:
        """A death in a step of these requests, after which none of them runs."""
        failing = self.died(list(in_step), killed=killed, now_s=now_s)
        for key in in_step:
            self.stop(key)
        return failing

    def begin(self, ready: str) -> str:
        """The requests whose trial begins when these are ready."""
        for key in ready:
            self.wait(key)
        return "".join(sorted(self.begin_trials()))


@pytest.fixture
def suspects() -> Trials:
    return Trials()


def test_those_in_the_step_are_suspects_and_nobody_else(suspects: Trials) -> None:
    assert suspects.die("ab") is None
    assert "a" in suspects
    assert "b" in suspects
    assert "c" not in suspects


def test_a_death_outside_a_step_blames_nobody(suspects: Trials) -> None:
    assert suspects.die("") is None
    assert suspects.begin("a") == ""
    assert "a" not in suspects


def test_halves_are_tried_one_after_the_other(suspects: Trials) -> None:
    suspects.die("abcd")
    assert suspects.begin("abcd") == "ab"
    assert suspects.begin("") == ""
    suspects.progressed("a", 8)
    assert suspects.begin("") == "", "b still runs"
    suspects.progressed("b", 8)
    assert suspects.begin("") == "cd"


def test_a_group_waits_for_none_of_its_members_and_lets_them_join(suspects: Trials) -> None:
    suspects.die("abcd")
    assert suspects.begin("b") == "b"
    assert suspects.begin("cd") == ""
    assert suspects.begin("a") == "a"


def test_a_group_of_which_nobody_is_ready_is_passed_over(suspects: Trials) -> None:
    suspects.die("abcd")
    assert suspects.begin("d") == "d"


def test_a_group_that_had_its_trial_goes_behind_the_others(suspects: Trials) -> None:
    suspects.die("abcd")
    assert suspects.begin("abcd") == "ab"
    for key in "ab":  # their replica was put to sleep, say
        suspects.stop(key)
    assert suspects.begin("ab") == "cd"


def test_a_suspect_is_cleared_by_getting_further_than_where_it_died(suspects: Trials) -> None:
    suspects.die("a")
    suspects.progressed("a", 8)
    assert "a" in suspects, "it is not on trial yet"
    assert suspects.begin("a") == "a"
    suspects.progressed("a", 7)
    assert "a" in suspects
    suspects.progressed("a", 8)
    assert "a" not in suspects


def test_each_time_it_has_to_get_twice_as_far(suspects: Trials) -> None:
    for num_tokens in (8, 16, 32):
        suspects.die("a")
        suspects.begin("a")
        suspects.progressed("a", num_tokens - 1)
        assert "a" in suspects
        suspects.progressed("a", num_tokens)
        assert "a" not in suspects
    suspects.forget("a")
    suspects.die("a")
    suspects.begin("a")
    suspects.progressed("a", 8)
    assert "a" not in suspects, "another request of that name"


def test_a_suspect_that_ends_makes_way_for_the_next_group(suspects: Trials) -> None:
    suspects.die("ab")
    assert suspects.begin("ab") == "a"
    suspects.forget("a")
    assert suspects.begin("") == "b"


def test_a_suspect_that_goes_away_while_it_waits_is_not_tried(suspects: Trials) -> None:
    suspects.die("abc")
    suspects.wait("b")
    suspects.forget("b")
    assert suspects.begin("c") == "c"


def test_a_death_on_trial_halves_the_group_and_spares_the_others(suspects: Trials) -> None:
    suspects.die("abcdefgh")
    assert suspects.begin("abcd") == "abcd"
    assert suspects.die("abcx") is None
    suspects.stop("d")  # it ran, but not in this step
    assert "x" not in suspects
    assert suspects.begin("abcdefgh") == "efgh", "the second half of the first death"
    for key in "efgh":
        suspects.forget(key)
    assert suspects.begin("") == "d", "it was not in the step"
    suspects.forget("d")
    assert suspects.begin("") == "a"
    suspects.forget("a")
    assert suspects.begin("") == "bc"


def test_a_death_of_others_halves_them_and_leaves_the_trial_as_it_is(suspects: Trials) -> None:
    suspects.die("ab")
    suspects.begin("a")
    assert suspects.die("xy") is None
    assert suspects.is_tried("a")
    assert suspects.begin("xyb") == ""
    suspects.forget("a")
    assert suspects.begin("") == "b"
    suspects.forget("b")
    assert suspects.begin("") == "x"


def test_alone_in_a_step_it_fails_at_its_second_death(suspects: Trials) -> None:
    assert suspects.die("a") is None
    suspects.begin("a")
    assert suspects.die("a") == "a"


def test_as_the_only_suspect_beside_others_it_fails_the_second_time(suspects: Trials) -> None:
    suspects.die("a")
    suspects.begin("a")
    assert suspects.die("axy") is None
    assert suspects.begin("ay") == "a"
    assert suspects.die("az") == "a"
    suspects.forget("a")
    assert "z" not in suspects
    assert suspects.begin("xy") == "x"


def test_one_that_was_cleared_since_is_the_only_suspect_for_the_first_time_again(suspects: Trials) -> None:
    suspects.die("a")
    suspects.begin("a")
    suspects.die("ax")
    suspects.begin("a")
    suspects.progressed("a", 8)
    suspects.die("a")
    suspects.begin("a")
    assert suspects.die("ay") is None


def test_a_kill_by_the_system_blames_nobody_unless_it_comes_again_within_a_minute(suspects: Trials) -> None:
    assert suspects.die("ab", killed=True, now_s=100) is None
    assert "a" not in suspects
    assert suspects.die("ab", killed=True, now_s=161) is None
    assert "a" not in suspects
    assert suspects.die("ab", killed=True, now_s=220) is None
    assert "a" in suspects
