"""Requests under way in TensorRT-LLM: its event loop, on a thread of its own, and what comes out of it.

The package's answers are asynchronous iterators, which must be made and read on an event loop. The engine's steps are
on another thread: they hand requests over and take away what has arrived, in its order.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field

from engines.api import TopLogprobs
from engines.tensorrt_llm.surface import GenerateArguments, IterationStats, Llm, RequestOutput
from engines.tensorrt_llm.translation import top_logprobs
from mooring.errors import InternalError

__all__ = ["Arrival", "LlmStream", "LlmStreams"]

logger = logging.getLogger(__name__)

_STATS_WAIT_S = 0.05  # for figures that are not in the package's queue yet
_STOP_S = 5.0


@dataclass(eq=False, slots=True)
class LlmStream:
    """One request at the package. Its fields are the event loop's once it has begun.

    Attributes:
        sequence_id: the sequence that it computes.
        prompt_ids: its prompt, with the output that the sequence has already.
        logprobs: as in ``SamplingParams``.
        aborted: whether nothing of it is wanted any more.
    """

    sequence_id: int
    prompt_ids: list[int]
    logprobs: int | None
    aborted: bool = False
    output: RequestOutput | None = None
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Arrival:
    """News of one stream.

    Attributes:
        token_ids, logprobs: what is new; ``logprobs`` is empty if they were not asked for.
        cached_tokens: tokens of its prompt that were found computed.
        finished: whether nothing follows.
        finish_reason: why, in the package's words.
        error: ended it, if it failed.
    """

    stream: LlmStream
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TopLogprobs] = ()
    cached_tokens: int = 0
    finished: bool = False
    finish_reason: str | None = None
    error: Exception | None = None


class LlmStreams:
    """All streams of an engine."""

    def __init__(self) -> None:
        self._arrivals: list[Arrival] = []
        self._news = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: set[str] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tensorrt-llm", daemon=True)
        self._thread.start()

    def begin(self, stream: LlmStream, llm: Llm, arguments: GenerateArguments) -> None:
        """Hands a request over."""
        self._call(lambda: self._spawn(self._carry(stream, llm, arguments)))

    def abort(self, streams: Collection[LlmStream]) -> None:
        """Makes the package let go of requests; of each comes one more arrival, which says that it has ended."""

        def abort() -> None:
            for stream in streams:
                stream.aborted = True
                if stream.output is not None:
                    stream.output.abort()

        self._call(abort)

    def forget(self, streams: Collection[LlmStream]) -> None:
        """Drops what has arrived of streams that have ended."""
        with self._news:
            self._arrivals = [each for each in self._arrivals if each.stream not in streams]

    def has_news(self) -> bool:
        """Whether something has arrived."""
        return bool(self._arrivals)

    def take(self, timeout_s: float) -> list[Arrival]:
        """Returns what has arrived, in its order; waits for it, up to ``timeout_s``."""
        with self._news:
            if not self._arrivals:
                self._news.wait(timeout_s)
            arrivals, self._arrivals = self._arrivals, []
        return arrivals

    def ask_stats(self, name: str, llm: Llm, tell: Callable[[IterationStats], None]) -> None:
        """Has the newest figures of a model told on the event loop, unless they are being asked for already."""

        async def ask() -> None:
            try:
                async for stats in llm.get_stats_async(timeout=_STATS_WAIT_S):
                    tell(stats)
            except Exception as error:  # a page without figures is no reason to end anything
                logger.warning("TensorRT-LLM gives no figures of %s: %s", name, error)
            finally:
                self._asking.discard(name)

        def begin() -> None:
            if name not in self._asking:
                self._asking.add(name)
                self._spawn(ask())

        self._call(begin)

    def close(self) -> None:
        """Ends the thread."""
        self._call(self._loop.stop)
        self._thread.join(_STOP_S)

    async def _carry(self, stream: LlmStream, llm: Llm, arguments: GenerateArguments) -> None:
        """Carries one request from its beginning to its end."""
        try:
            if not stream.aborted:
                await self._read(stream, llm.generate_async(stream.prompt_ids, **arguments))
        except Exception as error:  # whatever it is, the engine judges it
            self._put(Arrival(stream, finished=True, error=error))
        else:
            self._put(Arrival(stream, finished=True))
        finally:
            stream.output = None
            stream.ended.set()

    async def _read(self, stream: LlmStream, output: RequestOutput) -> None:
        stream.output = output
        num_seen = 0
        async for update in output:
            if stream.aborted:
                continue
            choice = update.outputs[0]
            new_ids = choice.token_ids[num_seen:]
            logprobs: list[TopLogprobs] = []
            if stream.logprobs is not None:
                entries = choice.logprobs[num_seen : num_seen + len(new_ids)]
                if len(entries) != len(new_ids):
                    raise InternalError("TensorRT-LLM gave tokens without their log-probabilities")
                logprobs = [
                    top_logprobs(entry, token_id, stream.logprobs)
                    for token_id, entry in zip(new_ids, entries, strict=True)
                ]
            num_seen += len(new_ids)
            reason = choice.finish_reason if update.finished else None
            if update.finished:
                stream.output = None  # there is nothing left to abort
            if new_ids or reason is not None:
                self._put(Arrival(stream, new_ids, logprobs, update.cached_tokens, finish_reason=reason))

    def _put(self, arrival: Arrival) -> None:
        with self._news:
            self._arrivals.append(arrival)
            self._news.notify()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _call(self, call: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(call)
