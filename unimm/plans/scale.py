"""Next-scale prediction: one step per level of a token pyramid, coarse to fine (https://huggingface.co/papers/2404.02905)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from ..conditions.base import Condition
from ..configuration import UniMMConfig
from ..errors import ConfigError, LayoutError
from ..tokens import TokenKind, TokenLayout, VisualTokens
from .base import AttentionRule, Canvas, PlanInputs, PlanStep, PredictionPlan, SlotPositions, TokenGroup

if TYPE_CHECKING:
    from ..generation.randomness import Randomness
    from ..heads.base import HeadSample
    from ..tokenizers.base import VisualTokenizer


class ScalePlanConfig(UniMMConfig):
    """All tokens of a level at once, given all coarser levels.

    Args:
        level_weights: weight of each level's tokens in the loss; None weighs every token alike.
    """

    model_type = "unimm_scale_plan"
    level_weights: list[float] | tuple[float, ...] | None = None

    needs_tokenizer: ClassVar[bool] = True

    @property
    def condition_form(self) -> str:
        return "vector"

    def build(self, hidden_size: int, layout: TokenLayout, kind: TokenKind) -> ScalePlan:
        if layout.num_levels < 2:
            raise LayoutError(
                f"the scale plan predicts a pyramid of levels, the tokenizer gives one level ({layout}): use the raster "
                "plan with it, or a multi-scale tokenizer"
            )
        if self.level_weights is not None and len(self.level_weights) != layout.num_levels:
            raise ConfigError(
                f"level_weights has {len(self.level_weights)} entries for the {layout.num_levels} levels of {layout}"
            )
        return ScalePlan(self, hidden_size, layout, kind)


class ScalePlan(PredictionPlan):
    """A slot starts from the running reconstruction resized to its level; the first level starts from the condition.

    `slot = start(level) + level embedding + position embedding`, where `start` is the condition vector and a learned
    start position for the first level, a projection of the resized reconstruction for the others.
    """

    starts_from_reconstruction = True

    def __init__(self, config: ScalePlanConfig, hidden_size: int, layout: TokenLayout, kind: TokenKind):
        super().__init__()
        self.layout = layout
        self.kind = kind
        self.level_weights = config.level_weights
        self.start_embedding = nn.Embedding(layout.level_lengths[0], hidden_size)
        self.position_embedding = nn.Embedding(layout.length, hidden_size)
        self.level_embedding = nn.Embedding(layout.num_levels, hidden_size)
        self.input_projection = nn.Linear(kind.channels, hidden_size)

    def training_inputs(
        self,
        tokens: VisualTokens,
        condition: Condition,
        tokenizer: VisualTokenizer | None = None,
        *,
        randomness: Randomness | None = None,
        feed_every_token: bool = False,
    ) -> PlanInputs:
        if tokens.layout != self.layout:
            raise LayoutError(f"this model was built for the pyramid {self.layout}, given tokens of {tokens.layout}")
        assert tokenizer is not None
        with torch.no_grad():
            reconstructions = tokenizer.teacher_inputs(tokens)
        first = self._first_level(condition)
        rest = self.input_projection(reconstructions.to(self.input_projection.weight.dtype))
        embeddings = torch.cat([first, rest], dim=1) + self._tables(slice(0, self.layout.length), first.device)
        device = embeddings.device
        weights = None
        if self.level_weights is not None:
            weights = torch.tensor(self.level_weights, device=device)[self.layout.level_ids(device)]
        return PlanInputs(
            embeddings=embeddings,
            positions=self.positions(self.layout, condition),
            rule=self.rule(self.layout, condition),
            predicting=torch.arange(self.layout.length, device=device),
            targets=tokens.values,
            loss_weights=weights,
            groups=tuple(
                TokenGroup(self.layout.level_slice(level), shape) for level, shape in enumerate(self.layout.levels)
            ),
        )

    def steps(self, layout: TokenLayout, prefix_length: int, **options: Any) -> Sequence[PlanStep]:
        return [
            PlanStep(
                level,
                layout.level_slice(level),
                layout.level_slice(level),
                predicting=layout.level_lengths[level],
                num_placed=layout.offsets[level + 1],
                level=level,
            )
            for level in range(layout.num_levels)
        ]

    def rule(self, layout: TokenLayout, condition: Condition) -> AttentionRule:
        return AttentionRule(tuple(layout.level_ids().tolist()))

    def positions(self, layout: TokenLayout, condition: Condition) -> SlotPositions:
        device = condition.device
        return SlotPositions(
            coordinates=layout.coordinates(device),
            is_prefix=torch.zeros(layout.length, dtype=torch.bool, device=device),
            position_ids=torch.arange(layout.length, device=device)[None],
        )

    def groups(self, layout: TokenLayout, step: PlanStep) -> tuple[TokenGroup, ...]:
        return (TokenGroup(slice(0, layout.level_lengths[step.level]), layout.levels[step.level]),)

    def start(
        self,
        layout: TokenLayout,
        batch_size: int,
        device: torch.device,
        tokenizer: VisualTokenizer | None = None,
        randomness: Randomness | None = None,
    ) -> Canvas:
        assert tokenizer is not None
        canvas = super().start(layout, batch_size, device)
        canvas.state = tokenizer.initial_canvas(batch_size, layout, device)
        return canvas

    def slots(
        self, canvas: Canvas, step: PlanStep, condition: Condition, tokenizer: VisualTokenizer | None = None
    ) -> torch.Tensor:
        tables = self._tables(step.slots, condition.device)
        if step.index == 0:
            return self._first_level(condition) + tables
        assert tokenizer is not None
        assert canvas.state is not None
        resized = tokenizer.resize_canvas(canvas.state, canvas.layout.levels[step.level])
        slots = self.input_projection(resized.to(self.input_projection.weight.dtype)) + tables
        return slots.repeat(condition.num_rows // canvas.batch_size, 1, 1)

    def place(
        self,
        canvas: Canvas,
        step: PlanStep,
        sample: HeadSample,
        tokenizer: VisualTokenizer | None = None,
        hidden_states: torch.Tensor | None = None,
    ) -> None:
        assert tokenizer is not None
        assert canvas.state is not None
        super().place(canvas, step, sample)
        codes = tokenizer.embed(sample.values) if sample.embeddings is None else sample.embeddings
        canvas.state = tokenizer.accumulate(canvas.state, codes, step.level, canvas.layout)

    def decode(self, canvas: Canvas, tokenizer: VisualTokenizer) -> torch.Tensor:
        # The running reconstruction also holds what soft codes were mixed of.
        assert canvas.state is not None
        return tokenizer.decode_canvas(canvas.state)

    def preview(self, canvas: Canvas, step: PlanStep, tokenizer: VisualTokenizer) -> torch.Tensor:
        """The running reconstruction, coarse to fine."""
        return self.decode(canvas, tokenizer)

    def _first_level(self, condition: Condition) -> torch.Tensor:
        if condition.vector is None:
            raise ConfigError(
                "the scale plan starts its first level from a condition vector; give the condition the form 'vector'"
            )
        positions = torch.arange(self.layout.level_lengths[0], device=condition.device)
        return condition.vector[:, None] + self.start_embedding(positions)

    def _tables(self, slots: slice, device: torch.device) -> torch.Tensor:
        levels = self.layout.level_ids(device)[slots]
        positions = torch.arange(slots.start, slots.stop, device=device)
        return self.level_embedding(levels) + self.position_embedding(positions)
