"""The contract of a prediction plan: which tokens a step predicts, what it may see, and what its slots start from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ..errors import ConfigError, LayoutError
from ..tokens import TokenLayout, VisualTokens

if TYPE_CHECKING:
    from ..conditions.base import Condition
    from ..tokenizers.base import VisualTokenizer


@dataclass(frozen=True)
class AttentionRule:
    """Block-causal visibility: slot `q` sees slot `k` iff `block(k) <= block(q)`, and `k` is no padding or is `q` itself.

    One rule serves every attention implementation: `rule(batch, head, query, key)` is a `mask_mod` for FlexAttention,
    `mask(…)` gives what transformers' attention interface expects.

    Args:
        blocks: block index of every slot, non-decreasing; one block per slot is plain causality.
        key_mask: `(batch, slots)` bool, False where a slot is padding that nobody but itself may see; None when there
            is none.
    """

    blocks: tuple[int, ...]
    key_mask: torch.Tensor | None = None
    _tables: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def causal(cls, length: int, key_mask: torch.Tensor | None = None) -> AttentionRule:
        """Every slot sees itself and what came before it."""
        return cls(tuple(range(length)), key_mask)

    def __len__(self) -> int:
        return len(self.blocks)

    def repeat(self, times: int) -> AttentionRule:
        """The rule for a batch stacked `times` times."""
        return AttentionRule(self.blocks, None if self.key_mask is None else self.key_mask.repeat(times, 1))

    def table(self, device: torch.device) -> torch.Tensor:
        """Block index of every slot on `device`, `(slots,)`."""
        if device not in self._tables:
            self._tables[device] = torch.tensor(self.blocks, device=device)
        return self._tables[device]

    def __call__(self, batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        blocks = self.table(key.device)
        visible = blocks[key] <= blocks[query]
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

    def everything_visible(self, start: int, stop: int) -> bool:
        """Whether the queries `start..stop-1` see all of the first `stop` keys."""
        return self.key_mask is None and self.blocks[start] == self.blocks[stop - 1]

    @property
    def is_plain_causal(self) -> bool:
        """Whether slot order alone decides: no padding, one block per slot."""
        return self.key_mask is None and len(set(self.blocks)) == len(self.blocks)

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


@dataclass(frozen=True)
class SlotPositions:
    """Where slots stand, for whatever positional encoding a backbone has.

    Args:
        coordinates: `(slots, dimensions)` grid coordinates inside the slot's level.
        is_prefix: `(slots,)` bool, True for condition slots that have no place on the grid.
        position_ids: `(batch or 1, slots)` int64 running index of the sequence, padding not counted.
    """

    coordinates: torch.Tensor
    is_prefix: torch.Tensor
    position_ids: torch.Tensor

    def repeat(self, times: int) -> SlotPositions:
        """The positions of a batch stacked `times` times."""
        if self.position_ids.shape[0] == 1:
            return self
        return SlotPositions(self.coordinates, self.is_prefix, self.position_ids.repeat(times, 1))


@dataclass(frozen=True)
class PlanInputs:
    """One teacher-forced pass.

    Args:
        embeddings: `(batch, slots, hidden)`, what every slot starts from.
        positions: where the slots stand.
        rule: what every slot may see.
        predicting: `(targets,)` int64, index of the slot whose hidden state predicts each target.
        targets: `(batch, targets)` ids or `(batch, targets, channels)` latents, in canvas order.
        loss_weights: `(targets,)` weight of each target in the loss, None for 1 everywhere.
    """

    embeddings: torch.Tensor
    positions: SlotPositions
    rule: AttentionRule
    predicting: torch.Tensor
    targets: torch.Tensor
    loss_weights: torch.Tensor | None = None


@dataclass(frozen=True)
class PlanStep:
    """One prediction: it appends the slots `slots` to the sequence and fills the tokens `tokens` of the canvas.

    Args:
        index: number of the step.
        slots: range of new slots, counted from the start of the sequence, prefix included.
        tokens: range of canvas tokens that this step predicts.
        num_predicting: how many of the new slots, at the end of the range, predict.
    """

    index: int
    slots: slice
    tokens: slice
    num_predicting: int


@dataclass
class Canvas:
    """The tokens placed so far.

    Args:
        layout: the arrangement being filled.
        ids: `(batch, length)` int64, valid where a step has been placed.
        state: what the plan carries from step to step (the scale plan: the running reconstruction).
    """

    layout: TokenLayout
    ids: torch.Tensor
    state: torch.Tensor | None = None

    @property
    def tokens(self) -> VisualTokens:
        return VisualTokens(self.layout, ids=self.ids)


class PredictionPlan(nn.Module, ABC):
    """Which tokens are predicted together at each step, what that step may see, and what each slot starts from.

    A plan owns the parameters that make slots (token embeddings, level and position tables); the tokenizer is passed
    in where a plan needs it, so that it is never registered twice.
    """

    #: Whether stepwise generation keeps keys and values of earlier steps.
    uses_cache = True
    #: Whether slots start from the tokenizer's reconstruction of the canvas, so that soft codes can be placed.
    starts_from_reconstruction = False

    @abstractmethod
    def training_inputs(
        self,
        tokens: VisualTokens,
        condition: Condition,
        tokenizer: VisualTokenizer | None = None,
        feed_every_token: bool = False,
    ) -> PlanInputs:
        """Slots, targets and attention of one teacher-forced pass.

        Args:
            tokens: the ground truth.
            condition: what steers the sample.
            tokenizer: needed by plans whose slots start from a reconstruction.
            feed_every_token: also give the last token a slot, though its hidden state predicts nothing (to read out
                features of all tokens).

        Raises:
            LayoutError: the tokens' layout does not suit the plan.
        """

    @abstractmethod
    def steps(self, layout: TokenLayout, prefix_length: int) -> Sequence[PlanStep]:
        """The steps that fill `layout` after a prefix of `prefix_length` slots."""

    @abstractmethod
    def rule(self, layout: TokenLayout, condition: Condition) -> AttentionRule:
        """What every slot of a whole generation may see."""

    @abstractmethod
    def positions(self, layout: TokenLayout, condition: Condition) -> SlotPositions:
        """Where every slot of a whole generation stands."""

    @abstractmethod
    def slots(
        self, canvas: Canvas, step: PlanStep, condition: Condition, tokenizer: VisualTokenizer | None = None
    ) -> torch.Tensor:
        """What the new slots of a step start from, `(condition rows, slots, hidden)`; the canvas is repeated over rows."""

    def start(
        self, layout: TokenLayout, batch_size: int, device: torch.device, tokenizer: VisualTokenizer | None = None
    ) -> Canvas:
        """An empty canvas for `batch_size` samples."""
        return Canvas(layout, torch.zeros(batch_size, layout.length, dtype=torch.long, device=device))

    def place(
        self,
        canvas: Canvas,
        step: PlanStep,
        ids: torch.Tensor,
        tokenizer: VisualTokenizer | None = None,
        embeddings: torch.Tensor | None = None,
    ) -> None:
        """Writes a step's tokens onto the canvas.

        Args:
            ids: `(batch, tokens)`.
            embeddings: `(batch, tokens, channels)` soft codes that replace the codebook's rows, for plans that start
                their slots from a reconstruction.
        """
        canvas.ids[:, step.tokens] = ids

    def decode(self, canvas: Canvas, tokenizer: VisualTokenizer) -> torch.Tensor:
        """Pixels `(batch, channels, height, width)` in [-1, 1] of a finished canvas."""
        return tokenizer.decode(canvas.tokens)

    def preview(self, canvas: Canvas, num_tokens: int, tokenizer: VisualTokenizer) -> torch.Tensor:
        """Pixels `(batch, channels, height, width)` in [-1, 1] of a canvas whose first `num_tokens` tokens are placed.

        Raises:
            LayoutError: this plan's canvas cannot be shown before it is finished.
        """
        if num_tokens < canvas.layout.length:
            raise LayoutError(
                f"{type(self).__name__} cannot show an unfinished canvas: {num_tokens} of {canvas.layout.length} tokens are "
                "placed"
            )
        return self.decode(canvas, tokenizer)
