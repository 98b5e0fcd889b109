"""Fences say when a step that was launched can no longer touch a page."""

from __future__ import annotations

import torch
from support.gpu import GPU

from engines.torch.step_fence import CudaStepFence, HostStepFence, step_fence


def test_on_a_cpu_a_mark_amid_a_step_passes_with_its_end() -> None:
    fence = HostStepFence()
    before = fence.mark()
    assert before()
    fence.begin_step()
    amid = fence.mark()
    assert before()
    assert not amid()
    fence.end_step()
    assert amid()
    after = fence.mark()
    fence.begin_step()
    assert amid()
    assert after(), "a later step cannot touch what was free before it"


def test_each_kind_of_device_has_its_fence() -> None:
    assert isinstance(step_fence(torch.device("cpu")), HostStepFence)
    assert isinstance(step_fence(torch.device("cuda:0")), CudaStepFence)


class TestOnGPU:
    pytestmark = GPU

    def test_a_mark_passes_when_what_was_launched_before_has_ended_and_nobody_waits(self) -> None:
        device = torch.device("cuda:0")
        fence = CudaStepFence(device)
        memory = torch.zeros(1 << 20, device=device)
        torch.cuda.synchronize(device)
        torch.cuda._sleep(500_000_000)
        memory.add_(1)
        mark = fence.mark()
        assert not mark()
        other = torch.cuda.Stream(device)
        with torch.cuda.stream(other):
            torch.ones(8, device=device).sum()
        other.synchronize()
        assert not mark(), "a stream of its own, as a wake's, says nothing of the steps"
        torch.cuda.synchronize(device)
        assert mark()
