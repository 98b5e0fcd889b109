"""The second step of a plan: a place for each replica that is wanted."""

from __future__ import annotations

from dataclasses import dataclass

from memory_manager.policy.chooser import Among, Exchange, Lack
from memory_manager.policy.device_room import DeviceRoom
from memory_manager.policy.draft import PlanDraft
from memory_manager.policy.host_room import HostRoom, Way
from memory_manager.policy.plan_types import (
    DropCopy,
    Figures,
    Load,
    ReplicaView,
    Unload,
    Wake,
    WorkerView,
)
from memory_manager.policy.residency import Residency
from memory_manager.policy.wants import Displaces, Want
from mooring.units import format_bytes

__all__ = ["Placing"]


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


class Placing:
    """Gives wanted replicas their places, one after the other, and takes what it decides into the draft."""

    def __init__(self, draft: PlanDraft) -> None:
        self._draft, self._now_s, self._config = draft, draft.now_s, draft.config
        self._host = HostRoom(draft.state.host)
        self._fits: dict[tuple[str, int, int, int], _Fit] = {}  # as the rooms are now
        self._load = dict.fromkeys(draft.workers, 0)  # requests that each worker serves
        for replica in draft.state.replicas:
            if replica.worker_id is not None:
                self._load[replica.worker_id] += replica.num_active

    def place(self, want: Want) -> None:
        """Brings the replica, or lets others make room for it; does nothing if neither can be done now."""
        draft = self._draft
        if want.replica.replica_id in draft.leaving:  # its host copy goes
            return
        options = [option for each in draft.state.workers if (option := self._option(want, each)) is not None]
        if not options:
            return
        best = min(options, key=lambda each: each.order)
        replica, worker_id = want.replica, best.worker.worker_id
        draft.hosts[want.deployment.name].add(worker_id)
        if best.rank < 2 and want.deployment.exchange is not None:
            # It stands until it is there.
            draft.exchanges[want.deployment.name] = want.deployment.exchange
        if best.moves and best.rank == 0:
            # In the worker where the replica sleeps it may still hold memory, which must be free before it is
            # leased anew.
            draft.actions.append(
                Unload(replica.replica_id, f"moves to {worker_id}", draft.figures_of(replica))
            )
        elif best.rank == 0:
            wakes = replica.residency is Residency.WARM and replica.worker_id == worker_id
            way = Way.COPY if wakes else self._way_of_load(want)
            self._fits.clear()
            is_leased = best.room.bring(best.worker, replica, best.weights_bytes)
            if is_leased and way is not Way.LATER:
                draft.actions.append(self._arrival(want, best, wakes, way))
            return
        if best.exchange is not None:
            draft.exchanges[want.deployment.name] = best.exchange
            for name in best.exchange.leave:
                victim = draft.replicas[name]
                reason, figures = _reason(want, best, best.exchange, victim, self._now_s)
                draft.leave(victim, reason, figures, want.deployment.name, exchange=best.exchange)
        best.room.await_room(best.worker, replica, best.weights_bytes)
        self._fits.clear()

    def _way_of_load(self, want: Want) -> Way:
        """The way of the replica's weights through host memory; others' copies are dropped for it if need be."""
        num_dropped = len(self._host.dropped)
        moved = {each.replica_id for each in self._draft.actions if isinstance(each, Wake | Unload)}
        way = self._host.admit(want.replica, self._draft.leaving | moved)
        wanted_bytes = want.replica.copy_bytes or 0
        reason = f"{want.deployment.name} wants {format_bytes(wanted_bytes)} of host memory"
        for copy in self._host.dropped[num_dropped:]:
            self._draft.leaving.add(copy.replica_id)  # nothing else is to be made of it by this plan
            self._draft.actions.append(DropCopy(copy.replica_id, reason, wanted_bytes))
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
            return Wake(replica.replica_id, want.reason, figures, want.deployment.exchange)
        from_file, lacks_room = way is Way.FILE, replica.copy_bytes is not None
        reason = want.reason
        if from_file and lacks_room:
            reason += "; from the file, as the host has no room for a copy"
        worker_id, exchange = option.worker.worker_id, want.deployment.exchange
        return Load(replica.replica_id, worker_id, reason, figures, from_file, exchange)

    def _option(self, want: Want, worker: WorkerView) -> _Option | None:
        """How the wanted replica could come to this worker; None if it cannot now."""
        if worker.worker_id in self._draft.hosts[want.deployment.name] or worker.leaves_by_s is not None:
            return None
        if not worker.can_have(want.deployment):
            return None
        replica, room = want.replica, self._draft.rooms[worker.device]
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
                lambda names: room.shortage_bytes(worker, replica, weights_bytes, names),
            )
        return self._fits[key]

    def _exchange(self, want: Want, worker: WorkerView, lack: Lack) -> Exchange | None:
        """The exchange that makes enough room; None if none is worth while now."""
        if want.displaces is Displaces.NOBODY:
            return None
        chooser = self._draft.chooser(worker.device)
        if want.displaces is not Displaces.WORTH_LESS:
            among = Among.ALL if want.displaces is Displaces.ANYBODY else Among.UNUSED
            leave = chooser.cheapest(lack, among)
            return None if leave is None else Exchange(want.replica.replica_id, leave)
        exchange = chooser.exchange(want.standing, lack)
        wait_s = self._config.reweigh_s if exchange is None else exchange.due_in_s
        return exchange if self._draft.at(self._now_s + wait_s) else None


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
