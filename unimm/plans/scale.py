"""Next-scale prediction: one step per level of a token pyramid, coarse to fine (https://huggingface.co/papers/2404.02905)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from ..conditions.base import Condition
from ..configuration import UniMMConfig
from ..errors import ConfigError, LayoutError
from ..generation.randomness import GeneratorRandomness
from ..tokens import TokenKind, TokenLayout, VisualTokens
from .base import AttentionRule, Canvas, PlanInputs, PlanStep, PredictionPlan, SlotPositions, TokenGroup
from .level_draws import LevelDraws, take_levels
from .position_map import PositionMap

if TYPE_CHECKING:
    from ..generation.randomness import Randomness
    from ..heads.base import HeadSample
    from ..tokenizers.base import VisualTokenizer


class ScalePlanConfig(UniMMConfig):
    """All tokens of a level at once, given all coarser levels.

    With a position map and without level embeddings nothing in the plan knows the list of levels: it can then be chosen per
    drawing (`scales`), and drawn at random in training.

    Args:
        visible: a slot sees `coarser` levels and its own, or its `own` level alone
            (https://huggingface.co/papers/2506.04421), so that no step keeps keys and values.
        level_weights: weight of each level's tokens in the loss; None weighs every token alike.
        level_embedding: a learned vector per level.
        position_map: rows and columns of one learned map of positions, resized to every level; None for a table with an
            entry per token of the pyramid.
        level_draws: the fields of `LevelDraws`, which picks the levels of every training step out of the tokenizer's; None
            to train on all of them.

    Raises:
        ConfigError: level draws with parts that know the list of levels, or a map without rows or columns.
    """

    model_type = "unimm_scale_plan"
    visible: Literal["coarser", "own"] = "coarser"
    level_weights: list[float] | tuple[float, ...] | None = None
    level_embedding: bool = True
    position_map: list[int] | tuple[int, int] | None = None
    level_draws: dict[str, Any] | None = None

    needs_tokenizer: ClassVar[bool] = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.position_map is not None and (len(self.position_map) != 2 or min(self.position_map) < 1):
            raise ConfigError(f"position_map must be rows and columns of at least 1, given {self.position_map}")
        if self.level_draws is not None:
            LevelDraws.of(self.level_draws)
            if not self.takes_any_levels:
                raise ConfigError(
                    "level_draws needs a plan that takes any list of levels: set position_map and level_embedding=False, and "
                    "leave level_weights out"
                )

    @property
    def takes_any_levels(self) -> bool:
        """Whether nothing knows the list of levels."""
        return self.position_map is not None and not self.level_embedding and self.level_weights is None

    @property
    def tokenizer_needs(self) -> tuple[str, ...]:
        """What the tokenizer must be able to do."""
        return () if self.level_draws is None else ("whole_levels",)

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
        return self._make(hidden_size, layout, kind)

    def _make(self, hidden_size: int, layout: TokenLayout, kind: TokenKind) -> ScalePlan:
        return ScalePlan(self, hidden_size, layout, kind)


class ScalePlan(PredictionPlan):
    """A slot starts from the running reconstruction resized to its level; the first level starts from the condition.

    `slot = start(level) + level embedding + position embedding`, where `start` is the condition vector and a learned
    start position for the first level, a projection of the resized reconstruction for the others. What the reconstruction
    is, the tokenizer says: the sum of all levels so far, or the last one, where every level holds the whole picture.

    Options of a drawing: `scales`, the list of levels (sides or `(height, width)`, coarse to fine), where the config leaves
    it open; `sampled_sides`, the sides of square levels whose tokens are drawn, while all others take the likeliest.
    """

    starts_from_reconstruction = True
    option_names: tuple[str, ...] = ("scales", "sampled_sides")

    def __init__(self, config: ScalePlanConfig, hidden_size: int, layout: TokenLayout, kind: TokenKind):
        super().__init__()
        self.layout = layout
        self.kind = kind
        self.level_weights = config.level_weights
        self.sees_own_level_only = config.visible == "own"
        self.uses_cache = not self.sees_own_level_only
        self.start_embedding = nn.Embedding(layout.level_lengths[0], hidden_size)
        self.takes_any_levels = config.takes_any_levels
        self.level_draws = None if config.level_draws is None else LevelDraws.of(config.level_draws)
        self.position_map = self.position_embedding = self.level_embedding = None
        if config.position_map is not None:
            self.position_map = PositionMap(hidden_size, *config.position_map)
        else:
            self.position_embedding = nn.Embedding(layout.length, hidden_size)
        if config.level_embedding:
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
        self._check_layout(tokens.layout)
        assert tokenizer is not None
        if self.training and self.level_draws is not None:
            tokens = take_levels(tokens, self.level_draws.draw(randomness or GeneratorRandomness()))
        layout = tokens.layout
        with torch.no_grad():
            reconstructions = tokenizer.teacher_inputs(tokens)
        first = self._first_level(condition)
        rest = self.input_projection(reconstructions.to(self.input_projection.weight.dtype))
        embeddings = torch.cat([first, rest], dim=1) + self._tables(layout, range(layout.num_levels), first.device)
        device = embeddings.device
        weights = None
        if self.level_weights is not None:
            weights = torch.tensor(self.level_weights, device=device)[layout.level_ids(device)]
        return PlanInputs(
            embeddings=embeddings,
            positions=self.positions(layout, condition),
            rule=self.rule(layout, condition),
            predicting=torch.arange(layout.length, device=device),
            targets=tokens.values,
            loss_weights=weights,
            groups=tuple(TokenGroup(layout.level_slice(level), shape) for level, shape in enumerate(layout.levels)),
        )

    def _check_layout(self, layout: TokenLayout) -> None:
        if layout == self.layout:
            return
        if not self.takes_any_levels:
            raise LayoutError(f"this model was built for the pyramid {self.layout}, given tokens of {layout}")
        grows = all(
            earlier <= later
            for coarse, fine in zip(layout.levels, layout.levels[1:], strict=False)
            for earlier, later in zip(coarse, fine, strict=True)
        )
        if layout.num_dimensions != 2 or layout.levels[0] != self.layout.levels[0] or not grows:
            raise LayoutError(
                f"this model takes grids that grow from {'x'.join(map(str, self.layout.levels[0]))}, given {layout}"
            )

    def generation_layout(self, tokenizer: VisualTokenizer | None = None, **options: Any) -> TokenLayout:
        scales = options.get("scales")
        layout = self.layout if scales is None else TokenLayout.pyramid(scales)
        if layout != self.layout and not self.takes_any_levels:
            raise LayoutError(
                f"this model draws the pyramid {self.layout}, asked for the scales {layout}: only a plan with a position map "
                "and without level embeddings draws others"
            )
        self._check_layout(layout)
        return layout

    def check_options(self, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        sides = options.get("sampled_sides")
        if sides is not None and (
            not isinstance(sides, list | tuple) or any(not isinstance(side, int) or side < 1 for side in sides)
        ):
            raise ConfigError(f"sampled_sides must be a list of sides of levels, given {sides!r}")

    def steps(self, layout: TokenLayout, prefix_length: int, **options: Any) -> Sequence[PlanStep]:
        sampled = options.get("sampled_sides")
        return [
            PlanStep(
                level,
                layout.level_slice(level),
                layout.level_slice(level),
                predicting=layout.level_lengths[level],
                num_placed=layout.offsets[level + 1],
                level=level,
                stands_alone=self.sees_own_level_only,
                takes_likeliest=sampled is not None and shape not in {(side, side) for side in sampled},
            )
            for level, shape in enumerate(layout.levels)
        ]

    def rule(self, layout: TokenLayout, condition: Condition) -> AttentionRule:
        blocks = tuple(layout.level_ids().tolist())
        return AttentionRule.within(blocks) if self.sees_own_level_only else AttentionRule(blocks)

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
        tables = self._tables(canvas.layout, range(step.level, step.level + 1), condition.device)
        if step.level == 0:
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

    def _tables(self, layout: TokenLayout, levels: range, device: torch.device) -> torch.Tensor:
        """Level and position vectors of a range of levels, `(tokens, hidden)`."""
        slots = slice(layout.offsets[levels.start], layout.offsets[levels.stop])
        if self.position_map is not None:
            tables = torch.cat([self.position_map(layout.levels[level]) for level in levels])
        else:
            assert self.position_embedding is not None
            tables = self.position_embedding(torch.arange(slots.start, slots.stop, device=device))
        if self.level_embedding is not None:
            tables = self.level_embedding(layout.level_ids(device)[slots]) + tables
        return tables
