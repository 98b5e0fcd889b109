import itertools

import pytest

from memory_manager.policy.residency import ON_DEVICE, TRANSITIONS, Residency, ResidencyState
from mooring.errors import InternalError


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Residency, Residency)))
def test_only_what_the_table_names_can_happen(before: Residency, after: Residency) -> None:
    state = ResidencyState(before, since_s=1.0, reason="old")
    if after in TRANSITIONS[before]:
        assert state.move(after, 3.5, "new") == 2.5
        assert (state.residency, state.since_s, state.reason) == (after, 3.5, "new")
    else:
        with pytest.raises(InternalError, match=f"{before.value} to {after.value}"):
            state.move(after, 3.5, "new")
        assert (state.residency, state.since_s, state.reason) == (before, 1.0, "old")


def test_every_residency_can_be_reached_and_left() -> None:
    reached = {Residency.COLD}
    while new := {after for each in reached for after in TRANSITIONS[each]} - reached:
        reached |= new
    assert reached == set(Residency)
    assert all(TRANSITIONS[each] for each in Residency)


def test_a_lost_worker_is_a_transition_from_everywhere_on_a_device() -> None:
    for each in ON_DEVICE:
        assert {Residency.WARM, Residency.COLD} <= TRANSITIONS[each]


def test_nothing_becomes_resident_without_a_load_a_wake_or_a_drain_called_off() -> None:
    sources = {each for each in Residency if Residency.RESIDENT in TRANSITIONS[each]}
    assert sources == {Residency.LOADING, Residency.WAKING, Residency.DRAINING}
