"""Figures of a worker and its replicas: one shape for engine, wire, manager, metrics and the admin API."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KVFragmentation", "ReplicaStats", "WorkerStats"]


@dataclass(frozen=True, slots=True)
class KVFragmentation:
    """Committed KV memory of one worker that holds no token, in bytes; docs/memory.md bounds it.

    Attributes:
        free_bytes: bytes of pages that are nobody's: any model takes them in its next step.
        vacant_bytes: bytes of vacant places for blocks in pages that a model holds.
        tail_bytes: bytes at the ends of held pages, where no block fits.
        unfilled_bytes: bytes in blocks that sequences hold, for tokens that are not computed yet.
    """

    free_bytes: int = 0
    vacant_bytes: int = 0
    tail_bytes: int = 0
    unfilled_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """Figures of one replica, as its worker counts them. Bytes are of the device; totals only grow, from the load
    of the replica on.

    Attributes:
        residency: ``"resident"`` or ``"warm"``.
        weights_bytes: bytes of its weights.
        kv_bytes: bytes of the pages that it holds.
        kv_live_bytes: bytes of blocks that sequences use.
        kv_cached_bytes: bytes of blocks that no sequence uses, kept to be found again; given up before anything
            else.
        num_running: sequences in its batches.
        num_queued: sequences that it has and no batch has yet.
        preemptions_total: sequences that lost their blocks.
        preemptions_by_swap_total: those of them whose KV was copied to host memory.
        prefix_query_tokens_total: tokens of prompts that were looked up in the prefix cache.
        prefix_hit_tokens_total: those of them that were found and not computed.
        prompt_tokens_total: tokens of prompts that were begun.
        generation_tokens_total: tokens that were drawn.
    """

    replica_id: str
    residency: str = "warm"
    weights_bytes: int = 0
    kv_bytes: int = 0
    kv_live_bytes: int = 0
    kv_cached_bytes: int = 0
    num_running: int = 0
    num_queued: int = 0
    preemptions_total: int = 0
    preemptions_by_swap_total: int = 0
    prefix_query_tokens_total: int = 0
    prefix_hit_tokens_total: int = 0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Figures of one worker.

    Attributes:
        replicas: figures of its replicas.
        kv_lease_bytes: the KV lease that it keeps to.
        kv_lease_revision: revision of that lease.
        kv_bytes: bytes of KV pages that are committed.
        kv_wanted_bytes: the KV lease under which no sequence would wait for KV; 0 if none does.
        kv_swapped_bytes: bytes of host memory that the KV of preempted sequences takes.
        ready_bytes: bytes of device memory that it holds for nobody, so that what grows need not wait for it.
        fragmentation: of its KV.
        steps_total: steps that it has run.
        rss_bytes: resident memory of its process.
    """

    replicas: tuple[ReplicaStats, ...] = ()
    kv_lease_bytes: int = 0
    kv_lease_revision: int = 0
    kv_bytes: int = 0
    kv_wanted_bytes: int = 0
    kv_swapped_bytes: int = 0
    ready_bytes: int = 0
    fragmentation: KVFragmentation = KVFragmentation()
    steps_total: int = 0
    rss_bytes: int = 0
