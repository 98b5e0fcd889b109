"""What replicas free as they leave."""

import pytest

from memory_manager.config import PlannerConfig
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.policy.device_room import DeviceRoom
from memory_manager.policy.plan_types import DeviceView, ReplicaView, WorkerView
from memory_manager.policy.residency import Residency

WORKER = WorkerView("w", "cpu")
COMES = ReplicaView("b/0", "b", Residency.COLD, 30 * PAGE, 0)


@pytest.mark.parametrize(
    ("can_sleep", "retired", "freed_pages"), [(True, False, 7), (False, False, 10), (True, True, 10)]
)
def test_who_sleeps_frees_what_it_did_not_keep_when_it_last_slept_and_who_is_forgotten_all(
    can_sleep: bool, retired: bool, freed_pages: int
) -> None:
    replica = ReplicaView(
        "a/0",
        "a",
        Residency.RESIDENT,
        10 * PAGE,
        0,
        worker_id="w",
        lease_bytes=10 * PAGE,
        can_sleep=can_sleep,
        retired=retired,
        kept_bytes=3 * PAGE,
    )
    config = PlannerConfig(kv_base_bytes=0)
    room = DeviceRoom(DeviceView("cpu", 30 * PAGE), [WORKER], [replica], config)
    assert room.freed_bytes(("a/0",)) == freed_pages * PAGE
    assert room.shortage_bytes(WORKER, COMES, 30 * PAGE, ("a/0",)) == (10 - freed_pages) * PAGE
    before_bytes = room.spare_bytes
    room.leave(replica)
    assert room.spare_bytes - before_bytes == freed_pages * PAGE
