"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# In CI the same examples every time, so that a change is judged by what it changed; at a desk new ones.
settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
