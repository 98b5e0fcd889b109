"""Parts of Triton that are not here, and the errors that a Triton without them answers with."""

from __future__ import annotations

from mooring.errors import FeatureAbsentError, MooringError, NotFoundError, UnsupportedCallError

__all__ = ["check_shared_memory_region", "no_log_settings", "no_shared_memory", "no_trace"]


def no_shared_memory() -> MooringError:
    """Regions can be neither registered nor unregistered."""
    return UnsupportedCallError("Client shared memory is not supported: send tensors in the request.")


def check_shared_memory_region(name: str) -> None:
    """There are no regions, so asking for all of them is no error.

    Raises:
        NotFoundError: a region was asked for by name.
    """
    if name:
        raise NotFoundError(f"There is no shared memory region '{name}'.", param="name")


def no_trace() -> MooringError:
    """Traces cannot be configured."""
    return FeatureAbsentError("The server does not support trace.")


def no_log_settings() -> MooringError:
    """Logs cannot be configured while the server runs."""
    return FeatureAbsentError("The server does not support dynamic logging.")
