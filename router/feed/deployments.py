"""The deployments as the live feed shows them. No clock and no I/O.

Most of many deployments stand still, so what was shown of one is shown again while nothing of it has changed; then
the patch costs nothing either, since the very same object has no difference to look for.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from memory_manager.fleet.status import DeploymentStatus, Snapshot, WaitingStatus
from model_registry.records import DeploymentRecord
from mooring.merge_patch import Document, filled
from router.control.directory import Preparation
from router.feed.rounding import short
from router.feed.waiting import waits_for

__all__ = ["DeploymentDocuments"]


class DeploymentDocuments:
    """Makes the documents, and remembers the last ones.

    Args:
        engine: of deployments that the registry does not have yet.
    """

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._shown: dict[str, tuple[Hashable, DeploymentRecord | None, Document]] = {}

    def show(
        self,
        snapshot: Snapshot,
        offset_s: float,
        records: Mapping[str, DeploymentRecord],
        reasons: Mapping[str, str],
        preparing: Mapping[str, Preparation],
    ) -> Document:
        """All that are deployed or are being made, by name, also those that the manager does not know.

        Args:
            offset_s: seconds from the manager's clock to the Unix epoch.
            records: the registry's deployments, by name.
            reasons: why deployments are not served, by name.
            preparing: models that are being made, by name.
        """
        managed = {each.name: each for each in snapshot.deployments}
        first: dict[str, WaitingStatus] = {}
        for queue in snapshot.queues:
            for waiting in queue.first:
                first.setdefault(waiting.deployment, waiting)
        now_s = snapshot.at_s + offset_s
        shown: dict[str, tuple[Hashable, DeploymentRecord | None, Document]] = {}
        for name in {**records, **managed, **preparing}:
            record, status, waiter = records.get(name), managed.get(name), first.get(name)
            preparation, reason = preparing.get(name), reasons.get(name)
            key = (
                preparation,
                reason,
                None if waiter is None else waiter.reason,
                None if status is None else _key(status, now_s),
            )
            before = self._shown.get(name)
            if before is not None and before[0] == key and before[1] is record:
                shown[name] = before
                continue
            about = {"engine": self._engine} if record is None else _record(record)
            if status is not None:
                about |= _managed(status, reason, now_s)
            else:
                about |= _unmanaged(reason, preparation)
            waits = waits_for(status, preparation, waiter, is_withheld=reason is not None)
            shown[name] = (key, record, about | filled(waits_for=waits))
        self._shown = shown
        return {name: document for name, (_, _, document) in shown.items()}


def _key(status: DeploymentStatus, now_s: float) -> Hashable:
    """Everything that is shown of a deployment by the manager."""
    return (
        status.enabled,
        status.residency,
        status.reason,
        status.num_waiting,
        status.load_s,
        status.wake_s,
        *(
            (
                each.replica_id,
                each.residency,
                each.reason,
                each.worker_id,
                each.lease_bytes,
                each.num_active,
                each.num_queued,
                round(now_s - each.for_s, 2),
            )
            for each in status.replicas
        ),
    )


def _record(record: DeploymentRecord) -> Document:
    version, policy = record.variant.version, record.policy
    return {
        "model": version.model,
        "version": version.number,
        "precision": record.variant.precision,
        "engine": record.engine,
        "enabled": policy.enabled,
        "pinned": policy.pinned,
        "priority": policy.priority,
    }


def _managed(status: DeploymentStatus, reason: str | None, now_s: float) -> Document:
    best = next((each for each in status.replicas if each.residency is status.residency), None)
    return filled(
        enabled=status.enabled,
        residency=status.residency.value,
        reason=reason or status.reason or None,
        since=None if best is None else round(now_s - best.for_s, 2),
        num_running=sum(each.num_active - each.num_queued for each in status.replicas),
        num_waiting=status.num_waiting + sum(each.num_queued for each in status.replicas),
        load_s=None if status.load_s is None else short(status.load_s),
        wake_s=None if status.wake_s is None else short(status.wake_s),
        replicas={
            each.replica_id: filled(
                residency=each.residency.value,
                reason=each.reason or None,
                worker=each.worker_id,
                lease_bytes=each.lease_bytes,
                num_active=each.num_active,
            )
            for each in status.replicas
        },
    )


def _unmanaged(reason: str | None, preparation: Preparation | None) -> Document:
    """A deployment that the manager does not know: it is being made or packed, or it is not served."""
    return filled(
        residency="cold" if reason is None else "failed",
        reason=reason or (None if preparation is None else f"being made: {preparation}"),
        num_running=0,
        num_waiting=0,
        replicas={},
    )
