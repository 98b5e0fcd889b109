"""Sample models: one real, two trained here on Python's own library, and random ones of real shapes."""

from ops.samples.catalog import ensure_samples
from ops.samples.sample import Sample

__all__ = ["Sample", "ensure_samples"]
