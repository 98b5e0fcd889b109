"""A worker that finds TensorRT-LLM's double where the package would be."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("doubles")))

from engines.worker.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
