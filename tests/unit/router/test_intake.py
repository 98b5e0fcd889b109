"""The one way in: what a tenant has in flight, and the size of answers to several prompts."""

from __future__ import annotations

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

from mooring.errors import InvalidRequestError, MooringError, OverloadedError, RateLimitError
from router.intake import Intake
from router.request.bounds import RouterConfig
from router.request.request import GenerationRequest
from router.request.sampling import SamplingOptions
from router.tenancy.tenant import ANONYMOUS, Tenant
from router.text.batch_generation import BatchGeneration
from router.text.generation import TextGeneration

TENANT = Tenant("t", b"1")


def answer(request: GenerationRequest) -> ScriptedStream:
    if len(request.prompt_ids) == 3:
        raise OverloadedError("full")
    return ScriptedStream(one_token_a_step(request, [70, 71, 72]))


class Door:
    """An intake over a scripted source, and one tenant's requests to it."""

    def __init__(self, folder: Path, config: RouterConfig) -> None:
        write_model_folder(folder, byte_level_tokenizer())
        self.source = ScriptedSource(answer)
        self.intake = Intake(services(self.source, [served_model("m", folder)], config=config))

    async def start(self, prompt: str = "a", tenant: Tenant = TENANT, **options: Any) -> TextGeneration:
        return await self.intake.start(
            model="m", prompt=prompt, options=SamplingOptions(**options), request_id="r", tenant=tenant
        )

    async def start_batch(self, *prompts: str, **options: Any) -> BatchGeneration:
        return await self.intake.start_batch(
            model="m", prompts=prompts, options=SamplingOptions(**options), request_id="r", tenant=TENANT
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
