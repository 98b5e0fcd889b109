"""A model for the null engine: a real tokenizer, a chat template, and weights as good as none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from tokenizers import Tokenizer

from mooring.errors import ConfigurationError
from ops.samples.corpus import read_corpus
from ops.samples.random_model import copy_tokenizer
from ops.samples.random_weights import write_random_weights
from ops.samples.text_tokenizers import save_tokenizer, train_byte_level
from router.text.detokenizer import TokenTable
from router.text_process.vocabulary import write_vocabulary

__all__ = ["NullModel", "make_null_model", "null_config"]

_TRAINED_IDS = 8192
_MAX_POSITIONS = 8192
_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True, slots=True)
class NullModel:
    """A folder to register, and the tokens that the null engine should give.

    Attributes:
        tokenizer: origin of the tokenizer, for the report.
        first_token_id: first of a run of ids whose texts are whole characters and all different, so that each
            token is text, and an event, of its own.
        num_token_ids: length of the run.
    """

    folder: Path
    tokenizer: str
    first_token_id: int
    num_token_ids: int


def make_null_model(folder: Path, samples: Path | None = None) -> NullModel:
    """Makes the folder.

    Args:
        samples: folder of the sample models; by default the server's own. The tokenizer is SmolLM2's if that
            is there, and else one trained on Python's library.
    """
    folder.mkdir(parents=True)
    smollm2 = (
        samples or Path(platformdirs.user_data_dir("mooring", appauthor=False)) / "samples"
    ) / "smollm2"
    if (smollm2 / "tokenizer.json").is_file():
        copy_tokenizer(smollm2, folder)
        origin = "SmolLM2"
    else:
        trained = train_byte_level(read_corpus().code(), _TRAINED_IDS)
        save_tokenizer(trained, folder, _MAX_POSITIONS)
        (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
        origin = "byte-level, trained on Python's library"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocab_size = tokenizer.get_vocab_size()
    write_random_weights(null_config(vocab_size), folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}) + "\n")
    first_id, num_ids = _longest_run(tokenizer)
    return NullModel(folder, f"{origin}, {vocab_size} ids", first_id, num_ids)


def null_config(vocab_size: int) -> dict[str, object]:
    """The config.json of a model with so many token ids."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": _MAX_POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": vocab_size,
        "eos_token_id": 0,
        "bos_token_id": None,
    }


def _longest_run(tokenizer: Tokenizer) -> tuple[int, int]:
    """First id and length of the longest run of ids whose tokens are whole characters, all different."""
    table = TokenTable.read(*write_vocabulary(tokenizer))
    best, start = (0, 0), 0
    seen: set[str] = set()
    for token_id in range(tokenizer.get_vocab_size()):
        detokenizer = table.detokenizer()
        text = detokenizer.push(token_id)
        if not text or detokenizer.finish() or text in seen:
            start = token_id + 1
            continue
        seen.add(text)
        best = max(best, (token_id + 1 - start, start))
    if best[0] == 0:
        raise ConfigurationError("the tokenizer has no token that is text by itself")
    return best[1], best[0]
