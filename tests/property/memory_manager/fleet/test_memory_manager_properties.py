"""Random traffic, failures and deaths against the real controller, on virtual time."""

import asyncio
import contextlib
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.simulated_memory import PAGE, SimulatedHostCache, SimulatedWorker, deployment, run_virtually

from memory_manager.config import DeviceBudget, ManagerConfig
from memory_manager.fleet.controller import MemoryManager
from memory_manager.fleet.views import HostTier, planner_state, unsettled
from memory_manager.policy.planner import plan
from memory_manager.policy.residency import ResidencyEvent
from mooring.errors import ArtifactError, InsufficientMemoryError, ModelNotFoundError, ModelUnavailableError

CONFIG = ManagerConfig(starve_after_s=2.0, max_retry_s=4.0)
NAMES = "abcd"
SLOW = {"suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


@dataclass(frozen=True)
class Request:
    name: str
    after_s: float
    runs_s: float
    patience_s: float | None
    priority: int


@dataclass(frozen=True)
class Disturbance:
    after_s: float
    kind: str
    name: str


requests = st.builds(
    Request,
    name=st.sampled_from(NAMES),
    after_s=st.floats(0, 20),
    runs_s=st.sampled_from([0.0, 0.01, 0.3, 3.0]),
    patience_s=st.sampled_from([None, None, None, 0.0, 0.05, 0.2, 1.0]),
    priority=st.integers(-1, 1),
)
disturbances = st.builds(
    Disturbance,
    after_s=st.floats(0, 20),
    kind=st.sampled_from(
        ["die", "leave", "sleep", "disable", "replace", "policy", "hold", "remove", "others", "copies", "kv"]
    ),
    name=st.sampled_from(NAMES),
)
models = st.fixed_dictionaries(
    {
        "weights_pages": st.integers(1, 24),
        "kv_pages": st.sampled_from([0, 0, 1, 3, 6]),
        "longest_pages": st.integers(1, 6),
        "priority": st.integers(-1, 1),
        "idle_timeout_s": st.sampled_from([None, 0.5, 5.0]),
        "min_replicas": st.integers(0, 1),
        "max_replicas": st.integers(1, 2),
    }
)


class World:
    """A manager whose workers die and fail, watched at every change."""

    def __init__(
        self,
        budgets: list[int],
        seed: int,
        failure_rate: float,
        host_pages: int = 1000,
        remains_pages: int = 0,
        workers_per_device: int = 1,
        maps_host_copy: bool = False,
    ) -> None:
        self.remains_pages = remains_pages
        self.maps_host_copy = maps_host_copy
        self.loop = asyncio.get_running_loop()
        self.cache = SimulatedHostCache(host_pages * PAGE)
        self.failure_rate, self.seed = failure_rate, seed
        self.devices = [DeviceBudget(f"d{i}", pages * PAGE) for i, pages in enumerate(budgets)]
        self.manager = MemoryManager(
            self.devices, self.cache, CONFIG, clock=self.loop.time, sink=self.on_event
        )
        self.num_left_out = 0
        self.workers: dict[str, SimulatedWorker] = {}
        self.neighbours: dict[str, list[SimulatedWorker]] = {device.name: [] for device in self.devices}
        self.violations: list[str] = []
        for number in range(workers_per_device):
            for device in self.devices:
                self.start_worker(device, f"w{number}-{device.name}")

    def on_event(self, event: ResidencyEvent) -> None:
        self.manager.check()
        assert self.cache.free_bytes >= 0
        assert event.duration_s >= 0

    def start_worker(self, device: DeviceBudget, worker_id: str) -> None:
        self.seed += 1
        worker = SimulatedWorker(
            device.budget_bytes,
            worker_id=worker_id,
            device=device.name,
            seed=self.seed,
            failure_rate=self.failure_rate,
            remains_pages=self.remains_pages,
            maps_host_copy=self.maps_host_copy,
        )
        worker.on_death = self.on_death
        worker.neighbours = self.neighbours[device.name]
        worker.neighbours.append(worker)
        self.workers[worker_id] = worker
        self.manager.add_worker(worker)

    def on_death(self, dead: SimulatedWorker) -> None:
        self.violations += dead.violations
        device = next(each for each in self.devices if each.name == dead.device)
        # The supervisor may hear of it later than whoever is calling the worker.
        self.loop.call_later(0.01, self.manager.worker_lost, dead.worker_id)
        self.loop.call_later(0.5, self.start_worker, device, dead.worker_id)

    def worker_of(self, name: str) -> SimulatedWorker:
        """A worker that is alive or was last, the same for the same model."""
        return list(self.workers.values())[ord(name) % len(self.workers)]

    async def watch_plans(self) -> None:
        """Again and again: the plan without those at rest is the plan with them."""
        manager = self.manager
        while True:
            await asyncio.sleep(0.0317)
            now_s = self.loop.time()
            deployments, replicas = manager._deployments.values(), manager._replicas.values()
            host = HostTier(manager._host_cache, replicas)
            where = manager._ledgers, manager._workers, host
            for each in deployments:
                each.note_rest(now_s, CONFIG)
            *moving, next_due_s = unsettled(deployments, replicas)
            whole = planner_state(*where, deployments, replicas, CONFIG, now_s)
            part = planner_state(*where, *moving, CONFIG, now_s, next_due_s)
            self.num_left_out += len(whole.deployments) - len(part.deployments)
            assert plan(part, now_s, CONFIG) == plan(whole, now_s, CONFIG)

    async def request(self, request: Request) -> str:
        await asyncio.sleep(request.after_s)
        left_s, patience_s, again = request.runs_s, request.patience_s, False
        while not again or left_s:
            try:
                async with asyncio.timeout(patience_s):
                    ticket = await self.manager.acquire(request.name, priority=request.priority, again=again)
            except (
                TimeoutError,
                ModelUnavailableError,
                ModelNotFoundError,
                InsufficientMemoryError,
            ) as error:
                return type(error).__name__
            patience_s, again = None, True
            with ticket:
                left_s = await self.workers[ticket.worker_id].run(ticket.replica_id, left_s)
            if left_s:  # the manager may learn of a worker's death later than who ran there
                await asyncio.sleep(0.005)
        return "served"

    async def disturb(self, disturbance: Disturbance, specs: dict[str, dict[str, int]]) -> None:
        await asyncio.sleep(disturbance.after_s)
        name = disturbance.name
        match disturbance.kind:
            case "die":
                self.worker_of(name).die()
            case "leave":
                worker = self.worker_of(name)
                await self.manager.drain_worker(worker.worker_id, 0.5)
                assert not worker.held
                worker.die()
            case "sleep":
                with contextlib.suppress(*([ArtifactError] if self.failure_rate else [])):
                    await self.manager.sleep(name)
            case "hold":
                with await self.manager.acquire("tiny"):
                    await asyncio.sleep(1)
            case "remove":
                self.manager.remove_deployment(name)
                self.manager.upsert_deployment(deployment(name, **specs[name]))
            case "others":
                device = self.devices[ord(name) % len(self.devices)]
                for share in (0.7, 0.2, 1.0, 0.0):
                    self.manager.others.set_others(device.name, int(device.budget_bytes * share), "a test")
                    await asyncio.sleep(0.9)
            case "copies":
                self.manager.others.give_up_copies(10 * PAGE)
            case "kv":
                for wanted_pages in (1000, 20, 0):
                    for worker in self.workers.values():
                        worker.kv_wanted_bytes = wanted_pages * PAGE
                    await asyncio.sleep(0.9)
            case "disable":
                self.manager.upsert_deployment(deployment(name, enabled=False, **specs[name]))
                await asyncio.sleep(3)
                self.manager.upsert_deployment(deployment(name, **specs[name]))
            case "replace":
                specs[name]["weights_pages"] = max(1, specs[name]["weights_pages"] - 1)
                self.manager.upsert_deployment(deployment(name, **specs[name]))
            case _:
                self.manager.upsert_deployment(deployment(name, **specs[name]))

    async def come_to_rest(self) -> None:
        """Waits until no move is under way."""
        await asyncio.sleep(30)
        while any(each.in_flight for each in self.manager._replicas.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def check_at_rest(self) -> None:
        self.manager.check()
        snapshot = self.manager.snapshot()
        assert snapshot.num_ledger_mismatches == 0
        assert all(each.num_waiting == 0 for each in snapshot.deployments)
        assert not any(replica.tickets for replica in self.manager._replicas.values())
        for device in snapshot.devices:
            there = [each for each in self.workers.values() if each.device == device.name]
            weights = sum(held for owner, held in device.owners.items() if owner.startswith("weights"))
            assert weights == sum(worker.weights_bytes for worker in there)
            # Nothing is left lying about: what is not weights is KV.
            kv_bytes = sum(worker.kv_bytes for worker in there)
            assert device.budget_bytes - weights - kv_bytes < len(self.workers) * PAGE
            for worker in there:
                assert device.owners[f"kv:{worker.worker_id}"] == worker.kv_lease_bytes == worker.kv_bytes
                assert worker.allowed_bytes == (device.budget_bytes if len(there) == 1 else 0)
                assert worker.violations == []
                worker.check_guarantees()
        assert sum(self.cache.pins.values()) == sum(
            held.has_copy for worker in self.workers.values() for held in worker.held.values()
        )


@settings(max_examples=40, **SLOW)
@given(
    budgets=st.lists(st.integers(26, 40), min_size=1, max_size=2),
    sizes=st.lists(models, min_size=4, max_size=4),
    traffic=st.lists(requests, min_size=5, max_size=40),
    trouble=st.lists(disturbances, max_size=6),
    failure_rate=st.sampled_from([0.0, 0.0, 0.2]),
    host_pages=st.sampled_from([8, 20, 30, 1000]),
    maps_host_copy=st.booleans(),
    remains_pages=st.integers(0, 1),
    workers_per_device=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_no_byte_is_promised_twice_or_lost_and_every_acquire_ends(
    budgets: list[int],
    sizes: list[dict[str, int]],
    traffic: list[Request],
    trouble: list[Disturbance],
    failure_rate: float,
    host_pages: int,
    maps_host_copy: bool,
    remains_pages: int,
    workers_per_device: int,
    seed: int,
) -> None:
    async def main() -> None:
        world = World(
            budgets, seed, failure_rate, host_pages, remains_pages, workers_per_device, maps_host_copy
        )
        specs = dict(zip(NAMES, sizes, strict=True))
        for name, sizes_of in specs.items():
            # Sleepers are not made to give up what they keep, so it must fit beside the largest model.
            most_pages = (
                min(budgets)
                - workers_per_device
                - max(sizes_of["kv_pages"], sizes_of["longest_pages"])
                - remains_pages * (len(NAMES) + 1)
            )
            sizes_of["weights_pages"] = min(sizes_of["weights_pages"], most_pages if remains_pages else 99)
            world.manager.upsert_deployment(deployment(name, **sizes_of))
        world.manager.upsert_deployment(deployment("tiny", weights_pages=1, kv_pages=1))
        outcomes = await asyncio.gather(
            *(world.request(each) for each in traffic),
            *(world.disturb(each, specs) for each in trouble),
            return_exceptions=True,
        )
        for outcome in outcomes:
            assert not isinstance(outcome, BaseException) or isinstance(outcome, ModelUnavailableError), (
                outcome
            )
        if failure_rate == 0.0 and not trouble:
            for request, outcome in zip(traffic, outcomes, strict=True):
                fits = deployment(request.name, **specs[request.name])
                needs = fits.weights_bytes + workers_per_device * PAGE
                needs += max(fits.kv_guarantee_bytes, fits.kv_longest_bytes)
                if request.patience_s is None and needs <= max(budgets) * PAGE:
                    assert outcome == "served"
        for worker in world.workers.values():
            worker.failure_rate = 0.0
        await world.come_to_rest()
        world.check_at_rest()
        assert world.violations == []
        await world.manager.stop()
        assert len(asyncio.all_tasks()) == 1

    run_virtually(main)


@settings(max_examples=15, **SLOW)
@given(
    budgets=st.lists(st.integers(26, 40), min_size=1, max_size=2),
    sizes=st.lists(models, min_size=4, max_size=4),
    traffic=st.lists(requests, min_size=5, max_size=25),
    trouble=st.lists(disturbances, max_size=6),
    failure_rate=st.sampled_from([0.0, 0.2]),
    period_s=st.sampled_from([2.5, 4.0]),
    host_pages=st.sampled_from([20, 30, 1000]),
    seed=st.integers(0, 1000),
)
def test_a_plan_is_the_same_without_those_at_rest(
    budgets: list[int],
    sizes: list[dict[str, int]],
    traffic: list[Request],
    trouble: list[Disturbance],
    failure_rate: float,
    period_s: float,
    host_pages: int,
    seed: int,
) -> None:
    async def main() -> None:
        world = World(budgets, seed, failure_rate, host_pages)
        specs = dict(zip(NAMES, sizes, strict=True))
        for name, sizes_of in specs.items():
            world.manager.upsert_deployment(deployment(name, **sizes_of))
        world.manager.upsert_deployment(deployment("tiny", 1, 1, idle_timeout_s=0.5))
        rhythm = [Request("tiny", period_s * i, 0.01, None, 0) for i in range(8)]
        watch = asyncio.create_task(world.watch_plans())
        await asyncio.gather(
            *(world.request(each) for each in [*traffic, *rhythm]),
            *(world.disturb(each, specs) for each in trouble),
            return_exceptions=True,
        )
        await asyncio.sleep(3)
        assert not watch.done(), watch.exception()
        assert world.num_left_out > 0
        watch.cancel()
        await world.manager.stop()

    run_virtually(main)


@settings(max_examples=10, **SLOW)
@given(
    num_clients=st.integers(1, 2),
    runs_s=st.sampled_from([0.15, 0.5, 2.5]),
    pauses_s=st.sampled_from([0.0, 0.01]),
    copy_s=st.sampled_from([0.05, 0.5]),
)
def test_three_always_busy_models_all_make_progress_in_the_room_of_two(
    num_clients: int, runs_s: float, pauses_s: float, copy_s: float
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        manager = MemoryManager(
            [DeviceBudget("cpu", 30 * PAGE)], SimulatedHostCache(), CONFIG, clock=loop.time
        )
        worker = SimulatedWorker(30 * PAGE, copy_s=copy_s)
        manager.add_worker(worker)
        served_s = dict.fromkeys("abc", 0.0)
        for name in served_s:
            manager.upsert_deployment(deployment(name))

        async def client(name: str) -> None:
            while loop.time() < 20:
                with await manager.acquire(name) as ticket:
                    assert not await worker.run(ticket.replica_id, runs_s)
                served_s[name] += runs_s
                await asyncio.sleep(pauses_s)

        await asyncio.gather(*(client(name) for name in served_s for _ in range(num_clients)))
        assert min(served_s.values()) > 0
        await manager.stop()

    run_virtually(main)
