"""Raster order: one token per step, each from everything before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from ..conditions.base import Condition
from ..configuration import UniMMConfig
from ..errors import LayoutError
from ..tokens import TokenKind, TokenLayout, VisualTokens
from .base import AttentionRule, Canvas, PlanInputs, PlanStep, PredictionPlan, SlotPositions
from .embeddings import token_embedding

if TYPE_CHECKING:
    from ..generation.randomness import Randomness
    from ..tokenizers.base import VisualTokenizer


class RasterPlanConfig(UniMMConfig):
    """Next-token prediction in reading order.

    Args:
        coordinate_embedding: add a learned embedding of a token's row and one of its column, for backbones that know the
            order of the sequence only (language models).
        code_projection: add a projection of the token's code, so that tokens with similar codes start alike.
        dropout: share of slot channels dropped in training.
    """

    model_type = "unimm_raster_plan"
    coordinate_embedding: bool = False
    code_projection: bool = False
    dropout: float | int = 0.0

    #: One slot per token, made of that token alone: such a plan also serves pictures between text.
    embeds_single_tokens: ClassVar[bool] = True

    @property
    def needs_tokenizer(self) -> bool:
        return self.code_projection

    @property
    def condition_form(self) -> str:
        return "prefix"

    def build(self, hidden_size: int, layout: TokenLayout, kind: TokenKind) -> RasterPlan:
        if layout.num_levels != 1:
            raise LayoutError(
                f"the raster plan predicts one grid or sequence, the tokenizer gives {layout.num_levels} levels "
                f"({layout}): use the scale plan with it, or a tokenizer with a single level"
            )
        return RasterPlan(self, hidden_size, layout, kind)


class RasterPlan(PredictionPlan):
    """A slot starts from the embedding of the token before it; the last prefix slot predicts the first token.

    With a prefix of `T` slots, the hidden state at slot `T - 1 + n` predicts token `n`.
    """

    def __init__(self, config: RasterPlanConfig, hidden_size: int, layout: TokenLayout, kind: TokenKind):
        super().__init__()
        self.code_projection = nn.Linear(kind.channels, hidden_size, bias=False) if config.code_projection else None
        self.layout = layout
        self.kind = kind
        self.token_embedding = token_embedding(kind, hidden_size)
        self.coordinate_embeddings = nn.ModuleList(
            nn.Embedding(side, hidden_size) for side in (layout.final if config.coordinate_embedding else ())
        )
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
        values, prefix = tokens.values, _prefix(condition)
        fed = values if feed_every_token else values[:, :-1]
        embeddings = self.dropout(torch.cat([prefix, self.embed_tokens(fed, tokenizer).to(prefix.dtype)], dim=1))
        return PlanInputs(
            embeddings=embeddings,
            positions=self.positions(tokens.layout, condition, embeddings.shape[1]),
            rule=AttentionRule.causal(embeddings.shape[1], condition.key_mask(embeddings.shape[1])),
            predicting=torch.arange(tokens.layout.length, device=values.device) + condition.prefix_length - 1,
            targets=values,
        )

    def embed_tokens(
        self, values: torch.Tensor, tokenizer: VisualTokenizer | None = None, first: int = 0
    ) -> torch.Tensor:
        """Slots of the tokens `first, first + 1, …` of a picture: `(batch, tokens[, …])` to `(batch, tokens, hidden)`."""
        if values.is_floating_point():
            values = values.to(self.token_embedding.weight.dtype)
        slots = self.token_embedding(values)
        if self.code_projection is not None:
            assert tokenizer is not None
            slots = slots + self.code_projection(tokenizer.embed(values).to(slots.dtype))
        if len(self.coordinate_embeddings):
            coordinates = self.layout.coordinates(values.device)[first : first + values.shape[1]]
            for axis, table in enumerate(self.coordinate_embeddings):
                slots = slots + table(coordinates[:, axis])
        return slots

    def steps(self, layout: TokenLayout, prefix_length: int, **options: Any) -> Sequence[PlanStep]:
        first = PlanStep(0, slice(0, prefix_length), slice(0, 1), predicting=1, num_placed=1)
        return [first] + [
            PlanStep(
                n,
                slice(prefix_length + n - 1, prefix_length + n),
                slice(n, n + 1),
                predicting=1,
                num_placed=n + 1,
            )
            for n in range(1, layout.length)
        ]

    def rule(self, layout: TokenLayout, condition: Condition) -> AttentionRule:
        length = condition.prefix_length + layout.length - 1
        return AttentionRule.causal(length, condition.key_mask(length))

    def positions(self, layout: TokenLayout, condition: Condition, num_slots: int | None = None) -> SlotPositions:
        prefix_length, device = condition.prefix_length, condition.device
        num_slots = prefix_length + layout.length - 1 if num_slots is None else num_slots
        coordinates = layout.coordinates(device)[: num_slots - prefix_length]
        return SlotPositions(
            coordinates=torch.cat([coordinates.new_zeros(prefix_length, layout.num_dimensions), coordinates]),
            is_prefix=torch.arange(num_slots, device=device) < prefix_length,
            position_ids=condition.position_ids(num_slots),
        )

    def slots(
        self, canvas: Canvas, step: PlanStep, condition: Condition, tokenizer: VisualTokenizer | None = None
    ) -> torch.Tensor:
        if step.index == 0:
            return _prefix(condition)
        last = step.index - 1
        previous = self.embed_tokens(canvas.read(slice(last, last + 1)), tokenizer, first=last)
        return previous.repeat(condition.num_rows // canvas.batch_size, 1, 1)

    def preview(self, canvas: Canvas, step: PlanStep, tokenizer: VisualTokenizer) -> torch.Tensor:
        """The canvas so far, mid-grey where no token has been placed; grids of rows and columns only."""
        if canvas.layout.num_dimensions != 2:
            return super().preview(canvas, step, tokenizer)
        pixels = self.decode(canvas, tokenizer)
        placed = torch.arange(canvas.layout.length, device=pixels.device) < step.num_placed
        placed = placed.view(1, 1, *canvas.layout.final).to(pixels.dtype)
        return pixels * nn.functional.interpolate(placed, size=pixels.shape[-2:], mode="nearest")


def _prefix(condition: Condition) -> torch.Tensor:
    if condition.prefix is None:
        raise LayoutError(
            "the raster plan needs a condition prefix for its first prediction; give the condition the form 'prefix'"
        )
    return condition.prefix
