"""Requests and the replicas that they wait for: one queue for each device, and late binding."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from memory_manager.config import ManagerConfig
from memory_manager.fleet.events import EventKind, Reporter
from memory_manager.fleet.queue_view import Reasons, queue_status
from memory_manager.fleet.records import Deployment, Replica, unavailable
from memory_manager.fleet.status import DeviceQueueStatus
from memory_manager.fleet.tickets import Places, ReplicaTicket, Waiter
from memory_manager.fleet.worker_group import Worker
from memory_manager.policy.admission import DeviceAdmission
from memory_manager.policy.claim import Obstacle
from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.plan_types import Figures
from memory_manager.policy.residency import Residency
from memory_manager.policy.worker_load import HeldRequest, WorkerLoad
from mooring.errors import InsufficientMemoryError, MooringError, OverloadedError, RateLimitError

__all__ = ["Admission"]

_RETRY_AFTER_S = 1.0  # a queue is refused to newcomers while it is full: any end of a request makes room

_SERVED_EVERY_S = 1.0

_LONG_WAIT_S = 5.0  # a client that comes again by itself soon is refused again

_QueueBound = Literal["max_waiting_requests", "max_requests_per_replica"]

_PLACE: dict[_QueueBound, str] = {
    "max_waiting_requests": "wait for",
    "max_requests_per_replica": "are with a replica of",
}


class Admission:
    """Hands replicas to requests, lets requests wait for them, and refuses what cannot be served.

    Args:
        devices: names.
        workers: the controller's own, by id.
        reporter: told of refusals.
        replan_soon: called when something has changed that a plan may turn on.
    """

    def __init__(
        self,
        config: ManagerConfig,
        devices: Iterable[str],
        workers: Mapping[str, Worker],
        clock: Callable[[], float],
        reporter: Reporter,
        replan_soon: Callable[[], None],
    ) -> None:
        self._config = config
        self._lines: dict[str, DeviceAdmission[Waiter]] = {
            name: DeviceAdmission(QueuePolicy(config.queue_policy)) for name in devices
        }
        self._workers = workers
        self._clock = clock
        self._reporter = reporter
        self._replan_soon = replan_soon
        self._arrivals = itertools.count()
        self._awaited: dict[str, Deployment] = {}  # those that requests wait for
        self._line_of: dict[Waiter, str] = {}  # the device in whose queue each is
        self._in_use: dict[str, dict[Replica, None]] = {}  # replicas with tickets, by worker
        self._serving_soon: asyncio.Handle | None = None
        self._serving_later: asyncio.Handle | None = None

    async def acquire(
        self,
        deployment: Deployment,
        *,
        deadline_s: float,
        tpot_target_s: float | None,
        priority: int,
        tenant: str,
        weight: float,
        refuses_miss: bool,
        num_prompt: int,
        num_choices: int,
        most_output: float,
        again: bool,
    ) -> ReplicaTicket:
        """See ``MemoryManager.acquire``."""
        now_s = self._clock()
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
        if not again:
            self._check_room(deployment, deployment.waiters, tenant, "max_waiting_requests")
            if best.takes_requests:
                self._check_room(deployment, best.tickets, tenant, "max_requests_per_replica")
        waiter = Waiter(
            deployment.spec.name,
            next(self._arrivals),
            now_s,
            deadline_s,
            self._config.tpot_target_s if tpot_target_s is None else tpot_target_s,
            priority,
            tenant,
            weight,
            refuses_miss and not again,
            num_prompt,
            num_choices,
            most_output,
            ticket=asyncio.get_running_loop().create_future(),
        )
        self._enter(deployment, waiter, now_s)
        if not best.takes_requests and deployment.asked_in_vain_since_s is None:
            deployment.asked_in_vain_since_s = now_s
        self.serve()
        if not best.takes_requests or deployment.spec.policy.max_replicas > 1:
            self._replan_soon()  # of several, it may be one too many for those that are up
        if waiter.ticket.done():
            return waiter.ticket.result()
        try:
            return await waiter.ticket
        except asyncio.CancelledError:
            if waiter.ticket.done() and not waiter.ticket.cancelled() and waiter.ticket.exception() is None:
                waiter.ticket.result().release()
            raise
        finally:
            self._leave(deployment, waiter)
            self._replan_soon()

    def _enter(self, deployment: Deployment, waiter: Waiter, now_s: float) -> None:
        """Lets a request into the queue of a device.

        Raises:
            OverloadedError: it is not expected to begin in time, and is refused then.
        """
        best = deployment.best_replica()
        device = self._device_of(best)
        line = self._lines[device]
        load = self._load(best.group.first, now_s) if best.takes_requests and best.group else None
        is_let_in = line.arrive(
            waiter,
            lambda name: self._awaited.get(name, deployment).model_use(),
            load,
            now_s,
            comes_in_s=deployment.comes_in_s(now_s, self._config),
            step_left_s=0.0 if load is None else load.round_s() / 2,
        )
        if not is_let_in:
            wait_s = line.likely_s(waiter)
            left_s = max(0.0, waiter.deadline_s - now_s)
            once = " once others have ended" if waiter.waits_for_room else ""
            message = (
                f"the first token of a request for model {deployment.spec.name!r} is expected in {wait_s:.2f} s"
                f"{once}, and its SLO class has {left_s:.2f} s for it: try again later or elsewhere"
            )
            retry_after_s = max(_RETRY_AFTER_S, wait_s - (waiter.deadline_s - now_s))
            error = OverloadedError(
                message,
                code="slo_unattainable",
                retry_after_s=retry_after_s,
                predicted_wait_s=wait_s,
                should_retry=retry_after_s < _LONG_WAIT_S,
            )
            raise self._refused(deployment, error)
        self._line_of[waiter] = device
        deployment.waiters.add(waiter)
        self._awaited[deployment.spec.name] = deployment

    def _leave(self, deployment: Deployment, waiter: Waiter) -> None:
        device = self._line_of.pop(waiter, None)
        if device is not None:
            self._lines[device].queue.discard(waiter)
        deployment.waiters.discard(waiter)
        name = deployment.spec.name
        # Another deployment may have its name by now.
        if not deployment.waiters and self._awaited.get(name) is deployment:
            del self._awaited[name]

    def serve(self) -> None:
        """Gives replicas that are resident to those that wait for them, as far as their workers can begin them."""
        ready: dict[str, dict[str, Replica]] = {}  # by worker, and by name of the deployment
        for name, deployment in self._awaited.items():
            for replica in deployment.replicas:
                if replica.takes_requests and replica.worker_id is not None:
                    ready.setdefault(replica.worker_id, {})[name] = replica
        now_s = self._clock()
        for worker in self._workers.values():
            replicas = ready.get(worker.worker_id, {})
            queued_bytes = self._serve_by(worker, replicas, now_s) if replicas else 0
            if worker.note_kv_wanted(now_s, queued_bytes=queued_bytes):
                self._replan_soon()
        for worker_id in self._in_use.keys() - self._workers.keys():  # lost
            del self._in_use[worker_id]
        if ready and self._awaited and self._serving_later is None:
            self._serving_later = asyncio.get_running_loop().call_later(_SERVED_EVERY_S, self._serve_later)

    def _serve_later(self) -> None:
        """Serves again while somebody waits, since some of what stands in the way ends by time alone."""
        self._serving_later = None
        self.serve()

    def _serve_by(self, worker: Worker, replicas: Mapping[str, Replica], now_s: float) -> int:
        """Gives a worker what it can begin; returns the bytes of KV that would be taken by those who wait for want of
        it, else 0."""
        self._gather(worker.port.device, replicas)
        line = self._lines[worker.port.device]
        load = self._load(worker, now_s)
        found: Obstacle | None = None  # of the last that was asked about; whoever is given had none

        def obstacle(waiter: Waiter) -> Obstacle | None:
            nonlocal found
            found = load.obstacle(replicas[waiter.model].deployment.as_held(waiter))
            return found

        while (waiter := line.next(replicas, obstacle, now_s)) is not None:
            replica = replicas[waiter.model]
            del self._line_of[waiter]
            self._leave(replica.deployment, waiter)
            if not waiter.ticket.done():
                load.add(replica.deployment.as_held(waiter))
                waiter.ticket.set_result(self._admit(replica, waiter, line))
        if found is not Obstacle.KV or not worker.capabilities.elastic_kv:
            return 0
        return math.ceil(sum(_queued_bytes(each) for each in replicas.values()))

    def _gather(self, device: str, replicas: Mapping[str, Replica]) -> None:
        """Brings those into a device's queue who wait for models that are there, if no replica takes their requests
        where they stand."""
        if len(self._lines) == 1:
            return
        for replica in replicas.values():
            there = {self._device_of(each) for each in replica.deployment.replicas if each.takes_requests}
            elsewhere = [each for each in replica.deployment.waiters if self._line_of[each] not in there]
            for waiter in elsewhere:
                self._lines[self._line_of[waiter]].queue.discard(waiter)
                self._lines[device].queue.add(waiter, self._clock())
                self._line_of[waiter] = device

    def queues(self) -> tuple[DeviceQueueStatus, ...]:
        """The queue of each device."""
        now_s = self._clock()
        policy = QueuePolicy(self._config.queue_policy)
        loads = {each.worker_id: self._load(each, now_s) for each in self._workers.values()}
        served = {
            device: {
                ticket.tenant
                for worker in self._workers.values()
                if worker.port.device == device
                for replica in self._in_use[worker.worker_id]
                for ticket in replica.tickets
            }
            for device in self._lines
        }
        return tuple(
            queue_status(device, policy, line, self._awaited, served[device], Reasons(loads), now_s)
            for device, line in self._lines.items()
        )

    def serve_soon(self) -> None:
        """Serves once what runs now has returned, however often this is called meanwhile."""
        if self._awaited and self._serving_soon is None:
            self._serving_soon = asyncio.get_running_loop().call_soon(self._serve_now)

    def _serve_now(self) -> None:
        self._serving_soon = None
        self.serve()

    def _device_of(self, replica: Replica) -> str:
        """The device in whose queue requests for a replica stand."""
        if replica.group is not None:
            return replica.group.first.port.device
        return next(iter(self._lines))

    def _load(self, worker: Worker, now_s: float) -> WorkerLoad:
        """The load of a worker, of models that are resident."""
        in_use = self._in_use.setdefault(worker.worker_id, {})
        for replica in [each for each in in_use if not each.tickets or not each.is_on(worker)]:
            del in_use[replica]
        return WorkerLoad(
            [
                HeldRequest(each.claim, model)
                for replica in in_use
                if replica.residency is Residency.RESIDENT
                for model in (replica.deployment.model_use(),)
                for each in replica.tickets
            ],
            worker.capabilities.max_step_tokens,
            worker.kv.lease_bytes if worker.capabilities.elastic_kv else math.inf,
            now_s,
            max_sequences=worker.capabilities.max_sequences,
            most_served=self._lines[worker.port.device].most_served(now_s),
        )

    def note_computed(self, replica: Replica, num_tokens: int) -> None:
        """Notes that so many tokens of prompts were computed, those first that are most urgent."""
        now_s = self._clock()
        claims = [each.claim for each in replica.tickets if each.claim.first_at_s is None]
        for claim in sorted(claims, key=lambda each: each.precedence(now_s)):
            num_of_this = min(num_tokens, claim.num_prompt - claim.num_computed)
            claim.num_computed += num_of_this
            num_tokens -= num_of_this
        self.serve_soon()

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
            failed = list(deployment.waiters)
            deployment.fail_waiters(make_error)
            for waiter in failed:
                self._leave(deployment, waiter)

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
        tenant: str,
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
        if not tenant or len(queue) < num_free:
            return
        num_held = queue.num_of(tenant)
        if num_held >= num_free:
            message = (
                f"{num_held} of this tenant's requests {_PLACE[bound]} model {deployment.spec.name!r}, which has "
                f"room for {num_free} more of all tenants (planner.{bound}): wait until some have ended"
            )
            error = RateLimitError(message, code="tenant_queue_share", retry_after_s=_RETRY_AFTER_S)
            raise self._refused(deployment, error)

    def _admit(self, replica: Replica, waiter: Waiter, line: DeviceAdmission[Waiter]) -> ReplicaTicket:
        assert replica.worker_id is not None, "a resident replica has a worker"
        replica.last_used_s = self._clock()
        ticket = ReplicaTicket(
            replica.replica_id,
            replica.worker_id,
            replica.spec.artifact.key,
            waiter,
            max(waiter.at_s, replica.state.since_s),
            replica.deployment.pace,
            line.likely_s(waiter),
            self._clock,
            functools.partial(self._progressed, replica, line),
            functools.partial(self._released, replica),
        )
        replica.tickets.add(ticket)
        self._in_use.setdefault(replica.worker_id, {})[replica] = None
        prompt_s = replica.deployment.costs.seconds(0, waiter.num_prompt)
        line.counters.charge(waiter.tenant, prompt_s, waiter.weight)
        return ticket

    def _progressed(
        self, replica: Replica, line: DeviceAdmission[Waiter], ticket: ReplicaTicket, num_new: int
    ) -> None:
        """Charges a request's tenant for new tokens of each of its sequences; 0 is the first."""
        claim, costs = ticket.claim, replica.deployment.costs
        if not num_new:
            assert isinstance(claim, Waiter)
            line.note_first(claim, self._clock())
            self.serve_soon()
        step_s = costs.seconds(0, 0) / max(1, replica.tickets.num_sequences)
        seconds = num_new * claim.num_choices * (step_s + costs.decode_s)
        line.counters.charge(claim.tenant, seconds, claim.weight)

    def _released(self, replica: Replica, ticket: ReplicaTicket) -> None:
        if ticket not in replica.tickets:  # released before, or its worker was lost
            return
        replica.tickets.discard(ticket)
        ticket.note_pace(self._config.ttft_target_s)
        replica.last_used_s = self._clock()
        self.serve_soon()
        # While it serves others too, no plan turns on one request less, unless there are replicas to spare.
        if not replica.tickets or replica.spec.policy.max_replicas > 1:
            self._replan_soon()


def _queued_bytes(replica: Replica) -> float:
    """KV that requests are expected to take which wait for a replica, within its model's cap."""
    model = replica.deployment.model_use()
    wanted_bytes, held_bytes = (
        sum(HeldRequest(claim, model).expected_bytes for claim in claims)
        for claims in (replica.deployment.waiters, (each.claim for each in replica.tickets))
    )
    return min(wanted_bytes, max(0.0, model.kv_cap_bytes - held_bytes))
