"""Neighbour order: outward from one corner, every token from its neighbours (https://huggingface.co/papers/2503.10696)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from ..conditions.base import Condition
from ..configuration import UniMMConfig
from ..errors import ConfigError, LayoutError
from ..tokens import TokenKind, TokenLayout, VisualTokens
from .base import AttentionRule, Canvas, PlanInputs, PlanStep, PredictionPlan, SlotPositions
from .embeddings import token_embedding

if TYPE_CHECKING:
    from ..generation.randomness import Randomness
    from ..tokenizers.base import VisualTokenizer


class NeighbourPlanConfig(UniMMConfig):
    """All tokens at one distance from the corner at once, given all nearer ones.

    Args:
        num_prefix_positions: adds a learned table of positions with so many rows for the slots of the condition and one
            row per token, for backbones without rotary positions; None for no table.
        dropout: share of slot channels dropped in training.

    Raises:
        ConfigError: fewer than one position for the condition.
    """

    model_type = "unimm_neighbour_plan"
    num_prefix_positions: int | None = None
    dropout: float | int = 0.0

    needs_tokenizer: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("taps",)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_prefix_positions is not None and self.num_prefix_positions < 1:
            raise ConfigError(
                f"num_prefix_positions must be at least 1 (the last one predicts the first token), given "
                f"{self.num_prefix_positions}"
            )

    @property
    def condition_form(self) -> str:
        return "prefix"

    def build(self, hidden_size: int, layout: TokenLayout, kind: TokenKind) -> NeighbourPlan:
        if layout.num_levels != 1:
            raise LayoutError(
                f"the neighbour plan predicts one grid, the tokenizer gives {layout.num_levels} levels ({layout}): use the "
                "scale plan with it, or a tokenizer with a single level"
            )
        return NeighbourPlan(self, hidden_size, layout, kind)


class NeighbourPlan(PredictionPlan):
    """Step `c` predicts all tokens whose coordinates sum to `c`; a slot starts from a token, plus its row of the table.

    A token is predicted by the slots of all its nearer neighbours, one per axis: the hidden state of the first depth
    speaks of the neighbour behind along the last axis, that of the next depth along the axis before it, and so on
    (pictures: the right neighbour, then the lower one; videos: then the next frame). The last slot of the prefix speaks of
    the first token at every depth.

    The sequence is in the order of generation: by distance, in raster order within a distance. The farthest token, which
    nobody looks at, has no slot.
    """

    def __init__(self, config: NeighbourPlanConfig, hidden_size: int, layout: TokenLayout, kind: TokenKind):
        super().__init__()
        self.layout = layout
        self.kind = kind
        self.num_taps = layout.num_dimensions
        self.num_prefix_positions = config.num_prefix_positions
        self.token_embedding = token_embedding(kind, hidden_size)
        if config.num_prefix_positions is not None:
            self.position_embedding = nn.Embedding(config.num_prefix_positions + layout.length, hidden_size)
        self.dropout = nn.Dropout(float(config.dropout))

    def training_inputs(
        self,
        tokens: VisualTokens,
        condition: Condition,
        tokenizer: VisualTokenizer | None = None,
        *,
        randomness: Randomness | None = None,
        feed_every_token: bool = False,
    ) -> PlanInputs:
        values, layout, prefix_length = tokens.values, tokens.layout, condition.prefix_length
        order = generation_order(layout)
        fed = (order if feed_every_token else order[:-1]).to(values.device)
        prefix = self._prefix(condition)
        embeddings = torch.cat([prefix, self._token_slots(values[:, fed], fed, prefix_length).to(prefix.dtype)], dim=1)
        num_slots = embeddings.shape[1]
        return PlanInputs(
            embeddings=embeddings,
            positions=self.positions(layout, condition, num_slots),
            rule=self.rule(layout, condition, num_slots),
            predicting=predicting_slots(layout, prefix_length).to(values.device),
            targets=values,
        )

    def steps(self, layout: TokenLayout, prefix_length: int, **options: Any) -> Sequence[PlanStep]:
        distances = layout.coordinates().sum(1)
        predicting = predicting_slots(layout, prefix_length)
        steps: list[PlanStep] = []
        start, num_placed = 0, 0
        for distance in range(int(distances.max()) + 1):
            tokens = (distances == distance).nonzero()[:, 0]
            slots = slice(start, prefix_length + num_placed)
            speaking = predicting[tokens]
            num_placed += len(tokens)
            steps.append(
                PlanStep(
                    distance,
                    slots,
                    tokens,
                    predicting=torch.where(speaking < 0, -1, speaking - slots.start),
                    num_placed=num_placed,
                )
            )
            start = slots.stop
        return steps

    def rule(self, layout: TokenLayout, condition: Condition, num_slots: int | None = None) -> AttentionRule:
        prefix_length = condition.prefix_length
        num_slots = prefix_length + layout.length - 1 if num_slots is None else num_slots
        distances = layout.coordinates().sum(1)[generation_order(layout)][: num_slots - prefix_length]
        blocks = (*range(prefix_length), *(distances + prefix_length).tolist())
        return AttentionRule(blocks, condition.key_mask(num_slots))

    def positions(self, layout: TokenLayout, condition: Condition, num_slots: int | None = None) -> SlotPositions:
        prefix_length, device = condition.prefix_length, condition.device
        num_slots = prefix_length + layout.length - 1 if num_slots is None else num_slots
        order = generation_order(layout)[: num_slots - prefix_length].to(device)
        coordinates = layout.coordinates(device)[order]
        places = torch.cat([torch.arange(prefix_length, device=device), order + prefix_length])
        # A slot keeps the place that it has in raster order.
        full = condition.position_ids(prefix_length + layout.length)
        return SlotPositions(
            coordinates=torch.cat([coordinates.new_zeros(prefix_length, layout.num_dimensions), coordinates]),
            is_prefix=torch.arange(num_slots, device=device) < prefix_length,
            position_ids=full[:, places],
        )

    def slots(
        self, canvas: Canvas, step: PlanStep, condition: Condition, tokenizer: VisualTokenizer | None = None
    ) -> torch.Tensor:
        if step.index == 0:
            return self._prefix(condition)
        prefix_length = condition.prefix_length
        order = generation_order(canvas.layout).to(condition.device)
        fed = order[step.slots.start - prefix_length : step.slots.stop - prefix_length]
        slots = self._token_slots(canvas.read(fed), fed, prefix_length)
        return slots.repeat(condition.num_rows // canvas.batch_size, 1, 1)

    def places(self, canvas: Canvas, step: PlanStep) -> torch.Tensor:
        assert isinstance(step.tokens, torch.Tensor)
        return step.tokens.to(canvas.values.device)

    def predicting(self, canvas: Canvas, step: PlanStep) -> torch.Tensor:
        assert isinstance(step.predicting, torch.Tensor)
        return step.predicting.to(canvas.values.device)

    def preview(self, canvas: Canvas, step: PlanStep, tokenizer: VisualTokenizer) -> torch.Tensor:
        """The canvas so far, mid-grey where no token has been placed; grids of rows and columns only."""
        if canvas.layout.num_dimensions != 2:
            return super().preview(canvas, step, tokenizer)
        pixels = self.decode(canvas, tokenizer)
        placed = canvas.layout.coordinates(pixels.device).sum(1) <= step.index
        placed = placed.view(1, 1, *canvas.layout.final).to(pixels.dtype)
        return pixels * nn.functional.interpolate(placed, size=pixels.shape[-2:], mode="nearest")

    def _prefix(self, condition: Condition) -> torch.Tensor:
        if condition.prefix is None:
            raise LayoutError(
                "the neighbour plan needs a condition prefix for its first prediction; give the condition the form 'prefix'"
            )
        prefix = self.dropout(condition.prefix)
        if self.num_prefix_positions is None:
            return prefix
        if condition.prefix_length != self.num_prefix_positions:
            raise ConfigError(
                f"the neighbour plan's table has rows for {self.num_prefix_positions} slots of the condition, which has "
                f"{condition.prefix_length}: set num_prefix_positions to that"
            )
        # Through the layer, not its weight: offloaded tables are brought to the device when the layer runs.
        return prefix + self.position_embedding(torch.arange(self.num_prefix_positions, device=prefix.device))

    def _token_slots(self, values: torch.Tensor, places: torch.Tensor, prefix_length: int) -> torch.Tensor:
        if values.is_floating_point():
            values = values.to(self.token_embedding.weight.dtype)
        slots = self.dropout(self.token_embedding(values))
        if self.num_prefix_positions is None:
            return slots
        return slots + self.position_embedding(places + prefix_length)


def generation_order(layout: TokenLayout) -> torch.Tensor:
    """Raster places of the tokens by their distance from the corner, `(length,)`; raster order within a distance."""
    return layout.coordinates().sum(1).argsort(stable=True)


def predicting_slots(layout: TokenLayout, prefix_length: int) -> torch.Tensor:
    """Which slot speaks of every token at every tap, `(length, axes)`, -1 where none does; the last axis comes first."""
    coordinates = layout.coordinates()
    slot = generation_order(layout).argsort() + prefix_length
    strides = torch.tensor(layout.final).flip(0).cumprod(0).roll(1).flip(0)
    strides[-1] = 1
    places = torch.arange(layout.length)
    taps = []
    for axis in reversed(range(layout.num_dimensions)):
        neighbour = slot[(places - strides[axis]).clamp(min=0)]
        taps.append(torch.where(coordinates[:, axis] > 0, neighbour, -1))
    predicting = torch.stack(taps, dim=1)
    predicting[0] = prefix_length - 1
    return predicting
