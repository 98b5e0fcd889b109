"""The measurements of one request, from its tokens' arrivals to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import Counter, Histogram

from router.request.request import GenerationRequest
from router.telemetry.attainment import Attainments, Miss
from router.telemetry.recent import Recent
from router.telemetry.waits import Spent, Waited

__all__ = ["RequestMetrics", "RequestSeries", "Timings"]


@dataclass(frozen=True, slots=True)
class RequestSeries:
    """The instruments of one model and tenant; the histograms are those of
    ``router.telemetry.metrics``."""

    ttft: Histogram
    itl: Histogram
    tpot: Histogram
    e2e: Histogram
    queue: Histogram
    prefill: Histogram
    decode: Histogram
    inference: Histogram
    num_prompt: Histogram
    num_computed: Histogram
    num_output: Histogram
    max_output: Histogram
    n: Histogram
    max_tokens: Histogram
    prompt_tokens: Counter
    computed_tokens: Counter
    generation_tokens: Counter
    success: dict[str, Counter]


class Timings(NamedTuple):
    """The time of a request until now by where it went, for its caller.

    Attributes:
        ttft_s: seconds to its first token, of several choices to that of the slowest; None if one has none yet.
        spent: the same time and the rest, by what it was spent on.
        tokens_per_s: tokens after the first that came, by the seconds in which they came; None if there are none.
    """

    ttft_s: float | None
    spent: Spent
    tokens_per_s: float | None


class RequestMetrics:
    """Measures one request from its tokens' arrivals.

    Args:
        waited: from its arrival until a worker had it.
        note_first: called with the seconds from its arrival to its first token.
    """

    def __init__(
        self,
        series: RequestSeries,
        request: GenerationRequest,
        waited: Waited,
        note_first: Callable[[float], None],
        attainments: Attainments,
        recent: Recent,
        clock: Callable[[], float],
    ) -> None:
        self._series = series
        self._request = request
        self._waited = waited
        self._note_first = note_first
        self._attainments = attainments
        self._recent = recent
        self._clock = clock
        self._given_s = request.arrival_s + waited.queue_s + waited.wake_s  # when a worker had it
        self._began_s: float | None = None  # when a step began with the request
        self._first_token_s: float | None = None
        self._last_token_s = 0.0
        self._first_s: dict[int, float] = {}  # when the first token of each choice came
        self._last_s: dict[int, float] = {}  # when the newest token of each choice came
        self._num_later_tokens = 0  # those that came after the first ones
        self._longest_tokens = 0  # most tokens of a choice that has ended
        self._slowest_s: float | None = None  # mean of the slowest choice's later tokens
        self._reasons: set[str] = set()  # why its choices ended
        self._ended = False

    def tokens(self, index: int, num_tokens: int, began_s: float | None = None) -> None:
        """Notes new tokens of a choice that came together.

        Args:
            began_s: given with the first tokens: when a step began with the choice; None if the engine does
                not tell.
        """
        now_s = self._last_token_s = self._clock()
        series = self._series
        if self._first_token_s is None:
            self._first_token_s = now_s
            self._began_s = began_s
            series.ttft.observe(now_s - self._request.arrival_s)
            self._note_first(now_s - self._request.arrival_s)
            series.prompt_tokens.inc(len(self._request.prompt_ids))
            series.computed_tokens.inc(len(self._request.prompt_ids))
        else:
            self._num_later_tokens += num_tokens
        last_s = self._last_s.get(index)
        if last_s is not None:
            series.itl.observe(now_s - last_s)
        self._first_s.setdefault(index, now_s)
        self._last_s[index] = now_s
        series.generation_tokens.inc(num_tokens)
        self._recent.num_tokens += num_tokens

    def finished(self, index: int, reason: str, num_tokens: int) -> None:
        """Notes that a choice ended with this many tokens. ``reason``: ``stop``, ``length``, ``error``, or
        ``abort`` if its client gave it up."""
        self._series.success[reason].inc()
        self._series.num_output.observe(num_tokens)
        self._longest_tokens = max(self._longest_tokens, num_tokens)
        self._reasons.add(reason)
        first_s = self._first_s.get(index)
        if first_s is None:
            return
        if num_tokens > 1:
            token_s = (self._last_s[index] - first_s) / (num_tokens - 1)
            self._series.tpot.observe(token_s)
            self._slowest_s = max(token_s, self._slowest_s or 0.0)
        if reason == "abort" and num_tokens > 0:  # the next one had not come by now
            self._slowest_s = max((self._clock() - first_s) / num_tokens, self._slowest_s or 0.0)

    def end(self, *, is_callers_fault: bool = False) -> None:
        """Notes that the request is over, however it went. Only the first call counts.

        Args:
            is_callers_fault: whether it ended because of what its caller got wrong: it is not judged then.
        """
        if self._ended:
            return
        self._ended = True
        self._recent.num_ended += 1
        if not is_callers_fault:
            self._judge()
        series, request = self._series, self._request
        series.e2e.observe(self._clock() - request.arrival_s)
        series.num_prompt.observe(len(request.prompt_ids))
        series.max_output.observe(self._longest_tokens)
        series.n.observe(request.n)
        series.max_tokens.observe(request.sampling.max_tokens)
        if self._first_token_s is None:
            return
        series.num_computed.observe(len(request.prompt_ids))
        series.decode.observe(self._last_token_s - self._first_token_s)
        if self._began_s is not None:
            series.queue.observe(self._began_s - request.arrival_s)
            series.prefill.observe(self._first_token_s - self._began_s)
            series.inference.observe(self._last_token_s - self._began_s)

    def timings(self) -> Timings:
        """Tells where its time went until now."""
        now_s, first_s = self._clock(), self._last_first_s()
        prefilled_s = now_s if first_s is None else first_s
        decode_s = None if first_s is None else now_s - first_s
        rate = None
        if self._first_token_s is not None and self._last_token_s > self._first_token_s:
            rate = self._num_later_tokens / (self._last_token_s - self._first_token_s)
        return Timings(
            None if first_s is None else first_s - self._request.arrival_s,
            Spent(*self._waited, prefilled_s - self._given_s, decode_s),
            rate,
        )

    def _judge(self) -> None:
        """Counts whether it met its targets, of several choices by the slowest. What its client gave up while it was
        still in time counts as neither."""
        request, slowest_s, now_s = self._request, self._slowest_s, self._clock()
        first_s = self._last_first_s()
        is_in_time = (now_s if first_s is None else first_s) <= request.deadline_s and (
            slowest_s is None or request.tpot_target_s is None or slowest_s <= request.tpot_target_s
        )
        has_failed = "error" in self._reasons
        if "abort" in self._reasons and is_in_time and not has_failed:
            return
        is_met = is_in_time and first_s is not None and not has_failed
        miss = None
        if not is_met:
            ttft_s, spent, _ = self.timings()
            miss = Miss(request.request_id, time.time(), ttft_s, slowest_s, spent)
        slo_class = request.slo_class
        self._attainments.note(request.tenant, slo_class, request.deployment, miss, now_s)

    def _last_first_s(self) -> float | None:
        """When the first token of the slowest choice came; None if one has none."""
        return max(self._first_s.values()) if len(self._first_s) == self._request.n else None
