"""A model's tokenizer and chat template, read from a folder and called as its process calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.router_doors import byte_level_tokenizer, write_model_folder

from mooring.errors import ArtifactError, InvalidRequestError
from router.text_process.model_folder import load_model_text
from router.text_process.model_text import ModelText


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path / "m", byte_level_tokenizer())


def chat(*contents: str, **fields: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": content} for content in contents],
        "add_generation_prompt": True,
        "continue_final_message": False,
        "template_variables": {},
        **fields,
    }


def encode(model: ModelText, *prompts: Any, **options: Any) -> tuple[list[Any], list[int], list[int]]:
    call = {
        "prompts": prompts,
        "special_tokens": None,
        "max_tokens": None,
        "num_kept": None,
        "bad_words": (),
        "param": "prompt",
        **options,
    }
    content, raw = model.encode(call)
    return content["prompts"], np.frombuffer(raw, np.int32).tolist(), content["bad_words"]


def test_texts_and_chats_become_ids(folder: Path) -> None:
    tokenizer = byte_level_tokenizer()
    prompts, ids, _ = encode(load_model_text(folder), "hello", chat("the he"))
    assert [num_ids for num_ids, _, _ in prompts] == [num_tokens for _, num_tokens, _ in prompts]
    assert all(is_exact for _, _, is_exact in prompts)
    num_first = prompts[0][0]
    assert tokenizer.decode(ids[:num_first]) == "hello"
    assert tokenizer.decode(ids[num_first:], skip_special_tokens=False) == (
        "<|im_start|>user\nthe he<|im_end|>\n<|im_start|>assistant\n"
    )


def test_ids_that_are_of_no_use_are_not_made_or_not_sent(folder: Path) -> None:
    model = load_model_text(folder)
    assert encode(model, "ab" * 70, max_tokens=128) == ([(0, 140, True)], [], [])
    assert encode(model, "a" * 100_000, max_tokens=128) == ([(0, 8334, False)], [], [])
    prompts, ids, _ = encode(model, "a" * 99 + "b", max_tokens=128, num_kept=2)
    assert (prompts, byte_level_tokenizer().decode(ids)) == ([(2, 100, True)], "ab")
    assert encode(model, "ab" * 70, max_tokens=128, num_kept=130)[0] == [(0, 140, True)]


def test_bad_words_are_spelled_as_they_are_and_after_a_space(folder: Path) -> None:
    tokenizer = byte_level_tokenizer()
    _, ids, lengths = encode(load_model_text(folder), bad_words=["the", " the"])
    spellings = [ids[: lengths[0]], ids[lengths[0] :]]
    assert [tokenizer.decode(each) for each in spellings] == ["the", " the"]


def test_tokens_are_shown_and_read_back(folder: Path) -> None:
    model = load_model_text(folder)
    call = {"prompt": "the 🦀", "special_tokens": None, "param": "prompt", "strings": True}
    content, raw = model.tokenize(call)
    ids = np.frombuffer(raw[: 4 * content["num_ids"]], np.int32).tolist()
    assert json.loads(raw[4 * content["num_ids"] :])[:2] == ["t", "he"]
    assert model.decode({"ids": ids}).raw.decode() == "the 🦀"
    for wrong in (1 << 20, -1, 1 << 40):
        with pytest.raises(InvalidRequestError, match=f"{wrong} is not a token id"):
            model.decode({"ids": [*ids, wrong]})


def ids_of(folder: Path, prompt: Any) -> list[int]:
    return encode(load_model_text(folder), prompt)[1]


def test_the_template_may_be_a_file_or_one_of_several_or_missing(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path, byte_level_tokenizer(), chat_template=None)
    with pytest.raises(InvalidRequestError, match="no chat template"):
        ids_of(folder, chat("a"))
    settings = '{"chat_template": [{"name": "rag", "template": "b"}, {"name": "default", "template": "c"}]}'
    (folder / "tokenizer_config.json").write_text(settings)
    assert ids_of(folder, chat("a")) == ids_of(folder, "c")
    (folder / "chat_template.jinja").write_text("d")
    assert ids_of(folder, chat("a")) == ids_of(folder, "d")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(ArtifactError, match=name):
        load_model_text(folder)
