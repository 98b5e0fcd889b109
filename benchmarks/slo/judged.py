"""Judgement of one run of a trace, on a real server or in virtual time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.slo.workload import TenantKind
from router.telemetry.predictions import is_near

__all__ = ["Course", "JudgedRun", "PredictionScore", "judge", "score_predictions"]


@dataclass(frozen=True, slots=True)
class Course:
    """The course of one request; seconds since it was due, but ``ended_at_s``.

    Attributes:
        is_refused: it was refused when it came.
        meets: it finished and met its targets, if it has any.
        first_s: until its first token; None if it had none.
        waited_s: until its first token, or for as long as anybody waited for it.
        ended_at_s: when it finished, in seconds of the trace; None if it did not.
        predicted_s: until its first token, as predicted when it was accepted; None if nothing was.
        ttft_target_s: ``inf`` if nothing is promised.
    """

    tenant: TenantKind
    is_refused: bool
    meets: bool
    first_s: float | None
    waited_s: float
    ended_at_s: float | None
    predicted_s: float | None
    ttft_target_s: float = math.inf


@dataclass(frozen=True, slots=True)
class PredictionScore:
    """How well seconds to a first token were predicted.

    Attributes:
        within: share of the requests of which a quarter of the wait, or 50 ms, was not missed by more.
        mape: mean of the error over the wait.
    """

    num: int
    within: float
    mape: float


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """One trace under one policy.

    Attributes:
        num, attained, refused, completed: requests of each tenant that had any; those completed by the end of the
            trace.
        goodput_per_s: requests that attained what they were promised, per second of the trace.
        completed_per_s: requests that had ended by the end of the trace, per second of it.
        ttft_mean_s: of those that were accepted; see ``Course.waited_s``.
        accepted_met: share of the accepted requests with a target whose first token was in time.
        predictions: of all accepted requests.
        interactive_predictions: of those with a target.
    """

    num: dict[str, int]
    attained: dict[str, int]
    refused: dict[str, int]
    completed: dict[str, int]
    goodput_per_s: float
    completed_per_s: float
    ttft_mean_s: float
    accepted_met: float
    predictions: PredictionScore
    interactive_predictions: PredictionScore

    def attainment(self, tenant: str) -> float:
        """Share of a tenant's requests that attained what they were promised; 0 if there were none."""
        return self.attained.get(tenant, 0) / max(1, self.num.get(tenant, 0))


def judge(courses: Sequence[Course], duration_s: float) -> JudgedRun:
    """Judges the run of a trace of so many seconds. A refusal counts as a miss."""
    names = sorted({each.tenant.name for each in courses})
    by_name = {name: [each for each in courses if each.tenant.name == name] for name in names}
    attained = {name: sum(_attains(each, duration_s) for each in found) for name, found in by_name.items()}
    completed = {name: sum(_completed(each, duration_s) for each in found) for name, found in by_name.items()}
    accepted = [each for each in courses if not each.is_refused]
    interactive = [each for each in accepted if each.tenant.is_interactive]
    in_time = sum(each.first_s is not None and each.first_s <= each.ttft_target_s for each in interactive)
    return JudgedRun(
        num={name: len(found) for name, found in by_name.items()},
        attained=attained,
        refused={name: sum(each.is_refused for each in found) for name, found in by_name.items()},
        completed=completed,
        goodput_per_s=sum(attained.values()) / duration_s,
        completed_per_s=sum(completed.values()) / duration_s,
        ttft_mean_s=statistics.fmean(each.waited_s for each in accepted) if accepted else 0.0,
        accepted_met=in_time / max(1, len(interactive)),
        predictions=score_predictions(accepted),
        interactive_predictions=score_predictions(interactive),
    )


def score_predictions(courses: Sequence[Course]) -> PredictionScore:
    """Scores the predictions of the requests that had a first token; a client sees those of no others."""
    predicted = [
        (each.predicted_s, each.first_s)
        for each in courses
        if each.predicted_s is not None and each.first_s is not None
    ]
    if not predicted:
        return PredictionScore(0, 1.0, 0.0)
    within = sum(is_near(*each) for each in predicted)
    mape = statistics.fmean(
        abs(predicted_s - first_s) / max(first_s, 1e-6) for predicted_s, first_s in predicted
    )
    return PredictionScore(len(predicted), within / len(predicted), mape)


def _attains(course: Course, duration_s: float) -> bool:
    if course.tenant.is_interactive:
        return course.meets
    return _completed(course, duration_s)


def _completed(course: Course, duration_s: float) -> bool:
    return course.ended_at_s is not None and course.ended_at_s <= duration_s
