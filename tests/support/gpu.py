"""Marks of what only a GPU can run."""

from __future__ import annotations

import pytest
import torch

__all__ = ["GPU"]

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
