"""KV in host memory: what a preempted sequence had computed, copied out and back if that is quicker.

On a GPU the buffers are pinned and copies run on a stream of their own, so that steps go on meanwhile.
"""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.torch.kv.prefix import Prefix
from engines.torch.model.kv_view import KVCacheView
from mooring.errors import InternalError
from mooring.units import format_bytes

__all__ = [
    "CopyRates",
    "KVSwap",
    "RunningRate",
    "SwapSpace",
    "SwappedKV",
    "copy_is_quicker",
    "seconds_to_redo",
]

log = logging.getLogger(__name__)

_NEWEST_SHARE = 0.2


class RunningRate:
    """How many of something a second, as it was lately.

    Attributes:
        per_s: None before the first measurement.
    """

    def __init__(self, per_s: float | None = None) -> None:
        self.per_s = per_s

    def add(self, amount: int, seconds: float) -> None:
        """A measurement. Times are averaged, not rates, so that one stall weighs as much as it took."""
        if amount <= 0 or seconds <= 0:
            return
        s_each = seconds / amount
        if self.per_s is not None:
            s_each = _NEWEST_SHARE * s_each + (1 - _NEWEST_SHARE) / self.per_s
        self.per_s = 1 / s_each


@dataclass(frozen=True, slots=True)
class CopyRates:
    """Rates that the choice between copying and computing rests on.

    Attributes:
        prefill_tokens_per_s: of this model; None before it is known.
        out_bytes_per_s, in_bytes_per_s: between device and host memory.
    """

    prefill_tokens_per_s: float | None
    out_bytes_per_s: float
    in_bytes_per_s: float


def copy_is_quicker(num_tokens: int, out_bytes: int, in_bytes: int, rates: CopyRates) -> bool:
    """Whether to copy so many bytes rather than to compute so many tokens again; computing if its rate is
    not known."""
    if rates.prefill_tokens_per_s is None:
        return False
    copying_s = out_bytes / rates.out_bytes_per_s + in_bytes / rates.in_bytes_per_s
    return copying_s < num_tokens / rates.prefill_tokens_per_s


def seconds_to_redo(
    num_tokens: NDArray[np.int64],
    num_bytes: NDArray[np.float64],
    tokens_per_s: float,
    rates: CopyRates,
    room_bytes: int,
) -> NDArray[np.float64]:
    """Seconds until sequences have again what they lose by a preemption, float64 [S]: of computing it, or of copying
    it where that is quicker.

    Args:
        num_tokens: int64 [S], computed ones that each loses.
        num_bytes: float64 [S], their KV.
        tokens_per_s: computed by this model.
        room_bytes: host memory for copies.
    """
    computing_s = num_tokens / tokens_per_s
    if rates.prefill_tokens_per_s is None:
        return computing_s
    copying_s = num_bytes * (1 / rates.out_bytes_per_s + 1 / rates.in_bytes_per_s)
    return np.where(num_bytes <= room_bytes, np.minimum(computing_s, copying_s), computing_s)


@dataclass(slots=True, eq=False)
class SwappedKV:
    """The computed blocks of one sequence in host memory.

    Attributes:
        num_tokens: computed.
        first_columns: by group, of its block table.
        contents: by group, [n, elements of a block].
        num_bytes: of all contents.
        copied: on a GPU, the events around the copy.
    """

    num_tokens: int
    first_columns: tuple[int, ...]
    contents: list[Tensor]
    num_bytes: int
    copied: tuple[torch.cuda.Event, torch.cuda.Event] | None = None


class SwapSpace:
    """The host memory of one worker that swapped KV may take. Each copy has a buffer of its own, so nothing is
    held if nothing is swapped out.

    Args:
        num_bytes: most at any time; 0 turns swapping off.
        device: of the KV.

    Attributes:
        used_bytes: now.
        out_rate, in_rate: of copies, in bytes.
    """

    # Until something was measured: less than any machine does, so that only clear cases are copied.
    _FIRST_GUESS_BYTES_PER_S = 1e9

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self.num_bytes = num_bytes
        self.device = device
        self.used_bytes = 0
        self.out_rate = RunningRate(self._FIRST_GUESS_BYTES_PER_S)
        self.in_rate = RunningRate(self._FIRST_GUESS_BYTES_PER_S)
        self.stream = _stream_of(device)

    def buffer(self, num_bytes: int) -> Tensor | None:
        """uint8 [num_bytes], or None if there is no room for it, or the system has no more. ``give_back`` ends
        its use."""
        if num_bytes > self.room_bytes:
            return None
        try:
            if self.stream is not None:
                buffer = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
            else:  # a mapping of its own leaves with its tensor; the heap might keep it
                buffer = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)
        except (OSError, RuntimeError) as error:  # mmap's and torch's, in this order
            log.warning("no host memory for %s of swapped KV: %s", format_bytes(num_bytes), error)
            return None
        self.used_bytes += num_bytes
        return buffer

    @property
    def room_bytes(self) -> int:
        return self.num_bytes - self.used_bytes

    def give_back(self, num_bytes: int) -> None:
        if num_bytes > self.used_bytes:
            raise InternalError("more swapped KV is given back than there is")
        self.used_bytes -= num_bytes

    def rates(self, prefill_tokens_per_s: float | None) -> CopyRates:
        out, back = self.out_rate.per_s, self.in_rate.per_s
        guess = self._FIRST_GUESS_BYTES_PER_S
        return CopyRates(prefill_tokens_per_s, out or guess, back or guess)


class KVSwap:
    """Swaps KV of one model.

    Args:
        kv: the model's view of the pool.
        space: of the worker.
        clock: seconds, monotonic.

    Attributes:
        prefill_rate: of the model's steps that are mostly prefill, in tokens.
        step_rate: of all its steps.
    """

    def __init__(
        self, kv: KVCacheView, space: SwapSpace, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._kv = kv
        self._space = space
        self._clock = clock
        self._copies: set[SwappedKV] = set()
        self.prefill_rate = RunningRate()
        self.step_rate = RunningRate()

    @property
    def kv_dtype(self) -> str:
        """Type of the cache's elements, by torch's name."""
        return str(self._kv.dtype)

    def bytes_of(self, offsets: Sequence[NDArray[np.int64]]) -> int:
        """Bytes of these blocks, which are by group."""
        return sum(
            len(each) * group.block_bytes for each, group in zip(offsets, self._kv.groups, strict=True)
        )

    def is_worth_copying_out(self, blocks: Prefix) -> bool:
        """Whether these blocks are had back sooner by a copy than by computing."""
        num_bytes = self.bytes_of(blocks.offsets)
        return copy_is_quicker(blocks.num_tokens, num_bytes, num_bytes, self._rates())

    def is_worth_copying_in(self, num_tokens: int, gaps: Sequence[NDArray[np.int64]]) -> bool:
        """Whether to fill these gaps from the host copy rather than to compute so many tokens."""
        return copy_is_quicker(num_tokens, 0, self.bytes_of(gaps), self._rates())

    def seconds_to_redo(
        self, num_tokens: NDArray[np.int64], num_bytes: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Seconds that it takes to have so many tokens' KV again, of so many bytes; all [S]. By steps of any kind
        while none of prefill was measured; and without a step there is nothing to redo."""
        tokens_per_s = self.prefill_rate.per_s or self.step_rate.per_s
        if tokens_per_s is None:
            return np.zeros(len(num_tokens))
        return seconds_to_redo(num_tokens, num_bytes, tokens_per_s, self._rates(), self._space.room_bytes)

    def copy_out(self, blocks: Prefix) -> SwappedKV | None:
        """Copies blocks, which may be given to others at once; None if there is no host memory for them."""
        num_bytes = self.bytes_of(blocks.offsets)
        buffer = self._space.buffer(num_bytes) if num_bytes else None
        if buffer is None:
            return None
        swapped = SwappedKV(blocks.num_tokens, blocks.first_columns, [], num_bytes)
        self._copies.add(swapped)
        started_s = self._clock()
        parts = torch.split(
            buffer,
            [len(each) * g.block_bytes for each, g in zip(blocks.offsets, self._kv.groups, strict=True)],
        )
        stream = self._space.stream
        if stream is None:
            for g, (offsets, part) in enumerate(zip(blocks.offsets, parts, strict=True)):
                swapped.contents.append(_as_blocks(part, len(offsets), self._kv.dtype))
                if len(offsets):
                    self._kv.copy_out(g, torch.from_numpy(offsets), out=swapped.contents[g])
            self._space.out_rate.add(num_bytes, self._clock() - started_s)
        else:
            self._copy_out_on(stream, blocks, parts, swapped)
        return swapped

    def _copy_out_on(
        self, stream: torch.cuda.Stream, blocks: Prefix, parts: Sequence[Tensor], swapped: SwappedKV
    ) -> None:
        device = self._space.device
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            gathered = [
                self._kv.copy_out(g, torch.from_numpy(offsets).to(device))
                for g, offsets in enumerate(blocks.offsets)
            ]
            begin.record(stream)
            for part, contents in zip(parts, gathered, strict=True):
                swapped.contents.append(_as_blocks(part, len(contents), self._kv.dtype))
                swapped.contents[-1].copy_(contents, non_blocking=True)
            end.record(stream)
        # These blocks are others' now, and if the lease shrinks their pages are unmapped: not before they were
        # gathered, for which the steps' stream waits, and so do the fences on it. The long copy runs beside the next
        # step.
        torch.cuda.current_stream(device).wait_event(begin)
        swapped.copied = (begin, end)

    def copy_in(self, swapped: SwappedKV, prefix: Prefix) -> None:
        """Fills the blocks that were gaps; the host copy is of the same columns."""
        num_bytes = self.bytes_of(prefix.gaps)
        if swapped.copied is not None:
            begin, end = swapped.copied
            end.synchronize()
            self._space.out_rate.add(swapped.num_bytes, begin.elapsed_time(end) / 1e3)
            swapped.copied = None
        started_s = self._clock()
        device = self._space.device
        for g, places in enumerate(prefix.gaps):
            if len(places):
                contents = swapped.contents[g]
                if len(places) < len(contents):
                    contents = contents[torch.from_numpy(places)]
                contents = contents.to(device, non_blocking=True)
                self._kv.copy_in(g, torch.from_numpy(prefix.offsets[g][places]).to(device), contents)
        if self._space.stream is not None:
            torch.cuda.current_stream(device).synchronize()
        self._space.in_rate.add(num_bytes, self._clock() - started_s)

    def drop(self, swapped: SwappedKV) -> None:
        """Ends a copy; its memory goes back."""
        if swapped.copied is not None:
            swapped.copied[1].synchronize()
        swapped.contents.clear()
        self._copies.remove(swapped)
        self._space.give_back(swapped.num_bytes)

    def drop_all(self) -> None:
        """Ends all copies of this model."""
        for swapped in list(self._copies):
            self.drop(swapped)

    def _rates(self) -> CopyRates:
        return self._space.rates(self.prefill_rate.per_s)


def _as_blocks(part: Tensor, num_blocks: int, dtype: torch.dtype) -> Tensor:
    elements = part.view(dtype)
    return elements.view(num_blocks, -1) if num_blocks else elements.view(0, 1)


def _stream_of(device: torch.device) -> torch.cuda.Stream | None:
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
