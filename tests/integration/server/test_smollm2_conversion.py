"""The real thing: SmolLM2's GGUF file, converted by us, knows its capitals, in transformers and here."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from support.running_server import RunningServer
from support.sample_folders import smollm2

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2(tmp_path_factory.mktemp("smollm2") / "model")


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_server_answers_as_transformers_does(folder: Path, tmp_path: Path, dtype: str) -> None:
    flags = ["--dtype", dtype, "--memory-budget", "1GiB"]
    with (
        RunningServer(tmp_path, {"smollm2": folder}, flags, {}) as server,
        openai.OpenAI(base_url=f"{server.http_url}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            max_tokens=16,
        )
    assert answer.choices[0].message.content == "The capital of France is Paris."


def test_its_tokenizer_gives_every_byte_back(folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "Year 2024's  cats\r\n\t東京 🙂 naïve ­ <|im_start|>"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]
