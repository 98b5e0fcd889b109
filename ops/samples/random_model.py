"""A whole model folder with random weights: weights, config and a tokenizer that fits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from model_registry.progress import Progress, no_progress
from mooring.errors import ConfigurationError
from ops.samples.cache import content_key, make_once, sole_maker
from ops.samples.corpus import read_corpus
from ops.samples.random_weights import Precision, write_random_weights
from ops.samples.sample import Sample, describe
from ops.samples.shapes import SHAPES

__all__ = ["copy_tokenizer", "make_random_model"]

_CODE_VERSION = 1  # raise it when the same arguments make other files
_TOKENIZER_FILES = ("tokenizer", "special_tokens", "chat_template")


def make_random_model(
    shape: str,
    out: Path,
    precision: Precision = "bf16",
    seed: int = 0,
    tokenizer: Path | None = None,
    on_progress: Progress = no_progress,
) -> Sample:
    """Makes a model of ``shape`` (a name of ``SHAPES``) under ``out``, or finds the one made before.

    Args:
        tokenizer: a model folder whose tokenizer to copy; by default a tokenizer of the shape's own size is
            trained on the standard library.

    Raises:
        ConfigurationError: there is no such shape, or the tokenizer is missing or has more ids than the
            shape.
    """
    if shape not in SHAPES:
        raise ConfigurationError(f"no shape {shape!r}; there are {', '.join(SHAPES)}")
    config = SHAPES[shape]
    tokenizer_size = _num_ids(tokenizer) if tokenizer else config["vocab_size"]
    if tokenizer_size > config["vocab_size"]:
        raise ConfigurationError(f"the tokenizer in {tokenizer} has {tokenizer_size} ids, {shape} fewer")
    origin = (tokenizer / "tokenizer.json").read_text() if tokenizer else ""
    key = content_key([_CODE_VERSION, config, precision, seed, origin])

    def make(folder: Path) -> None:
        folder.mkdir()
        if tokenizer:
            copy_tokenizer(tokenizer, folder)
            special = _special_ids(tokenizer)
        else:
            special = _train_tokenizer(folder, config["vocab_size"], config["max_position_embeddings"])
        (folder / "generation_config.json").write_text(json.dumps(special, indent=2) + "\n")
        write_random_weights(config | special, folder, precision, seed, on_progress)

    name = f"random-{shape.lower()}"
    with sole_maker(out):
        folder = make_once(out, f"{name}-{precision}-{key}", make)
    return describe(name, folder)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the files of a model folder that turn text into ids."""
    for path in source.iterdir():
        if path.name.startswith(_TOKENIZER_FILES):
            shutil.copyfile(path, target / path.name)


def _num_ids(folder: Path) -> int:
    """One more than the highest id of the tokenizer in ``folder``."""
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
    except FileNotFoundError:
        raise ConfigurationError(f"{folder} has no tokenizer.json") from None
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    highest: int = max(ids)
    return highest + 1


def _special_ids(folder: Path) -> dict[str, int | None]:
    config = json.loads((folder / "config.json").read_text())
    return {name: config.get(name) for name in ("bos_token_id", "eos_token_id")}


def _train_tokenizer(folder: Path, vocab_size: int, max_positions: int) -> dict[str, int | None]:
    # The library of tokenizers is not needed if one is copied.
    from ops.samples.text_tokenizers import END_OF_TEXT, save_tokenizer, train_byte_level

    tokenizer = train_byte_level(read_corpus().code(), vocab_size)
    save_tokenizer(tokenizer, folder, max_positions)
    return {"bos_token_id": None, "eos_token_id": tokenizer.token_to_id(END_OF_TEXT)}
