"""The records that the controller keeps: deployments, replicas, and who waits for them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from memory_manager.config import ManagerConfig, PlannerConfig
from memory_manager.fleet.absence import Absence
from memory_manager.fleet.ledger import Owner
from memory_manager.fleet.link_rates import LinkRates
from memory_manager.fleet.tickets import Places, ReplicaTicket, Waiter
from memory_manager.fleet.worker_group import Worker, WorkerGroup
from memory_manager.policy.arrivals import ArrivalPattern, ArrivalRate, ArrivalWindow, wake_at_s
from memory_manager.policy.chooser import Exchange
from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.pace import Pace
from memory_manager.policy.plan_types import DemandView
from memory_manager.policy.residency import ON_DEVICE, Residency, ResidencyState
from memory_manager.policy.scaling import Scale, rescale
from memory_manager.policy.standings import is_missed
from memory_manager.policy.step_model import StepModel
from memory_manager.policy.worker_load import HeldRequest, ModelUse
from memory_manager.ports import ArtifactRef, DeploymentSpec, WarmPlace
from memory_manager.stats import ReplicaStats
from mooring.errors import ModelNotFoundError, ModelUnavailableError, MooringError, ShuttingDownError

__all__ = [
    "Deployment",
    "HeldCopy",
    "HostCopies",
    "Replica",
    "disabled",
    "must_be_replaced",
    "not_found",
    "shutting_down",
    "unavailable",
]

# Best first.
_BEST = (
    Residency.RESIDENT,
    Residency.DRAINING,
    Residency.WAKING,
    Residency.LOADING,
    Residency.WARM,
    Residency.COLD,
    Residency.FAILED,
)
_OFF_DEVICE = (Residency.WARM, Residency.COLD, Residency.FAILED)
_ALONE = Scale()


class HeldCopy(Protocol):
    """Room for a packed artifact in host memory, and once it is read, the artifact; kept there until released."""

    @property
    def fd(self) -> int: ...

    @property
    def checksum(self) -> int | None:
        """Checksum of its bytes, if others can write to them."""
        ...

    async def read(self) -> None:
        """Raises ``InsufficientMemoryError`` if the host has no memory for it."""
        ...

    def release(self) -> None: ...


class HostCopies(Protocol):
    """The host cache, as far as it is needed here: the ledger of the host tier, and the copies themselves."""

    @property
    def budget_bytes(self) -> int: ...

    @property
    def free_bytes(self) -> int:
        """Bytes of the budget that nobody holds; copies that nobody holds are evicted for others by themselves."""
        ...

    def hold(self, ref: ArtifactRef) -> HeldCopy:
        """Raises ``InsufficientMemoryError`` if there is no room, which the planner should have known."""
        ...

    def holds(self, key: str) -> bool:
        """Whether somebody holds this copy, so that another holder takes no more room."""
        ...

    def open_file(self, ref: ArtifactRef) -> int:
        """Opens the packed file, to be read in place of a copy; the caller closes it. Raises ``ArtifactError``."""
        ...

    def contains(self, key: str) -> bool: ...

    def discard(self, key: str) -> None:
        """Drops a copy whose bytes have changed, once nobody holds it."""
        ...

    def expect(self, ref: ArtifactRef) -> None:
        """The artifact may be asked for, so memory can be made ready for it."""
        ...

    def forget(self, key: str) -> None:
        """It will not be asked for any more."""
        ...

    def allow_spare(self, allowed: bool) -> int:
        """Whether memory may be made ready at all; returns the bytes that were given back."""
        ...

    def give_up(self, num_bytes: int) -> int:
        """Gives so much host memory back, as far as nobody holds it; returns the bytes."""
        ...


@dataclass(slots=True, eq=False)
class Replica:
    """One replica.

    Attributes:
        spec: what it was made from; a deployment whose artifact changes gets new replicas.
        group: the workers that know it: where it is, goes to, or sleeps.
        host_copy: kept while workers know it, or until they have let go of it; None if it came without one.
        in_flight: a load, wake, sleep or unload is under way.
        is_leaving: what is under way is a sleep or unload.
        tickets: those of the requests that it serves; they are parked while it sleeps.
        is_guest: it came for late requests alone.
        kept_bytes: lease for what its workers kept on the device when it last slept; 0 if it never did.
        retired: to be unloaded and forgotten.
        asleep: resolved once it is off its device; set while an operator waits for that.
        num_failures: in a row, of whatever was tried last.
        retry_at_s: nothing is tried before.
        stats: figures of its group's first worker at the last poll.
    """

    replica_id: str
    deployment: Deployment
    spec: DeploymentSpec
    state: ResidencyState
    group: WorkerGroup | None = None
    host_copy: HeldCopy | None = None
    in_flight: bool = False
    is_leaving: bool = False
    tickets: Places[ReplicaTicket] = field(default_factory=Places)
    is_guest: bool = False
    last_used_s: float = 0.0
    kept_bytes: int = 0
    retired: bool = False
    asleep: asyncio.Future[None] | None = None
    num_failures: int = 0
    retry_at_s: float = 0.0
    stats: ReplicaStats = field(init=False)
    owner: Owner = field(init=False)

    def __post_init__(self) -> None:
        self.stats = ReplicaStats(self.replica_id)
        self.owner = Owner("weights", self.replica_id)

    @property
    def residency(self) -> Residency:
        return self.state.residency

    @property
    def lease_bytes(self) -> int:
        """Bytes that the ledgers promise its weights on each of its workers."""
        return self.group.lease_bytes(self.owner) if self.group is not None else 0

    @property
    def worker_id(self) -> str | None:
        """The worker that takes its requests; None if no worker knows it."""
        return self.group.first.worker_id if self.group is not None else None

    @property
    def can_sleep(self) -> bool:
        """Whether its workers can keep it off the device and wake it: they have its weights, or its host copy."""
        if self.group is None:
            return False
        abilities = self.group.first.capabilities
        return abilities.sleep and (self.host_copy is not None or abilities.warm is WarmPlace.WORKER)

    def can_drop_copy(self, now_s: float) -> bool:
        """Whether it can do without its host copy now: it sleeps, or it is resident with weights of its own. One
        whose worker would not let go is left alone until it is to be asked again."""
        if self.host_copy is None or self.group is None or self.in_flight or self.retry_at_s > now_s:
            return False
        if self.residency is Residency.RESIDENT:
            return not any(each.capabilities.maps_host_copy for each in self.group.members)
        return self.residency is Residency.WARM

    @property
    def is_awaited_asleep(self) -> bool:
        """Whether it sleeps, and requests wait for its deployment or are parked on it."""
        return self.residency is Residency.WARM and self.deployment.is_awaited

    @property
    def copy_unused_since_s(self) -> float:
        """When its host copy was last of use: when the model came, if it is resident, else when it was last used."""
        return self.state.since_s if self.residency is Residency.RESIDENT else self.last_used_s

    def is_on(self, worker: Worker) -> bool:
        """Whether the worker knows it."""
        return self.group is not None and worker in self.group.members

    @property
    def takes_requests(self) -> bool:
        """Whether it is resident and stays so for now."""
        return self.residency is Residency.RESIDENT and not self.is_leaving

    @property
    def num_parked(self) -> int:
        """Requests that are parked on it."""
        sleeps = self.residency is Residency.WARM and self.group is not None
        return len(self.tickets) if sleeps else 0

    @property
    def is_at_rest(self) -> bool:
        """Off its device, with nothing under way, no ticket and nothing to clean up: no plan turns on it
        unless its deployment wants it."""
        residency = self.state.residency
        if self.group is None:
            return residency in _OFF_DEVICE and not self.in_flight
        if any(each.leaves_by_s is not None for each in self.group.members):
            return False
        asleep = residency is Residency.WARM and not self.in_flight and not self.retired
        return asleep and not self.lease_bytes and not self.tickets

    def forget_group(self) -> None:
        """No worker knows it any more; the host cache may evict its copy."""
        self.group = None
        self.stats = ReplicaStats(self.replica_id)
        self.let_host_copy_go()

    def let_host_copy_go(self) -> None:
        """Lets the host cache evict its copy; does nothing if it holds none."""
        if self.host_copy is not None:
            self.host_copy.release()
            self.host_copy = None


@dataclass(slots=True, eq=False)
class Deployment:
    """One deployment.

    Attributes:
        replicas: those not retired; as many as it may have, most of them cold.
        waiters: in order of arrival.
        asked_in_vain_since_s: when a request first waited for it since it was last there; None if none has.
        exchange: what decided that others make room for it; None if none do.
        held: an operator put it to sleep; cleared by the next request.
        wanted_since_s: when its present policy was set.
        refusal: why it can never fit; empty where it can.
        scale: how many replicas its load asks for.
        pattern: the rhythm of its requests.
        rate: how many of them come.
        pace: how fast they are answered.
        costs: seconds of its steps.
        stirred: something has happened to it since a plan last found it at rest.
        due_s: when time alone will stir it; as of then.
        load_s, wake_s: running estimates; None before the first measurement.
        links: those of the devices, shared by all deployments, for what was never measured.
        absence: the time for which none of its replicas took requests.
    """

    spec: DeploymentSpec
    wanted_since_s: float
    replicas: list[Replica] = field(default_factory=list)
    waiters: Places[Waiter] = field(default_factory=Places)
    asked_in_vain_since_s: float | None = None
    exchange: Exchange | None = None
    held: bool = False
    refusal: str = ""
    load_s: float | None = None
    wake_s: float | None = None
    links: LinkRates = field(default_factory=LinkRates)
    stirred: bool = True
    due_s: float = math.inf
    scale: Scale = field(default_factory=Scale)
    pattern: ArrivalPattern = field(default_factory=ArrivalPattern)
    rate: ArrivalRate = field(default_factory=ArrivalRate)
    pace: Pace = field(default_factory=Pace)
    costs: StepModel = field(default_factory=StepModel)
    absence: Absence = field(init=False)

    def __post_init__(self) -> None:
        self.absence = Absence(self.wanted_since_s)

    @property
    def is_at_rest(self) -> bool:
        """Nobody waits for it, nothing keeps it resident, and all its replicas are at rest: a plan would come
        out the same without it."""
        policy = self.spec.policy
        if self.waiters or self.refusal or (policy.enabled and (policy.pinned or policy.min_replicas)):
            return False
        return all(each.is_at_rest for each in self.replicas)

    def note_rest(self, now_s: float, config: ManagerConfig) -> None:
        """Takes down whether it is at rest by now, and when time alone will end that. A deployment found at rest
        before, to which nothing has happened since, still is, and is not looked at."""
        if self.stirred or self.due_s <= now_s:
            self.due_s = self.prewake_at_s(now_s, config)
            self.stirred = self.due_s <= now_s or not self.is_at_rest or self.is_missed(now_s, config)

    def is_missed(self, now_s: float, config: ManagerConfig) -> bool:
        """Whether it sleeps although so many requests are to come that some will miss their targets by that."""
        rate_per_s = self.rate.per_s(now_s, config.rate_half_life_s)
        return is_missed(rate_per_s, self.reload_s(config), self.pace.first_token_s, config)

    def note_presence(self, now_s: float) -> None:
        """Takes down whether a replica of it takes requests now."""
        self.absence.note(any(each.takes_requests for each in self.replicas), now_s)

    def best_replica(self) -> Replica:
        if len(self.replicas) == 1:
            return self.replicas[0]
        return min(
            self.replicas,
            key=lambda each: (not each.takes_requests, _BEST.index(each.residency), len(each.tickets)),
        )

    def least_replica(self) -> Replica:
        """The one whose going is missed least."""
        return max(self.replicas, key=lambda each: (_BEST.index(each.residency), -len(each.tickets)))

    @property
    def is_coming(self) -> bool:
        """Whether a replica of it is on its way to a device."""
        return any(each.residency in (Residency.LOADING, Residency.WAKING) for each in self.replicas)

    @property
    def is_awaited(self) -> bool:
        """Whether requests wait for it or are parked on it."""
        return bool(self.waiters) or any(each.num_parked for each in self.replicas)

    def demand(self) -> DemandView | None:
        parked = [each for each in self.replicas if each.tickets and each.num_parked]
        if not self.waiters and not parked:
            return None
        arrivals_s = [each.state.since_s for each in parked]
        if self.waiters:
            arrivals_s.append(next(iter(self.waiters)).at_s)
        if self.asked_in_vain_since_s is not None:
            arrivals_s.append(self.asked_in_vain_since_s)
        latest_s = [each.latest_s(self.pace) for each in self.waiters]
        priorities = [each.priority for each in self.waiters]
        if parked:
            latest_s += [ticket.latest_s() for each in parked for ticket in each.tickets]
            priorities += [ticket.claim.priority for each in parked for ticket in each.tickets]
        return DemandView(len(latest_s), min(arrivals_s), max(priorities), tuple(latest_s))

    def model_use(self) -> ModelUse:
        """Its model, as far as requests for it take something of a worker."""
        return ModelUse(
            self.spec.kv_longest_bytes / self.spec.max_model_len,
            self.pace.output_tokens,
            self.pace.num_ended,
            self.costs,
            self.spec.policy.kv_cap_bytes or math.inf,
        )

    def as_held(self, claim: RequestClaim) -> HeldRequest:
        """A request for it, as a worker has it or would have it."""
        return HeldRequest(claim, self.model_use())

    def comes_in_s(self, now_s: float, config: ManagerConfig) -> float:
        """Seconds until it is there if it is brought now, or is on its way; 0 if it is there."""
        best = self.best_replica()
        if best.takes_requests:
            return 0.0
        since_s = now_s - best.state.since_s if self.is_coming else 0.0
        return max(0.0, self.reload_s(config) - since_s)

    def check_available(self, now_s: float) -> None:
        """Raises ``ModelUnavailableError`` where it is disabled, or failed and not yet to be tried again."""
        if not self.spec.policy.enabled:
            raise disabled(self.spec.name)
        best = self.best_replica()
        if best.residency is Residency.FAILED:
            retry_at_s = min(each.retry_at_s for each in self.replicas)
            if retry_at_s > now_s:
                raise unavailable(self.spec.name, best.state.reason, retry_at_s - now_s)

    def fail_waiters(self, make_error: Callable[[], MooringError]) -> None:
        """Ends every waiting acquire, each with an error object of its own."""
        for waiter in self.waiters:
            if not waiter.ticket.done():
                waiter.ticket.set_exception(make_error())
        self.waiters.clear()

    def count_arrival(self, now_s: float, half_life_s: float) -> None:
        self.rate.note(now_s, half_life_s)
        self.pattern.note(now_s)

    def rescale(self, now_s: float, config: PlannerConfig) -> None:
        """Takes the present load into ``scale``."""
        if self.spec.policy.max_replicas == 1:
            self.scale = _ALONE
            return
        num_requests = len(self.waiters) + sum(len(each.tickets) for each in self.replicas)
        num_up = sum(each.residency in ON_DEVICE for each in self.replicas)
        self.scale = rescale(self.scale, num_requests, num_up, self.spec.policy.max_replicas, now_s, config)

    def reload_s(self, config: ManagerConfig) -> float:
        """Seconds that bringing it to a device, or back there if it leaves, is expected to take, as measured or
        guessed from its size: those of a wake if its weights are, or would be, in memory, else those of a load."""
        way = "load"
        for each in self.replicas:
            if each.state.residency is Residency.WARM or each.can_sleep:
                way = "wake"
                break
        measured_s = self.wake_s if way == "wake" else self.load_s
        if measured_s is not None:
            return measured_s
        num_bytes = self.spec.weights_bytes
        by_rate_s = self.links.expected_s(way, num_bytes)
        return num_bytes / config.copy_bytes_per_s if by_rate_s is None else by_rate_s

    def next_arrival(self, now_s: float, config: ManagerConfig) -> ArrivalWindow | None:
        """When its rhythm lets expect a request, where models are woken ahead of those."""
        return self.pattern.window(now_s) if config.prewake else None

    def prewake_at_s(self, now_s: float, config: ManagerConfig) -> float:
        """When it is to be woken ahead of a request; ``inf`` for never."""
        window = self.next_arrival(now_s, config)
        if window is None or self.held or not self.spec.policy.enabled:
            return math.inf
        if not any(each.residency is Residency.WARM for each in self.replicas):
            return math.inf
        return wake_at_s(window, self.reload_s(config), config)

    def note_reload(self, before: Residency, device: str, seconds: float) -> None:
        """Takes a measured load or wake into the estimates (each new one counts for a third)."""
        way = "wake" if before is Residency.WAKING else "load"
        self.links.note(device, way, self.spec.weights_bytes, seconds)
        if before is Residency.WAKING:
            self.wake_s = seconds if self.wake_s is None else self.wake_s + (seconds - self.wake_s) / 3
        else:
            self.load_s = seconds if self.load_s is None else self.load_s + (seconds - self.load_s) / 3


def must_be_replaced(old: DeploymentSpec, new: DeploymentSpec) -> bool:
    """Whether a worker that knows the old one would have to be told anew."""
    return (
        old.artifact.key != new.artifact.key
        or old.weights_bytes != new.weights_bytes
        or old.max_model_len != new.max_model_len
        or old.kv_guarantee_bytes != new.kv_guarantee_bytes
        or old.kv_longest_bytes != new.kv_longest_bytes
        or old.policy.kv_cap_bytes != new.policy.kv_cap_bytes
    )


def not_found(name: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"no model is deployed as {name!r}", param="model")


def disabled(name: str) -> ModelUnavailableError:
    return ModelUnavailableError(f"model {name!r} is disabled")


def unavailable(name: str, reason: str, wait_s: float) -> ModelUnavailableError:
    message = f"model {name!r} failed: {reason}; it is tried again by a request in {wait_s:.0f} s or later"
    return ModelUnavailableError(message, retry_after_s=wait_s)


def shutting_down() -> ShuttingDownError:
    return ShuttingDownError("the server is shutting down")
