"""Which errors say that a device's context is lost."""

from __future__ import annotations

import pytest
import torch

from engines.api import DeviceLostError
from engines.torch.device_loss import is_device_lost, naming_device_loss
from mooring.errors import InternalError


def accelerator_error(code: int) -> torch.AcceleratorError:
    error = torch.AcceleratorError("CUDA error: some words")
    error.error_code = code  # as torch sets it
    return error


LOST = [
    *(accelerator_error(code) for code in (214, 700, 702, 710, 715, 716, 719)),
    torch.AcceleratorError(
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."
    ),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    InternalError("cuMemMap: CUDA_ERROR_LAUNCH_FAILED"),
    DeviceLostError("it is gone"),
]
PASSING = [
    accelerator_error(2),  # out of memory
    accelerator_error(1),  # an invalid value
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    InternalError("cuMemCreate: CUDA_ERROR_NOT_SUPPORTED"),
    ValueError("slot 3 holds no sequence"),
]


@pytest.mark.parametrize("error", LOST, ids=repr)
def test_the_device_is_lost(error: Exception) -> None:
    assert is_device_lost(error)
    with pytest.raises(DeviceLostError), naming_device_loss():
        raise error


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_the_device_goes_on(error: Exception) -> None:
    assert not is_device_lost(error)
    with pytest.raises(type(error)) as raised, naming_device_loss():
        raise error
    assert raised.value is error


def test_what_led_to_an_error_counts() -> None:
    error = InternalError("the step failed")
    error.__cause__ = accelerator_error(700)
    assert is_device_lost(error)
