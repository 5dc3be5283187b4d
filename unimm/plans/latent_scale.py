"""Next-scale prediction of one grid of latents, its pyramid made by interpolation (https://huggingface.co/papers/2412.15205)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ..conditions.base import Condition
from ..configuration import UniMMConfig
from ..errors import ConfigError, LayoutError
from ..tokens import TokenKind, TokenLayout, VisualTokens
from .base import AttentionRule, Canvas, PlanInputs, PlanStep, PredictionPlan, SlotPositions, TokenGroup

if TYPE_CHECKING:
    from ..generation.randomness import Randomness
    from ..tokenizers.base import VisualTokenizer


class LatentScalePlanConfig(UniMMConfig):
    """All latents of a scale at once, given all coarser scales.

    Args:
        sides: side of every scale, coarse to fine; the last one is the side of the tokenizer's grid.

    Raises:
        ConfigError: sides that do not rise.
    """

    model_type = "unimm_latent_scale_plan"
    sides: list[int] | tuple[int, ...] = (1, 2, 4)

    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not self.sides or self.sides[0] < 1 or any(a >= b for a, b in zip(self.sides, self.sides[1:], strict=False)):
            raise ConfigError(f"a pyramid of latents needs sides that rise from 1 or more, given {self.sides}")

    @property
    def condition_form(self) -> str:
        return "vector"

    def build(self, hidden_size: int, layout: TokenLayout, kind: TokenKind) -> LatentScalePlan:
        if kind.is_discrete:
            raise LayoutError(f"ids cannot be interpolated, the tokenizer gives {kind}: use a KL tokenizer")
        if layout.levels != ((self.sides[-1], self.sides[-1]),):
            raise LayoutError(
                f"the finest scale has the side {self.sides[-1]}, the tokenizer gives {layout}: its one grid must have that "
                "side, change sides or the picture's size"
            )
        return LatentScalePlan(self, hidden_size, layout, kind)


class LatentScalePlan(PredictionPlan):
    """A slot starts from the scale before it, resized; the first scale starts from the condition.

    A coarser scale is the area average of the tokenizer's latents. A slot's input is the scale before, enlarged
    bicubically to the finest grid and averaged down to its own. A drawing fills the whole pyramid; its finest scale is
    decoded. Every token weighs the same in the loss, whose sum is divided by the number of tokens of the finest scale.
    """

    def __init__(self, config: LatentScalePlanConfig, hidden_size: int, layout: TokenLayout, kind: TokenKind):
        super().__init__()
        self.layout, self.kind = layout, kind
        self.pyramid = TokenLayout.pyramid(tuple(config.sides))
        self.token_embedding = nn.Linear(kind.channels, hidden_size)

    def init_own_weights(self, std: float) -> None:
        """A Xavier-uniform layer."""
        init.xavier_uniform_(self.token_embedding.weight)

    def to_pyramid(self, tokens: VisualTokens) -> VisualTokens:
        """The scales of the tokenizer's latents, coarse to fine."""
        if tokens.layout == self.pyramid:
            return tokens
        final = self._as_grid(tokens.values.float(), self.layout.final)
        scales = [_flat(F.interpolate(final, size=shape, mode="area")) for shape in self.pyramid.levels[:-1]]
        return VisualTokens(self.pyramid, latents=torch.cat([*scales, tokens.values.float()], dim=1))

    def generation_layout(self, tokenizer: VisualTokenizer | None = None, **options: Any) -> TokenLayout:
        return self.pyramid

    def training_inputs(
        self,
        tokens: VisualTokens,
        condition: Condition,
        tokenizer: VisualTokenizer | None = None,
        *,
        randomness: Randomness | None = None,
        feed_every_token: bool = False,
    ) -> PlanInputs:
        tokens = self.to_pyramid(tokens)
        levels = range(self.pyramid.num_levels)
        inputs = [self._level_inputs(tokens.values, level, condition) for level in levels]
        weight = self.pyramid.length / self.layout.length
        return PlanInputs(
            embeddings=torch.cat(inputs, dim=1),
            positions=self.positions(self.pyramid, condition),
            rule=self.rule(self.pyramid, condition),
            predicting=torch.arange(self.pyramid.length, device=tokens.device),
            targets=tokens.values,
            loss_weights=torch.full((self.pyramid.length,), weight, device=tokens.device),
            groups=tuple(TokenGroup(self.pyramid.level_slice(level), self.pyramid.levels[level]) for level in levels),
        )

    def steps(self, layout: TokenLayout, prefix_length: int, **options: Any) -> Sequence[PlanStep]:
        return [
            PlanStep(
                level,
                self.pyramid.level_slice(level),
                self.pyramid.level_slice(level),
                predicting=length,
                num_placed=self.pyramid.offsets[level + 1],
                level=level,
            )
            for level, length in enumerate(self.pyramid.level_lengths)
        ]

    def rule(self, layout: TokenLayout, condition: Condition) -> AttentionRule:
        return AttentionRule(tuple(self.pyramid.level_ids("cpu").tolist()))

    def positions(self, layout: TokenLayout, condition: Condition) -> SlotPositions:
        device, finest = condition.device, self.pyramid.final[0]
        sides = torch.tensor([shape[0] for shape in self.pyramid.levels], device=device)[self.pyramid.level_ids(device)]
        return SlotPositions(
            # All scales share the coordinates of the finest.
            coordinates=self.pyramid.coordinates(device) / sides[:, None] * finest,
            is_prefix=torch.zeros(self.pyramid.length, dtype=torch.bool, device=device),
            position_ids=torch.arange(self.pyramid.length, device=device)[None],
        )

    def groups(self, layout: TokenLayout, step: PlanStep) -> tuple[TokenGroup, ...]:
        return (TokenGroup(slice(0, self.pyramid.level_lengths[step.level]), self.pyramid.levels[step.level]),)

    def slots(
        self, canvas: Canvas, step: PlanStep, condition: Condition, tokenizer: VisualTokenizer | None = None
    ) -> torch.Tensor:
        slots = self._level_inputs(canvas.values, step.level, condition)
        return slots.repeat(condition.num_rows // slots.shape[0], 1, 1)

    def decode(self, canvas: Canvas, tokenizer: VisualTokenizer) -> torch.Tensor:
        return self._decode(canvas, self.pyramid.num_levels - 1, tokenizer)

    def preview(self, canvas: Canvas, step: PlanStep, tokenizer: VisualTokenizer) -> torch.Tensor:
        """The step's scale, enlarged."""
        return self._decode(canvas, step.level, tokenizer)

    def _decode(self, canvas: Canvas, level: int, tokenizer: VisualTokenizer) -> torch.Tensor:
        return tokenizer.decode(VisualTokens(self.layout, latents=_flat(self._enlarged(canvas.values, level))))

    def _level_inputs(self, values: torch.Tensor, level: int, condition: Condition) -> torch.Tensor:
        """What a level's slots start from, `(condition rows or batch, tokens, hidden)`."""
        if level == 0:
            assert condition.vector is not None
            return condition.vector[:, None].expand(-1, self.pyramid.level_lengths[0], -1)
        averaged = F.interpolate(self._enlarged(values, level - 1), size=self.pyramid.levels[level], mode="area")
        return self.token_embedding(_flat(averaged).to(self.token_embedding.weight.dtype))

    def _enlarged(self, values: torch.Tensor, level: int) -> torch.Tensor:
        """A level of the pyramid at the size of the finest, `(batch, channels, height, width)`."""
        shape = self.pyramid.levels[level]
        grid = self._as_grid(values[:, self.pyramid.level_slice(level)].float(), shape)
        if shape == self.layout.final:
            return grid
        return F.interpolate(grid, size=self.layout.final, mode="bicubic", align_corners=False)

    @staticmethod
    def _as_grid(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return values.mT.unflatten(2, shape)


def _flat(grid: torch.Tensor) -> torch.Tensor:
    """`(batch, channels, height, width)` to `(batch, tokens, channels)`."""
    return grid.flatten(2).mT
