"""Fences behind which KV pages leave: what was launched before one can no longer touch them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from memory_manager.kv.pages import StepFence

__all__ = ["CudaStepFence", "DeviceStepFence", "HostStepFence", "step_fence"]


class DeviceStepFence(StepFence, Protocol):
    """A ``StepFence`` that is told of the steps. All calls come from the step thread."""

    def begin_step(self) -> None: ...

    def end_step(self) -> None: ...


class HostStepFence:
    """On a CPU: what is marked amid a step has passed when the step has ended, and between steps nothing runs."""

    def __init__(self) -> None:
        self._num_begun = 0
        self._num_ended = 0

    def begin_step(self) -> None:
        self._num_begun += 1

    def end_step(self) -> None:
        self._num_ended = self._num_begun

    def mark(self) -> Callable[[], bool]:
        number = self._num_begun
        return lambda: self._num_ended >= number


class CudaStepFence:
    """On a GPU: an event on the stream of the steps. It has passed once all that was launched there before has ended,
    also what a step that failed halfway has left behind; nobody waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin_step(self) -> None:
        """Does nothing: the stream keeps the order."""

    def end_step(self) -> None:
        """Does nothing."""

    def mark(self) -> Callable[[], bool]:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event.query


def step_fence(device: torch.device) -> DeviceStepFence:
    return CudaStepFence(device) if device.type == "cuda" else HostStepFence()
