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
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from memory_manager.config import PlannerConfig
from memory_manager.policy import standings
from memory_manager.policy.arrivals import wake_at_s
from memory_manager.policy.chooser import Among, Chooser, Exchange, Lack, horizon_s
from memory_manager.policy.device_room import DeviceRoom, footprint_bytes
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


@dataclass(frozen=True, slots=True)
class _Fit:
    """How a replica fits on a worker.

    Attributes:
        rank: 0 if it fits now, 1 if it will fit once what leaves has left, 2 if others must be asked to leave.
        need_bytes: bytes that it takes there, of weights and of KV that is kept for it.
        lack: bytes that are still missing if others leave as well. One function for all that need the same, so that
            the chooser answers for them once.
    """

    rank: int
    need_bytes: int
    lack: Lack


@dataclass(frozen=True, slots=True)
class _Option:
    """One place for a want.

    Attributes:
        rank, need_bytes: as of its ``_Fit``.
        moves: whether the replica sleeps in another worker, which forgets it first.
        weights_bytes: bytes of the weights that are still to be leased.
        load: requests that the worker serves.
        exchange: what is gained and lost if replicas leave for it; None if none does.
    """

    rank: int
    room: DeviceRoom
    worker: WorkerView
    moves: bool
    weights_bytes: int
    need_bytes: int
    load: int
    exchange: Exchange | None = None

    @property
    def order(self) -> tuple[int, bool, float, int, int, str]:
        cost = 0.0 if self.exchange is None else self.exchange.loss + self.exchange.switching
        return (self.rank, self.moves, cost, self.load, -self.room.spare_bytes, self.worker.worker_id)


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
        self._replicas = {each.replica_id: each for each in state.replicas}
        self._choosers: dict[str, Chooser] = {}  # by device
        self._exchanges: dict[str, Exchange] = {}
        self._fits: dict[tuple[str, int, int, int], _Fit] = {}
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
        return Plan((*leases, *self._actions), refused, self._next_at_s, self._exchanges)

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
        timeout_s = idle_timeout_s(deployment, self._config)
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
        self._fits.clear()
        if (chooser := self._choosers.get(self._worker_of(replica).device)) is not None:
            chooser.take_away(replica.replica_id)
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
            chooser = self._chooser(device)
            lack = self._freeing(room, shortage_bytes)
            leaving = chooser.cheapest(lack, Among.ALL)
            for name in chooser.in_order() if leaving is None else leaving:
                others_bytes = self._others_bytes[device]
                wanted = (
                    f"other processes want {format_bytes(others_bytes)} of {device}"
                    if others_bytes
                    else f"another worker has come to {device}"
                )
                reason = f"{wanted}; {format_bytes(shortage_bytes)} are missing"
                self._leave(self._replicas[name], reason)

    def _chooser(self, device: str) -> Chooser:
        """The chooser of a device, made once it is asked for."""
        if device not in self._choosers:
            self._choosers[device] = Chooser(
                [
                    standings.of_resident(
                        replica,
                        self._deployments[replica.deployment],
                        footprint_bytes(replica),
                        len(self._hosts[replica.deployment]),
                        may_leave=self._may_leave(replica),
                        now_s=self._now_s,
                        config=self._config,
                    )
                    for replica in self._by_device[device]
                    if replica.residency in ON_DEVICE and not replica.retired
                ],
                self._config,
            )
        return self._choosers[device]

    def _may_leave(self, replica: ReplicaView) -> bool:
        """Whether the replica may be asked to make room, if it is worth it."""
        if replica.in_flight or replica.residency not in (Residency.RESIDENT, Residency.DRAINING):
            return False
        deployment = self._deployments[replica.deployment]
        if (deployment.policy.pinned and not deployment.held) or replica.replica_id in self._leaving:
            return False
        return self._at(replica.retry_at_s)

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
        if best.rank < 2 and want.deployment.exchange is not None:
            self._exchanges[want.deployment.name] = want.deployment.exchange  # it stands until it is there
        if best.moves and best.rank == 0:
            # In the worker where the replica sleeps it may still hold memory, which must be free before it is
            # leased anew.
            self._actions.append(Unload(replica.replica_id, f"moves to {worker_id}", self._standing(replica)))
        elif best.rank == 0:
            wakes = replica.residency is Residency.WARM and replica.worker_id == worker_id
            way = Way.COPY if wakes else self._way_of_load(want)
            self._fits.clear()
            is_leased = best.room.bring(best.worker, replica, best.weights_bytes)
            if is_leased and way is not Way.LATER:
                self._actions.append(self._arrival(want, best, wakes, way))
            return
        if best.exchange is not None:
            self._exchanges[want.deployment.name] = best.exchange
            for name in best.exchange.leave:
                victim = self._replicas[name]
                reason, figures = _reason(want, best, best.exchange, victim, self._now_s)
                self._leave(victim, reason, figures, want.deployment.name)
        best.room.await_room(best.worker, replica, best.weights_bytes)
        self._fits.clear()

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
        fit = self._fit(room, worker, replica, weights_bytes)
        exchange = None
        if fit.rank == 2:
            exchange = self._exchange(want, worker, fit.lack)
            if exchange is None:
                return None
        load = self._load[worker.worker_id]
        return _Option(fit.rank, room, worker, moves, weights_bytes, fit.need_bytes, load, exchange)

    def _fit(self, room: DeviceRoom, worker: WorkerView, replica: ReplicaView, weights_bytes: int) -> _Fit:
        """How a replica fits on a worker, worked out once for all that need the same there."""
        key = (
            worker.worker_id,
            weights_bytes,
            replica.kv_guarantee_bytes,
            replica.kv_longest_bytes,
        )
        if key not in self._fits:
            need_bytes = room.need_bytes(worker, replica, weights_bytes)
            will_fit = need_bytes <= room.spare_bytes
            self._fits[key] = _Fit(
                0 if room.fits_now(worker, replica, weights_bytes) else 1 if will_fit else 2,
                need_bytes,
                lambda names: room.shortage_bytes(worker, replica, weights_bytes, self._of(names)),
            )
        return self._fits[key]

    def _freeing(self, room: DeviceRoom, num_bytes: int) -> Lack:
        return lambda names: num_bytes - room.freed_bytes(self._of(names))

    def _of(self, replica_ids: Collection[str]) -> list[ReplicaView]:
        return [self._replicas[each] for each in replica_ids]

    def _exchange(self, want: Want, worker: WorkerView, lack: Lack) -> Exchange | None:
        """The exchange that makes enough room; None if none is worth while now."""
        if want.displaces is Displaces.NOBODY:
            return None
        chooser = self._chooser(worker.device)
        if want.displaces is not Displaces.WORTH_LESS:
            among = Among.ALL if want.displaces is Displaces.ANYBODY else Among.UNUSED
            leave = chooser.cheapest(lack, among)
            return None if leave is None else Exchange(want.replica.replica_id, leave)
        exchange = chooser.exchange(want.standing, lack)
        wait_s = self._config.reweigh_s if exchange is None else exchange.due_in_s
        return exchange if self._at(self._now_s + wait_s) else None

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
            chooser = self._chooser(device)
            idle = [name for name in chooser.in_order() if self._idles_for_kv(self._replicas[name], since_s)]
            leaving = chooser.cheapest(self._freeing(room, short_bytes), Among.ALL, idle)
            for name in idle if leaving is None else leaving:
                value_s = self._absence_s(self._deployments[self._replicas[name].deployment])
                reason = (
                    f"idle, its absence costs {value_s:.3g} s; sequences have waited {self._now_s - since_s:.2f} s "
                    f"for {format_bytes(short_bytes)} of KV"
                )
                figures = {"kv_short_bytes": short_bytes, "value_s": value_s}
                self._leave(self._replicas[name], reason, figures)

    def _idles_for_kv(self, replica: ReplicaView, since_s: float) -> bool:
        """Whether a replica is idle, and KV has been waited for as long as its absence is expected to cost."""
        deployment = self._deployments[replica.deployment]
        if replica.num_active or not self._may_idle_away(deployment):
            return False
        return self._at(max(since_s, replica.last_used_s, replica.since_s) + self._absence_s(deployment))

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
                and replica.replica_id not in self._leaving
            ):
                self._actions.append(Resume(replica.replica_id))


def _reason(
    want: Want, option: _Option, exchange: Exchange, victim: ReplicaView, now_s: float
) -> tuple[str, Figures]:
    """Why a replica makes room, and the figures that decided it."""
    state = "in use" if victim.num_active else "idle"
    figures: Figures = {
        "room_for": want.deployment.name,
        "needed_bytes": option.need_bytes,
        "waited_s": now_s - want.since_s,
        "state": state,
        "gain": exchange.gain,
        "loss": exchange.loss,
        "switching": exchange.switching,
        "margin": exchange.margin,
    }
    reason = (
        f"makes room for {want.deployment.name}, which needs {format_bytes(option.need_bytes)} and has waited "
        f"{now_s - want.since_s:.2f} s; {state}, resident for {now_s - victim.since_s:.1f} s; "
    )
    if want.displaces is not Displaces.WORTH_LESS:
        return reason + want.reason, figures
    if exchange.as_guest:
        return reason + "for requests that are late already", figures
    reason += (
        f"{exchange.gain:.3g} requests meet their targets by that and {exchange.loss:.3g} miss them, "
        f"{exchange.switching:.3g} more while weights move (error {exchange.margin:.3g})"
    )
    return reason, figures
