"""Requests and the replicas that they wait for."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable
from typing import Literal

from memory_manager.config import ManagerConfig
from memory_manager.fleet.events import EventKind, Reporter
from memory_manager.fleet.records import Deployment, Replica, unavailable
from memory_manager.fleet.tickets import Places, ReplicaTicket, Waiter
from memory_manager.policy.plan_types import Figures
from memory_manager.policy.residency import Residency
from mooring.errors import InsufficientMemoryError, MooringError, OverloadedError, RateLimitError

__all__ = ["Admission"]

_RETRY_AFTER_S = 1.0  # a queue is refused to newcomers while it is full: any end of a request makes room

_QueueBound = Literal["max_waiting_requests", "max_requests_per_replica"]

_PLACE: dict[_QueueBound, str] = {
    "max_waiting_requests": "wait for",
    "max_requests_per_replica": "are with a replica of",
}


class Admission:
    """Hands replicas to requests, lets requests wait for them, and refuses what cannot be served.

    Args:
        reporter: told of refusals.
        replan_soon: called when something has changed that a plan may turn on.
    """

    def __init__(
        self,
        config: ManagerConfig,
        clock: Callable[[], float],
        reporter: Reporter,
        replan_soon: Callable[[], None],
    ) -> None:
        self._config = config
        self._clock = clock
        self._reporter = reporter
        self._replan_soon = replan_soon

    async def acquire(
        self,
        deployment: Deployment,
        deadline_s: float,
        tpot_target_s: float | None,
        priority: int,
        tenant: str | None,
        again: bool,
    ) -> ReplicaTicket:
        """See ``MemoryManager.acquire``."""
        now_s = self._clock()
        if tpot_target_s is None:
            tpot_target_s = self._config.tpot_target_s
        deadline_s = min(deadline_s, now_s + self._config.patience_s)
        if again:  # what it had is not forgotten by its reader, who waits for the next token now
            deadline_s = max(deadline_s, now_s + self._config.ttft_target_s)
        try:
            deployment.check_available(now_s)
        except MooringError as error:
            raise self._refused(deployment, error) from None
        deployment.held, deployment.stirred = False, True
        if not again:
            deployment.count_arrival(now_s, self._config.rate_half_life_s)
        best = deployment.best_replica()
        if best.takes_requests:
            if deployment.spec.policy.max_replicas > 1:
                self._replan_soon()  # it may be one too many for those that are up
            if not again:
                self._check_room(deployment, best.tickets, tenant, "max_requests_per_replica")
            return self._admit(best, tenant, now_s, deadline_s, tpot_target_s, priority)
        if not again:
            self._check_room(deployment, deployment.waiters, tenant, "max_waiting_requests")
        future: asyncio.Future[ReplicaTicket] = asyncio.get_running_loop().create_future()
        waiter = Waiter(now_s, deadline_s, tpot_target_s, priority, tenant, future)
        deployment.waiters.add(waiter)
        if deployment.asked_in_vain_since_s is None:
            deployment.asked_in_vain_since_s = now_s
        self._replan_soon()
        try:
            return await waiter.ticket
        except asyncio.CancelledError:
            if waiter.ticket.done() and not waiter.ticket.cancelled() and waiter.ticket.exception() is None:
                waiter.ticket.result().release()
            raise
        finally:
            deployment.waiters.discard(waiter)
            self._replan_soon()

    def serve(self, deployments: Iterable[Deployment]) -> None:
        """Gives replicas that are resident to those that wait for them, by priority and then by arrival: a worker
        begins with what reaches it first."""
        for deployment in deployments:
            if not deployment.waiters or not deployment.best_replica().takes_requests:
                continue
            for waiter in sorted(deployment.waiters, key=lambda each: -each.priority):
                deployment.waiters.discard(waiter)
                if not waiter.ticket.done():
                    best = deployment.best_replica()
                    ticket = self._admit(
                        best,
                        waiter.tenant,
                        waiter.arrival_s,
                        waiter.deadline_s,
                        waiter.tpot_target_s,
                        waiter.priority,
                    )
                    waiter.ticket.set_result(ticket)

    def note_refusal(self, deployment: Deployment, message: str) -> None:
        """Takes what the planner says: why the deployment can never fit, or nothing. Who waits is refused."""
        is_new, deployment.refusal = not deployment.refusal, message
        if not message:
            return
        figures: Figures = {
            "weights_bytes": deployment.spec.weights_bytes,
            "kv_guarantee_bytes": deployment.spec.kv_guarantee_bytes,
            "kv_longest_bytes": deployment.spec.kv_longest_bytes,
        }
        if deployment.waiters:
            self.refuse_waiters(deployment, lambda: InsufficientMemoryError(message), figures)
        elif is_new:  # a pinned one, which nobody has asked for
            self._tell_refused(deployment, InsufficientMemoryError(message), 0, figures)

    def note_failure(self, replica: Replica, error: MooringError) -> None:
        """Tells those who wait of a failure once no replica is left that could serve them."""
        deployment = replica.deployment
        if all(each.residency is Residency.FAILED for each in deployment.replicas):
            wait_s = max(0.0, replica.retry_at_s - self._clock())
            self.refuse_waiters(
                deployment,
                lambda: unavailable(replica.spec.name, error.message, wait_s),
                {"retry_in_s": wait_s},
            )

    def refuse_waiters(
        self, deployment: Deployment, make_error: Callable[[], MooringError], figures: Figures | None = None
    ) -> None:
        """Refuses all who wait for a deployment, where any do, and tells of it."""
        if deployment.waiters:
            self._tell_refused(deployment, make_error(), len(deployment.waiters), figures or {})
            deployment.fail_waiters(make_error)

    def _refused(self, deployment: Deployment, error: MooringError) -> MooringError:
        """The error that one request is refused with, told of."""
        self._tell_refused(deployment, error, 1, {"num_waiting": len(deployment.waiters)})
        return error

    def _tell_refused(
        self, deployment: Deployment, error: MooringError, num_refused: int, figures: Figures
    ) -> None:
        told: Figures = {"code": error.code, "num_refused": num_refused, **figures}
        self._reporter.of_deployment(EventKind.REFUSE, deployment.spec.name, error.message, told)

    def _check_room(
        self,
        deployment: Deployment,
        queue: Places[Waiter] | Places[ReplicaTicket],
        tenant: str | None,
        bound: _QueueBound,
    ) -> None:
        """Refuses a newcomer to a full queue, and one whose tenant has as many places in it as are free: so alone
        a tenant has half of them, and however many tenants want more, there is a place for the next.

        Raises:
            OverloadedError: the queue is full.
            RateLimitError: the tenant has its share of it.
        """
        most: int = getattr(self._config, bound)
        num_free = most - len(queue)
        if num_free <= 0:
            message = (
                f"{len(queue)} requests already {_PLACE[bound]} model {deployment.spec.name!r}: try again"
            )
            raise self._refused(deployment, OverloadedError(message, retry_after_s=_RETRY_AFTER_S))
        if tenant is None or len(queue) < num_free:
            return
        num_held = queue.num_of(tenant)
        if num_held >= num_free:
            message = (
                f"{num_held} of this tenant's requests {_PLACE[bound]} model {deployment.spec.name!r}, which has "
                f"room for {num_free} more of all tenants (planner.{bound}): wait until some have ended"
            )
            error = RateLimitError(message, code="tenant_queue_share", retry_after_s=_RETRY_AFTER_S)
            raise self._refused(deployment, error)

    def _admit(
        self,
        replica: Replica,
        tenant: str | None,
        arrival_s: float,
        deadline_s: float,
        tpot_target_s: float,
        priority: int,
    ) -> ReplicaTicket:
        assert replica.worker_id is not None, "a resident replica has a worker"
        replica.last_used_s = self._clock()
        ticket = ReplicaTicket(
            replica.replica_id,
            replica.worker_id,
            replica.spec.artifact.key,
            tenant,
            max(arrival_s, replica.state.since_s),
            deadline_s,
            tpot_target_s,
            priority,
            replica.deployment.pace,
            self._clock,
            functools.partial(self._released, replica),
        )
        replica.tickets.add(ticket)
        return ticket

    def _released(self, replica: Replica, ticket: ReplicaTicket) -> None:
        if ticket not in replica.tickets:  # released before, or its worker was lost
            return
        replica.tickets.discard(ticket)
        ticket.note_pace(self._config.ttft_target_s)
        replica.last_used_s = self._clock()
        # While it serves others too, no plan turns on one request less, unless there are replicas to spare.
        if not replica.tickets or replica.spec.policy.max_replicas > 1:
            self._replan_soon()
