"""The way of a load from storage to its device."""

from __future__ import annotations

from memory_manager.policy.host_room import HostRoom, Way
from memory_manager.policy.plan_types import HostView, ReplicaView
from memory_manager.policy.residency import Residency


def test_a_folder_has_no_copy_however_much_room_there_is() -> None:
    room = HostRoom(HostView(1 << 40, 1 << 40, ()))
    replica = ReplicaView("m/0", "m", Residency.COLD, 1 << 20, 0, copy_bytes=None, artifact_key="m")
    assert room.admit(replica, ()) is Way.FILE
    assert room.admit(replica, ()) is Way.FILE
    assert room.dropped == []
