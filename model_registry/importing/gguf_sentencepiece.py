"""Turns SentencePiece vocabularies of GGUF files (``tokenizer.ggml.model`` = ``llama``) into a ``tokenizers``
BPE.

SentencePiece's BPE has scores and no merges: it joins, again and again, the two neighbours whose union is the
piece of the highest score (Kudo and Richardson, 2018). Merges, ordered by the score of their results, give
the same tokens. Characters outside the vocabulary become their UTF-8 bytes, a token each.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers

__all__ = ["build_sentencepiece"]

SPACE = "▁"  # stands for a space in the pieces


def build_sentencepiece(
    tokens: Sequence[str],
    scores: Sequence[float],
    is_piece: Sequence[bool],
    unknown: str | None,
    adds_space: bool,
) -> Tokenizer:
    """The tokenizer without its special tokens.

    Args:
        tokens: text of each token, by token id.
        scores: score of each token, by token id.
        is_piece: by token id, whether the token is made by merging; bytes and control tokens are not.
        unknown: the token for text that not even bytes can spell.
        adds_space: whether texts are given a leading space, which decoding takes away.
    """
    vocab = {token: index for index, token in enumerate(tokens)}
    pieces = {token for token, normal in zip(tokens, is_piece, strict=True) if normal}
    merges = [
        (scores[vocab[piece]], vocab[piece], piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    merges.sort(key=lambda merge: (-merge[0], merge[1], len(merge[2])))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[(left, right) for _, _, left, right in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace = normalizers.Replace(" ", SPACE)
    spell = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if adds_space:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        tokenizer.decoder = decoders.Sequence([*spell, decoders.Strip(" ", left=1)])
    else:
        tokenizer.normalizer = replace
        tokenizer.decoder = decoders.Sequence(spell)
    return tokenizer
