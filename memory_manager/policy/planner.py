"""The planner: a pure function from what is known to what to do now.

A plan is made anew on every event and remembers nothing. Actions under way show in the state (a replica that
loads holds its lease already), and an action that must wait for something is left to a later plan. One plan:

1. Replicas that must go (retired, disabled, asked to sleep, idle for too long) drain or sleep.
2. Deployments that want a replica are taken in the order of what each gains for its bytes. A replica that fits is
   brought in; for one that does not, others make room if the chooser finds the exchange worth while
   (``memory_manager.policy.chooser``), and it comes in when they are gone. They sleep at once, and what runs on them
   is parked there. If the host has no room for its copy, unused copies go first, or it comes without one.
3. If sequences wait for KV, idle replicas are put to sleep for it.
4. Draining replicas that need not go after all are resumed.
5. The memory that is left over is KV, divided between the workers of the device.

Invariant, per device: leases of weights + the least KV of each worker (``kv_floor``: what operators guarantee to the
replicas there, and one sequence of full length, the longest of any of them) + reserve <= budget. So a KV lease can
always shrink to that, and admitted requests can always finish.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from memory_manager.config import PlannerConfig
from memory_manager.policy import standings
from memory_manager.policy.arrivals import wake_at_s
from memory_manager.policy.chooser import Among
from memory_manager.policy.draft import PlanDraft
from memory_manager.policy.placing import Placing
from memory_manager.policy.plan_types import (
    DeploymentView,
    Plan,
    PlannerState,
    ReplicaView,
    Resume,
    Unload,
)
from memory_manager.policy.refusals import refusals
from memory_manager.policy.residency import Residency
from memory_manager.policy.stakes import horizon_s
from memory_manager.policy.wants import (
    Want,
    idle_timeout_s,
    is_at_rest,
    is_parked,
    must_be_forgotten,
    num_kept,
    surplus,
    wants_of,
)
from mooring.units import format_bytes

__all__ = ["plan"]


def plan(state: PlannerState, now_s: float, config: PlannerConfig) -> Plan:
    """The actions to begin now, as the module's docstring describes them."""
    return _Planning(state, now_s, config).run()


class _Planning:
    """The making of one plan."""

    def __init__(self, state: PlannerState, now_s: float, config: PlannerConfig) -> None:
        self._state, self._now_s, self._config = state, now_s, config
        self._draft = PlanDraft(state, now_s, config)
        self._surplus = {
            replica.replica_id
            for deployment in state.deployments
            if deployment.policy.max_replicas > 1
            for replica in surplus(deployment, self._draft.by_deployment[deployment.name])
        }

    def run(self) -> Plan:
        refused = refusals(self._state, self._config)
        self._send_away()
        self._make_room_for_others()
        placing = Placing(self._draft)
        for want in sorted(self._wants(refused), key=lambda each: each.order):
            placing.place(want)
        self._make_room_for_kv()
        self._resume()
        leases = (lease for room in self._draft.rooms.values() for lease in room.kv_leases())
        return Plan((*leases, *self._draft.actions), refused, self._draft.next_at_s, self._draft.exchanges)

    # 1. Replicas that must go.

    def _send_away(self) -> None:
        for replica in self._state.replicas:
            if replica.residency in (Residency.RESIDENT, Residency.DRAINING):
                reason = "on its way" if replica.is_leaving else self._reason_to_go(replica)
                if reason is not None:
                    self._draft.leave(replica, reason, max_drain_s=self._max_drain_s(replica))
            elif replica.worker_id is not None and (
                must_be_forgotten(replica) or (is_at_rest(replica) and self._draft.loses_worker(replica))
            ):
                self._draft.leaving.add(replica.replica_id)
                if self._draft.at(replica.retry_at_s):
                    figures = self._draft.figures_of(replica)
                    self._draft.actions.append(
                        Unload(replica.replica_id, "nothing of it may stay behind", figures)
                    )

    def _reason_to_go(self, replica: ReplicaView) -> str | None:
        if replica.retired:
            return "no longer deployed"
        if replica.sleep_requested:
            return "asked to sleep"
        if self._draft.loses_worker(replica):
            return "its worker is to leave"
        deployment = self._draft.deployments[replica.deployment]
        if not deployment.policy.enabled:
            return "deployment disabled"
        if replica.replica_id in self._surplus:
            return f"the load asks for {deployment.wanted_replicas} replicas"
        timeout_s = idle_timeout_s(deployment, self._config)
        busy = replica.num_active or deployment.demand is not None
        if timeout_s is None or busy or num_kept(deployment):
            return None
        if not self._draft.at(max(replica.last_used_s, replica.since_s) + timeout_s):
            return None
        return None if self._is_expected(deployment) else f"idle for {timeout_s:g} s"

    def _max_drain_s(self, replica: ReplicaView) -> float:
        """Seconds from the begin of its draining in which the requests on a replica that must go can finish. They are
        moved with their worker, and earlier if others wait for the same replica."""
        leaves_by_s = self._draft.worker_of(replica).leaves_by_s
        if leaves_by_s is None:
            return math.inf
        since_s = replica.since_s if replica.residency is Residency.DRAINING else self._now_s
        deployment = self._draft.deployments.get(replica.deployment)
        is_awaited = deployment is not None and deployment.demand is not None
        return max(0.0, min(leaves_by_s - since_s, self._config.max_drain_s if is_awaited else math.inf))

    def _is_expected(self, deployment: DeploymentView) -> bool:
        """Whether the deployment's rhythm would have it woken at once."""
        window = deployment.next_arrival
        if window is None or wake_at_s(window, deployment.reload_s, self._config) > self._now_s:
            return False
        self._draft.at(math.nextafter(window.latest_s, math.inf))
        return True

    def _make_room_for_others(self) -> None:
        """Lets the cheapest replicas leave if other processes, or a new worker, want memory that KV alone does not
        give: as many as are needed, or else all that may leave, since some of the memory is better than none."""
        for device, room in self._draft.rooms.items():
            shortage_bytes = -room.spare_bytes
            if shortage_bytes <= 0:
                continue
            chooser = self._draft.chooser(device)
            lack = self._draft.freeing(room, shortage_bytes)
            leaving = chooser.cheapest(lack, Among.ALL)
            for name in chooser.in_order() if leaving is None else leaving:
                others_bytes = room.others_bytes
                wanted = (
                    f"other processes want {format_bytes(others_bytes)} of {device}"
                    if others_bytes
                    else f"another worker has come to {device}"
                )
                reason = f"{wanted}; {format_bytes(shortage_bytes)} are missing"
                self._draft.leave(self._draft.replicas[name], reason)

    # 2. Deployments that want a replica.

    def _wants(self, refused: Iterable[str]) -> Iterable[Want]:
        for deployment in self._state.deployments:
            replicas = self._draft.by_deployment[deployment.name]
            if not deployment.policy.enabled:  # what was parked before it was disabled finishes
                replicas = [each for each in replicas if is_parked(each)]
            if replicas and deployment.name not in refused:
                yield from wants_of(
                    deployment,
                    replicas,
                    self._draft.leaving,
                    self._draft.at,
                    self._now_s,
                    self._config,
                )

    # 3. Room for KV.

    def _make_room_for_kv(self) -> None:
        """Lets idle replicas leave if sequences wait for KV: the cheapest, as many as are needed, or else all
        that may leave.

        A replica leaves only once the wait has lasted as long as bringing it back is expected to cost, so
        that both together are at most twice what foresight would pay (Karlin et al., Competitive Snoopy
        Caching, 1988).
        """
        for device, room in self._draft.rooms.items():
            short_bytes, since_s = room.kv_short_bytes, room.kv_wanted_since_s
            if not short_bytes:
                continue
            chooser = self._draft.chooser(device)
            idle = [
                name for name in chooser.in_order() if self._idles_for_kv(self._draft.replicas[name], since_s)
            ]
            leaving = chooser.cheapest(self._draft.freeing(room, short_bytes), Among.ALL, idle)
            for name in idle if leaving is None else leaving:
                value_s = self._absence_s(self._draft.deployments[self._draft.replicas[name].deployment])
                reason = (
                    f"idle, its absence costs {value_s:.3g} s; sequences have waited {self._now_s - since_s:.2f} s "
                    f"for {format_bytes(short_bytes)} of KV"
                )
                figures = {"kv_short_bytes": short_bytes, "value_s": value_s}
                self._draft.leave(self._draft.replicas[name], reason, figures)

    def _idles_for_kv(self, replica: ReplicaView, since_s: float) -> bool:
        """Whether a replica is idle, and KV has been waited for as long as its absence is expected to cost."""
        deployment = self._draft.deployments[replica.deployment]
        if replica.num_active or not self._may_idle_away(deployment):
            return False
        return self._draft.at(
            max(since_s, replica.last_used_s, replica.since_s) + self._absence_s(deployment)
        )

    def _absence_s(self, deployment: DeploymentView) -> float:
        """Seconds that the absence of a model that is idle now is expected to cost: those of its reload, for each
        request that comes meanwhile, and once at least."""
        back_s = deployment.reload_s
        return back_s * max(1.0, deployment.request_rate_per_s * horizon_s(back_s))

    def _may_idle_away(self, deployment: DeploymentView) -> bool:
        """Whether nothing would bring a replica of the deployment back at once."""
        is_missed = standings.is_missed(
            deployment.request_rate_per_s, deployment.reload_s, deployment.first_token_s, self._config
        )
        wanted = deployment.demand is not None or num_kept(deployment) or deployment.wanted_replicas > 1
        return not wanted and not is_missed and not self._is_expected(deployment)

    # 4. Replicas that may stay after all.

    def _resume(self) -> None:
        for replica in self._state.replicas:
            if (
                replica.residency is Residency.DRAINING
                and not replica.in_flight
                and replica.replica_id not in self._draft.leaving
            ):
                self._draft.actions.append(Resume(replica.replica_id))
