"""Key-value caches for sampling: transformers' own, and a static one that can be cut, gathered and read at exact length."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import StaticLayer

from ..errors import LayoutError


class ExactStaticLayer(StaticLayer):
    """A preallocated layer that hands out only what has been written.

    transformers' `StaticLayer` returns all `max_cache_len` positions at every step, which costs attention over slots
    that hold nothing. This one keeps the written length on the host and returns views of exactly that length, so
    attention needs no mask for the rest.
    """

    # The view's length changes from step to step, which is not what a compiled step with a full-length cache expects.
    is_compileable = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, max_cache_len: int, **kwargs: Any):
        super().__init__(max_cache_len, **kwargs)
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new keys and values `(batch, heads, slots, head_dim)` and returns views of all written ones.

        Raises:
            LayoutError: more slots than the cache was made for.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        stop = self.length + key_states.shape[-2]
        if stop > self.max_cache_len:
            raise LayoutError(f"the cache holds {self.max_cache_len} slots, asked to write {stop}")
        self.keys[:, :, self.length : stop] = key_states
        self.values[:, :, self.length : stop] = value_states
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def reset(self) -> None:
        super().reset()
        self.length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` slots (a negative number, as in transformers)."""
        if tokens_to_remove > 0 or self.length + tokens_to_remove < 0:
            raise LayoutError(f"cannot remove {-tokens_to_remove} of {self.length} cached slots")
        self.length += tokens_to_remove

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices` of the batch, in that order."""
        if self.is_initialized:
            self.keys, self.values = self.keys[indices], self.values[indices]
            self.batch_size = self.keys.shape[0]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row of the batch."""
        if self.is_initialized:
            self.keys = self.keys.repeat_interleave(repeats, dim=0)
            self.values = self.values.repeat_interleave(repeats, dim=0)
            self.batch_size = self.keys.shape[0]

    def gather_slots(self, slots: torch.Tensor) -> None:
        """Keeps the written slots `slots` `(kept,)`, in that order."""
        kept = slots.shape[0]
        self.keys[:, :, :kept] = self.keys[:, :, slots]
        self.values[:, :, :kept] = self.values[:, :, slots]
        self.length = kept


class ExactStaticCache(Cache):
    """A cache of `ExactStaticLayer`s.

    Args:
        num_layers: layers of the backbone.
        max_cache_len: slots of the longest sequence.
    """

    def __init__(self, num_layers: int, max_cache_len: int):
        super().__init__(layers=[ExactStaticLayer(max_cache_len) for _ in range(num_layers)])

    def gather_slots(self, slots: torch.Tensor) -> None:
        """Keeps the written slots `slots` `(kept,)` of every layer, in that order."""
        for layer in self.layers:
            layer.gather_slots(slots)


def make_cache(
    implementation: Literal["static", "dynamic"], num_layers: int, max_cache_len: int
) -> ExactStaticCache | DynamicCache:
    """The cache for one generation.

    Raises:
        LayoutError: an unknown implementation.
    """
    if implementation == "static":
        return ExactStaticCache(num_layers, max_cache_len)
    if implementation == "dynamic":
        return DynamicCache()
    raise LayoutError(f"cache_implementation must be 'static' or 'dynamic', given '{implementation}'")
