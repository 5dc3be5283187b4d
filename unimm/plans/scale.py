"""Next-scale prediction: one step per level of a token pyramid, coarse to fine (https://huggingface.co/papers/2404.02905)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
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
        balance_levels: weigh a level's tokens by `sqrt(finest area / own area)` instead, over the mean of all weights: the
            finest levels hold most tokens.
        position_table: a learned vector per slot. Without one the backbone's rotary positions tell slots of a level apart,
            and one model fills pyramids of any size and aspect ratio.
        num_level_rows: rows of the table of levels; the pyramid's number of levels when None.
        reference_grids: sizes `(height, width)`, one per aspect ratio. Coordinates are scaled to the one whose ratio is
            nearest, so that the same place of a picture has the same coordinates on all levels and at all resolutions;
            None leaves every level its own coordinates.
        self_correction: in training, the largest probability with which the bits that later levels see are flipped, to be
            repaired by them (https://huggingface.co/papers/2412.04431, section 3.3); 0 for none.
        num_corrupted_levels: only the first so many levels are corrupted; None for all.

    Raises:
        ConfigError: values out of range, or that exclude each other.
    """

    model_type = "unimm_scale_plan"
    level_weights: list[float] | tuple[float, ...] | None = None
    balance_levels: bool = False
    position_table: bool = True
    num_level_rows: int | None = None
    reference_grids: list[list[int]] | tuple[tuple[int, int], ...] | None = None
    self_correction: float | int = 0.0
    num_corrupted_levels: int | None = None

    needs_tokenizer: ClassVar[bool] = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not 0 <= self.self_correction <= 1:
            raise ConfigError(f"self_correction is a probability, given {self.self_correction}")
        if self.level_weights is not None and self.balance_levels:
            raise ConfigError("give either level_weights or balance_levels, given both")
        if any(len(grid) != 2 or min(grid) < 1 for grid in self.reference_grids or ()) or self.reference_grids == ():
            raise ConfigError(f"reference_grids are (height, width) of at least 1, given {self.reference_grids}")

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
        if self.num_level_rows is not None and self.num_level_rows < layout.num_levels:
            raise ConfigError(f"num_level_rows={self.num_level_rows} is too few for the levels of {layout}")
        if self.self_correction and kind.codebook_size != 2:
            raise ConfigError(
                f"self_correction flips bits, the tokenizer gives {kind}: choose a bitwise tokenizer, or self_correction=0"
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
        self.config = config
        self.start_embedding = nn.Embedding(layout.level_lengths[0], hidden_size)
        if config.position_table:
            self.position_embedding = nn.Embedding(layout.length, hidden_size)
        else:
            self.option_names = ("levels",)
        self.level_embedding = nn.Embedding(config.num_level_rows or layout.num_levels, hidden_size)
        self.input_projection = nn.Linear(kind.channels, hidden_size)

    def training_inputs(
        self,
        tokens: VisualTokens,
        condition: Condition,
        tokenizer: VisualTokenizer | None = None,
        *,
        randomness: Randomness | None = None,
        feed_every_token: bool = False,
        features: torch.Tensor | None = None,
    ) -> PlanInputs:
        """As the contract says.

        Args:
            features: `(batch, channels, h, w)`, what the tokens were quantized from, for self-correction: the targets then
                speak of what the corrupted levels left over.
        """
        layout = tokens.layout
        self.check_layout(layout)
        assert tokenizer is not None
        targets = tokens.values
        with torch.no_grad():
            if features is None:
                reconstructions = tokenizer.teacher_inputs(tokens)
            else:
                assert randomness is not None
                targets, reconstructions = tokenizer.self_corrected(
                    features,
                    layout,
                    randomness,
                    strength=float(self.config.self_correction),
                    num_levels=self.config.num_corrupted_levels,
                )
        first = self._first_level(condition)
        rest = self.input_projection(reconstructions.to(self.input_projection.weight.dtype))
        embeddings = torch.cat([first, rest], dim=1) + self._tables(layout, slice(0, layout.length), first.device)
        device = embeddings.device
        return PlanInputs(
            embeddings=embeddings,
            positions=self.positions(layout, condition),
            rule=self.rule(layout, condition),
            predicting=torch.arange(layout.length, device=device),
            targets=targets,
            loss_weights=self.loss_weights(layout, device),
            groups=tuple(TokenGroup(layout.level_slice(level), shape) for level, shape in enumerate(layout.levels)),
        )

    @property
    def takes_features(self) -> bool:  # type: ignore[override]
        return self.training and self.config.self_correction > 0

    def loss_weights(self, layout: TokenLayout, device: torch.device | str = "cpu") -> torch.Tensor | None:
        """Weight of every token in the loss, `(length,)` fp32; None where all weigh alike."""
        if self.config.balance_levels:
            finest = layout.level_lengths[-1]
            each = torch.tensor([(finest / length) ** 0.5 for length in layout.level_lengths])
            weights = each[layout.level_ids()]
            return (weights / weights.mean()).to(device)
        if self.config.level_weights is None:
            return None
        return torch.tensor(self.config.level_weights, device=device)[layout.level_ids(device)]

    def check_layout(self, layout: TokenLayout) -> None:
        """Refuses pyramids that this model cannot fill.

        Raises:
            LayoutError: another pyramid than the model's own, or (without a position table) one with too many levels or
                another first level.
        """
        if layout == self.layout:
            return
        if self.config.position_table:
            raise LayoutError(f"this model was built for the pyramid {self.layout}, given tokens of {layout}")
        rows, first = self.level_embedding.num_embeddings, self.layout.level_lengths[0]
        fits = layout.num_dimensions == 2 and 2 <= layout.num_levels <= rows and layout.level_lengths[0] == first
        if not fits:
            raise LayoutError(
                f"this model fills pyramids of 2 to {rows} grids whose first one has {first} tokens, given {layout}"
            )

    def generation_layout(self, tokenizer: VisualTokenizer | None = None, **options: Any) -> TokenLayout:
        """The model's own pyramid, or that of the option `levels`: sides or `(height, width)` from coarse to fine."""
        if options.get("levels") is None:
            return self.layout
        layout = TokenLayout.pyramid(options["levels"])
        self.check_layout(layout)
        return layout

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
            coordinates=self.coordinates(layout).to(device),
            is_prefix=torch.zeros(layout.length, dtype=torch.bool, device=device),
            position_ids=torch.arange(layout.length, device=device)[None],
        )

    def coordinates(self, layout: TokenLayout) -> torch.Tensor:
        """Rows and columns of all slots, `(length, 2)` int64, on the reference grid where there is one."""
        if self.config.reference_grids is None:
            return layout.coordinates()
        ratio = layout.final[0] / layout.final[1]
        grid = min(self.config.reference_grids, key=lambda one: abs(math.log(one[0] / one[1] / ratio)))
        levels = []
        for level in layout.levels:
            # Exact halves go to the even neighbour.
            axes = [
                torch.tensor([round(Fraction(index * whole, side)) for index in range(side)])
                for side, whole in zip(level, grid, strict=True)
            ]
            levels.append(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2))
        return torch.cat(levels)

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
        tables = self._tables(canvas.layout, step.slots, condition.device)
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

    def _tables(self, layout: TokenLayout, slots: slice, device: torch.device) -> torch.Tensor:
        levels = self.level_embedding(layout.level_ids(device)[slots])
        if not self.config.position_table:
            return levels
        return levels + self.position_embedding(torch.arange(slots.start, slots.stop, device=device))
