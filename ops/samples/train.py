"""One training recipe for both small models: next-token prediction, Muon for the matrices.

Every source of chance is seeded, the thread count is fixed and kernels are asked to be deterministic, so
one machine writes the same bytes each time. Machines differ: if the CPU multiplies bfloat16 tiles in
hardware, the forward pass and Muon run in bfloat16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ops.samples.model import Decoder
from ops.samples.recipes import DecoderShape, TrainingPlan

__all__ = ["WithoutBfloat16", "deterministic_torch", "fast_bfloat16", "new_decoder", "train", "windows"]

_CHUNK_TOKENS = 512  # tokens whose logits are computed at a time, so that these fit the processor's cache
_NUM_THREADS = 2


@contextlib.contextmanager
def deterministic_torch(seed: int, num_threads: int = _NUM_THREADS) -> Iterator[None]:
    """Seeds torch and fixes its threads and kernels for the block; restores all settings afterwards. Another
    ``num_threads`` gives other bytes."""
    settings: Any = torch.utils.deterministic  # its one setting is not in its annotations
    threads, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    was_filling = settings.fill_uninitialized_memory
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a sixth of the time, and nothing reads such memory
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        settings.fill_uninitialized_memory = was_filling
        torch.use_deterministic_algorithms(was_deterministic)
        torch.set_num_threads(threads)


def new_decoder(shape: DecoderShape, vocab_size: int) -> Decoder:
    """A decoder at its start: each layer adds nothing yet, and every token is as likely as any other."""
    decoder = Decoder(shape, vocab_size)
    nn.init.normal_(decoder.model.embed_tokens.weight, std=0.5)
    nn.init.zeros_(decoder.lm_head.weight)
    for name, parameter in decoder.model.layers.named_parameters():
        if parameter.ndim == 2:
            added = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=0.0 if added else parameter.shape[1] ** -0.5)
    return decoder


def windows(stream: NDArray[np.int32], plan: TrainingPlan) -> Iterator[Tensor]:
    """Batches ``[sequences, tokens + 1]`` (int64) cut from ``stream``, without end.

    A pass takes every window of the stream once, in a shuffled order; the next is cut at other places.
    """
    random = np.random.default_rng(plan.seed)
    length = plan.sequence_tokens + 1
    if len(stream) < 2 * length:
        raise ValueError(f"a stream of {len(stream)} tokens is too short for windows of {length}")
    pending: list[int] = []
    while True:
        while len(pending) < plan.batch_sequences:
            starts = np.arange(random.integers(length), len(stream) - length, length)
            pending += random.permutation(starts).tolist()
        taken, pending = pending[: plan.batch_sequences], pending[plan.batch_sequences :]
        yield torch.from_numpy(np.stack([stream[at : at + length] for at in taken]).astype(np.int64))


def train(
    decoder: Decoder,
    batches: Iterator[Tensor],
    plan: TrainingPlan,
    on_step: Callable[[int, float], None],
    logit_bias: Tensor | None = None,
) -> None:
    """Trains ``decoder`` in place.

    Args:
        batches: token ids ``[sequences, tokens + 1]``.
        on_step: called after each step with the steps done and the mean loss in nats.
        logit_bias: ``[vocab]``, added to the logits; for a class that stands for many tokens.
    """
    matrices = [parameter for parameter in decoder.model.layers.parameters() if parameter.ndim == 2]
    norms = [parameter for parameter in decoder.model.parameters() if parameter.ndim == 1]
    groups = [
        {"params": [decoder.model.embed_tokens.weight], "lr": plan.embedding_lr},
        {"params": [decoder.lm_head.weight, *norms], "lr": plan.head_lr},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=plan.matrix_lr, weight_decay=0.0, momentum=0.95, ns_steps=5),
        torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True),
    ]
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16())
    muons_precision = contextlib.nullcontext() if fast_bfloat16() else WithoutBfloat16()
    for step in range(plan.num_steps):
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * plan.rate_at(step)
        with autocast:
            loss = _backward(decoder, next(batches), logit_bias)
        with muons_precision:
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        on_step(step + 1, loss)


class WithoutBfloat16(TorchFunctionMode):
    """A mode in which ``Tensor.bfloat16`` makes a copy in the tensor's own precision.

    torch's Muon makes its matrices orthogonal in bfloat16. If the CPU has no instructions for that, fp32
    takes a twentieth to a fiftieth of the time.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.bfloat16:
            return args[0].clone()  # Muon writes into the copy
        return func(*args, **(kwargs or {}))


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 tiles in hardware (AMX); if not, fp32 is quicker."""
    return bool(torch.cpu._is_amx_tile_supported())


def _backward(decoder: Decoder, batch: Tensor, logit_bias: Tensor | None) -> float:
    """Accumulates gradients of the mean cross-entropy, with the logits computed in chunks; returns the
    cross-entropy."""
    inputs, targets = batch[:, :-1], batch[:, 1:].flatten()
    hidden = decoder.hidden(inputs).flatten(0, 1)
    detached = hidden.detach().requires_grad_()
    total = 0.0
    for states, wanted in zip(
        torch.split(detached, _CHUNK_TOKENS), torch.split(targets, _CHUNK_TOKENS), strict=True
    ):
        logits = decoder.lm_head(states).float()
        if logit_bias is not None:
            logits = logits + logit_bias
        loss = functional.cross_entropy(logits, wanted, reduction="sum") / len(targets)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    hidden.backward(detached.grad)  # type: ignore[no-untyped-call]
    return total
