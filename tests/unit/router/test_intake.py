"""The one way in: what a tenant is promised and has in flight, and the size of answers to several prompts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.router_doors import (
    ScriptedSource,
    ScriptedStream,
    byte_level_tokenizer,
    one_token_a_step,
    served_model,
    services,
    write_model_folder,
)

from mooring.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    MooringError,
    OverloadedError,
    RateLimitError,
)
from mooring.slo import SLOClass
from router.intake import Intake
from router.request.bounds import RouterConfig
from router.request.request import GenerationRequest
from router.request.sampling import SamplingOptions
from router.telemetry.metrics import Gauges, Metrics
from router.telemetry.waits import Spent
from router.tenancy.tenant import ANONYMOUS, Tenant
from router.text.batch_generation import BatchGeneration
from router.text.generation import TextGeneration

TENANT = Tenant("t", b"1")
GOLD = SLOClass("gold", ttft_target_s=0.5, tpot_target_s=0.05, goal=0.99, priority=7, on_miss="refuse")


def answer(request: GenerationRequest) -> ScriptedStream:
    if len(request.prompt_ids) == 3:
        raise OverloadedError("full")
    return ScriptedStream(one_token_a_step(request, [70, 71, 72]))


class Door:
    """An intake over a scripted source, and one tenant's requests to it."""

    def __init__(self, folder: Path, config: RouterConfig) -> None:
        write_model_folder(folder, byte_level_tokenizer())
        self.source = ScriptedSource(answer)
        self.services = services(self.source, [served_model("m", folder)], config=config)
        self.intake = Intake(self.services)

    @property
    def judged(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Requests that met and that missed their targets, by tenant and class."""
        entries = self.services.metrics.attainments.entries()
        return {(each.tenant, each.slo_class): tuple(each.total) for each in entries}

    async def start(self, prompt: str = "a", tenant: Tenant = TENANT, **options: Any) -> TextGeneration:
        return await self.intake.start(
            model="m", prompt=prompt, options=SamplingOptions(**options), request_id="r", tenant=tenant
        )

    async def start_batch(self, *prompts: str, tenant: Tenant = TENANT, **options: Any) -> BatchGeneration:
        return await self.intake.start_batch(
            model="m", prompts=prompts, options=SamplingOptions(**options), request_id="r", tenant=tenant
        )


async def test_a_tenants_requests_count_from_their_start_to_their_close(tmp_path: Path) -> None:
    door = Door(tmp_path, RouterConfig(max_tenant_requests=2))
    first = await door.start()
    batch = await door.start_batch("a", "b")
    with pytest.raises(RateLimitError, match="max_tenant_requests") as refused:
        await door.start()
    assert refused.value.code == "tenant_requests_in_flight"
    await (await door.start(tenant=ANONYMOUS)).aclose()
    await batch.aclose()
    await batch.aclose()
    second = await door.start()
    with pytest.raises(RateLimitError):
        await door.start()
    await first.whole()  # ended, but its answer is not sent yet
    with pytest.raises(RateLimitError):
        await door.start()
    await first.aclose()
    await second.aclose()


async def test_choices_count_over_all_prompts(tmp_path: Path) -> None:
    door = Door(tmp_path, RouterConfig(max_tenant_choices=6))
    batch = await door.start_batch("a", "b", n=2)
    with pytest.raises(RateLimitError, match="max_tenant_choices"):
        await door.start(n=3)
    small = await door.start(n=2)
    await small.aclose()
    await batch.aclose()
    await (await door.start(n=6)).aclose()


async def test_what_is_refused_or_fails_holds_nothing(tmp_path: Path) -> None:
    door = Door(tmp_path, RouterConfig(max_tenant_requests=1, max_tenant_choices=129))
    for n, prompts in ((0, ["a"]), (129, ["a"]), (-5, ["a"]), (1, ["xyz"]), (1, ["a", "xyz"]), (1, [""])):
        with pytest.raises(MooringError):
            await (door.start(prompts[0], n=n) if len(prompts) == 1 else door.start_batch(*prompts, n=n))
    await (await door.start(n=128)).aclose()


async def test_the_answers_to_all_prompts_count_together(tmp_path: Path) -> None:
    door = Door(tmp_path, RouterConfig(max_answer_tokens=10))
    await (await door.start_batch("a", "b", max_tokens=5)).aclose()
    with pytest.raises(InvalidRequestError, match="max_answer_tokens") as refused:
        await door.start_batch("a", "b", "c", max_tokens=5)
    assert refused.value.code == "answer_too_large"
    assert len(door.source.requests) == 2
    for stream in door.source.streams:
        assert stream.closed.is_set()


async def test_bad_words_count_for_each_choice(tmp_path: Path) -> None:
    door = Door(tmp_path, RouterConfig(max_bad_word_tokens=8))
    words = ("t",)  # spelled with one token, and with one after a space
    await (await door.start(n=4, bad_words=words)).aclose()
    with pytest.raises(InvalidRequestError, match="at most 8") as refused:
        await door.start(n=5, bad_words=words)
    assert refused.value.param == "bad_words"
    await (await door.start_batch("a", "b", n=2, bad_words=words)).aclose()
    with pytest.raises(InvalidRequestError):
        await door.start_batch("a", "b", "c", n=2, bad_words=words)


async def test_a_request_gets_the_targets_and_the_priority_of_its_tenants_class(tmp_path: Path) -> None:
    door = Door(tmp_path, RouterConfig())
    await (await door.start(tenant=replace(TENANT, slo_class=GOLD))).aclose()
    for batch in (
        await door.start_batch("a", "b", tenant=replace(TENANT, slo_class=GOLD)),
        await door.start(tenant=TENANT),
        await door.start(tenant=ANONYMOUS),
    ):
        await batch.aclose()
    promised = [
        (
            *(round(each.deadline_s - each.arrival_s, 6), each.tpot_target_s, each.priority),
            *(each.refuses_miss, each.slo_class),
        )
        for each in door.source.requests
    ]
    assert promised == [(0.5, 0.05, 7, True, GOLD)] * 3 + [(60.0, 60.0, 0, False, None)] * 2
    assert door.judged == {}, "their clients gave them up"


@pytest.mark.parametrize(
    ("own", "promised"),
    [
        (None, (60.0, 60.0, 0)),
        (GOLD, (60.0, 60.0, 0)),
        (replace(GOLD, ttft_target_s=600.0, tpot_target_s=90.0, priority=-3), (600.0, 90.0, -3)),
    ],
)
async def test_who_gives_up_a_class_for_best_effort_gets_nothing_better(
    tmp_path: Path, own: SLOClass | None, promised: tuple[float, float, int]
) -> None:
    door = Door(tmp_path, RouterConfig())
    tenant = replace(TENANT, slo_class=own).in_class("best-effort", param="x")
    await (await door.start(tenant=tenant)).aclose()
    (request,) = door.source.requests
    targets = (round(request.deadline_s - request.arrival_s, 6), request.tpot_target_s)
    assert (*targets, request.priority) == promised
    assert (request.slo_class, request.refuses_miss) == (None, False)


async def test_a_request_has_the_weight_of_its_tenant(tmp_path: Path) -> None:
    door = Door(tmp_path, RouterConfig())
    await (await door.start(tenant=replace(TENANT, weight=2.5))).aclose()
    await (await door.start(tenant=ANONYMOUS)).aclose()
    assert [each.weight for each in door.source.requests] == [2.5, 1.0]


async def test_what_a_tenant_has_in_flight_counts_whatever_its_class(tmp_path: Path) -> None:
    door = Door(tmp_path, RouterConfig(max_tenant_requests=1))
    first = await door.start(tenant=replace(TENANT, slo_class=GOLD))
    with pytest.raises(RateLimitError):
        await door.start(tenant=TENANT)
    await first.aclose()


async def test_refusals_that_are_no_fault_of_the_caller_miss_its_targets(tmp_path: Path) -> None:
    door = Door(tmp_path, RouterConfig(max_tenant_requests=1))
    tenant = replace(TENANT, slo_class=replace(GOLD, ttft_target_s=600.0, tpot_target_s=600.0))
    with pytest.raises(OverloadedError):
        await door.start("xyz", tenant=tenant)
    running = await door.start(tenant=tenant)
    with pytest.raises(RateLimitError):
        await door.start(tenant=tenant)
    with pytest.raises(RateLimitError):
        await door.start_batch("a", "b", tenant=tenant)
    await running.whole()
    await running.aclose()
    with pytest.raises(InvalidRequestError):
        await door.start(tenant=tenant, temperature=9.0)
    assert door.judged == {("t", "gold"): (1, 3)}
    with pytest.raises(OverloadedError):
        await door.start("xyz", tenant=ANONYMOUS)
    assert door.judged["anonymous", "best-effort"] == (0, 1)


@pytest.mark.parametrize("num_prompts", [1, 2])
@pytest.mark.parametrize(("waited_s", "judged"), [(0.25, {}), (1.0, {("t", "gold"): (0, 1)})])
async def test_who_leaves_while_the_request_waits_missed_once_its_first_token_was_due(
    tmp_path: Path, num_prompts: int, waited_s: float, judged: dict[tuple[str, str], tuple[int, int]]
) -> None:
    door = Door(tmp_path, RouterConfig())
    now_s, asked = 100.0, asyncio.Event()
    door.services.metrics.clock = lambda: now_s
    generate = door.source.generate

    async def wait(request: GenerationRequest) -> ScriptedStream:
        if len(request.prompt_ids) == 1:
            return await generate(request)
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    door.source.generate = wait
    tenant = replace(TENANT, slo_class=GOLD)
    starting: asyncio.Task[Any] = asyncio.create_task(
        door.start("ab", tenant=tenant) if num_prompts == 1 else door.start_batch("a", "ab", tenant=tenant)
    )
    await asyncio.wait_for(asked.wait(), 20)
    now_s += waited_s
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert door.judged == judged
    assert all(stream.closed.is_set() for stream in door.source.streams)


@pytest.mark.parametrize(
    ("error", "judged"),
    [
        (ZeroDivisionError(), {("t", "gold"): (0, 1)}),
        (OverloadedError("full"), {("t", "gold"): (0, 1)}),
        (InvalidRequestError("wrong"), {}),
    ],
)
@pytest.mark.parametrize("is_started", [False, True])
async def test_errors_of_ours_missed_and_the_callers_count_as_neither(
    tmp_path: Path, error: Exception, judged: dict[tuple[str, str], tuple[int, int]], is_started: bool
) -> None:
    door = Door(tmp_path, RouterConfig())

    def fail(request: GenerationRequest) -> ScriptedStream:
        if not is_started:
            raise error
        return ScriptedStream([error])

    door.source.script = fail

    async def serve() -> None:
        generation = await door.start(tenant=replace(TENANT, slo_class=GOLD))
        try:
            await generation.whole()
        finally:
            await generation.aclose()

    with pytest.raises(type(error)):
        await serve()
    assert door.judged == judged


async def test_requests_for_models_that_there_are_not_are_counted_nowhere(tmp_path: Path) -> None:
    door = Door(tmp_path, RouterConfig(max_tenant_requests=1))
    running = await door.start()
    for error in (RateLimitError, ModelNotFoundError):
        with pytest.raises(error):
            await door.intake.start(
                model="nothing", prompt="a", options=SamplingOptions(), request_id="r", tenant=TENANT
            )
        await running.aclose()
    assert door.judged == {}


async def test_a_miss_says_for_how_long_it_waited_and_for_how_much_of_that_the_model_was_away(
    tmp_path: Path,
) -> None:
    door = Door(tmp_path, RouterConfig())
    now_s, away_s = 10.0, 5.0
    door.services = replace(
        door.services, metrics=Metrics(Gauges, away_s=lambda model: away_s, clock=lambda: now_s)
    )
    door.intake = Intake(door.services)
    steps = [OverloadedError("full"), None, None]

    def answer_late(request: GenerationRequest) -> ScriptedStream:
        nonlocal now_s, away_s
        now_s, away_s = now_s + 3.0, away_s + 1.0
        if (error := steps.pop(0)) is not None:
            raise error
        return ScriptedStream(one_token_a_step(request, [70, 71, 72]), predicted_ttft_s=4.0)

    door.source.script = answer_late
    tenant = replace(TENANT, slo_class=GOLD)
    with pytest.raises(OverloadedError):
        await door.start(tenant=tenant)
    one = await door.start(tenant=tenant)
    now_s += 2.0
    await one.whole()
    await one.aclose()
    batch = await door.start_batch("a", tenant=tenant)
    now_s += 2.0
    await batch.whole()
    await batch.aclose()
    (entry,) = door.services.metrics.attainments.entries()
    served = Spent(2.0, 1.0, 2.0, 0.0)
    assert [each.spent for each in entry.misses] == [Spent(2.0, 1.0), served, served]
    near = 'mooring_ttft_predictions_total{model="m",outcome="near",wake="yes"} 2.0'
    assert near in door.services.metrics.expose().decode()
