"""The CUDA driver, through cuda-bindings, with every return code checked.

Nothing of CUDA is imported before the first ``CudaContext``: machines without a GPU import this module too.
"""

from __future__ import annotations

import types
from typing import Any

from mooring.errors import ConfigurationError, InsufficientMemoryError, InternalError

__all__ = ["CudaContext"]


class CudaContext:
    """One GPU's primary context. Torch uses the same context, so an address means the same to both.

    Raises:
        ConfigurationError: no driver, no bindings, or no such GPU.
    """

    def __init__(self, device_index: int) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise ConfigurationError("a GPU needs cuda-bindings: pip install 'mooring[gpu]'") from error
        self.types: types.ModuleType = driver
        try:
            self._checked("cuInit", 0)
        except RuntimeError as error:  # the bindings' own, when there is no libcuda to load
            raise ConfigurationError(f"no NVIDIA driver on this machine: {error}") from error
        self._device = self._checked("cuDeviceGet", device_index)
        self._context = self._checked("cuDevicePrimaryCtxRetain", self._device)

    def call(self, name: str, *arguments: object) -> Any:
        """Calls the driver's function ``name`` in this context, which each thread has to enter for itself;
        returns the function's one result, or None if it has none.

        Raises:
            InsufficientMemoryError: the device has no more memory or addresses.
            ConfigurationError: there is no such GPU.
            InternalError: the driver answered any other error code; the message has its name.
        """
        self._checked("cuCtxSetCurrent", self._context)
        return self._checked(name, *arguments)

    def close(self) -> None:
        """Gives the context back; it lives on while torch or another holder has it."""
        self._checked("cuDevicePrimaryCtxRelease", self._device)

    def _checked(self, name: str, *arguments: object) -> Any:
        cuda = self.types
        code, *results = getattr(cuda, name)(*arguments)
        if code == cuda.CUresult.CUDA_SUCCESS:
            return results[0] if results else None
        message = f"{name}: {code.name}"
        if code == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise InsufficientMemoryError(f"the GPU has no memory left ({message})")
        if code in (cuda.CUresult.CUDA_ERROR_NO_DEVICE, cuda.CUresult.CUDA_ERROR_INVALID_DEVICE):
            raise ConfigurationError(f"no such GPU ({message})")
        raise InternalError(message)
