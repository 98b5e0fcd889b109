"""Beginning what a plan decided, and the tasks that come of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from memory_manager.fleet.events import EventKind, Reporter
from memory_manager.fleet.moves import Moves
from memory_manager.fleet.records import Replica
from memory_manager.fleet.worker_group import Worker, WorkerGroup
from memory_manager.policy.chooser import Exchange
from memory_manager.policy.plan_types import (
    Action,
    Drain,
    DropCopy,
    Load,
    Resume,
    SetKVLease,
    Sleep,
    Unload,
    Wake,
)
from memory_manager.policy.residency import Residency
from mooring.units import format_bytes

__all__ = ["Execution"]


class Execution:
    """Begins actions, at once and without awaiting; what takes time runs on as tasks of its workers.

    Args:
        workers, replicas: the controller's own, by id.
        reporter: told of every action.
        on_change: called when a task has ended.
    """

    def __init__(
        self,
        moves: Moves,
        workers: Mapping[str, Worker],
        replicas: Mapping[str, Replica],
        reporter: Reporter,
        on_change: Callable[[], None],
    ) -> None:
        self._moves = moves
        self._workers = workers
        self._replicas = replicas
        self._reporter = reporter
        self._on_change = on_change
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, action: Action) -> None:
        """Begins one action of a plan that was made from the present state."""
        match action:
            case SetKVLease(worker_id, num_bytes):
                self._set_kv_lease(self._workers[worker_id], num_bytes)
            case Drain(replica_id, reason):
                replica = self._replicas[replica_id]
                self._reporter.of_replica(
                    EventKind.DRAIN, replica, reason, action.figures, _detail_of_leaving(action)
                )
                self._moves.enter(replica, Residency.DRAINING, reason)
            case Resume(replica_id, reason):
                replica = self._replicas[replica_id]
                self._reporter.of_replica(EventKind.RESUME, replica, reason)
                self._moves.enter(replica, Residency.RESIDENT, reason)
            case Load(replica_id, worker_id, reason):
                replica, group = self._replicas[replica_id], WorkerGroup((self._workers[worker_id],))
                self._moves.begin_bringing(replica, group, reason, action.from_file)
                self._reporter.of_replica(
                    EventKind.LOAD, replica, reason, action.figures, _detail_of_coming(action)
                )
                self.spawn(group, self._moves.load(replica, group))
            case Wake(replica_id, reason):
                replica, group = self._with_group(replica_id)
                kept_bytes = self._moves.begin_bringing(replica, group, reason)
                self._reporter.of_replica(
                    EventKind.WAKE, replica, reason, action.figures, _detail_of_coming(action)
                )
                self.spawn(group, self._moves.wake(replica, group, kept_bytes))
            case Sleep(replica_id, reason):
                kind = EventKind.EVICT if action.room_for else EventKind.SLEEP
                replica, group = self._leaving(replica_id, kind, action)
                self.spawn(group, self._moves.sleep(replica, group, reason))
            case Unload(replica_id, reason):
                kind = EventKind.EVICT if action.room_for else EventKind.UNLOAD
                replica, group = self._leaving(replica_id, kind, action)
                self.spawn(group, self._moves.unload(replica, group, reason))
            case DropCopy(replica_id, reason, wanted_bytes):
                self._moves.drop_copy(self._replicas[replica_id], reason, wanted_bytes)

    def _set_kv_lease(self, worker: Worker, num_bytes: int) -> None:
        before_bytes = worker.kv.target_bytes
        worker.kv.aim(num_bytes)
        verb = "grows" if num_bytes > before_bytes else "shrinks"
        figures = {
            "before_bytes": before_bytes,
            "after_bytes": num_bytes,
            "free_bytes": worker.ledger.free_bytes,
            "weights_bytes": worker.ledger.bytes_of("weights"),
        }
        reason = f"KV {verb} from {format_bytes(before_bytes)} to {format_bytes(num_bytes)}"
        self._reporter.of_worker(EventKind.KV_LEASE, worker, reason, figures)

    def _with_group(self, replica_id: str) -> tuple[Replica, WorkerGroup]:
        replica = self._replicas[replica_id]
        assert replica.group is not None, "the planner moves only replicas that workers know"
        return replica, replica.group

    def _leaving(
        self, replica_id: str, kind: EventKind, action: Sleep | Unload
    ) -> tuple[Replica, WorkerGroup]:
        replica, group = self._with_group(replica_id)
        detail = _detail_of_leaving(action)
        self._reporter.of_replica(kind, replica, action.reason, action.figures, detail)
        self._moves.begin_leaving(replica)
        return replica, group

    def spawn(self, group: WorkerGroup, step: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a step as a task of the group's workers, cancelled when one of them is lost."""
        task = asyncio.get_running_loop().create_task(step)
        for worker in group.members:
            worker.tasks.add(task)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            for worker in group.members:
                worker.tasks.discard(task)
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                # Only a bug of ours gets here; it must not pass unseen.
                task.get_loop().call_exception_handler(
                    {"message": str(error), "exception": error, "task": task}
                )
            self._on_change()

        task.add_done_callback(ended)
        return task

    async def stop(self) -> None:
        """Cancels all tasks and waits for their ends."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _detail_of_coming(action: Load | Wake) -> dict[str, Any]:
    """See ``Event.detail``: who comes, and who has left for it."""
    detail = _detail(action.exchange, action.figures.get("weights_bytes", 0))
    return {**detail, "gained": [_deployment_of(action.replica_id)]}


def _detail_of_leaving(action: Drain | Sleep | Unload) -> dict[str, Any]:
    """See ``Event.detail``: who goes, with all that go by the same decision, and for whom."""
    detail = _detail(action.exchange, action.figures.get("freed_bytes", 0))
    return (
        detail
        if action.exchange is not None
        else {**detail, "displaced": [_deployment_of(action.replica_id)]}
    )


def _detail(exchange: Exchange | None, num_bytes: float | str) -> dict[str, Any]:
    if exchange is None:
        return {"displaced": [], "gained": [], "scores": {}, "bytes": num_bytes}
    scores = {
        "gain": exchange.gain,
        "loss": exchange.loss,
        "switching": exchange.switching,
        "margin": exchange.margin,
        "net": exchange.net,
    }
    return {
        "displaced": [_deployment_of(each) for each in exchange.leave],
        "gained": [_deployment_of(exchange.come)],
        "scores": scores,
        "bytes": num_bytes,
    }


def _deployment_of(replica_id: str) -> str:
    return replica_id.rpartition("/")[0]
