"""Keys, the cache in front of them, and the metrics that need no request."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from support.router_doors import known_tenant

from memory_manager.policy.residency import Residency, ResidencyEvent
from model_registry.records import TenantRecord
from model_registry.tenants import KEY_PREFIX, hash_key
from mooring.errors import AuthenticationError, OverloadedError
from router.request.bounds import RouterConfig
from router.request.single_flight import SingleFlightCache
from router.telemetry.metrics import Gauges, Metrics, ModelGauges
from router.tenancy.cache_scope import cache_scope
from router.tenancy.keys import Tenancy, api_key_of
from router.tenancy.tenant import ANONYMOUS, tenant_from


class Registry:
    """Counts look-ups; knows the keys it is told of."""

    def __init__(self, **tenant_by_key: str) -> None:
        self.tenant_by_hash = {hash_key(key_of(key)): name for key, name in tenant_by_key.items()}
        self.asked: list[str] = []

    def authenticate(self, key_hash: str) -> TenantRecord | None:
        self.asked.append(key_hash)
        name = self.tenant_by_hash.get(key_hash)
        return None if name is None else known_tenant(name)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def key_of(name: str) -> str:
    """A key as the registry makes them."""
    return KEY_PREFIX + name.ljust(43, "-")


def tenancy(registry: Registry, clock: Clock, *, allow_anonymous: bool = False) -> Tenancy:
    return Tenancy(registry.authenticate, allow_anonymous=allow_anonymous, config=RouterConfig(), clock=clock)


async def test_good_keys_are_remembered_for_a_while_and_unknown_ones_briefly() -> None:
    registry, clock = Registry(k1="acme"), Clock()
    checked = tenancy(registry, clock)
    k1, late = key_of("k1"), key_of("late")
    for _ in range(3):
        assert (await checked.tenant_of(k1)).name == "acme"
    with pytest.raises(AuthenticationError):
        await checked.tenant_of(late)
    assert registry.asked == [hash_key(k1), hash_key(late)]
    clock.now_s = 1.5
    registry.tenant_by_hash[hash_key(late)] = "late"
    assert (await checked.tenant_of(late)).name == "late"
    assert (await checked.tenant_of(k1)).name == "acme"
    assert registry.asked == [hash_key(k1), hash_key(late), hash_key(late)]
    clock.now_s = 5.5
    del registry.tenant_by_hash[hash_key(k1)]
    with pytest.raises(AuthenticationError):
        await checked.tenant_of(k1)


async def test_without_a_key() -> None:
    registry = Registry(k1="acme")
    with pytest.raises(AuthenticationError, match="provide an API key"):
        await tenancy(registry, Clock()).tenant_of(None)
    relaxed = tenancy(registry, Clock(), allow_anonymous=True)
    assert await relaxed.tenant_of(None) == ANONYMOUS
    assert await relaxed.tenant_of("whatever") == ANONYMOUS
    assert (await relaxed.tenant_of(key_of("k1"))).name == "acme"
    for refused in (key_of("revoked"), f"{KEY_PREFIX}short"):
        with pytest.raises(AuthenticationError):
            await relaxed.tenant_of(refused)


@pytest.mark.parametrize("allow_anonymous", [True, False])
async def test_what_has_not_the_form_of_a_key_is_never_looked_up(allow_anonymous: bool) -> None:
    registry = Registry()
    checked = tenancy(registry, Clock(), allow_anonymous=allow_anonymous)
    for text in (
        "x" * 60_000,
        KEY_PREFIX + "x" * 60_000,
        key_of("k1") + "\n",
        key_of("\ud800"),
        "sk-" + "a" * 43,
    ):
        with (
            contextlib.nullcontext()
            if allow_anonymous and text[0] != "m"
            else pytest.raises(AuthenticationError)
        ):
            await checked.tenant_of(text)
    assert registry.asked == []


async def test_keys_wait_for_the_registry_in_few_threads_of_their_own_and_not_without_end() -> None:
    may_answer = threading.Event()
    threads = set()

    def authenticate(key_hash: str) -> TenantRecord | None:
        threads.add(threading.current_thread().name)
        assert may_answer.wait(10)
        return known_tenant("acme")

    config = RouterConfig(max_key_checks=8)
    checked = Tenancy(authenticate, allow_anonymous=False, config=config)
    waiting = [asyncio.create_task(checked.tenant_of(key_of(str(number)))) for number in range(8)]
    await asyncio.to_thread(int)  # other work has its threads
    with pytest.raises(OverloadedError):
        await checked.tenant_of(key_of("another"))
    same = asyncio.create_task(checked.tenant_of(key_of("0")))  # waits with the first
    await asyncio.sleep(0)
    may_answer.set()
    assert {tenant.name for tenant in await asyncio.gather(*waiting, same)} == {"acme"}
    assert (await checked.tenant_of(key_of("another"))).name == "acme"
    assert len(threads) <= 2
    assert all(name.startswith("keys") for name in threads)


async def test_made_up_keys_stand_in_no_known_key_s_way() -> None:
    may_answer = threading.Event()
    good, clock = hash_key(key_of("good")), Clock()

    def authenticate(key_hash: str) -> TenantRecord | None:
        assert key_hash == good or may_answer.wait(10)
        return known_tenant("acme") if key_hash == good else None

    config = RouterConfig(max_key_checks=8, key_cache_entries=8)
    checked = Tenancy(authenticate, allow_anonymous=False, config=config, clock=clock)
    assert (await checked.tenant_of(key_of("good"))).name == "acme"
    made_up = [asyncio.create_task(checked.tenant_of(key_of(str(number)))) for number in range(8)]
    await asyncio.sleep(0)
    clock.now_s = config.key_cache_s + 1
    assert (await checked.tenant_of(key_of("good"))).name == "acme"  # looked up again meanwhile
    may_answer.set()
    for task in made_up:
        with pytest.raises(AuthenticationError):
            await task
    good = ""  # revoked
    assert (await checked.tenant_of(key_of("good"))).name == "acme"  # it has not been dropped for theirs
    clock.now_s += config.key_cache_s
    for _ in range(2):
        with pytest.raises(AuthenticationError):
            await checked.tenant_of(key_of("good"))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(TenantRecord(8, "acme", 1_700_000_000.0), id="made again"),
        pytest.param(TenantRecord(7, "acme", 1_700_000_001.0), id="made again, the old id given anew"),
        pytest.param(TenantRecord(8, "anonymous", 1_700_000_000.0), id="named by an older version"),
    ],
)
def test_a_tenant_finds_nothing_of_another_one_of_its_name(other: TenantRecord) -> None:
    first = tenant_from(TenantRecord(7, "acme", 1_700_000_000.0))
    second = tenant_from(other)
    assert len({cache_scope("tenant", tenant, None) for tenant in (first, second, ANONYMOUS)}) == 3
    assert len({cache_scope("shared", tenant, None) for tenant in (first, second, ANONYMOUS)}) == 1
    assert cache_scope("tenant", first, None) == cache_scope(
        "tenant", tenant_from(TenantRecord(7, "acme", 1_700_000_000.0)), None
    )
    assert second.name != ANONYMOUS.name


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"authorization": "Basic abc"}, None),
        ({"authorization": "Bearer"}, None),
        ({"x-api-key": "abc"}, "abc"),
        ({"authorization": "Bearer", "x-api-key": "abc"}, "abc"),
        ({}, None),
    ],
)
def test_where_keys_are_looked_for(headers: dict[str, str], key: str | None) -> None:
    assert api_key_of(headers) == key


async def test_a_slow_look_up_is_made_once_and_survives_a_caller_that_leaves() -> None:
    may_go = threading.Event()
    loads = []

    def load(key: str) -> str:
        loads.append(key)
        assert may_go.wait(10)
        return key.upper()

    cache = SingleFlightCache[str, str](load, max_entries=2)
    callers = [asyncio.create_task(cache.get("a")) for _ in range(3)]
    await asyncio.sleep(0.01)
    callers[0].cancel()
    may_go.set()
    assert await asyncio.gather(*callers[1:]) == ["A", "A"]
    assert loads == ["a"]
    for key in ("b", "a", "c", "a", "b"):
        await cache.get(key)
    assert loads == ["a", "b", "c", "b"]


async def test_a_failed_look_up_is_told_and_tried_again() -> None:
    answers = [ValueError("broken"), None]

    def load(key: str) -> str:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return key

    cache = SingleFlightCache[str, str](load, max_entries=2)
    with pytest.raises(ValueError, match="broken"):
        await cache.get("a")
    assert await cache.get("a") == "a"


def test_gauges_are_asked_for_at_the_scrape() -> None:
    models = {"m": ModelGauges(1, 2, 3, 0.5)}
    memory = {("cpu", "kv:m"): 10}
    metrics = Metrics(lambda: Gauges(models, memory))
    models["n"] = ModelGauges(3, 0, 0, 0.0)
    memory[("cpu", "kv:m")] = 20
    metrics.observe_transition(
        ResidencyEvent(0.0, "m", "m/0", None, Residency.WARM, Residency.RESIDENT, 0.004, "asked for")
    )
    text = metrics.expose().decode()
    for line in (
        'vllm:num_requests_running{engine="0",model_name="n"} 3.0',
        'vllm:num_requests_waiting{engine="0",model_name="m"} 5.0',
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0',
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 3.0',
        'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5',
        'mooring_device_memory_bytes{device="cpu",owner="kv:m"} 20.0',
        'mooring_residency_transitions_total{deployment="m",from="warm",to="resident"} 1.0',
        'mooring_residency_transition_seconds_count{deployment="m",from="warm",to="resident"} 1.0',
    ):
        assert line in text
