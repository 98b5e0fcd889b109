"""From what a door understood to a generation under way: the one path of all doors."""

from __future__ import annotations

import re
import secrets
import uuid

from router.generation import TextGeneration
from router.request import GenerationRequest
from router.sampling_defaults import SamplingOptions, resolve_sampling
from router.services import RouterServices
from router.tokenizers import Prompt, TextModels

__all__ = ["Intake", "request_id_from"]

_SANE_ID = re.compile(r"[!-~]{1,128}")


class Intake:
    """Checks requests, gives them their defaults and hands them to the token source.

    Doors of one server share one, and with it the tokenizers it has read.
    """

    def __init__(self, services: RouterServices) -> None:
        self._services = services
        self._text_models = TextModels(services.config)

    async def start(
        self, *, model: str, prompt: Prompt, options: SamplingOptions, request_id: str, tenant: str
    ) -> TextGeneration:
        """Starts a generation; the caller must ``aclose()`` it.

        Raises:
            MooringError: the request is wrong, or cannot be served now.
        """
        services = self._services
        arrival_s = services.metrics.clock()
        served = services.models.get(model)
        text_model = await self._text_models.get(served.folder)
        prompt_ids = await self._text_models.encode(text_model, prompt)
        sampling = resolve_sampling(
            options,
            served.defaults,
            num_prompt_tokens=len(prompt_ids),
            max_model_len=served.max_model_len,
            new_seed=secrets.randbits(64),
            config=services.config,
        )
        request = GenerationRequest(
            request_id=request_id,
            deployment=served.name,
            artifact_key=served.artifact_key,
            prompt_ids=prompt_ids,
            sampling=sampling,
            n=options.n or 1,
            stop=options.stop,
            tenant=tenant,
            arrival_s=arrival_s,
        )
        stream = await services.tokens.generate(request)
        return TextGeneration(request, stream, text_model.tokens, services.metrics.request(request))


def request_id_from(sent: str | None) -> str:
    """The client's own id where it is short and printable; a new one otherwise."""
    return sent if sent and _SANE_ID.fullmatch(sent) else uuid.uuid4().hex
