"""Small tokenizers and a token source by script, for tests of the front doors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engines.api import ChoiceTokens, Finished, FinishReason, FirstToken, TopLogprobs
from model_registry.records import TenantRecord
from model_registry.tenants import KEY_PREFIX, hash_key
from mooring.errors import ModelNotFoundError
from router.request.bounds import RouterConfig
from router.request.exposure import Exposure
from router.request.request import GenerationRequest
from router.request.sampling import GenerationDefaults
from router.request.served_model import ServedModel
from router.services import RouterServices
from router.telemetry.metrics import Gauges, Metrics, ModelGauges
from router.tenancy.in_flight import InFlight
from router.tenancy.keys import Tenancy
from router.tenancy.tenant import KnownTenant
from router.text.detokenizer import TokenTable
from router.text.starter import TextStarter
from router.text.text_models import TextModels
from router.text_process.vocabulary import write_vocabulary

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'refuse me' %}{{ raise_exception('I do not like this') }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level_tokenizer() -> Tokenizer:
    """Byte-level, as GPT-2's: every byte, a few merges, special and plain added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("l", "l"), ("ð", "Ł")]
    tokens = [*alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    # One of the two reads as bytes of the alphabet, the other cannot.
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("語 →", normalized=False)])
    return tokenizer


def byte_fallback_tokenizer(decoder: decoders.Decoder | None = None) -> Tokenizer:
    """SentencePiece-like, as Llama 2's: ``▁`` for a space, one token for each byte."""
    specials = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁")]
    letters = [*"▁abcdefghijklmnopqrstuvwxyz.,é", *(left + right for left, right in merges)]
    vocab = {token: i for i, token in enumerate([*specials, *byte_tokens, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoder or llama_decoder()
    tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def llama_decoder() -> decoders.Decoder:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(steps)


def write_model_folder(folder: Path, tokenizer: Tokenizer, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """The files of a model that the doors read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>", "special": True}}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def token_table(tokenizer: Tokenizer) -> TokenTable:
    """The table as the server reads it from what a text's process writes."""
    return TokenTable.read(*write_vocabulary(tokenizer))


@cache
def text_starter() -> TextStarter:
    """One starter for all tests of a process; it ends with it."""
    return TextStarter()


class ScriptedStream:
    """A ``TokenStream`` over given steps; remembers what was done to it."""

    def __init__(
        self,
        steps: Sequence[list[ChoiceTokens] | Exception],
        *,
        pause_s: float = 0.0,
        predicted_ttft_s: float | None = None,
    ) -> None:
        self.predicted_ttft_s = predicted_ttft_s
        self.stopped: list[int] = []
        self.closed = asyncio.Event()
        self._steps = list(steps)
        self._pause_s = pause_s

    async def __aiter__(self) -> AsyncIterator[list[ChoiceTokens]]:
        for step in self._steps:
            await asyncio.sleep(self._pause_s)
            if isinstance(step, Exception):
                raise step
            if live := [tokens for tokens in step if tokens.index not in self.stopped]:
                yield live

    def stop(self, index: int) -> None:
        self.stopped.append(index)

    async def aclose(self) -> None:
        self.closed.set()


Script = Callable[[GenerationRequest], ScriptedStream]


@dataclass
class ScriptedSource:
    """A ``TokenSource``; keeps every request and stream for the test to look at."""

    script: Script
    requests: list[GenerationRequest] = field(default_factory=list)
    streams: list[ScriptedStream] = field(default_factory=list)

    async def generate(self, request: GenerationRequest) -> ScriptedStream:
        self.requests.append(request)
        stream = self.script(request)
        self.streams.append(stream)
        return stream

    def forget(self) -> None:
        """Drops what earlier tests did with it."""
        self.requests.clear()
        self.streams.clear()

    async def started(self, num_streams: int) -> None:
        """Waits until so many streams have begun."""
        async with asyncio.timeout(20):
            while len(self.streams) < num_streams:  # noqa: ASYNC110 - the list sets no event
                await asyncio.sleep(0.005)


def one_token_a_step(
    request: GenerationRequest,
    ids: Sequence[int],
    *,
    reason: FinishReason = FinishReason.STOP,
    stop_token_id: int | None = None,
) -> list[list[ChoiceTokens]]:
    """Every choice says the same, up to ``max_tokens``, with made-up log-probabilities if asked for; those of the
    prompt come with choice 0, as from an engine."""
    said = list(ids)[: request.sampling.max_tokens]
    if len(said) < len(ids):
        reason, stop_token_id = FinishReason.LENGTH, None
    steps = []
    for place, token_id in enumerate(said):
        end = Finished(1, reason, stop_token_id) if place == len(said) - 1 else None
        k = request.sampling.logprobs
        top = None if k is None else [TopLogprobs(-0.5, (token_id, 0)[:k], (-0.5, -1.5)[:k])]
        steps.append([ChoiceTokens(i, [token_id], top, finished=end) for i in range(request.n)])
    if request.sampling.prompt_logprobs is not None:
        steps[0][0].first = FirstToken(request.arrival_s, prompt_logprobs=made_up_prompt_logprobs(request))
    return steps


def made_up_prompt_logprobs(request: GenerationRequest) -> list[TopLogprobs]:
    """The token at place p has -p; it is the likeliest at even places, and token 0 everywhere else."""
    k = request.sampling.prompt_logprobs or 0
    return [
        TopLogprobs(-float(p), (token_id, 0)[:k], (-float(p), -99.0)[:k])
        if p % 2 == 0
        else TopLogprobs(-float(p), (0, 1)[:k], (-0.25, -0.5)[:k])
        for p, token_id in enumerate(request.prompt_ids[1:], start=1)
    ]


@dataclass
class Directory:
    """A ``ModelDirectory`` over a list."""

    models: list[ServedModel]

    def get(self, name: str) -> ServedModel:
        for model in self.models:
            if model.name == name:
                return model
        raise ModelNotFoundError(f"The model '{name}' does not exist.", param="model")

    def is_known(self, name: str) -> bool:
        return any(model.name == name for model in self.models)

    def list(self) -> Sequence[ServedModel]:
        return self.models


KEY = KEY_PREFIX + "k" * 43
"""The one key that ``authenticate`` knows."""


def authenticate(key_hash: str) -> TenantRecord | None:
    """The look-up of a registry with one tenant, acme, and its key."""
    return known_tenant("acme") if key_hash == hash_key(KEY) else None


def known_tenant(name: str) -> TenantRecord:
    """A tenant as the registry knows it."""
    return TenantRecord(1, name, 1_700_000_000.0)


def services(
    source: ScriptedSource,
    models: list[ServedModel],
    *,
    authenticate: Callable[[str], KnownTenant | None] = lambda key: None,
    allow_anonymous: bool = True,
    config: RouterConfig | None = None,
    exposure: Exposure | None = None,
) -> RouterServices:
    """Real services around the scripted source."""
    config = config or RouterConfig()
    gauges = Gauges(
        models={model.name: ModelGauges(1, 0, 2, 0.25) for model in models},
        device_memory_bytes={("cpu", "weights"): 4096},
    )
    return RouterServices(
        tokens=source,
        models=Directory(models),
        tenancy=Tenancy(authenticate, allow_anonymous=allow_anonymous, config=config),
        metrics=Metrics(lambda: gauges),
        is_ready=lambda: True,
        config=config,
        text_models=TextModels(config, text_starter()),
        in_flight=InFlight(config),
        ttft_target_s=60.0,
        tpot_target_s=60.0,
        exposure=exposure or Exposure(allow_anonymous=allow_anonymous),
    )


def served_model(name: str, folder: Path, *, max_model_len: int = 128, **defaults: float) -> ServedModel:
    return ServedModel(
        artifact_key="",
        name=name,
        folder=folder,
        max_model_len=max_model_len,
        created_s=1_700_000_000,
        residency=lambda: "resident",
        whereabouts=lambda: ("waking", "a request came"),
        engine="torch",
        defaults=GenerationDefaults.from_mapping(defaults),
    )
