"""Tokenizers of our own making, in Hugging Face's tokenizer.json form.

``train_metaspace`` makes the SentencePiece kind (spaces as ``▁``, a dummy space in front, bytes if there is
no piece); ``train_byte_level`` the GPT-2 kind, of any size. Both decode to exactly the text that they were
given, except that the first kind reads a literal ``▁`` as a space, as all tokenizers of that kind do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

__all__ = ["END_OF_TEXT", "save_tokenizer", "train_byte_level", "train_metaspace"]

END_OF_TEXT = "<|endoftext|>"
_SPACE = "▁"

# Text that may become one piece: a line break with the indentation behind it; a word, a digit or a run of
# symbols, each with the space before it; the spaces left over.
_PIECES = r"\n[\n▁]*|▁?[\p{L}_]+|▁?\p{N}|▁?[^\s\p{L}\p{N}_▁]+|▁+|\s+"


def train_metaspace(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-pair pieces with byte fallback (Sennrich et al., 2016; Kudo and Richardson, 2018).

    Ids: the end of text, the 256 bytes, then characters and merges as they were learned.

    Args:
        texts: texts to learn from.
        vocab_size: ids in all, including the end of text and the bytes.
    """
    reserved = [END_OF_TEXT, *(f"<0x{byte:02X}>" for byte in range(256))]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", _SPACE)
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    alphabet = [chr(code) for code in range(0x21, 0x7F)] + ["\n", _SPACE]
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(reserved),
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        ),
    )
    # The learner knows nothing of bytes: they go in front, and every learned id moves up.
    learned = json.loads(learner.to_str())["model"]
    vocab = {piece: index for index, piece in enumerate(reserved)}
    for piece in sorted(learned["vocab"], key=learned["vocab"].__getitem__):
        vocab.setdefault(piece, len(vocab))
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never", split=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def train_byte_level(texts: Iterable[str], vocab_size: int, max_learned: int = 16_384) -> Tokenizer:
    """A byte-level tokenizer with exactly ``vocab_size`` ids, all of which decode.

    Args:
        texts: texts to learn from.
        vocab_size: ids in all; at least 257.
        max_learned: most pieces to learn; encoding never produces the ids above them.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=min(vocab_size, max_learned),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[END_OF_TEXT],
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    vocab: dict[str, int] = dict(learned["vocab"])
    while len(vocab) < vocab_size:
        vocab[f"<unused{len(vocab)}>"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(pair) for pair in learned["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_positions: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json; the end of text is the only special token."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "bos_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
