"""From a request to sequences on a replica, through sleeps and deaths of workers, to its tokens.

A request acquires a replica, sends one sequence for each choice and gathers what comes back. If its
worker dies, or unloads its replica under it, it acquires another and goes on from the tokens that it has, prompt and
output apart, so that what was sent already never changes. If its replica is put to sleep, it stays with it, and goes
on when that wakes. One task drives each request over
its whole life; tokens pass through none: the worker client calls the stream's sink, which appends to a list that the
reader takes whole. A slow reader holds back nobody else: when its backlog is full (``router.dispatch.unread``), the
request leaves its worker, and goes on from where it was, as after a death, when the reader has caught up.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np

from engines.api import (
    REPLICA_UNLOADED,
    ChoiceTokens,
    Finished,
    FinishReason,
    SamplingParams,
    SequenceRequest,
)
from engines.supervise.client import SequenceSink
from engines.supervise.death import WorkerDeath
from mooring.errors import (
    InternalError,
    ModelUnavailableError,
    MooringError,
    PoisonousRequestError,
    WorkerLostError,
    error_from_code,
)
from router.dispatch.running_requests import RunningRequests
from router.dispatch.suspects import Suspects
from router.dispatch.unread import Unread
from router.request.request import GenerationRequest

__all__ = ["DispatchConfig", "Dispatcher", "ReplicaSource", "SequenceWorker", "Ticket"]


class Ticket(Protocol):
    """The right to run sequences on a replica; the replica stays resident until it is released."""

    @property
    def replica_id(self) -> str: ...

    @property
    def worker_id(self) -> str: ...

    @property
    def artifact_key(self) -> str: ...

    @property
    def predicted_ttft_s(self) -> float | None: ...

    def note_tokens(self, num_tokens: int) -> None:
        """Tells how many tokens a choice of the request has by now."""
        ...

    def release(self) -> None: ...


class ReplicaSource(Protocol):
    """Gives out replicas (``memory_manager.fleet.controller.MemoryManager``)."""

    async def acquire(
        self,
        name: str,
        *,
        deadline_s: float,
        tpot_target_s: float | None,
        priority: int,
        tenant: str,
        weight: float,
        refuses_miss: bool,
        num_prompt: int,
        num_choices: int,
        most_output: float,
        again: bool,
    ) -> Ticket:
        """Waits until a worker can begin the request on a replica of this deployment and returns a ticket for it; see
        ``memory_manager.fleet.controller.MemoryManager.acquire``."""
        ...


class SequenceWorker(Hashable, Protocol):
    """Runs sequences: one life of a worker (``engines.supervise.client.WorkerClient``)."""

    @property
    def death(self) -> WorkerDeath:
        """How it died, once its sequences have ended with ``worker_lost``."""
        ...

    def submit(self, request: SequenceRequest, sink: SequenceSink) -> None: ...

    def cancel(self, sequence_ids: Sequence[int]) -> None: ...


async def acquire(replicas: ReplicaSource, request: GenerationRequest, *, again: bool = False) -> Ticket:
    """Waits for a replica of the very weights that the request was made for and returns a ticket for it.

    Args:
        again: the request had a ticket before.

    Raises:
        MooringError: there is none and there will be none; ``ModelUnavailableError`` also if the deployment
            has come to serve other weights, which would go on with ids of another tokenizer.
    """
    ticket = await replicas.acquire(
        request.deployment,
        deadline_s=request.deadline_s,
        tpot_target_s=request.tpot_target_s,
        priority=request.priority,
        tenant=request.tenant,
        weight=request.weight,
        refuses_miss=request.refuses_miss,
        num_prompt=len(request.prompt_ids),
        num_choices=request.n,
        most_output=request.sampling.max_tokens,
        again=again,
    )
    if request.artifact_key and ticket.artifact_key != request.artifact_key:
        ticket.release()
        raise ModelUnavailableError(
            f"model '{request.deployment}' was given another version while the request waited: send it again",
            code="model_changed",
            retry_after_s=0,
        )
    return ticket


@dataclass(frozen=True, slots=True)
class DispatchConfig:
    """How requests are tried again.

    Attributes:
        clear_after_tokens: further tokens that clear a suspect of a worker's death the first time.
        killed_again_s: seconds within which a second kill by the system counts as a death in a step.
        first_pause_s: before trying again after an attempt that gave no token; doubles with each.
        max_pause_s: the longest such pause.
        max_fruitless_attempts: attempts in a row without a token after which the request fails.
    """

    clear_after_tokens: int = 8
    killed_again_s: float = 60.0
    first_pause_s: float = 0.01
    max_pause_s: float = 1.0
    max_fruitless_attempts: int = 30


@dataclass(slots=True)
class _Choice:
    index: int
    output_ids: list[int] = field(default_factory=list)
    num_at_start: int = 0  # output tokens when it was last submitted
    sequence_id: int | None = None  # None: on no worker now
    ended: bool = False


class RequestStream:
    """The tokens of one request (``router.request.request.TokenStream``). Made by ``Dispatcher.generate``."""

    def __init__(
        self,
        request: GenerationRequest,
        ticket: Ticket,
        replicas: ReplicaSource,
        clients: Callable[[str], SequenceWorker],
        running: RunningRequests,
        sequence_ids: Iterator[int],
        config: DispatchConfig,
    ) -> None:
        self.predicted_ttft_s = ticket.predicted_ttft_s
        self._request = request
        self._ticket: Ticket | None = ticket
        self._replicas = replicas
        self._clients = clients
        self._running = running
        self._sequence_ids = sequence_ids
        self._config = config
        self._choices = [_Choice(index) for index in range(request.n)]
        self._unread = Unread(request.max_unread_tokens)  # one part for each step of each choice
        self._arrived = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._caught_up.set()
        self._has_to_move = asyncio.Event()
        self._runner: SequenceWorker | None = None
        self._error: MooringError | None = None
        self._task = asyncio.create_task(self._run(), name=f"request-{request.request_id}")
        self._task.add_done_callback(self._settle)

    # The reader's side -----------------------------------------------------------------------------

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> list[ChoiceTokens]:
        while True:
            parts = self._unread.take()
            self._caught_up.set()
            if parts:
                return parts
            if self._error is not None:
                raise self._error
            if self._task.done() or self._all_ended():
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()

    def stop(self, index: int) -> None:
        choice = self._choices[index]
        choice.ended = True
        self._unread.drop(index)
        if choice.sequence_id is not None and self._runner is not None:
            self._runner.cancel([choice.sequence_id])
            choice.sequence_id = None
        self._note_end()

    async def aclose(self) -> None:
        self._finish()
        self._unread.take()
        await asyncio.wait([self._task])

    # The worker's side -----------------------------------------------------------------------------

    def num_further_tokens(self) -> int:
        """Tokens since it was last submitted, of the running choice that has fewest."""
        return min((len(c.output_ids) - c.num_at_start for c in self._choices if not c.ended), default=0)

    def has_sequence_of(self, sequence_ids: Collection[int]) -> bool:
        """Whether one of these sequences is one of its choices."""
        return any(choice.sequence_id in sequence_ids for choice in self._choices)

    def interrupt(self, *, poisonous: bool) -> None:
        """Leaves the worker, which died; if ``poisonous``, the request fails."""
        self._runner = None
        for choice in self._choices:
            choice.sequence_id = None
        if poisonous:
            self._fail(
                PoisonousRequestError(
                    "the engine's process died more than once in a step of this request, at last with no other "
                    "suspect in it: it is not tried again"
                )
            )
        else:
            self._has_to_move.set()

    def _receive(self, choice: _Choice, new: ChoiceTokens) -> None:
        """The sink of one choice's sequence: called once a step, never blocks."""
        if new.token_ids:
            choice.output_ids += new.token_ids
            if self._ticket is not None:
                self._ticket.note_tokens(len(choice.output_ids))
        if new.first is not None and choice.num_at_start:
            new.first = replace(new.first, cached_tokens=None)  # of a prompt that was computed before
        finished = new.finished
        if finished is not None and finished.reason is FinishReason.ERROR:
            new.finished = None  # the request goes on elsewhere, or fails as a whole
        if new.token_ids or new.finished is not None:
            self._put(new)
        if finished is not None:
            self._end(choice, finished)
        if new.token_ids:
            self._running.progressed(self)

    def _end(self, choice: _Choice, finished: Finished) -> None:
        if finished.error_code == WorkerLostError.code:
            if self._runner is not None:  # else this request knows of the death
                self._running.worker_died(self._runner, self._runner.death)
            return
        choice.sequence_id = None
        if finished.reason is not FinishReason.ERROR:
            choice.ended = True
        elif finished.error_code != REPLICA_UNLOADED:
            self._fail(error_from_code(finished.error_code, finished.error_message))
            return
        self._note_end()

    def _put(self, new: ChoiceTokens) -> None:
        self._unread.put(new)
        self._arrived.set()
        if self._unread.is_full:
            self._caught_up.clear()
            self._has_to_move.set()

    # The life of the request -----------------------------------------------------------------------

    async def _run(self) -> None:
        """Attempts, until ``_finish`` cancels the task."""
        num_fruitless = 0
        try:
            while self._ticket is not None:
                num_tokens = self._num_tokens()
                await self._attempt(self._ticket)
                num_fruitless = 0 if self._num_tokens() > num_tokens else num_fruitless + 1
                await self._caught_up.wait()
                await self._pause(num_fruitless)
                self._ticket = await acquire(self._replicas, self._request, again=True)
        except MooringError as error:
            self._fail(error)

    async def _attempt(self, ticket: Ticket) -> None:
        """Runs on the ticket's replica until the request has to move."""
        try:
            await self._running.wait_trial(self)
            self._has_to_move.clear()
            self._submit(self._clients(ticket.worker_id), ticket.replica_id)
            await self._has_to_move.wait()
        except WorkerLostError:
            return  # it died before anything was sent to it: nobody of ours was present
        finally:
            self._withdraw()

    def _submit(self, runner: SequenceWorker, replica_id: str) -> None:
        self._runner = runner
        self._running.enter(self, runner)
        target_s = self._request.tpot_target_s
        for choice in self._choices:
            if choice.ended:
                continue
            sequence_id = next(self._sequence_ids)
            sequence = SequenceRequest(
                sequence_id=sequence_id,
                replica_id=replica_id,
                prompt_ids=self._request.prompt_ids,
                sampling=_sampling_of(choice, self._request.sampling),
                output_ids=np.array(choice.output_ids, np.int32),
                deadline_s=self._request.deadline_s,
                tpot_target_s=math.inf if target_s is None else target_s,
                priority=self._request.priority,
                cache_scope=self._request.cache_scope,
            )
            runner.submit(sequence, partial(self._receive, choice))
            choice.sequence_id = sequence_id
            choice.num_at_start = len(choice.output_ids)

    async def _pause(self, num_fruitless: int) -> None:
        if num_fruitless == 0:
            return
        if num_fruitless > self._config.max_fruitless_attempts:
            raise WorkerLostError("no replica of this model stays up long enough to answer; try again later")
        doublings = num_fruitless - 1
        await asyncio.sleep(min(self._config.max_pause_s, self._config.first_pause_s * 2.0**doublings))

    def _withdraw(self) -> None:
        """Leaves the worker and gives the replica back; cancels what still runs there."""
        runner, self._runner = self._runner, None
        running = [choice.sequence_id for choice in self._choices if choice.sequence_id is not None]
        if runner is not None and running:
            runner.cancel(running)
        for choice in self._choices:
            choice.sequence_id = None
        self._running.leave(self, runner)
        if self._ticket is not None:
            self._ticket.release()
            self._ticket = None

    def _fail(self, error: MooringError) -> None:
        self._error = self._error or error
        self._finish()

    def _finish(self) -> None:
        """Nothing more is to run: worker and replica are free from this moment on."""
        self._withdraw()
        self._task.cancel()
        self._arrived.set()

    def _note_end(self) -> None:
        """One choice no longer runs."""
        if self._all_ended():
            self._finish()
        elif all(choice.sequence_id is None for choice in self._choices):
            self._has_to_move.set()

    def _all_ended(self) -> bool:
        return all(choice.ended for choice in self._choices)

    def _num_tokens(self) -> int:
        return sum(len(choice.output_ids) for choice in self._choices)

    def _settle(self, task: asyncio.Task[None]) -> None:
        """The last thing to happen, also to a task that was cancelled before it ran."""
        self._withdraw()
        self._running.forget(self)
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._error = InternalError(f"the dispatcher failed: {bug!r}")
            self._error.__cause__ = bug
        self._arrived.set()


def _sampling_of(choice: _Choice, sampling: SamplingParams) -> SamplingParams:
    """The request's ``sampling`` for one choice. The prompt's log-probabilities come with the first token of the
    first choice, so they are asked for until that is there, and of no other."""
    sent = choice.index > 0 or bool(choice.output_ids)
    prompt_logprobs = None if sent else sampling.prompt_logprobs
    return replace(sampling, choice=choice.index, prompt_logprobs=prompt_logprobs)


class Dispatcher:
    """Runs requests on replicas (``router.request.request.TokenSource``).

    Args:
        replicas: gives out replicas, and waits for those that have to be loaded first.
        clients: the present life of a worker by its id; raises ``WorkerLostError`` if there is none.
        clock: in seconds, by which deaths are told apart.
    """

    def __init__(
        self,
        replicas: ReplicaSource,
        clients: Callable[[str], SequenceWorker],
        config: DispatchConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replicas = replicas
        self._clients = clients
        self._config = config or DispatchConfig()
        self._running = RunningRequests(
            Suspects(self._config.clear_after_tokens, self._config.killed_again_s), clock
        )
        self._sequence_ids = itertools.count(1)

    async def generate(self, request: GenerationRequest) -> RequestStream:
        """Returns the stream once a replica is there for it.

        Raises:
            MooringError: there is none and there will be none, or not in time.
        """
        ticket = await acquire(self._replicas, request)
        return RequestStream(
            request,
            ticket,
            self._replicas,
            self._clients,
            self._running,
            self._sequence_ids,
            self._config,
        )
