"""The planner: a pure function from what is known to what to do now.

A plan is made anew on every event and remembers nothing. Actions under way show in the state (a replica that
loads holds its lease already), and an action that must wait for something is left to a later plan. One plan:

1. Replicas that must go (retired, disabled, asked to sleep, idle for too long) drain or sleep.
2. Deployments that want a replica are taken in order of priority, then deadline. A replica that fits is
   brought in; for one that does not, the cheapest replicas make room, and it comes in when they are gone. They sleep
   at once, and what runs on them is parked there. If the host has no room for its copy, unused copies go first, or
   it comes without one.
3. If sequences wait for KV, idle replicas are put to sleep for it.
4. Draining replicas that need not go after all are resumed.
5. The memory that is left over is KV, divided between the workers of the device.

Invariant, per device: leases of weights + the least KV of each worker (``kv_floor``: what operators guarantee to the
replicas there, and one sequence of full length, the longest of any of them) + reserve <= budget. So a KV lease can
always shrink to that, and admitted requests can always finish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from memory_manager.config import PlannerConfig
from memory_manager.policy.arrivals import wake_at_s
from memory_manager.policy.device_room import DeviceRoom
from memory_manager.policy.eviction import Candidate, choose, judge
from memory_manager.policy.host_room import HostRoom, Way
from memory_manager.policy.plan_types import (
    Action,
    DeploymentView,
    Drain,
    DropCopy,
    Figures,
    Load,
    Plan,
    PlannerState,
    ReplicaView,
    Resume,
    Sleep,
    Unload,
    Wake,
    WorkerView,
)
from memory_manager.policy.refusals import refusals
from memory_manager.policy.residency import ON_DEVICE, Residency
from memory_manager.policy.wants import (
    Displaces,
    Want,
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


@dataclass(frozen=True, slots=True)
class _Option:
    """One place for a want.

    Attributes:
        rank: 0 if the replica fits now, 1 if it will fit once what leaves has left, 2 if others must be asked
            to leave.
        moves: whether the replica sleeps in another worker, which forgets it first.
        weights_bytes: bytes of the weights that are still to be leased.
        need_bytes: of these, and of KV that is kept for the replica.
        load: requests that the worker serves.
        victims: the replicas that would be asked to leave.
    """

    rank: int
    room: DeviceRoom
    worker: WorkerView
    moves: bool
    weights_bytes: int
    need_bytes: int
    load: int
    victims: tuple[Candidate, ...] = ()

    @property
    def order(self) -> tuple[int, bool, float, int, int, str]:
        cost_s = sum(victim.value_s for victim in self.victims)
        return (self.rank, self.moves, cost_s, self.load, -self.room.spare_bytes, self.worker.worker_id)


class _Planning:
    """The making of one plan."""

    def __init__(self, state: PlannerState, now_s: float, config: PlannerConfig) -> None:
        self._now_s = now_s
        self._config = config
        self._state = state
        self._actions: list[Action] = []
        self._next_at_s = state.next_due_s
        self._leaving: set[str] = set()
        self._deployments = {each.name: each for each in state.deployments}
        self._workers = {each.worker_id: each for each in state.workers}
        self._by_deployment: dict[str, list[ReplicaView]] = {each.name: [] for each in state.deployments}
        self._by_device: dict[str, list[ReplicaView]] = {each.name: [] for each in state.devices}
        # Workers that host, or are about to host, a replica of a deployment. Each hosts at most one of them.
        self._hosts: dict[str, set[str]] = {each.name: set() for each in state.deployments}
        for replica in state.replicas:
            if not replica.retired:
                self._by_deployment[replica.deployment].append(replica)
            if replica.worker_id is not None:
                self._by_device[self._workers[replica.worker_id].device].append(replica)
                if replica.residency in ON_DEVICE and not replica.retired:
                    self._hosts[replica.deployment].add(replica.worker_id)
        self._residents = {
            device: [each for each in replicas if each.residency in (Residency.RESIDENT, Residency.DRAINING)]
            for device, replicas in self._by_device.items()
        }
        self._load = dict.fromkeys(self._workers, 0)  # requests that each worker serves
        for replica in state.replicas:
            if replica.worker_id is not None:
                self._load[replica.worker_id] += replica.num_active
        self._surplus = {
            replica.replica_id
            for deployment in state.deployments
            if deployment.policy.max_replicas > 1
            for replica in surplus(deployment, self._by_deployment[deployment.name])
        }
        self._host = HostRoom(state.host)
        self._others_bytes = {device.name: device.others_bytes for device in state.devices}
        self._rooms = {
            device.name: DeviceRoom(
                device,
                [each for each in state.workers if each.device == device.name],
                self._by_device[device.name],
                config,
            )
            for device in state.devices
        }

    def run(self) -> Plan:
        refused = refusals(self._state, self._config)
        self._send_away()
        self._make_room_for_others()
        for want in sorted(self._wants(refused), key=lambda each: each.order):
            self._place(want)
        self._make_room_for_kv()
        self._resume()
        leases = (lease for room in self._rooms.values() for lease in room.kv_leases())
        return Plan((*leases, *self._actions), refused, self._next_at_s)

    def _at(self, when_s: float) -> bool:
        """Whether a time has come; if not, the next plan is due then at the latest."""
        if when_s <= self._now_s:
            return True
        self._next_at_s = min(self._next_at_s, when_s)
        return False

    # 1. Replicas that must go.

    def _send_away(self) -> None:
        for replica in self._state.replicas:
            if replica.residency in (Residency.RESIDENT, Residency.DRAINING):
                reason = "on its way" if replica.is_leaving else self._reason_to_go(replica)
                if reason is not None:
                    self._leave(replica, reason, max_drain_s=self._max_drain_s(replica))
            elif must_be_forgotten(replica) or (is_at_rest(replica) and self._loses_worker(replica)):
                self._leaving.add(replica.replica_id)
                if self._at(replica.retry_at_s):
                    figures = self._standing(replica)
                    self._actions.append(Unload(replica.replica_id, "nothing of it may stay behind", figures))

    def _reason_to_go(self, replica: ReplicaView) -> str | None:
        if replica.retired:
            return "no longer deployed"
        if replica.sleep_requested:
            return "asked to sleep"
        if self._loses_worker(replica):
            return "its worker is to leave"
        deployment = self._deployments[replica.deployment]
        if not deployment.policy.enabled:
            return "deployment disabled"
        if replica.replica_id in self._surplus:
            return f"the load asks for {deployment.wanted_replicas} replicas"
        timeout_s = deployment.policy.idle_timeout_s
        if timeout_s is None:
            timeout_s = self._config.idle_timeout_s
        busy = replica.num_active or deployment.demand is not None
        if timeout_s is None or busy or num_kept(deployment):
            return None
        if not self._at(max(replica.last_used_s, replica.since_s) + timeout_s):
            return None
        return None if self._is_expected(deployment) else f"idle for {timeout_s:g} s"

    def _loses_worker(self, replica: ReplicaView) -> bool:
        return replica.worker_id is not None and self._worker_of(replica).leaves_by_s is not None

    def _max_drain_s(self, replica: ReplicaView) -> float:
        """Seconds from the begin of its draining in which the requests on a replica that must go can finish. They are
        moved with their worker, and earlier if others wait for the same replica."""
        leaves_by_s = self._worker_of(replica).leaves_by_s
        if leaves_by_s is None:
            return math.inf
        since_s = replica.since_s if replica.residency is Residency.DRAINING else self._now_s
        deployment = self._deployments.get(replica.deployment)
        is_awaited = deployment is not None and deployment.demand is not None
        return max(0.0, min(leaves_by_s - since_s, self._config.max_drain_s if is_awaited else math.inf))

    def _is_expected(self, deployment: DeploymentView) -> bool:
        """Whether the deployment's rhythm would have it woken at once."""
        window = deployment.next_arrival
        if window is None or wake_at_s(window, deployment.reload_s, self._config) > self._now_s:
            return False
        self._at(math.nextafter(window.latest_s, math.inf))
        return True

    def _leave(
        self,
        replica: ReplicaView,
        reason: str,
        figures: Figures | None = None,
        room_for: str = "",
        max_drain_s: float = 0.0,
    ) -> None:
        """Counts the replica as leaving, and takes the next step towards that. Its running requests have
        ``max_drain_s`` to finish; what runs then is parked, or moved if the worker forgets the replica."""
        figures = {**self._standing(replica), **(figures or {})}
        self._leaving.add(replica.replica_id)
        self._room_of(replica).leave(replica)
        if replica.in_flight or not self._at(replica.retry_at_s):
            return
        since_s = replica.since_s if replica.residency is Residency.DRAINING else self._now_s
        drained = replica.num_active == 0 or self._at(since_s + max_drain_s)
        if drained and (replica.retired or not replica.can_sleep or self._loses_worker(replica)):
            self._actions.append(Unload(replica.replica_id, reason, figures, room_for))
        elif drained:
            self._actions.append(Sleep(replica.replica_id, reason, figures, room_for))
        elif replica.residency is Residency.RESIDENT:
            self._actions.append(Drain(replica.replica_id, reason, figures))

    def _standing(self, replica: ReplicaView) -> Figures:
        """Figures of a replica that leaves."""
        return {
            "freed_bytes": self._room_of(replica).freed_bytes((replica,)),
            "num_active": replica.num_active,
            "resident_s": self._now_s - replica.since_s,
            "unused_s": self._now_s - max(replica.last_used_s, replica.since_s),
        }

    def _worker_of(self, replica: ReplicaView) -> WorkerView:
        assert replica.worker_id is not None, "its worker knows the replica"
        return self._workers[replica.worker_id]

    def _room_of(self, replica: ReplicaView) -> DeviceRoom:
        return self._rooms[self._worker_of(replica).device]

    def _make_room_for_others(self) -> None:
        """Lets the cheapest replicas leave if other processes, or a new worker, want memory that KV alone does not
        give: as many as are needed, or else all that may leave, since some of the memory is better than none."""
        for device, room in self._rooms.items():
            shortage_bytes = -room.spare_bytes
            if shortage_bytes <= 0:
                continue
            candidates = [
                each
                for each in self._candidates(device, self._judge_for_others)
                if self._at(each.eligible_at_s)
            ]
            for victim in _choose_what_there_is(candidates, room, shortage_bytes):
                others_bytes = self._others_bytes[device]
                wanted = (
                    f"other processes want {format_bytes(others_bytes)} of {device}"
                    if others_bytes
                    else f"another worker has come to {device}"
                )
                reason = f"{wanted}; {format_bytes(shortage_bytes)} are missing"
                self._leave(victim.replica, reason)

    def _candidates(self, device: str, judged: Callable[[ReplicaView], Candidate | None]) -> list[Candidate]:
        """Replicas of a device that might make room, at once or later, and do not leave yet."""
        return [
            candidate
            for replica in self._residents[device]
            if not replica.retired
            and replica.replica_id not in self._leaving
            and (candidate := judged(replica)) is not None
        ]

    def _judge_for_others(self, replica: ReplicaView) -> Candidate | None:
        """The replica as a candidate for making room for something that is no replica: for other processes,
        whose memory is more urgent than any demand of ours, or for KV."""
        return judge(
            replica,
            self._deployments[replica.deployment],
            demand_since_s=-math.inf,
            demand_priority=max(each.policy.priority for each in self._state.deployments),
            config=self._config,
            now_s=self._now_s,
        )

    # 2. Deployments that want a replica.

    def _wants(self, refused: Iterable[str]) -> Iterable[Want]:
        for deployment in self._state.deployments:
            replicas = self._by_deployment[deployment.name]
            if not deployment.policy.enabled:  # what was parked before it was disabled finishes
                replicas = [each for each in replicas if is_parked(each)]
            if replicas and deployment.name not in refused:
                yield from wants_of(deployment, replicas, self._leaving, self._at, self._now_s, self._config)

    def _place(self, want: Want) -> None:
        if want.replica.replica_id in self._leaving:  # its host copy goes
            return
        options = [option for each in self._state.workers if (option := self._option(want, each)) is not None]
        if not options:
            return
        best = min(options, key=lambda each: each.order)
        replica, worker_id = want.replica, best.worker.worker_id
        self._hosts[want.deployment.name].add(worker_id)
        if best.moves and best.rank == 0:
            # In the worker where the replica sleeps it may still hold memory, which must be free before it is
            # leased anew.
            self._actions.append(Unload(replica.replica_id, f"moves to {worker_id}", self._standing(replica)))
        elif best.rank == 0:
            wakes = replica.residency is Residency.WARM and replica.worker_id == worker_id
            way = Way.COPY if wakes else self._way_of_load(want)
            is_leased = best.room.bring(best.worker, replica, best.weights_bytes)
            if is_leased and way is not Way.LATER:
                self._actions.append(self._arrival(want, best, wakes, way))
            return
        for victim in best.victims:
            reason, figures = _reason(want, best, victim, self._now_s)
            name = want.deployment.name
            self._leave(victim.replica, reason, figures, name)
        best.room.await_room(best.worker, replica, best.weights_bytes)

    def _way_of_load(self, want: Want) -> Way:
        """The way of the replica's weights through host memory; others' copies are dropped for it if need be."""
        num_dropped = len(self._host.dropped)
        moved = {each.replica_id for each in self._actions if isinstance(each, Wake | Unload)}
        way = self._host.admit(want.replica, self._leaving | moved)
        wanted_bytes = want.replica.copy_bytes
        reason = f"{want.deployment.name} wants {format_bytes(wanted_bytes)} of host memory"
        for copy in self._host.dropped[num_dropped:]:
            self._leaving.add(copy.replica_id)  # nothing else is to be made of it by this plan
            self._actions.append(DropCopy(copy.replica_id, reason, wanted_bytes))
        return way

    def _arrival(self, want: Want, option: _Option, wakes: bool, way: Way) -> Load | Wake:
        replica = want.replica
        demand = want.deployment.demand
        figures = {
            "weights_bytes": option.weights_bytes,
            "kv_guarantee_bytes": replica.kv_guarantee_bytes,
            "kv_longest_bytes": replica.kv_longest_bytes,
            "num_waiting": demand.num_waiting if demand is not None else 0,
            "waited_s": self._now_s - want.since_s,
            "spare_bytes": option.room.spare_bytes,
        }
        if wakes:
            return Wake(replica.replica_id, want.reason, figures)
        from_file = way is Way.FILE
        reason = (
            f"{want.reason}; from the file, as the host has no room for a copy" if from_file else want.reason
        )
        return Load(replica.replica_id, option.worker.worker_id, reason, figures, from_file)

    def _option(self, want: Want, worker: WorkerView) -> _Option | None:
        """How the wanted replica could come to this worker; None if it cannot now."""
        if worker.worker_id in self._hosts[want.deployment.name] or worker.leaves_by_s is not None:
            return None
        replica, room = want.replica, self._rooms[worker.device]
        moves = replica.worker_id is not None and replica.worker_id != worker.worker_id
        weights_bytes = replica.weights_bytes - (0 if moves else replica.lease_bytes)
        need_bytes = room.need_bytes(worker, replica, weights_bytes)
        rank = (
            0 if room.fits_now(worker, replica, weights_bytes) else 1 if need_bytes <= room.spare_bytes else 2
        )
        load = self._load[worker.worker_id]
        option = _Option(rank, room, worker, moves, weights_bytes, need_bytes, load)
        if rank < 2:
            return option
        shortage_bytes = partial(room.shortage_bytes, worker, replica, weights_bytes)
        victims = self._victims(want, worker.device, shortage_bytes)
        return replace(option, victims=victims) if victims else None

    def _victims(
        self, want: Want, device: str, shortage_bytes: Callable[[Sequence[ReplicaView]], int]
    ) -> tuple[Candidate, ...] | None:
        """The cheapest replicas that make enough room if they leave; None if none may now."""
        room = self._rooms[device]
        if room.closed or want.displaces is Displaces.NOBODY:
            return None
        candidates = self._candidates(device, partial(self._judge, want))
        now = [each for each in candidates if each.eligible_at_s <= self._now_s]
        victims = choose(now, shortage_bytes)
        if want.displaces is Displaces.WORTH_LESS:
            return victims if _worth_less(victims, want) else None
        if victims is None and choose(candidates, shortage_bytes) is not None:
            # Time will mend it. Wants behind this one must not evict meanwhile: a small model that takes the
            # place of each replica as it becomes eligible would keep a large one out for ever.
            room.closed = True
            for candidate in candidates:
                self._at(candidate.eligible_at_s)
        return victims

    def _judge(self, want: Want, replica: ReplicaView) -> Candidate | None:
        return judge(
            replica,
            self._deployments[replica.deployment],
            demand_since_s=want.since_s,
            demand_priority=want.priority,
            now_s=self._now_s,
            config=self._config,
        )

    # 3. Room for KV.

    def _make_room_for_kv(self) -> None:
        """Lets idle replicas leave if sequences wait for KV: the cheapest, as many as are needed, or else all
        that may leave.

        A replica leaves only once the wait has lasted as long as bringing it back is expected to cost, so
        that both together are at most twice what foresight would pay (Karlin et al., Competitive Snoopy
        Caching, 1988).
        """
        for device, room in self._rooms.items():
            short_bytes, since_s = room.kv_short_bytes, room.kv_wanted_since_s
            if not short_bytes:
                continue
            candidates = [
                each
                for each in self._candidates(device, self._judge_for_others)
                if each.rank == 1
                and self._may_idle_away(each.replica.deployment)
                and self._at(max(each.eligible_at_s, since_s + each.value_s))
            ]
            for victim in _choose_what_there_is(candidates, room, short_bytes):
                reason = (
                    f"idle, worth {victim.value_s:.3g} s; sequences have waited {self._now_s - since_s:.2f} s for "
                    f"{format_bytes(short_bytes)} of KV"
                )
                figures = {"kv_short_bytes": short_bytes, "value_s": victim.value_s}
                self._leave(victim.replica, reason, figures)

    def _may_idle_away(self, name: str) -> bool:
        """Whether nothing would bring a replica of the deployment back at once."""
        deployment = self._deployments[name]
        wanted = deployment.demand is not None or num_kept(deployment) or deployment.wanted_replicas > 1
        return not wanted and not self._is_expected(deployment)

    # 4. Replicas that may stay after all.

    def _resume(self) -> None:
        for replica in self._state.replicas:
            if (
                replica.residency is Residency.DRAINING
                and not replica.in_flight
                and replica.replica_id not in self._leaving
            ):
                self._actions.append(Resume(replica.replica_id))


def _choose_what_there_is(
    candidates: Sequence[Candidate], room: DeviceRoom, shortage_bytes: int
) -> Sequence[Candidate]:
    """Chooses as ``choose`` does; if all candidates do not free enough, chooses all: some room is better than
    none."""
    chosen = choose(candidates, lambda leaving: shortage_bytes - room.freed_bytes(leaving))
    return candidates if chosen is None else chosen


def _worth_less(victims: tuple[Candidate, ...] | None, want: Want) -> bool:
    """Whether the victims are idle and together worth at most half of what the want is worth. The factor
    keeps two models whose estimates waver from taking each other's place in turns."""
    if victims is None or any(each.rank != 1 for each in victims):
        return False
    return sum(each.value_s for each in victims) <= want.worth_s / 2


def _reason(want: Want, option: _Option, victim: Candidate, now_s: float) -> tuple[str, Figures]:
    """Why a replica makes room, and the figures that decided it."""
    state = ("draining", "idle", "in use")[victim.rank]
    figures: Figures = {
        "room_for": want.deployment.name,
        "needed_bytes": option.need_bytes,
        "waited_s": now_s - want.since_s,
        "state": state,
        "value_s": victim.value_s,
    }
    reason = (
        f"makes room for {want.deployment.name}, which needs {format_bytes(option.weights_bytes)} and has "
        f"waited {now_s - want.since_s:.2f} s; {state}, resident for {now_s - victim.replica.since_s:.1f} s, "
        f"worth {victim.value_s:.3g} s"
    )
    return reason, figures
