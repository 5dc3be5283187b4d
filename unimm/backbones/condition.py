"""A condition in the form that a backbone's blocks use, computed once per generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class EncodedCondition:
    """What every block takes from the condition.

    Args:
        modulations: per block `(rows, 1 or slots, vectors, hidden)`, or None where a block is not modulated.
        memories: per block keys and values `(rows, heads, memory length, head width)` of its cross-attention.
        memory_mask: `(rows, 1, 1, memory length)` bool, False for padding; None when nothing is padded.
    """

    modulations: Sequence[torch.Tensor | None] = ()
    memories: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    memory_mask: torch.Tensor | None = None

    def first_rows(self, number: int) -> EncodedCondition:
        """The first `number` rows."""
        return EncodedCondition(
            [None if part is None else part[:number] for part in self.modulations],
            [(keys[:number], values[:number]) for keys, values in self.memories],
            None if self.memory_mask is None else self.memory_mask[:number],
        )


def join_slots(parts: Sequence[EncodedCondition], lengths: Sequence[int]) -> EncodedCondition:
    """What steers a sequence whose parts, of some lengths, are steered by conditions of their own.

    Cross-attention looks at the last part's memory.
    """
    blocks = zip(*(part.modulations for part in parts), strict=True)
    joined = [
        None
        if any(one is None for one in block)
        else torch.cat([one.expand(-1, length, *one.shape[2:]) for one, length in zip(block, lengths, strict=True)], 1)
        for block in blocks
    ]
    return EncodedCondition(joined, parts[-1].memories, parts[-1].memory_mask)
