"""A tokenizer's ids of which a text uses a part, so that training pays for that part alone.

The ids that occur are numbered afresh, and one more class stands for all the others. In the trained model
those share one row of the output embedding; weighing the class by how many it stands for makes its
softmax that of the whole vocabulary, exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ops.samples.model import Decoder
from ops.samples.recipes import DecoderShape

__all__ = ["UsedVocabulary", "principal_embedding"]


@dataclass(frozen=True, slots=True)
class UsedVocabulary:
    """Which of a tokenizer's ids occur.

    Attributes:
        used_ids: ``[used]`` int64, rising; class i is ``used_ids[i]``, the last class all others.
        vocab_size: ids of the tokenizer.
    """

    used_ids: NDArray[np.int64]
    vocab_size: int

    @classmethod
    def of_stream(cls, stream: NDArray[np.int32], vocab_size: int) -> UsedVocabulary:
        return cls(np.unique(stream).astype(np.int64), vocab_size)

    @property
    def num_classes(self) -> int:
        return len(self.used_ids) + 1

    def classes(self, stream: NDArray[np.int32]) -> NDArray[np.int32]:
        """The class of each token; all must be used ids."""
        return np.searchsorted(self.used_ids, stream).astype(np.int32)

    def logit_bias(self) -> Tensor:
        """``[classes]``: nothing, and the logarithm of how many ids the last class stands for."""
        bias = torch.zeros(self.num_classes)
        bias[-1] = math.log(max(1, self.vocab_size - len(self.used_ids)))
        return bias

    def expand(self, trained: Decoder, shape: DecoderShape, embedding: Tensor) -> Decoder:
        """The decoder over all ids.

        Args:
            trained: over the classes.
            embedding: ``[vocab, hidden]``, the input rows of ids that training never saw.
        """
        decoder = Decoder(shape, self.vocab_size)
        state = trained.state_dict()
        rows, used = embedding.clone(), torch.from_numpy(self.used_ids)
        rows[used] = state["model.embed_tokens.weight"][:-1]
        head = state["lm_head.weight"][-1].repeat(self.vocab_size, 1)
        head[used] = state["lm_head.weight"][:-1]
        decoder.load_state_dict(state | {"model.embed_tokens.weight": rows, "lm_head.weight": head})
        return decoder


def principal_embedding(embedding: Tensor, width: int, rms: float) -> Tensor:
    """``embedding`` ``[vocab, hidden]`` on its ``width`` principal axes, with root mean square ``rms``."""
    centred = embedding.double() - embedding.double().mean(dim=0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    projected: Tensor = centred @ axes[:, -width:]
    projected *= rms / projected.square().mean().sqrt()
    return projected.float()
