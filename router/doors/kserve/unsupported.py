"""Parts of Triton that Mooring does not have, and the errors of a Triton without them."""

from __future__ import annotations

from mooring.errors import FeatureAbsentError, MooringError, NotFoundError, UnsupportedCallError

__all__ = ["check_shared_memory_region", "no_log_settings", "no_shared_memory", "no_trace"]


def no_shared_memory() -> MooringError:
    """The error of a call that registers or unregisters a region."""
    return UnsupportedCallError("Client shared memory is not supported: send tensors in the request.")


def check_shared_memory_region(name: str) -> None:
    """Checks a question about regions. There are none, so asking for all of them is no error.

    Raises:
        NotFoundError: a region was asked for by name.
    """
    if name:
        raise NotFoundError(f"There is no shared memory region '{name}'.", param="name")


def no_trace() -> MooringError:
    """The error of a call that asks for traces or configures them."""
    return FeatureAbsentError("The server does not support trace.")


def no_log_settings() -> MooringError:
    """The error of a call that asks for the settings of logs or changes them."""
    return FeatureAbsentError("The server does not support dynamic logging.")
