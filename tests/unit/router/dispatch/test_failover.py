"""Every branch of the rule that decides who is blamed for a worker's death."""

from router.dispatch.failover import Standing, SuspectPolicy


def start_turn(policy: SuspectPolicy[str], key: str) -> None:
    assert not policy.ask_turn(key)
    assert policy.take_turn() == key


def clear(policy: SuspectPolicy[str], key: str) -> None:
    start_turn(policy, key)
    policy.progressed(key, 8)
    assert policy.standing(key) is Standing.CLEARED


def test_a_request_that_was_at_no_death_runs_at_once() -> None:
    policy = SuspectPolicy[str]()
    policy.died(["a"])
    assert policy.ask_turn("new")
    assert policy.standing("new") is Standing.FREE


def test_the_first_death_makes_suspects_of_all_present_and_fails_none() -> None:
    policy = SuspectPolicy[str]()
    assert policy.died(["a", "b"]) == frozenset()
    assert policy.standing("a") is policy.standing("b") is Standing.SUSPECT


def test_suspects_have_their_turns_one_at_a_time_in_the_order_they_asked() -> None:
    policy = SuspectPolicy[str]()
    policy.died(["a", "b", "c"])
    for key in ("b", "a", "c"):
        assert not policy.ask_turn(key)
    assert policy.take_turn() == "b"
    assert policy.take_turn() is None
    policy.progressed("b", 7)
    assert policy.take_turn() is None, "7 tokens are not enough"
    policy.progressed("b", 8)
    assert policy.take_turn() == "a"
    policy.forget("a")
    assert policy.take_turn() == "c"


def test_only_who_asked_can_have_the_turn() -> None:
    policy = SuspectPolicy[str]()
    policy.died(["a", "b"])
    assert policy.take_turn() is None
    start_turn(policy, "b")


def test_asking_twice_keeps_the_place_in_the_line() -> None:
    policy = SuspectPolicy[str]()
    policy.died(["a", "b"])
    for key in ("a", "b", "a"):
        policy.ask_turn(key)
    assert policy.take_turn() == "a"
    assert policy.ask_turn("a"), "its turn goes on"


def test_a_turn_given_back_goes_to_the_next_and_is_no_blame() -> None:
    policy = SuspectPolicy[str]()
    policy.died(["a", "b"])
    start_turn(policy, "a")
    policy.ask_turn("b")
    policy.give_back("a")
    assert policy.take_turn() == "b"
    assert policy.standing("a") is Standing.SUSPECT


def test_a_cancelled_suspect_leaves_the_line() -> None:
    policy = SuspectPolicy[str]()
    policy.died(["a", "b"])
    policy.ask_turn("a")
    policy.ask_turn("b")
    policy.forget("a")
    assert policy.take_turn() == "b"
    assert policy.standing("a") is Standing.FREE


def test_a_death_during_probation_fails_the_one_on_probation_and_blames_nobody_else() -> None:
    policy = SuspectPolicy[str]()
    policy.died(["a", "b", "c"])
    clear(policy, "a")
    start_turn(policy, "b")
    assert policy.died(["a", "b", "new"]) == {"b"}
    policy.forget("b")
    assert policy.standing("a") is Standing.CLEARED
    assert policy.standing("new") is Standing.FREE
    start_turn(policy, "c")


def test_a_death_of_another_worker_during_probation_is_not_blamed_on_it() -> None:
    policy = SuspectPolicy[str]()
    policy.died(["a"])
    start_turn(policy, "a")
    assert policy.died(["elsewhere"]) == frozenset()
    assert policy.on_turn == "a"
    assert policy.standing("elsewhere") is Standing.SUSPECT


def test_the_only_one_that_was_at_an_earlier_death_fails_alone() -> None:
    policy = SuspectPolicy[str]()
    policy.died(["a"])
    clear(policy, "a")
    assert policy.died(["a", "new"]) == {"a"}
    assert policy.standing("new") is Standing.SUSPECT


def test_several_at_a_second_death_run_one_at_a_time_to_their_end() -> None:
    policy = SuspectPolicy[str]()
    policy.died(["a", "b"])
    clear(policy, "a")
    clear(policy, "b")
    assert policy.died(["a", "b", "new"]) == frozenset()
    assert policy.standing("a") is policy.standing("b") is Standing.CONVICT
    for key in ("a", "b", "new"):
        assert not policy.ask_turn(key)
    assert policy.take_turn() == "new", "suspects go first: their turns are short"
    policy.forget("new")
    assert policy.take_turn() == "a"
    policy.progressed("a", 1000)
    assert policy.standing("a") is Standing.CONVICT, "there is no clearing"
    assert policy.take_turn() is None
    policy.forget("a")
    assert policy.take_turn() == "b"
    assert policy.died(["b", "other"]) == {"b"}


def test_progress_of_others_clears_nobody() -> None:
    policy = SuspectPolicy[str]()
    policy.died(["a", "b"])
    start_turn(policy, "a")
    policy.progressed("b", 100)
    assert policy.standing("b") is Standing.SUSPECT
    assert policy.on_turn == "a"


def test_a_death_with_nobody_present_changes_nothing() -> None:
    policy = SuspectPolicy[str]()
    assert policy.died([]) == frozenset()
    assert policy.take_turn() is None
