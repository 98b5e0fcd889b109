"""Makes the recipe of a trained sample short, in every process that has this folder on its PYTHONPATH: Python imports
this module as it starts.

``SAMPLE_STEPS`` is the number of training steps. The text is that of the library's small files.
"""

from __future__ import annotations

import os
from dataclasses import replace

import ops.samples.corpus
import ops.samples.recipes

plan = replace(
    ops.samples.recipes.PYTHONLM.plan,
    num_steps=int(os.environ["SAMPLE_STEPS"]),
    batch_sequences=1,
    sequence_tokens=32,
)
ops.samples.recipes.PYTHONLM = replace(ops.samples.recipes.PYTHONLM, plan=plan)
ops.samples.corpus._MIN_TOTAL_BYTES = 0
ops.samples.corpus._MAX_FILE_BYTES = 3000
