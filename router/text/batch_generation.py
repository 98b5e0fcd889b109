"""Reads the generations of several prompts as one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence

from router.telemetry.request_metrics import Timings
from router.text.generation import TextDelta, TextGeneration, Usage, WholeChoice, join_choices

__all__ = ["BatchGeneration"]


class BatchGeneration:
    """Several generations, used like one ``TextGeneration``; choices are numbered prompt by prompt.

    The generations run side by side, and deltas of any of them are read at once. If one fails, all have
    failed: ``aclose()`` then frees what the others hold.

    Args:
        generations: one for each prompt, all with the same number of choices.
        on_close: called whenever the batch is closed; more than one call does no harm.
    """

    def __init__(
        self, generations: Sequence[TextGeneration], on_close: Callable[[], None] = lambda: None
    ) -> None:
        self._generations = tuple(generations)
        self._on_close = on_close
        self._pumps: list[asyncio.Task[None]] = []
        self._pending: list[TextDelta] = []
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()

    @property
    def predicted_ttft_s(self) -> float | None:
        """Seconds to the first token, as in ``TokenStream``; of the prompt that waits longest."""
        predicted = [each.predicted_ttft_s for each in self._generations]
        return max((each for each in predicted if each is not None), default=None)

    @property
    def num_choices(self) -> int:
        """Number of choices that the requests will have, all together."""
        return sum(generation.num_choices for generation in self._generations)

    @property
    def usage(self) -> Usage:
        """Tokens so far, of all prompts together."""
        usages = [generation.usage for generation in self._generations]
        return Usage(
            sum(usage.prompt_tokens for usage in usages),
            sum(usage.completion_tokens for usage in usages),
            sum(usage.cached_tokens for usage in usages),
        )

    @property
    def timings(self) -> Timings:
        """The time so far by where it went, of the prompt whose first token came last; the rate is that of all."""
        timings = [generation.timings for generation in self._generations]
        slowest = max(timings, key=lambda each: math.inf if each.ttft_s is None else each.ttft_s)
        rates = [each.tokens_per_s for each in timings if each.tokens_per_s is not None]
        return slowest._replace(tokens_per_s=sum(rates) if rates else None)

    async def __aiter__(self) -> AsyncIterator[list[TextDelta]]:
        """Yields the deltas that have come since the last turn.

        Raises:
            MooringError: one of the generations failed; nothing follows.
        """
        first_index = 0
        for generation in self._generations:
            self._pumps.append(asyncio.create_task(self._pump(generation, first_index)))
            first_index += generation.num_choices
        for pump in self._pumps:
            pump.add_done_callback(lambda _: self._arrived.set())
        running = list(self._pumps)
        while running or self._pending:
            await self._arrived.wait()
            self._arrived.clear()
            pending, self._pending = self._pending, []
            self._taken.set()
            if pending:
                yield pending
            for pump in [pump for pump in running if pump.done()]:
                running.remove(pump)
                pump.result()

    async def whole(self) -> list[WholeChoice]:
        """Waits until all choices have finished.

        Raises:
            MooringError: one of the generations failed.
        """
        return await join_choices(self, self.num_choices)

    async def aclose(self) -> None:
        """Frees what the requests hold. Safe to call more than once."""
        self._on_close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await asyncio.gather(*(generation.aclose() for generation in self._generations))

    async def _pump(self, generation: TextGeneration, first_index: int) -> None:
        """Reads one generation, and goes on reading only when its last deltas were taken: a slow reader slows
        it down."""
        async for deltas in generation:
            for delta in deltas:
                delta.index += first_index
            self._pending += deltas
            self._arrived.set()
            self._taken.clear()
            await self._taken.wait()
