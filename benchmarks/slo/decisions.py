"""Seconds that the server takes to decide whether it lets a request in."""

from __future__ import annotations

import statistics
import time

from memory_manager.policy.admission import DeviceAdmission
from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.step_model import StepCosts
from memory_manager.policy.worker_load import HeldRequest, ModelUse, WorkerLoad

__all__ = ["decision_s"]

_NUM_TENANTS = 4
_MEAN_OUTPUT = 100.0


def decision_s(
    costs: StepCosts, num_waiting: int = 100, num_running: int = 30, num_times: int = 2000
) -> float:
    """Median seconds of one decision beside so many that wait in the queue of a device and run on its worker, with
    the reckoning of the worker's load that it begins with."""
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.SLO)

    def claim(number: int) -> RequestClaim:
        return RequestClaim(
            f"model-{number % 3}",
            number,
            0.0,
            deadline_s=1000.0 + number % 7,
            tpot_target_s=1.0,
            priority=number % 2,
            tenant=f"tenant-{number % _NUM_TENANTS}",
            num_prompt=48,
        )

    def use(_: str) -> ModelUse:
        return ModelUse(1.0, _MEAN_OUTPUT, num_running, costs)

    running = [claim(number) for number in range(num_running)]
    for each in running:
        each.first_at_s, each.num_output = 0.0, 1 + each.arrival
    on_worker = [HeldRequest(each, use(each.model)) for each in running]

    def decide(request: RequestClaim) -> bool:
        load = WorkerLoad(on_worker, 512, 1e6, 0.0)
        return admission.arrive(request, use, load, 0.0)

    for number in range(num_waiting):
        decide(claim(num_running + number))
    seconds = []
    for number in range(num_times):
        request = claim(num_running + num_waiting + number)
        began_s = time.perf_counter()
        decide(request)
        seconds.append(time.perf_counter() - began_s)
        admission.queue.discard(request)
    return statistics.median(seconds)
