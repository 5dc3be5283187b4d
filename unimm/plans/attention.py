"""What a slot may see: one rule that every attention implementation understands."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ..errors import ConfigError

#: `opens` of a slot that only its own block sees.
NEVER = 2**31 - 1


@dataclass(frozen=True)
class AttentionRule:
    """Visibility by blocks: slot `q` sees slot `k` iff both are of one block, or `opens(k) <= block(q)`.

    A slot that is padding is seen by nobody but itself. With `opens` left out a slot opens at its own block, so that a
    slot sees all blocks up to its own. `NEVER` closes a slot to all other blocks: levels that see themselves alone
    (https://huggingface.co/papers/2506.04421), or noised copies that must not serve as context
    (https://huggingface.co/papers/2412.07720).

    One rule serves every attention implementation: `rule(batch, head, query, key)` is a `mask_mod` for FlexAttention,
    `mask(…)` gives what transformers' attention interface expects.

    Args:
        blocks: block index of every slot; one block per slot, rising, is plain causality.
        key_mask: `(batch, slots)` bool, False where a slot is padding that nobody but itself may see; None when there
            is none.
        opens: the first block that sees each slot; None for the slot's own.
    """

    blocks: tuple[int, ...]
    key_mask: torch.Tensor | None = None
    opens: tuple[int, ...] | None = None
    _tables: dict[tuple[str, torch.device], torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def causal(cls, length: int, key_mask: torch.Tensor | None = None) -> AttentionRule:
        """Every slot sees itself and what came before it."""
        return cls(tuple(range(length)), key_mask)

    @classmethod
    def within(cls, blocks: tuple[int, ...]) -> AttentionRule:
        """Every slot sees its own block alone."""
        return cls(blocks, opens=(NEVER,) * len(blocks))

    def __len__(self) -> int:
        return len(self.blocks)

    def part(self, slots: slice) -> AttentionRule:
        """The rule among some of the slots, as if there were no others."""
        return AttentionRule(
            self.blocks[slots],
            None if self.key_mask is None else self.key_mask[:, slots],
            None if self.opens is None else self.opens[slots],
        )

    def repeat(self, times: int) -> AttentionRule:
        """The rule for a batch stacked `times` times."""
        return AttentionRule(self.blocks, None if self.key_mask is None else self.key_mask.repeat(times, 1), self.opens)

    def table(self, device: torch.device) -> torch.Tensor:
        """Block of every slot on `device`, `(slots,)`."""
        return self._tensor("blocks", self.blocks, device)

    def _tensor(self, name: str, numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
        if (name, device) not in self._tables:
            self._tables[name, device] = torch.tensor(numbers, device=device)
        return self._tables[name, device]

    def __call__(self, batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        blocks = self.table(key.device)
        if self.opens is None:
            visible = blocks[key] <= blocks[query]
        else:
            opens = self._tensor("opens", self.opens, key.device)
            visible = (opens[key] <= blocks[query]) | (blocks[key] == blocks[query])
        if self.key_mask is not None:
            visible = visible & (self.key_mask[batch, key] | (key == query))
        return visible

    def dense(self, batch_size: int = 1, device: torch.device | str = "cpu") -> torch.Tensor:
        """The whole rule as a bool mask `(batch, slots, slots)`, True where a query (row) sees a key (column)."""
        mask = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](
            batch_size=batch_size,
            q_length=len(self),
            kv_length=len(self),
            mask_function=self,
            allow_is_causal_skip=False,
            device=torch.device(device),
        )
        return mask[:, 0]

    @cached_property
    def _is_rising(self) -> bool:
        return all(one <= other for one, other in zip(self.blocks, self.blocks[1:], strict=False))

    def everything_visible(self, start: int, stop: int) -> bool:
        """Whether the queries `start..stop-1` see all of the first `stop` keys."""
        if self.key_mask is not None:
            return False
        if self.opens is None and self._is_rising:
            return self.blocks[start] == self.blocks[stop - 1]
        opens = self.blocks if self.opens is None else self.opens
        queries = set(self.blocks[start:stop])
        # One block of queries may also see keys of its own block that open to no other.
        closed = (
            opening
            for block, opening in zip(self.blocks[:stop], opens[:stop], strict=True)
            if len(queries) > 1 or block not in queries
        )
        return max(closed, default=-1) <= min(queries)

    @property
    def is_plain_causal(self) -> bool:
        """Whether slot order alone decides: no padding, one block per slot."""
        return (
            self.key_mask is None
            and self.opens is None
            and self._is_rising
            and len(set(self.blocks)) == len(self.blocks)
        )

    def mask(
        self,
        implementation: str,
        start: int,
        stop: int,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        key_length: int | None = None,
    ) -> tuple[Any, bool]:
        """What transformers' attention interface needs for the queries `start..stop-1`.

        Args:
            implementation: `eager`, `sdpa` or `flex_attention`.
            key_length: number of keys given; `stop` by default, more for a full-length static cache.

        Returns:
            The mask (None when none is needed) and the `is_causal` flag to go with it.

        Raises:
            ConfigError: the implementation cannot express the rule.
        """
        if key_length is None or key_length == stop:
            key_length = stop
            if self.everything_visible(start, stop):
                return None, False
            if implementation == "sdpa" and start == 0 and self.is_plain_causal:
                return None, True
        if implementation not in ("eager", "sdpa", "flex_attention"):
            raise ConfigError(
                f"attention implementation '{implementation}' cannot express this plan's mask; choose 'sdpa', 'eager' "
                "or 'flex_attention'"
            )
        rule: Any = self
        if key_length > stop:
            rule = _written_keys_only(self, stop)
        mask = ALL_MASK_ATTENTION_FUNCTIONS[implementation](
            batch_size=batch_size,
            q_length=stop - start,
            kv_length=key_length,
            q_offset=start,
            mask_function=rule,
            allow_is_causal_skip=False,
            device=device,
            dtype=dtype,
        )
        return mask, False


def _written_keys_only(rule: AttentionRule, stop: int) -> Any:
    def visible(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return (key < stop) & rule(batch, head, query, key.clamp(max=len(rule) - 1))

    return visible
