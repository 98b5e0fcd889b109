"""Trains one sample, in a process of its own: ``python -m ops.samples.trainer PARENT NAME FOLDER [BASE]``.

A separate process keeps torch, and the memory settings for it, out of the server. Progress goes to standard
output, a JSON object a line: ``{"done": 3, "total": 240, "loss": 5.1}``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor

from mooring.parent import die_with_parent
from ops.samples.corpus import read_corpus
from ops.samples.export import write_checkpoint
from ops.samples.random_model import copy_tokenizer
from ops.samples.recipes import DRAFT, PYTHONLM, Recipe
from ops.samples.streams import break_leading_spaces, token_stream
from ops.samples.text_tokenizers import END_OF_TEXT, save_tokenizer, train_metaspace
from ops.samples.train import deterministic_torch, new_decoder, train, windows
from ops.samples.vocabulary import UsedVocabulary, principal_embedding

__all__ = ["main", "make_draft", "make_pythonlm"]

OnStep = Callable[[int, float], None]
_BROKEN_SHARE = 0.06
_EMBEDDING_RMS = 0.5


def make_pythonlm(folder: Path, on_step: OnStep, recipe: Recipe = PYTHONLM) -> None:
    """Trains the Python model on the library's code and writes it to ``folder``."""
    texts = list(read_corpus().code())
    tokenizer = train_metaspace(texts, recipe.vocab_size)
    vocab = tokenizer.get_vocab()
    end_id = vocab[END_OF_TEXT]
    stream = token_stream(texts, tokenizer, end_id)
    stream = break_leading_spaces(stream, vocab, _BROKEN_SHARE, recipe.plan.seed)
    with deterministic_torch(recipe.plan.seed):
        decoder = new_decoder(recipe.shape, recipe.vocab_size)
        train(decoder, windows(stream, recipe.plan), recipe.plan, on_step)
    write_checkpoint(decoder, recipe.shape, folder, bos_id=None, eos_id=end_id)
    save_tokenizer(tokenizer, folder, recipe.shape.max_positions)


def make_draft(folder: Path, base: Path, on_step: OnStep, recipe: Recipe = DRAFT) -> None:
    """Trains the draft of the model in ``base`` on the library's prose and writes it to ``folder``.

    The draft has the base's tokenizer, and starts from the base's embeddings, projected onto fewer axes.
    """
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    special = json.loads((base / "config.json").read_text())
    stream = token_stream(read_corpus().prose(), tokenizer, special["eos_token_id"])
    base_embedding = _read_tensor(base, "model.embed_tokens.weight")
    used = UsedVocabulary.of_stream(stream, len(base_embedding))
    with deterministic_torch(recipe.plan.seed):
        embedding = principal_embedding(base_embedding, recipe.shape.hidden_size, _EMBEDDING_RMS)
        decoder = new_decoder(recipe.shape, used.num_classes)
        with torch.no_grad():
            decoder.model.embed_tokens.weight[:-1] = embedding[used.used_ids]
        batches = windows(used.classes(stream), recipe.plan)
        train(decoder, batches, recipe.plan, on_step, used.logit_bias())
        decoder = used.expand(decoder, recipe.shape, embedding)
    write_checkpoint(decoder, recipe.shape, folder, special["bos_token_id"], special["eos_token_id"])
    copy_tokenizer(base, folder)


def main(arguments: list[str]) -> None:
    """Runs the module's command line."""
    parent_pid, name, folder, *base = arguments
    die_with_parent(int(parent_pid))
    num_steps = {PYTHONLM.name: PYTHONLM, DRAFT.name: DRAFT}[name].plan.num_steps

    def report(done: int, loss: float) -> None:
        print(json.dumps({"done": done, "total": num_steps, "loss": round(loss, 4)}), flush=True)

    Path(folder).mkdir()
    if name == PYTHONLM.name:
        make_pythonlm(Path(folder), report)
    else:
        make_draft(Path(folder), Path(base[0]), report)


def _read_tensor(folder: Path, name: str) -> Tensor:
    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


if __name__ == "__main__":
    main(sys.argv[1:])
