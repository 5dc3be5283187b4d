"""How a token of any kind becomes the start of a slot."""

from __future__ import annotations

import torch
from torch import nn

from ..tokens import TokenKind


class MultiCodeEmbedding(nn.Embedding):
    """The sum of one table row per code: `(…, codes)` ids to `(…, hidden)`. Codes have tables of their own."""

    def __init__(self, kind: TokenKind, hidden_size: int):
        assert kind.codebook_size is not None
        super().__init__(kind.num_codes * kind.codebook_size, hidden_size)
        self.kind = kind

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert self.kind.codebook_size is not None
        first = torch.arange(self.kind.num_codes, device=ids.device) * self.kind.codebook_size
        return super().forward(ids + first).sum(-2)


def token_embedding(kind: TokenKind, hidden_size: int) -> nn.Embedding | nn.Linear:
    """A table for ids, a sum of tables for several ids, a linear layer for latents."""
    if kind.codebook_size is None:
        return nn.Linear(kind.channels, hidden_size)
    if kind.num_codes > 1:
        return MultiCodeEmbedding(kind, hidden_size)
    return nn.Embedding(kind.codebook_size, hidden_size)
