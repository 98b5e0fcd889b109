"""The trainers from the library's text to a model folder, and what their caller sees when one fails."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mooring.errors import InternalError
from ops.samples.catalog import trainer
from ops.samples.recipes import DRAFT, PYTHONLM, Recipe
from ops.samples.trainer import make_draft, make_pythonlm

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.integration


def shortened(recipe: Recipe) -> Recipe:
    plan = replace(recipe.plan, num_steps=2, batch_sequences=1, sequence_tokens=32)
    return replace(recipe, plan=plan)


@pytest.fixture(scope="module")
def pythonlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pythonlm")
    make_pythonlm(folder, lambda *_: None, shortened(PYTHONLM))
    return folder


@pytest.mark.slow
def test_the_python_model_is_a_folder_that_transformers_reads(pythonlm: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(pythonlm)
    model = transformers.AutoModelForCausalLM.from_pretrained(pythonlm)
    source = Path(json.__file__).read_text()
    assert tokenizer.decode(tokenizer(source).input_ids) == source
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == len(tokenizer) == PYTHONLM.vocab_size
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.slow
def test_a_draft_takes_its_bases_tokenizer(pythonlm: Path, tmp_path: Path) -> None:
    make_draft(tmp_path, pythonlm, lambda *_: None, shortened(DRAFT))
    assert (tmp_path / "tokenizer.json").read_bytes() == (pythonlm / "tokenizer.json").read_bytes()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == PYTHONLM.vocab_size


@pytest.mark.slow
def test_a_failing_trainer_says_why(tmp_path: Path) -> None:
    make = trainer(DRAFT, base=tmp_path / "nowhere", on_progress=lambda *_: None)
    with pytest.raises(InternalError, match=r"training draft failed: (?s:.*)[Nn]o such file"):
        make(tmp_path / "draft")


def test_finding_samples_does_not_import_torch() -> None:
    started = time.monotonic()
    code = "import ops.samples, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert time.monotonic() - started < 30
