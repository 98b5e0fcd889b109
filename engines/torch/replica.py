"""One loaded model: its weights, the model over them, and its sequences."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.api import Finished, LoadSpec
from engines.artifact import PLAIN_LAYOUT, Manifest
from engines.checkpoint.model_config import ModelConfig, kv_groups
from engines.config import TorchEngineConfig
from engines.link.flight_recorder import FlightRecorder
from engines.torch.kv.swap import KVSwap, SwapSpace
from engines.torch.model.kv_view import KVCacheView
from engines.torch.model.model import TransformerModel
from engines.torch.scheduling.counters import RunnerCounters
from engines.torch.scheduling.requests import SequenceLimits
from engines.torch.scheduling.runner import SequenceRunner
from engines.torch.scheduling.shared_kv import SharedKV
from engines.torch.weights.core_turns import CoreTurns
from engines.torch.weights.weights import WeightsRegion
from memory_manager.arena.protocol import Arena
from memory_manager.kv.block_store import BlockStore
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.stats import ReplicaStats
from mooring.errors import ArtifactError, ConflictError, MooringError

__all__ = ["TorchReplica"]

_MOVED_BYTES = 4 * PAGE_BYTES  # of blocks at once: between two places they lie in memory that nobody leased


class TorchReplica:
    """A model that is resident (weights on the device, its sequences run) or warm (addresses, and what its parked
    sequences and stored prefixes keep of the pool).

    Making one reserves addresses and builds the model over them; its weights are no memory until
    ``restore``. ``restore`` may run beside the step thread, everything else belongs to it.

    Attributes:
        runner: has its sequences; None until it is attached for the first time, and once it is detached.
        is_resident: its sequences may run: it was attached and not parked since.

    Args:
        weights_fd: of the host copy, kept until ``drop_host_copy`` or ``close`` closes it; or of the packed file,
            from which the weights come once.
        kv_memory: uint8, the pool's whole range.
        shared_kv: of the worker.

    Raises:
        ArtifactError: the manifest is not of a kind this engine can run.
        InsufficientMemoryError: there are no addresses for the weights.
    """

    def __init__(
        self,
        spec: LoadSpec,
        weights_fd: int,
        arena: Arena,
        kv_memory: Tensor,
        shared_kv: SharedKV,
        core_turns: CoreTurns,
        config: TorchEngineConfig,
        recorder: FlightRecorder | None = None,
    ) -> None:
        manifest = Manifest.from_json(spec.manifest_json)
        if manifest.engine != "torch":
            raise ArtifactError(f"the artifact was packed for engine {manifest.engine!r}, not for torch")
        if manifest.layout != PLAIN_LAYOUT:
            raise ArtifactError(f"the artifact has layout {manifest.layout!r}, which this engine cannot read")
        self._spec = spec
        self._weights_fd: int | None = weights_fd
        self._engine_config = config
        self._recorder = recorder
        self._shared_kv = shared_kv
        self._artifact = hashlib.sha256(spec.manifest_json).digest()
        self._counters = RunnerCounters()
        self._model_config = ModelConfig.from_dict(manifest.config)
        self._max_model_len = min(spec.max_model_len, self._model_config.max_model_len)
        self._device = kv_memory.device
        self._core_turns = core_turns
        self._weights = WeightsRegion(
            arena,
            manifest.num_bytes,
            copy_chunk_bytes=config.copy_chunk_bytes,
            num_copy_threads=config.num_copy_threads,
            core_turns=core_turns,
            may_borrow=config.cpu_wake == "remap",
            checksum=spec.host_copy_checksum,
        )
        try:
            tensors = self._weights.tensors(manifest)
            dtype = _one_dtype(tensors.values())
            self._groups = kv_groups(self._model_config, dtype.itemsize)
            self._kv = KVCacheView(
                kv_memory,
                self._groups,
                dtype,
                self._model_config.num_kv_heads,
                self._model_config.head_dim,
            )
            self._model = TransformerModel(
                self._model_config, tensors, self._kv, give_way=core_turns.give_way
            )
        except BaseException:  # whatever is wrong with the artifact, the addresses go back
            self._weights.close()
            raise
        kv_bytes = kv_memory.numel() - PAGE_BYTES
        self._limits = SequenceLimits(
            vocab_size=self._model_config.vocab_size,
            max_model_len=self._max_model_len,
            groups=self._groups,
            kv_bytes=kv_bytes if spec.kv_cap_bytes is None else min(kv_bytes, spec.kv_cap_bytes),
        )
        self.runner: SequenceRunner | None = None
        self.is_resident = False
        self._next_runner: SequenceRunner | None = None

    @property
    def replica_id(self) -> str:
        return self._spec.replica_id

    @property
    def weights_bytes(self) -> int:
        """Device bytes that the weights hold now."""
        return self._weights.committed_bytes

    def restore(
        self, weights_lease_bytes: int, cache: BlockStore, swap_space: SwapSpace, *, core_share: float
    ) -> None:
        """Brings the weights onto the device and makes ready for ``attach``; all or nothing.

        Args:
            core_share: see ``WeightsRegion.restore``.

        Raises:
            InsufficientMemoryError: the lease is smaller than the weights, or the arena has no more.
            ArtifactError: the host copy is not what the manifest says.
            HostCopyAlteredError: something wrote to it.
            ConflictError: there is none any more.
        """
        if self._weights_fd is None:
            raise ConflictError(f"{self.replica_id} has no host copy to wake from: unload it")
        from_file = self._spec.from_file
        self._weights.restore(
            self._weights_fd, weights_lease_bytes, core_share=core_share, from_file=from_file
        )
        if from_file:
            self.drop_host_copy()
        if self.runner is not None or self._next_runner is not None:
            return
        try:
            self._next_runner = self._new_runner(cache, swap_space)
        except BaseException:  # whatever stopped it, the pages go back
            self._weights.release()
            raise

    def drop_host_copy(self) -> None:
        """Lets go of the host copy, so that the replica cannot come back once its weights are released; safe to
        call again."""
        self._weights.unpin()
        if self._weights_fd is not None:
            os.close(self._weights_fd)
            self._weights_fd = None

    def _new_runner(self, cache: BlockStore, swap_space: SwapSpace) -> SequenceRunner:
        return SequenceRunner(
            self.replica_id,
            partial(self._model.forward, kv=self._kv),
            self._model.logits,
            limits=self._limits,
            eos_ids=self._model_config.eos_token_ids,
            cache=cache,
            shared=self._shared_kv,
            swap=KVSwap(self._kv, swap_space),
            artifact=self._artifact,
            device=self._device,
            config=self._engine_config,
            counters=self._counters,
            clock=self._core_turns.step_clock,
            recorder=self._recorder,
        )

    def attach(self, cache: BlockStore) -> None:
        """Lets sequences in after ``restore``, and those go on that were parked."""
        self.is_resident = True
        if self.runner is not None:
            cache.unpark(self.replica_id)
        else:
            self._join(cache)

    def _join(self, cache: BlockStore) -> None:
        self.runner, self._next_runner = self._next_runner, None
        assert self.runner is not None, "it was made before"
        move = partial(_move_blocks, self._kv, self.runner, self._device)
        cache.add_model(
            self.replica_id, self._groups, self._spec.kv_guarantee_bytes, self._spec.kv_cap_bytes, move
        )

    def park(self, cache: BlockStore) -> None:
        """Leaves all sequences where they are until ``attach``: none of them is computed, and they keep their blocks
        as long as nobody else needs these."""
        self.is_resident = False
        if self.runner is not None:
            self.runner.trim()
            cache.park(self.replica_id)

    def detach(self, cache: BlockStore, error: MooringError) -> list[Finished]:
        """Ends all sequences with ``error``, drops what is stored and leaves the pool; returns their ends."""
        if self.runner is None:
            return []
        ended = self.runner.drain(error)
        self.runner, self.is_resident = None, False
        cache.remove_model(self.replica_id)
        return ended

    def restart(self, cache: BlockStore, swap_space: SwapSpace, error: MooringError) -> list[Finished]:
        """Ends all sequences with ``error`` and goes on with empty books and no blocks, whatever state the old ones
        are in; returns the ends."""
        assert self.runner is not None, "only books can be in two minds"
        ended = self.runner.abandon(error)
        cache.drop_model(self.replica_id)
        self._next_runner = self._new_runner(cache, swap_space)
        self._join(cache)
        if not self.is_resident:
            cache.park(self.replica_id)
        return ended

    def release(self) -> int:
        """Takes the weights off the device, which no step touches any more; returns the bytes."""
        if self._device.type == "cuda":  # for steps, not for a wake that copies on its own stream
            torch.cuda.current_stream(self._device).synchronize()
        return self._weights.release()

    def close(self) -> None:
        """Gives everything back, the descriptor of the host copy included. It is detached."""
        self.release()
        self._weights.close()
        self.drop_host_copy()

    def stats(self, pool: KVPool) -> ReplicaStats:
        held_bytes, live_bytes, idle_bytes = pool.usage(self.replica_id) if self.runner else (0, 0, 0)
        num_running, num_waiting = (
            (self.runner.num_running, self.runner.num_waiting) if self.runner else (0, 0)
        )
        return ReplicaStats(
            replica_id=self.replica_id,
            residency="resident" if self.is_resident else "warm",
            weights_bytes=self.weights_bytes,
            kv_bytes=held_bytes,
            kv_live_bytes=live_bytes,
            kv_cached_bytes=idle_bytes,
            num_running=num_running if self.is_resident else 0,
            num_queued=num_waiting if self.is_resident else num_running + num_waiting,
            preemptions_total=self._counters.preemptions,
            preemptions_by_swap_total=self._counters.swapped_preemptions,
            prefix_query_tokens_total=self._counters.prefix_query_tokens,
            prefix_hit_tokens_total=self._counters.prefix_hit_tokens,
            prompt_tokens_total=self._counters.prompt_tokens,
            generation_tokens_total=self._counters.generation_tokens,
        )


def _move_blocks(
    kv: KVCacheView,
    runner: SequenceRunner,
    device: torch.device,
    group: int,
    sources: NDArray[np.int64],
    destinations: NDArray[np.int64],
) -> None:
    """``memory_manager.kv.block_store.MoveBlocks`` of one model."""
    old, new = (torch.from_numpy(offsets).to(device) for offsets in (sources, destinations))
    at_once = max(1, _MOVED_BYTES // kv.groups[group].block_bytes)
    for start in range(0, len(sources), at_once):
        some = slice(start, start + at_once)
        kv.copy_in(group, new[some], kv.copy_out(group, old[some]))
    runner.moved(group, sources, destinations)


def _one_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) != 1:
        raise ArtifactError(f"the packed weights have {len(dtypes)} dtypes, not one: {dtypes}")
    return dtypes.pop()
