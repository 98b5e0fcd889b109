"""Conditions that an operator has to know of now. They are alert rules for Prometheus too, over the same figures
(deploy/prometheus/alerts.yml). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from engines.supervise.supervisor import WorkerProcess
from memory_manager.fleet.status import Snapshot
from mooring.merge_patch import Document
from mooring.units import format_bytes
from router.telemetry.attainment import Attainment, Judged

__all__ = ["FAST_BURN", "MIN_REQUESTS", "RESTART_WINDOW_S", "SLOW_BURN", "Alert", "Alerts", "conditions"]

MIN_REQUESTS = 10
"""So many requests of a tenant, class and model in the last hour are needed to judge them by."""

FAST_BURN = 6.0
SLOW_BURN = 2.0
"""How many times the misses that the goal allows: so fast is critical, if it holds over the last hour and the last
minute; so fast over the last hour is a warning, while the last minute misses the goal too."""

RESTART_WINDOW_S = 600.0


@dataclass(frozen=True, slots=True)
class Alert:
    """One condition that holds."""

    id: str
    severity: Literal["warning", "critical"]
    title: str
    text: str


def conditions(
    snapshot: Snapshot, attainments: Iterable[Attainment], restarted: Mapping[str, int], now_s: float
) -> list[Alert]:
    """The conditions that hold.

    Args:
        restarted: restarts within the last ten minutes, by worker.
        now_s: on the clock of the attainments.
    """
    found = [each for entry in attainments if (each := _of_goal(entry, now_s)) is not None]
    for device in snapshot.devices:
        if others_bytes := device.owners.get("others", 0):
            size, budget = format_bytes(others_bytes), format_bytes(device.budget_bytes)
            text = f"Other processes have {size} of the {budget} of {device.name}."
            found.append(Alert(f"foreign_memory:{device.name}", "warning", "Foreign memory", text))
    for worker_id, number in restarted.items():
        if number:
            text = f"{worker_id} was started again {number} times in ten minutes; the server's log says why."
            found.append(Alert(f"worker_restarting:{worker_id}", "warning", "Worker restarting", text))
    if number := snapshot.num_ledger_mismatches:
        text = f"{number} times a worker held other bytes than it was promised: a bug of the server's."
        found.append(Alert("ledger_mismatch", "critical", "Ledger mismatch", text))
    return found


def _of_goal(entry: Attainment, now_s: float) -> Alert | None:
    """The gravest condition of one tenant, class and model."""
    hour, minute = entry.windows["1h"].count(now_s), entry.windows["1m"].count(now_s)
    if entry.goal is None or hour.num_requests < MIN_REQUESTS:
        return None
    whose = f"{entry.tenant}|{entry.slo_class}|{entry.model}"
    about = f"{entry.tenant} in {entry.slo_class} at {entry.model}"
    hourly = f"{hour.num_missed} of {hour.num_requests} requests in the last hour missed their targets"
    goal = f"the goal is {entry.goal:.3g}"
    if _burns(hour, entry.goal, FAST_BURN) and _burns(minute, entry.goal, FAST_BURN):
        text = f"{about}: {hourly}, over {FAST_BURN:.0f} times what is allowed; {goal}."
        return Alert(f"burning_fast:{whose}", "critical", "Error budget burns fast", text)
    if _burns(hour, entry.goal, SLOW_BURN) and _burns(minute, entry.goal, 1.0):
        text = f"{about}: {hourly}, over twice what is allowed; {goal}."
        return Alert(f"burning_slowly:{whose}", "warning", "Error budget burns", text)
    if _burns(hour, entry.goal, 1.0):
        text = f"{about}: {hourly}; {goal}."
        return Alert(f"below_goal:{whose}", "warning", "Attainment below its goal", text)
    return None


def _burns(judged: Judged, goal: float, times: float) -> bool:
    """Whether more than so many times the allowed share missed; of goals that allow much, nearly all."""
    if not judged.num_requests:
        return False
    return judged.num_missed / judged.num_requests > min(times * (1 - goal), 0.9)


class Alerts:
    """Keeps since when each condition holds, and how often workers were restarted of late."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._restarts: dict[str, list[float]] = {}  # when they were seen
        self._known: dict[str, int] = {}

    def note_workers(self, workers: Iterable[WorkerProcess], now_s: float) -> Mapping[str, int]:
        """Takes the workers as they are; returns the restarts within the last ten minutes, by worker."""
        present: dict[str, list[float]] = {}
        for worker in workers:
            before = self._known.get(worker.worker_id, 0)
            seen = [
                at_s for at_s in self._restarts.get(worker.worker_id, ()) if at_s > now_s - RESTART_WINDOW_S
            ]
            seen += [now_s] * (worker.restarts_total - before)
            present[worker.worker_id] = seen
            self._known[worker.worker_id] = worker.restarts_total
        self._restarts = present
        return {worker_id: len(seen) for worker_id, seen in present.items()}

    def note(self, found: Iterable[Alert], at_s: float) -> Document:
        """Takes the conditions that hold now, at ``at_s`` of the Unix epoch; returns them with when each began."""
        alerts = {each.id: each for each in found}
        self._since = {name: self._since.get(name, round(at_s, 1)) for name in alerts}
        return {
            name: {
                "severity": each.severity,
                "title": each.title,
                "text": each.text,
                "since": self._since[name],
            }
            for name, each in alerts.items()
        }
