"""Turns a door's understanding of a request into a running generation; all doors take this one path."""

from __future__ import annotations

import asyncio
import re
import secrets
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from mooring.errors import CallerError, InvalidRequestError
from mooring.slo import BEST_EFFORT, SLOClass
from router.request.request import GenerationRequest, TokenStream
from router.request.sampling import (
    SamplingOptions,
    answer_size,
    check_answer_size,
    check_bad_words,
    check_options,
    num_prompt_tokens_kept,
    prompt_too_long,
    resolve_sampling,
    wants_prompt_only,
)
from router.request.served_model import ServedModel
from router.services import RouterServices
from router.telemetry.waits import Wait
from router.tenancy.cache_scope import cache_scope
from router.tenancy.in_flight import Held
from router.tenancy.tenant import Tenant
from router.text.batch_generation import BatchGeneration
from router.text.generation import TextGeneration
from router.text.prompts import ChatPrompt, EncodedPrompt, Prompt
from router.text.text_models import TextModel, TokenizedPrompt

__all__ = ["Intake", "Tokens", "request_id_from"]

_SANE_ID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as a model sees it.

    Attributes:
        prompt: its tokens.
        max_model_len: longest prompt plus output of the model, in tokens.
    """

    prompt: TokenizedPrompt
    max_model_len: int


class Intake:
    """Checks requests, gives them their defaults and hands them to the token source.

    The doors of a server share one intake.
    """

    def __init__(self, services: RouterServices) -> None:
        self._services = services
        self._best_effort = SLOClass(BEST_EFFORT, services.ttft_target_s, services.tpot_target_s)

    async def start(
        self,
        *,
        model: str,
        prompt: Prompt,
        options: SamplingOptions,
        request_id: str,
        tenant: Tenant,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> TextGeneration:
        """Starts a generation; the caller must ``aclose()`` it.

        Args:
            metadata: as in ``GenerationRequest``.

        Raises:
            MooringError: the request is wrong, or cannot be served now.
        """
        with self._counting_refusals(model, request_id, tenant) as wait:
            held = self._hold(options, tenant, num_prompts=1)
            try:
                text_model, [request] = await self._prepare(model, [prompt], options, request_id, tenant)
                request = replace(request, metadata=metadata)
                stream = await self._services.tokens.generate(request)
                return self._generation(request, stream, text_model, wait, held.release)
            except BaseException:
                held.release()
                raise

    async def start_batch(
        self,
        *,
        model: str,
        prompts: Sequence[Prompt],
        options: SamplingOptions,
        request_id: str,
        tenant: Tenant,
    ) -> BatchGeneration:
        """Starts a generation for each prompt, or none at all; the caller must ``aclose()`` the batch.

        Raises:
            MooringError: the request is wrong, or cannot be served now.
        """
        most = self._services.config.max_batch_choices
        if len(prompts) * (options.n or 1) > most:
            raise InvalidRequestError(
                f"Too many prompts: their number times 'n' may be at most {most}.", param=options.prompt_field
            )
        with self._counting_refusals(model, request_id, tenant) as wait:
            held = self._hold(options, tenant, num_prompts=len(prompts))
            try:
                text_model, requests = await self._prepare(model, prompts, options, request_id, tenant)
                return BatchGeneration(await self._begin_all(requests, text_model, wait), held.release)
            except BaseException:
                held.release()
                raise

    async def tokenize(
        self,
        model: str,
        prompt: str | ChatPrompt,
        add_special_tokens: bool | None,
        tenant: Tenant,
        *,
        strings: bool,
    ) -> Tokens:
        """The tokens of a prompt.

        Args:
            add_special_tokens: as in ``SamplingOptions``.
            strings: whether the tokens' spellings are wanted too.

        Raises:
            MooringError: there is no such model, or the model cannot take such a prompt.
        """
        served = self._services.models.get(model)
        text_model = await self._services.text_models.get(served.folder)
        tokenized = await text_model.tokenize(
            prompt,
            tenant=tenant,
            add_special_tokens=add_special_tokens,
            param="messages" if isinstance(prompt, ChatPrompt) else "prompt",
            strings=strings,
        )
        return Tokens(tokenized, served.max_model_len)

    async def detokenize(self, model: str, token_ids: Sequence[int], tenant: Tenant) -> str:
        """The text of tokens, special ones included.

        Raises:
            MooringError: there is no such model, or no such token.
        """
        text_model = await self._services.text_models.get(self._services.models.get(model).folder)
        return await text_model.decode(token_ids, tenant=tenant)

    @contextmanager
    def _counting_refusals(self, model: str, request_id: str, tenant: Tenant) -> Iterator[Wait]:
        """Counts a request that ends within, by no fault of its own, as one that missed its targets. One that its
        client gives up, as a cancellation tells, did if its first token was due by then."""
        metrics = self._services.metrics
        due_s = metrics.clock() + self._promised(tenant).ttft_target_s
        wait = metrics.wait(model)
        try:
            yield wait
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError):
                has_missed = metrics.clock() > due_s
            else:
                has_missed = not isinstance(error, CallerError)
            if has_missed and self._services.models.is_known(model):
                metrics.refused(request_id, model, tenant.name, tenant.slo_class, wait.so_far())
            raise

    def _hold(self, options: SamplingOptions, tenant: Tenant, num_prompts: int) -> Held:
        """Counts the request among those that the tenant has in flight.

        Raises:
            RateLimitError: the tenant has too many in flight.
        """
        # What ``n`` is out of range is refused later.
        num_choices = min(max(1, options.n or 1), self._services.config.max_choices)
        return self._services.in_flight.take(tenant, requests=1, choices=num_prompts * num_choices)

    async def _prepare(
        self, model: str, prompts: Sequence[Prompt], options: SamplingOptions, request_id: str, tenant: Tenant
    ) -> tuple[TextModel, list[GenerationRequest]]:
        """The model's tokenizer, and the request to the token source for each prompt."""
        services = self._services
        arrival_s = services.metrics.clock()
        served = services.models.get(model)
        check_options(options, services.config)
        num_kept = num_prompt_tokens_kept(options, served.max_model_len)
        text_model = await services.text_models.get(served.folder)
        text_model.tokens.check_ids([token_id for token_id, _ in options.logit_bias], param="logit_bias")
        encoded = await text_model.encode(
            prompts,
            tenant=tenant,
            add_special_tokens=options.add_special_tokens,
            param=options.prompt_field,
            max_tokens=served.max_model_len,
            num_kept=num_kept,
            bad_words=options.bad_words,
        )
        check_bad_words(encoded.bad_words_ids, options, len(prompts), services.config)
        requests = [
            self._request(
                served,
                prompt,
                each,
                options,
                num_kept=num_kept,
                bad_words_ids=encoded.bad_words_ids,
                request_id=request_id if len(prompts) == 1 else f"{request_id}-{place}",
                tenant=tenant,
                arrival_s=arrival_s,
                num_prompts=len(prompts),
            )
            for place, (prompt, each) in enumerate(zip(prompts, encoded.prompts, strict=True))
        ]
        sizes = (answer_size(options, len(each.prompt_ids), each.sampling.max_tokens) for each in requests)
        check_answer_size(options, sizes, services.config)
        return text_model, requests

    def _request(
        self,
        served: ServedModel,
        prompt: Prompt,
        encoded: EncodedPrompt,
        options: SamplingOptions,
        *,
        num_kept: int | None,
        bad_words_ids: tuple[tuple[int, ...], ...],
        request_id: str,
        tenant: Tenant,
        arrival_s: float,
        num_prompts: int,
    ) -> GenerationRequest:
        if not encoded.is_exact:
            at_least = f"at least {encoded.num_tokens}"
            raise prompt_too_long(at_least, served.max_model_len, options.prompt_field)
        num_tokens = encoded.num_tokens if num_kept is None else min(num_kept, encoded.num_tokens)
        sampling = resolve_sampling(
            options,
            served.defaults,
            num_prompt_tokens=num_tokens,
            max_model_len=served.max_model_len,
            new_seed=secrets.randbits(64),
            config=self._services.config,
            num_prompts=num_prompts,
        )
        if bad_words_ids:
            sampling = replace(sampling, bad_words_ids=bad_words_ids)
        is_whole = num_tokens == encoded.num_tokens
        promised = self._promised(tenant)
        return GenerationRequest(
            request_id=request_id,
            deployment=served.name,
            artifact_key=served.artifact_key,
            prompt_ids=encoded.ids,
            sampling=sampling,
            n=options.n or 1,
            stop=options.stop,
            include_stop=bool(options.include_stop_str_in_output),
            skip_special_tokens=options.skip_special_tokens is not False,
            echo=bool(options.echo),
            prompt_text=prompt if isinstance(prompt, str) and is_whole else None,
            prompt_only=wants_prompt_only(options),
            tenant=tenant.name,
            arrival_s=arrival_s,
            deadline_s=arrival_s + promised.ttft_target_s,
            tpot_target_s=promised.tpot_target_s,
            priority=promised.priority,
            refuses_miss=promised.on_miss == "refuse",
            slo_class=tenant.slo_class,
            weight=tenant.weight,
            cache_scope=cache_scope(served.policy.prefix_cache, tenant, options.cache_salt),
            max_unread_tokens=self._services.config.max_unread_tokens // num_prompts,
        )

    def _promised(self, tenant: Tenant) -> SLOClass:
        """The promise to a tenant's requests. Who gives up a class for best effort gets nothing better by it."""
        best_effort, given_up = self._best_effort, tenant.given_up
        if tenant.slo_class is not None or given_up is None:
            return tenant.slo_class or best_effort
        return replace(
            best_effort,
            ttft_target_s=max(best_effort.ttft_target_s, given_up.ttft_target_s),
            tpot_target_s=max(best_effort.tpot_target_s, given_up.tpot_target_s),
            priority=min(best_effort.priority, given_up.priority),
        )

    async def _begin_all(
        self, requests: Sequence[GenerationRequest], text_model: TextModel, wait: Wait
    ) -> list[TextGeneration]:
        """Begins all of them or none. They are measured once all have begun: what is refused counts once."""
        starts = [asyncio.create_task(self._services.tokens.generate(request)) for request in requests]
        try:
            streams = await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            for started in await asyncio.gather(*starts, return_exceptions=True):
                if not isinstance(started, BaseException):
                    await started.aclose()
            raise
        return [
            self._generation(request, stream, text_model, wait)
            for request, stream in zip(requests, streams, strict=True)
        ]

    def _generation(
        self,
        request: GenerationRequest,
        stream: TokenStream,
        text_model: TextModel,
        wait: Wait,
        on_close: Callable[[], None] = lambda: None,
    ) -> TextGeneration:
        measured = self._services.metrics.request(request, wait.so_far(), stream.predicted_ttft_s)
        return TextGeneration(request, stream, text_model.tokens, measured, on_close)


def request_id_from(sent: str | None) -> str:
    """The client's own id if it is short and printable; otherwise a new one."""
    return sent if sent and _SANE_ID.fullmatch(sent) else uuid.uuid4().hex
