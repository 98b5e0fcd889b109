"""Mooring: many language models on few devices, each tenant's latency target kept."""

from typing import Any

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    # Looked up when it is asked for: few processes of ours do, and a short one would spend a tenth of its time on it.
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mooring")
    except PackageNotFoundError:  # running from a source tree that was never installed
        return "0.0.0"
