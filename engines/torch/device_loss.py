"""Tells the errors after which a device can do nothing more for this process from all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engines.api import DeviceLostError

__all__ = ["is_device_lost", "naming_device_loss"]

# Of CUDA's runtime and driver, which have the same numbers: uncorrectable ECC and NVLink errors, contained error,
# illegal address, launch timeout, destroyed context, assert, hardware stack, illegal instruction, misaligned address,
# invalid address space, invalid program counter, launch failure, tensor memory leak.
_LOST_CODES = frozenset((214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721))
# For errors that come without their number: the runtime's sentences and the driver's names.
_LOST_TEXTS = (
    "uncorrectable ECC error",
    "illegal memory access was encountered",
    "launch timed out and was terminated",
    "device-side assert triggered",
    "hardware stack error",
    "illegal instruction was encountered",
    "misaligned address",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "unspecified launch failure",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
)


def is_device_lost(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that the device's context is lost: every later call to the device
    from this process fails, whichever model it is for."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, DeviceLostError) or getattr(each, "error_code", None) in _LOST_CODES:
            return True
        if any(text in str(each) for text in _LOST_TEXTS):
            return True
        each = each.__cause__ or each.__context__
    return False


@contextmanager
def naming_device_loss() -> Iterator[None]:
    """Raises ``DeviceLostError`` in place of an error that says so in other words."""
    try:
        yield
    except Exception as error:
        if is_device_lost(error) and not isinstance(error, DeviceLostError):
            raise DeviceLostError(f"the device's context is lost: {error}") from error
        raise
