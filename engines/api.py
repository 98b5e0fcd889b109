"""Questions to an engine and its answers, on both sides of the socket.

The router (which submits sequences), the worker client (which carries them) and the engines (which run them) share
these dataclasses. They hold token ids only: text, stop strings and tenants belong to the router.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.sampling_params import SamplingParams
from memory_manager.ports import Capabilities, LeaseStatus
from memory_manager.stats import WorkerStats

__all__ = [
    "NO_TOKENS",
    "REPLICA_UNLOADED",
    "Capabilities",
    "ChoiceTokens",
    "DeviceLostError",
    "Engine",
    "FinishReason",
    "Finished",
    "FirstToken",
    "LoadSpec",
    "SamplingParams",
    "SequenceRequest",
    "StepOutput",
    "TokenIds",
    "TopLogprobs",
    "run_step",
]

TokenIds = NDArray[np.int32]
"""Token ids, int32 [N]. Whoever is given some shares the array and writes nothing into it."""

NO_TOKENS: TokenIds = np.empty(0, np.int32)

REPLICA_UNLOADED = "replica_unloaded"
"""``Finished.error_code`` of a sequence whose replica was unloaded under it. Not a death: the router acquires a
replica again and goes on, and nobody is blamed."""


class DeviceLostError(Exception):
    """The device can do nothing more for this process: only a new one gets another context. Any method of an engine
    may raise it, and the worker ends."""


class FinishReason(enum.Enum):
    """Why a sequence ended; the values are OpenAI's words where it has one."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True, eq=False)
class SequenceRequest:
    """One sequence to generate on one replica.

    Attributes:
        sequence_id: number that the router gave it, unique in the worker's life.
        prompt_ids: token ids of the prompt, at least one; the choices of one request have one array.
        output_ids: tokens that an earlier life of this sequence has sent; they count as output and are never sent
            again.
        deadline_s: when the first token is due, on the engine's clock (``time.monotonic`` of the worker); ``inf``
            means best effort.
        priority: sequences of higher priority go first.
        cache_scope: sequences of one scope may share computed KV, and can tell by the time whether they do; if it is
            None, the sequence shares with none and nothing of it is kept.
        tpot_target_s: seconds that each token after the first may take, on average; ``inf`` means that nothing is
            promised.
    """

    sequence_id: int
    replica_id: str
    prompt_ids: TokenIds
    sampling: SamplingParams
    output_ids: TokenIds = field(default_factory=lambda: NO_TOKENS)
    deadline_s: float = float("inf")
    priority: int = 0
    cache_scope: bytes | None = None
    tpot_target_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """Log-probabilities at one position: of the sampled token and of the likeliest ones, under the
    distribution before temperature and truncation (as OpenAI and vLLM report them)."""

    logprob: float
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a sequence; its last token, if the step gave one, is in the same ``StepOutput``."""

    sequence_id: int
    reason: FinishReason
    stop_token_id: int | None = None
    error_code: str = ""
    error_message: str = ""


@dataclass(frozen=True, slots=True)
class FirstToken:
    """News that comes once, with the first token of a sequence since it was submitted.

    Attributes:
        began_s: when a step began with the sequence, by ``time.monotonic`` of the process that holds this.
        cached_tokens: tokens of the prompt that were found computed already; None if the sequence shares no KV.
        prompt_logprobs: log-probabilities of every token of the prompt but the first, in order; None if they were
            not asked for.
    """

    began_s: float
    cached_tokens: int | None = None
    prompt_logprobs: Sequence[TopLogprobs] | None = None


@dataclass(slots=True)
class ChoiceTokens:
    """The output of one step of the engine for one sequence, which is one choice of a request.

    Attributes:
        index: the choice, as in ``SamplingParams.choice``.
        token_ids: the new tokens, with the stop token that ended the choice, if one did.
        logprobs: one for each token; None if they were not asked for.
        first: comes with the first token.
        finished: the end, after these tokens. With ``ERROR`` and code ``worker_lost`` the process died.
    """

    index: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TopLogprobs] | None = None
    first: FirstToken | None = None
    finished: Finished | None = None


@dataclass(slots=True)
class StepOutput:
    """Everything one step of one replica produced, as parallel columns.

    Attributes:
        sequence_ids, token_ids: ``token_ids[i]`` was generated for ``sequence_ids[i]``. A stop token
            is a token like any other here; the router leaves it out of the text.
        top_logprobs: by index into the columns, only for sequences that asked.
        first_tokens: by sequence id, of the sequences that have their first token in this step.
        finished: sequences that end with this step, with or without a token in it.
        seconds: duration of the step, from its plan to its tokens; 0 if nothing was computed.
        computed_tokens: by sequence id, tokens of prompt and output whose KV the step computed, of every sequence
            that took part, with or without a token in it.
    """

    replica_id: str
    step: int
    sequence_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    top_logprobs: dict[int, TopLogprobs] = field(default_factory=dict)
    first_tokens: dict[int, FirstToken] = field(default_factory=dict)
    finished: list[Finished] = field(default_factory=list)
    seconds: float = 0.0
    computed_tokens: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """An order to load a replica.

    Attributes:
        manifest_json: manifest of the packed artifact (``engines.artifact.Manifest``).
        max_model_len: longest prompt plus output, in tokens.
        weights_lease_bytes: device bytes granted for the weights, a multiple of the page size.
        kv_guarantee_bytes: KV that other models of the worker cannot take; beyond it the first of all sequences can
            take what it needs, whosever it is.
        kv_cap_bytes: most KV that this replica may hold; None means no cap.
        host_copy_checksum: sum of the host copy by ``memory_manager.word_sum``, looked at whenever the weights have
            come; None if nobody can write to the copy.
        from_file: whether the weights come from the packed file or folder, and not from a host copy.
    """

    replica_id: str
    manifest_json: bytes
    max_model_len: int
    weights_lease_bytes: int
    kv_guarantee_bytes: int = 0
    kv_cap_bytes: int | None = None
    host_copy_checksum: int | None = None
    from_file: bool = False


class Engine(Protocol):
    """An engine inside its worker process.

    Threads: ``launch``, ``finish``, ``submit``, ``cancel`` and ``set_lease`` belong to one thread, the step thread.
    ``load`` and ``wake`` copy for long, so they may run on another thread while steps go on, as ``drop_host_copy``
    may; what they bring takes part from the step thread's next call on. ``sleep`` and ``unload`` are called on the
    step thread, between steps.

    The sequences of a replica that sleeps are parked: they are not computed, and after ``wake`` they go on from where
    they were. Meanwhile others may be submitted, and all may be cancelled. Those of a replica that is unloaded are
    finished with ``REPLICA_UNLOADED``.
    """

    def capabilities(self) -> Capabilities: ...

    def load(self, spec: LoadSpec, weights_fd: int) -> int:
        """Makes the replica resident from its host copy, a readable descriptor of the packed weights. The
        descriptor is the engine's from here on: kept open for later wakes, closed at ``drop_host_copy`` and unload,
        when the load fails, and when the replica is here already. If it is the packed file's, it is read once, in
        pieces that take little host memory, and closed. Returns the device bytes held.

        Raises:
            ArtifactError: the manifest is not of a kind this engine can run.
            InsufficientMemoryError: the lease is smaller than the weights.
        """
        ...

    def drop_host_copy(self, replica_id: str) -> None:
        """Lets go of a resident replica's host copy, if it has one; from now on the replica can only be unloaded."""
        ...

    def unload(self, replica_id: str) -> None: ...

    def sleep(self, replica_id: str) -> int:
        """Parks the replica's sequences and gives up the device memory of its weights; returns the bytes given
        up."""
        ...

    def wake(self, replica_id: str, weights_lease_bytes: int) -> int: ...

    def set_lease(self, kv_bytes: int, revision: int) -> LeaseStatus:
        """Takes in the KV lease; absolute. From now on no KV grows beyond it. If more is held it is deferred, and
        steps give it up, each a little; asked with the same revision, it is applied once no more is held."""
        ...

    def is_giving_back(self) -> bool:
        """Whether the next step has KV to give up at once, sequences or none."""
        ...

    def set_memory_limit(self, num_bytes: int) -> int:
        """Sets how much device memory it may hold in all, memory ready for later included, although its leases are
        less; 0 holds it to its leases, which it may always use. Callable from any thread. Returns the bytes that left
        at once; what is in use leaves as it is given up."""
        ...

    def settle(self) -> None:
        """Gives memory back to the system that is ready and no longer allowed, after ``sleep``, ``unload`` and
        ``set_lease`` and before their callers hear of them. Takes its time, so it is not for the step thread."""
        ...

    def submit(self, request: SequenceRequest) -> None:
        """Queues a sequence. What is wrong with it is told by a ``Finished`` of a later step, never
        raised, so that no request can hurt another."""
        ...

    def cancel(self, sequence_ids: Sequence[int]) -> None: ...

    def has_work(self) -> bool: ...

    def launch(self) -> None:
        """Begins one iteration of the model whose turn it is: composes the batch, takes its blocks and starts the
        forward pass. ``finish`` is the next call."""
        ...

    def finish(self) -> list[StepOutput]:
        """Waits for what ``launch`` has begun. A failure of one model is told by the ends of its sequences, never
        raised, so that no model can hurt another. Returns what it produced (with what was cancelled or refused since
        the last step), or an empty list if there was nothing to begin."""
        ...

    def stats(self) -> WorkerStats: ...


def run_step(engine: Engine) -> list[StepOutput]:
    """Runs one iteration from its beginning to its end."""
    engine.launch()
    return engine.finish()
