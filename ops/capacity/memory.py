"""The arithmetic of memory for one model on one device, with the very functions that ledger and pool use.

Weights are the packed layout's bytes; KV is counted in the blocks and pages that the pool would hand out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engines.checkpoint.layout import PRECISIONS, packed_layout
from engines.checkpoint.model_config import ModelConfig, kv_groups
from engines.checkpoint.outline import outline
from engines.torch.model.workspace import step_workspace_bytes
from memory_manager.kv_spec import PAGE_BYTES, KVGroup, kv_bytes_for_tokens, round_to_pages
from mooring.errors import ConfigurationError, InvalidRequestError
from mooring.strangers_json import read_strangers_json
from mooring.units import MIB

__all__ = [
    "DEVICES",
    "KV_DTYPES",
    "GroupPlan",
    "MemoryPlan",
    "PlannedModel",
    "builtin_shapes",
    "model_from_folder",
    "model_from_shape",
    "plan_memory",
]

KV_DTYPES: Mapping[str, int] = MappingProxyType({"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1})
"""Bytes of a KV element. The torch engine keeps KV in the weights' own dtype; the others are for planning."""

DEVICES: Mapping[str, int] = MappingProxyType(
    {
        "t4": 15360 * MIB,
        "l4": 23034 * MIB,
        "a10": 23028 * MIB,
        "rtx-4090": 24564 * MIB,
        "a100-40gb": 40960 * MIB,
        "l40s": 46068 * MIB,
        "a100-80gb": 81920 * MIB,
        "h100": 81559 * MIB,
        "h200": 143771 * MIB,
        "b200": 183359 * MIB,
    }
)
"""Total memory of each device, in bytes, as the driver shows it."""

_STEP_TOKENS = 512  # the engine's default


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model to plan for. ``precision``: the precision of its weights unless another is asked for."""

    name: str
    config: ModelConfig
    precision: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """KV of one group of layers.

    Attributes:
        layers: number of layers.
        kind: ``full`` or ``window``.
        window_tokens: length of the window; None if the kind is ``full``.
        bytes_per_token: bytes of one token in all layers of the group.
        block_tokens: tokens of a block.
        block_bytes: bytes of a block.
        blocks_per_page: blocks that fit into a page.
        page_tail_bytes: bytes at the end of each page, where no block fits.
        blocks_per_request: most blocks that one request of the context holds at once.
        token_bytes: bytes of the tokens that the whole batch keeps.
        block_bytes_total: bytes of the blocks that hold these tokens.
        page_bytes: bytes of the pages that hold these blocks.
    """

    layers: int
    kind: str
    window_tokens: int | None
    bytes_per_token: int
    block_tokens: int
    block_bytes: int
    blocks_per_page: int
    page_tail_bytes: int
    blocks_per_request: int
    token_bytes: int
    block_bytes_total: int
    page_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of everything; ``docs/memory.md`` has a worked example.

    Attributes:
        weights_bytes: bytes of the packed weights.
        weights_page_bytes: bytes of the pages that the weights take.
        kv_bytes_per_token: KV bytes of a token while no window has passed.
        kv_bytes_per_request: bytes of the pages for one request of the context alone; a worker always keeps as much
            for the longest of its models.
        kv_bytes: bytes of the pages for the whole batch; the sum of the next three.
        kv_token_bytes: bytes of the tokens in them.
        kv_unfilled_bytes: bytes of places for tokens that no token fills.
        kv_tail_bytes: bytes of ends of pages and of places for blocks that are not taken.
        workspace_bytes: upper bound of the workspace of one step; it comes out of the reserve.
        total_bytes: weights, KV and the pool's null page, in whole pages, and the reserve.
        device_bytes: budget of the named device; None without one.
        reserve_bytes: reserve on that device.
        fits: whether the total fits the device; None without one.
        max_batch: the largest batch that fits at the context; None without a device.
        max_context: the longest context that fits at the batch; None without a device.
        kv_exceeds_weights_batch: the smallest batch at the context whose KV takes more than the weights.
        kv_exceeds_weights_context: the shortest context at the batch whose KV takes more than the weights;
            None if there is none up to the model's longest context.
    """

    model: str
    note: str
    precision: str
    kv_dtype: str
    context_tokens: int
    batch: int
    max_model_len: int
    weights_bytes: int
    weights_page_bytes: int
    kv_bytes_per_token: int
    kv_bytes_per_request: int
    kv_bytes: int
    kv_token_bytes: int
    kv_unfilled_bytes: int
    kv_tail_bytes: int
    workspace_bytes: int
    total_bytes: int
    device: str | None
    device_bytes: int | None
    reserve_bytes: int
    fits: bool | None
    max_batch: int | None
    max_context: int | None
    kv_exceeds_weights_batch: int
    kv_exceeds_weights_context: int | None
    groups: tuple[GroupPlan, ...]


def builtin_shapes() -> Mapping[str, str]:
    """Names of the shapes that can be planned without a checkpoint, each with a sentence."""
    return {name: shape["note"] for name, shape in _shapes().items()}


def model_from_shape(name: str) -> PlannedModel:
    """A model to plan for, from a built-in shape.

    Raises:
        ConfigurationError: there is no such shape.
    """
    shape = _shapes().get(name)
    if shape is None:
        raise ConfigurationError(f"no shape {name!r}; there are {', '.join(_shapes())}")
    return PlannedModel(name, ModelConfig.from_hf(shape["config"]), shape["precision"], shape["note"])


def model_from_folder(folder: Path) -> PlannedModel:
    """A model to plan for, from a Hugging Face folder; its config.json is enough.

    Raises:
        ArtifactError: the configuration is unreadable or not supported.
    """
    return PlannedModel(folder.resolve().name, *outline(read_strangers_json(folder / "config.json")))


def plan_memory(
    model: PlannedModel,
    *,
    context_tokens: int,
    batch: int,
    precision: str | None = None,
    kv_dtype: str | None = None,
    device: str | None = None,
    device_bytes: int | None = None,
    reserve_bytes: int = 0,
) -> MemoryPlan:
    """The memory that ``batch`` requests of ``context_tokens`` each need, all at once.

    Args:
        precision: precision of the weights; None means the model's own.
        kv_dtype: dtype of the KV; None means the weights' own.
        device_bytes: budget of the device; None plans without a device.
        reserve_bytes: part of that for contexts and workspace.

    Raises:
        InvalidRequestError: the context is longer than the model's, or there is no batch.
        ArtifactError: the layout cannot be packed or paged.
    """
    _check(model, context_tokens, batch)
    precision = precision or model.precision
    kv_dtype = kv_dtype or precision
    _, weights_bytes = packed_layout(model.config, precision)
    groups = kv_groups(model.config, KV_DTYPES[kv_dtype])
    weights_page_bytes = round_to_pages(weights_bytes)
    plans = tuple(_group_plan(group, context_tokens, batch) for group in groups)
    kv_bytes = sum(each.page_bytes for each in plans)
    kv_token_bytes = sum(each.token_bytes for each in plans)
    block_bytes = sum(each.block_bytes_total for each in plans)
    reserve_bytes = round_to_pages(reserve_bytes)  # the ledger rounds it too
    fixed_bytes = reserve_bytes + weights_page_bytes + PAGE_BYTES  # and the pool's null page
    room = None if device_bytes is None else device_bytes // PAGE_BYTES * PAGE_BYTES - fixed_bytes
    kv_of = partial(_kv_bytes, groups)
    longest = model.config.max_model_len
    return MemoryPlan(
        model=model.name,
        note=model.note,
        precision=precision,
        kv_dtype=kv_dtype,
        context_tokens=context_tokens,
        batch=batch,
        max_model_len=longest,
        weights_bytes=weights_bytes,
        weights_page_bytes=weights_page_bytes,
        kv_bytes_per_token=sum(group.bytes_per_token for group in groups),
        kv_bytes_per_request=kv_bytes_for_tokens(groups, context_tokens),
        kv_bytes=kv_bytes,
        kv_token_bytes=kv_token_bytes,
        kv_unfilled_bytes=block_bytes - kv_token_bytes,
        kv_tail_bytes=kv_bytes - block_bytes,
        workspace_bytes=step_workspace_bytes(
            model.config,
            PRECISIONS[precision][1],
            step_tokens=max(_STEP_TOKENS, batch),
            num_sequences=batch,
            context_tokens=context_tokens,
        ),
        total_bytes=fixed_bytes + kv_bytes,
        device=device,
        device_bytes=device_bytes,
        reserve_bytes=reserve_bytes,
        fits=None if room is None else kv_bytes <= room,
        max_batch=None if room is None else _largest(lambda n: kv_of(context_tokens, n) <= room),
        max_context=None if room is None else _largest(lambda n: kv_of(n, batch) <= room, longest),
        kv_exceeds_weights_batch=_largest(lambda n: kv_of(context_tokens, n) <= weights_page_bytes) + 1,
        kv_exceeds_weights_context=_next_up_to(
            _largest(lambda n: kv_of(n, batch) <= weights_page_bytes, longest), longest
        ),
        groups=plans,
    )


def _check(model: PlannedModel, context_tokens: int, batch: int) -> None:
    longest = model.config.max_model_len
    if not 1 <= context_tokens <= longest:
        raise InvalidRequestError(
            f"the context is 1 to {longest:,} tokens for {model.name}, not {context_tokens:,}",
            param="context",
        )
    if batch < 1:
        raise InvalidRequestError(f"the batch is at least 1, not {batch}", param="batch")


def _group_plan(group: KVGroup, context_tokens: int, batch: int) -> GroupPlan:
    kept = context_tokens if group.window_tokens is None else min(context_tokens, group.window_tokens)
    blocks = group.blocks_for_tokens(context_tokens)
    return GroupPlan(
        layers=len(group.layers),
        kind=group.kind,
        window_tokens=group.window_tokens,
        bytes_per_token=group.bytes_per_token,
        block_tokens=group.block_tokens,
        block_bytes=group.block_bytes,
        blocks_per_page=group.blocks_per_page,
        page_tail_bytes=group.tail_bytes,
        blocks_per_request=blocks,
        token_bytes=batch * kept * group.bytes_per_token,
        block_bytes_total=batch * blocks * group.block_bytes,
        page_bytes=_kv_bytes((group,), context_tokens, batch),
    )


def _kv_bytes(groups: Sequence[KVGroup], context_tokens: int, batch: int) -> int:
    """Bytes of the pages for ``batch`` requests of one model, whose blocks share pages."""
    return PAGE_BYTES * sum(
        -(-batch * group.blocks_for_tokens(context_tokens) // group.blocks_per_page) for group in groups
    )


def _largest(holds: Callable[[int], bool], limit: int | None = None) -> int:
    """The largest number up to ``limit`` for which ``holds``, which then holds for all smaller ones too; 0 if
    there is none."""
    low, high = 0, 1
    while holds(high) and (limit is None or high < limit):
        low, high = high, high * 2 if limit is None else min(high * 2, limit)
    if holds(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _next_up_to(number: int, limit: int) -> int | None:
    return number + 1 if number < limit else None


def _shapes() -> dict[str, dict[str, Any]]:
    shapes: dict[str, dict[str, Any]] = json.loads(
        files("ops.capacity").joinpath("model_shapes.json").read_text()
    )
    return shapes
