"""The gauges of the devices' queues, and what the admin API makes of the same."""

from __future__ import annotations

from memory_manager.fleet.status import DeviceQueueStatus, QueueShare, WaitingStatus
from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.wait_reason import WaitReason
from router.doors.admin.bodies import QueueBody
from router.telemetry.metrics import Gauges, Metrics

QUEUE = DeviceQueueStatus(
    "cuda:0",
    QueuePolicy.SLO,
    (QueueShare("m", "t", 1, 3, 2, 4.5), QueueShare("m", "u", 0, 0, 1, 0.5)),
    (WaitingStatus("m", "t", 1, 4.5, None, -1.0, False, WaitReason.DECODE_PACE),),
    predicted_s=2.5,
    jain_index=0.75,
)


def test_each_device_has_its_own() -> None:
    text = Metrics(lambda: Gauges(queues=(QUEUE,))).expose().decode()
    for line in (
        'mooring_queue_requests{device="cuda:0",state="in_time"} 3.0',
        'mooring_queue_requests{device="cuda:0",state="late"} 3.0',
        'mooring_fairness_jain_index{device="cuda:0"} 0.75',
    ):
        assert line in text.splitlines()


def test_the_admin_api_tells_all_of_it() -> None:
    told = QueueBody.model_validate(QUEUE).model_dump(mode="json")
    assert (told["policy"], told["num_in_time"], told["num_late"], told["oldest_s"]) == ("slo", 3, 3, 4.5)
    assert told["first"] == [
        {
            "deployment": "m",
            "tenant": "t",
            "priority": 1,
            "waited_s": 4.5,
            "due_in_s": None,
            "predicted_in_s": -1.0,
            "is_late": False,
            "reason": "decode_pace",
        }
    ]
    assert [each["tenant"] for each in told["shares"]] == ["t", "u"]
