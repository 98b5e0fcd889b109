import pytest

from memory_manager.fleet.ledger import Ledger, Owner
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from mooring.errors import InternalError

KV = Owner("kv", "worker-0")
WEIGHTS = Owner("weights", "a/0")


def test_grants_are_whole_pages_within_a_budget_of_whole_pages() -> None:
    ledger = Ledger("cpu", 10 * PAGE + 5)
    assert ledger.budget_bytes == 10 * PAGE
    assert ledger.grant(WEIGHTS, PAGE + 1)
    assert ledger.lease_bytes(WEIGHTS) == 2 * PAGE
    assert ledger.grant(WEIGHTS, PAGE)
    assert ledger.lease_bytes(WEIGHTS) == 3 * PAGE
    assert ledger.free_bytes == 7 * PAGE


def test_no_room_is_an_answer_and_changes_nothing() -> None:
    ledger = Ledger("cpu", 4 * PAGE)
    assert ledger.grant(KV, 3 * PAGE)
    assert not ledger.grant(WEIGHTS, PAGE + 1)
    assert ledger.lease_bytes(WEIGHTS) == 0
    assert ledger.owners() == {KV: 3 * PAGE}
    assert ledger.grant(WEIGHTS, PAGE)
    ledger.check()


def test_shrink_is_absolute_and_never_grows() -> None:
    ledger = Ledger("cpu", 8 * PAGE)
    ledger.grant(KV, 6 * PAGE)
    ledger.shrink(KV, 4 * PAGE - 1)
    assert ledger.lease_bytes(KV) == 4 * PAGE
    ledger.shrink(KV, 6 * PAGE)
    assert ledger.lease_bytes(KV) == 4 * PAGE
    ledger.shrink(KV, 0)
    assert ledger.owners() == {}


def test_release_tells_what_it_was_and_is_idempotent() -> None:
    ledger = Ledger("cpu", 8 * PAGE)
    ledger.grant(KV, 6 * PAGE)
    assert ledger.release(KV) == 6 * PAGE
    assert ledger.release(KV) == 0
    assert ledger.free_bytes == 8 * PAGE


def test_sums_by_kind() -> None:
    ledger = Ledger("cpu", 8 * PAGE)
    ledger.grant(Owner("reserve"), PAGE)
    ledger.grant(WEIGHTS, 2 * PAGE)
    ledger.grant(KV, 3 * PAGE)
    assert ledger.bytes_of("reserve", "kv") == 4 * PAGE
    assert {str(owner) for owner in ledger.owners()} == {"reserve", "weights:a/0", "kv:worker-0"}


@pytest.mark.parametrize("call", ["grant", "shrink"])
def test_negative_bytes_are_a_bug(call: str) -> None:
    with pytest.raises(InternalError):
        getattr(Ledger("cpu", PAGE), call)(KV, -1)
