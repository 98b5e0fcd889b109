"""The memory manager: keeps the ledger, decides what is resident, and hands replicas to requests.

Everything runs on one event loop. Every event (an arrival, a release, the end of a move, a worker's coming
or going, time) asks for a new plan; plans that are asked for together are made once. A plan is made and
begun without an await in between, so nothing changes under it; what it began runs on as tasks of the
workers concerned, and their ends are events again.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from memory_manager.config import DeviceBudget, ManagerConfig
from memory_manager.fleet.audit import Audit
from memory_manager.fleet.events import EventSink, Reporter
from memory_manager.fleet.execution import Execution
from memory_manager.fleet.fitting import fit
from memory_manager.fleet.ledger import Ledger, Owner
from memory_manager.fleet.link_rates import LinkRates
from memory_manager.fleet.moves import Moves
from memory_manager.fleet.others_share import OthersShare
from memory_manager.fleet.plan_schedule import PlanSchedule
from memory_manager.fleet.records import (
    Deployment,
    HostCopies,
    Replica,
    disabled,
    must_be_replaced,
    not_found,
    shutting_down,
)
from memory_manager.fleet.roster import Roster
from memory_manager.fleet.status import DeploymentStatus, Snapshot
from memory_manager.fleet.tickets import ReplicaTicket
from memory_manager.fleet.views import HostTier, deployment_status, planner_state, snapshot, unsettled
from memory_manager.fleet.waiting_room import Admission
from memory_manager.fleet.worker_group import Worker
from memory_manager.policy.fit import DeviceFit
from memory_manager.policy.plan_types import PlannerState
from memory_manager.policy.planner import plan
from memory_manager.policy.residency import ON_DEVICE, Residency, ResidencyEvent, ResidencyState
from memory_manager.policy.what_if import WayIn, way_in
from memory_manager.ports import DeploymentSpec, WorkerPort
from mooring.errors import ConfigurationError

__all__ = ["MemoryManager"]


class MemoryManager:
    """One for a fleet. Construct and call it on one event loop; nothing here is thread-safe.

    Args:
        devices: budgets; workers name their device among them.
        host_cache: where packed artifacts are held in host memory.
        clock: seconds, monotonic.
        sink: told of every change of residency, as it happens; must not raise or block.
        events: told of every decision and mishap.

    Attributes:
        others: lets other processes have parts of the budgets.
    """

    def __init__(
        self,
        devices: Sequence[DeviceBudget],
        host_cache: HostCopies,
        config: ManagerConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sink: Callable[[ResidencyEvent], None] = lambda event: None,
        events: EventSink = lambda event: None,
    ) -> None:
        self._config = config if config is not None else ManagerConfig()
        self._clock = clock
        self._host_cache = host_cache
        self._ledgers: dict[str, Ledger] = {}
        for device in devices:
            ledger = self._ledgers[device.name] = Ledger(device.name, device.budget_bytes)
            if not ledger.grant(Owner("reserve"), device.reserve_bytes):
                raise ConfigurationError(f"the reserve of {device.name} exceeds its memory budget")
        self._workers: dict[str, Worker] = {}
        self._deployments: dict[str, Deployment] = {}
        self._replicas: dict[str, Replica] = {}
        self._numbers = itertools.count()
        self._links = LinkRates()
        self._reporter = Reporter(clock, events)
        self._schedule = PlanSchedule(self.replan)
        self._admission = Admission(
            self._config, self._ledgers, self._workers, clock, self._reporter, self._schedule.soon
        )
        self._moves = Moves(
            host_cache,
            self._config,
            clock,
            lambda: self._replicas.values(),
            sink,
            self._reporter,
            self._admission.note_failure,
            lambda group, step: self._execution.spawn(group, step),
        )
        self._execution = Execution(
            self._moves, self._workers, self._replicas, self._reporter, self._note_move
        )
        self._audit = Audit(
            self._replicas,
            self._config.usage_poll_s,
            clock,
            self._schedule.soon,
            self._reporter,
        )
        self._has_moved = False
        self.others = OthersShare(
            self._ledgers,
            self._workers,
            self._replicas,
            host_cache,
            self._moves,
            self._reporter,
            self._config,
            lambda device: self._roster.allow(device),
            self._note_move,
        )
        self._roster = Roster(
            self._ledgers,
            self._workers,
            self._replicas,
            self._moves,
            self._execution,
            self._audit,
            self._reporter,
            self._config,
            clock,
            self._schedule.soon,
            self._note_move,
        )
        self._stopping = False

    # Workers.

    def add_worker(self, port: WorkerPort) -> None:
        """A worker takes orders from now on. A former one of the same id must have been reported lost.

        Raises:
            ConfigurationError: its device has no budget.
            ConflictError: its id is in use.
        """
        self._roster.add(port)

    async def drain_worker(self, worker_id: str, within_s: float) -> None:
        """Takes every replica off a worker that is to leave, and gives it no more; returns once it has none.
        Requests on it have ``within_s`` to finish; those that still run then go on where their models are next.
        Returns at once for a worker that is not there, and when it is lost meanwhile."""
        await self._roster.drain(worker_id, within_s)

    def worker_lost(self, worker_id: str) -> None:
        """The worker's process has ended: its device memory is free, its replicas are warm (or cold), their
        leases void; who waits waits for its successor. Does nothing for a worker that is not there."""
        self._roster.lose(worker_id)

    # Deployments.

    def upsert_deployment(self, spec: DeploymentSpec) -> None:
        """Adds a deployment, or gives it another policy or artifact. A changed artifact gets new replicas;
        the old ones finish what they run. A failed deployment is tried again.

        Raises:
            ConfigurationError: it may have no replica.
        """
        if spec.policy.max_replicas < 1:
            raise ConfigurationError(f"deployment {spec.name!r}: max_replicas must be at least 1")
        deployment = self._deployments.get(spec.name)
        if deployment is None:
            deployment = self._deployments[spec.name] = Deployment(spec, self._clock(), links=self._links)
        self._expect_only(deployment.spec, spec if spec.policy.enabled else None)
        deployment.spec, deployment.wanted_since_s, deployment.held = spec, self._clock(), False
        deployment.stirred = self._has_moved = True
        if not spec.policy.enabled:
            self._admission.refuse_waiters(deployment, lambda: disabled(spec.name))
        for replica in list(deployment.replicas):
            if replica.group is not None and must_be_replaced(replica.spec, spec):
                self._retire(replica)
                continue
            replica.spec = spec
            replica.num_failures, replica.retry_at_s = 0, 0.0
        while len(deployment.replicas) > spec.policy.max_replicas:
            self._retire(deployment.least_replica())
        while len(deployment.replicas) < spec.policy.max_replicas:
            self._add_replica(deployment)
        self._schedule.soon()

    def remove_deployment(self, name: str) -> None:
        """Whoever waits is refused; what runs finishes; then the workers forget it.

        Raises:
            ModelNotFoundError: no such deployment.
        """
        deployment = self._deployment(name)
        del self._deployments[name]
        self._admission.refuse_waiters(deployment, lambda: not_found(name))
        self._expect_only(deployment.spec, None)
        for replica in list(deployment.replicas):
            self._retire(replica)
        self._schedule.soon()

    def _expect_only(self, before: DeploymentSpec, after: DeploymentSpec | None) -> None:
        """Tells the host cache which artifact of a deployment may be asked for now."""
        if after is None or after.artifact.key != before.artifact.key:
            self._host_cache.forget(before.artifact.key)
        if after is not None:
            self._host_cache.expect(after.artifact)

    def _add_replica(self, deployment: Deployment) -> None:
        replica_id = f"{deployment.spec.name}/{next(self._numbers)}"
        state = ResidencyState(Residency.COLD, self._clock())
        replica = Replica(replica_id, deployment, deployment.spec, state)
        deployment.replicas.append(replica)
        self._replicas[replica_id] = replica

    def _retire(self, replica: Replica) -> None:
        replica.deployment.replicas.remove(replica)
        replica.deployment.note_presence(self._clock())
        replica.retired = self._has_moved = True

    def _deployment(self, name: str) -> Deployment:
        if name not in self._deployments:
            raise not_found(name)
        return self._deployments[name]

    # Requests.

    async def acquire(
        self,
        name: str,
        *,
        deadline_s: float = math.inf,
        tpot_target_s: float | None = None,
        priority: int = 0,
        tenant: str = "",
        weight: float = 1.0,
        refuses_miss: bool = False,
        num_prompt: int = 1,
        num_choices: int = 1,
        most_output: float = math.inf,
        again: bool = False,
    ) -> ReplicaTicket:
        """Waits until a worker can begin the request; the ticket counts as activity until released.

        Args:
            deadline_s: on the manager's clock. It orders who waits; it does not end the wait, which is for
                the caller to cancel.
            tpot_target_s: seconds that each token after the first may take, on average; None takes the configured
                ones.
            priority: higher first.
            tenant: whose request it is, which may not fill the queue alone; empty if it is no tenant's.
            weight: of the tenant.
            refuses_miss: it is refused if its first token is not expected by its deadline.
            num_prompt: tokens of its prompt.
            num_choices: sequences that it asks for.
            most_output: tokens at which each of them ends in any case.
            again: the request had a ticket before and is tried again or moves, so it is no new arrival.

        Raises:
            ModelNotFoundError: no such deployment, or it was removed meanwhile.
            ModelUnavailableError: it is disabled, or its load failed a moment ago.
            InsufficientMemoryError: it can never fit.
            OverloadedError: too many wait for it already, or it is not expected to begin in time, and refuses that.
            RateLimitError: too many of this tenant's do.
            ShuttingDownError: ``stop`` was called.
        """
        if self._stopping:
            raise shutting_down()
        return await self._admission.acquire(
            self._deployment(name),
            deadline_s=deadline_s,
            tpot_target_s=tpot_target_s,
            priority=priority,
            tenant=tenant,
            weight=weight,
            refuses_miss=refuses_miss,
            num_prompt=num_prompt,
            num_choices=num_choices,
            most_output=most_output,
            again=again,
        )

    def note_step(self, replica_id: str, num_computed: Sequence[int], seconds: float) -> None:
        """Notes a step of a worker.

        Args:
            num_computed: tokens of each sequence that took part.
            seconds: that it took.
        """
        replica = self._replicas.get(replica_id)
        if replica is not None and num_computed:
            num_decodes = sum(each == 1 for each in num_computed)
            num_of_prompts = sum(num_computed) - num_decodes
            replica.deployment.costs.note(num_decodes, num_of_prompts, seconds)
            if num_of_prompts:
                self._admission.note_computed(replica, num_of_prompts)

    # What an operator asks for.

    async def sleep(self, name: str) -> None:
        """Puts a deployment to sleep once its requests have finished, and keeps it so until the next one.

        Raises:
            ModelNotFoundError: no such deployment.
            MooringError: its worker could not.
        """
        deployment = self._deployment(name)
        deployment.held = deployment.stirred = True
        asleep = []
        for replica in deployment.replicas:
            if replica.residency in ON_DEVICE:
                if replica.asleep is None:
                    replica.asleep = asyncio.get_running_loop().create_future()
                asleep.append(asyncio.shield(replica.asleep))
        self._schedule.soon()
        await asyncio.gather(*asleep)

    async def wake(self, name: str) -> None:
        """Makes a deployment resident, as a request for it would; raises what ``acquire`` raises."""
        (await self.acquire(name)).release()

    def way_in(self, name: str) -> WayIn:
        """Tells what a request for this deployment would bring about now.

        Raises:
            ModelNotFoundError: no such deployment.
        """
        self._deployment(name)
        now_s = self._clock()
        state = self._state(self._deployments.values(), self._replicas.values(), now_s)
        return way_in(state, name, now_s, self._config)

    def fit(self, spec: DeploymentSpec) -> dict[str, DeviceFit]:
        """Tells for each device by its name how a deployment would fit there now, one that is not there, or one that
        is there with what this says of it."""
        now_s = self._clock()
        return fit(
            Deployment(spec, now_s, links=self._links),
            self._deployments.get(spec.name),
            [each for each in self._deployments.values() if each.spec.name != spec.name],
            self._replicas.values(),
            lambda deployments, replicas: self._state(deployments, replicas, now_s),
            self._host_cache,
            now_s,
            self._config,
        )

    def status(self, name: str) -> DeploymentStatus | None:
        """The present state of one deployment, None if there is none of this name. Costs the same however many
        deployments there are."""
        deployment = self._deployments.get(name)
        return None if deployment is None else deployment_status(deployment, self._clock())

    def away_s(self, name: str) -> float:
        """Seconds for which no replica of a deployment took requests, since it was added; 0 if there is none of this
        name."""
        deployment = self._deployments.get(name)
        return 0.0 if deployment is None else deployment.absence.seconds(self._clock())

    def snapshot(self) -> Snapshot:
        """The present state of everything; who asks about one deployment takes ``status``."""
        return snapshot(
            self._clock(),
            self._ledgers,
            self._workers,
            self._deployments,
            self._audit.num_mismatches,
            self._admission.queues(),
        )

    def check(self) -> None:
        """Recounts the ledgers.

        Raises:
            InternalError: leases do not add up.
        """
        for ledger in self._ledgers.values():
            ledger.check()

    async def stop(self) -> None:
        """Refuses whoever waits and ends all tasks. Workers are left as they are: their processes end."""
        self._stopping = True
        self._schedule.stop()
        for deployment in self._deployments.values():
            deployment.fail_waiters(shutting_down)
        for replica in self._replicas.values():
            if replica.asleep is not None and not replica.asleep.done():
                replica.asleep.set_exception(shutting_down())
        await self._execution.stop()

    # Planning.

    def replan(self) -> None:
        """Makes a plan and begins what it decides. Every event does so by itself."""
        if self._has_moved:
            self._has_moved = False
            self._follow_moves()
            self._roster.note_drained()
        self._admission.serve()
        now_s = self._clock()
        for deployment in self._deployments.values():
            deployment.note_rest(now_s, self._config)
        deployments, replicas, next_due_s = unsettled(self._deployments.values(), self._replicas.values())
        for deployment in deployments:
            deployment.rescale(now_s, self._config)
        state = self._state(deployments, replicas, now_s, next_due_s)
        decided = plan(state, now_s, self._config)
        for deployment in deployments:
            self._admission.note_refusal(deployment, decided.refusals.get(deployment.spec.name, ""))
            exchange = decided.exchanges.get(deployment.spec.name)
            if exchange is not deployment.exchange and not deployment.is_coming:
                deployment.exchange = exchange
        for action in decided.actions:
            self._execution.begin(action)
        self._admission.serve()
        self._schedule.after(decided.next_at_s - now_s)

    def _state(
        self,
        deployments: Iterable[Deployment],
        replicas: Collection[Replica],
        now_s: float,
        next_due_s: float = math.inf,
    ) -> PlannerState:
        """See ``planner_state``."""
        host = HostTier(self._host_cache, self._replicas.values())
        return planner_state(
            self._ledgers, self._workers, host, deployments, replicas, self._config, now_s, next_due_s
        )

    def _note_move(self) -> None:
        self._has_moved = True
        self._schedule.soon()

    def _follow_moves(self) -> None:
        """After a move: what it brought into the host cache or drove out of it, and replicas that are no more."""
        for replica in list(self._replicas.values()):
            self._moves.follow_host_cache(replica)
            if replica.retired and replica.group is None and replica.residency not in ON_DEVICE:
                del self._replicas[replica.replica_id]
