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
from .reference_grids import reference_coordinates

if TYPE_CHECKING:
    from ..generation.randomness import Randomness
    from ..heads.base import HeadSample
    from ..tokenizers.base import VisualTokenizer


class ScalePlanConfig(UniMMConfig):
    """All tokens of a level at once, given all coarser levels.

    Without a table of positions (with a position map, or with the backbone's rotary positions alone) one model fills pyramids
    of any size and aspect ratio: their levels can be chosen per drawing (`plan_options={"levels": …}`) and per training step.

    Args:
        visible: a slot sees `coarser` levels and its own, or its `own` level alone
            (https://huggingface.co/papers/2506.04421), so that no step keeps keys and values.
        level_weights: weight of each level's tokens in the loss; None weighs every token alike.
        balance_levels: weigh a level's tokens by `sqrt(finest area / own area)` instead, over the mean of all weights: the
            finest levels hold most tokens.
        level_embedding: a learned vector per level.
        num_level_rows: rows of that table; the tokenizer's number of levels when None. No pyramid has more levels.
        position_table: a learned vector per slot; None for one unless there is a position map.
        position_map: rows and columns of one learned map of positions, resized to every level.
        reference_grids: sizes `(height, width)`, one per aspect ratio. Coordinates are scaled to the one whose ratio is
            nearest, so that the same place of a picture has the same coordinates on all levels and at all resolutions;
            None leaves every level its own coordinates.
        level_draws: the fields of `LevelDraws`, which picks the levels of every training step out of the tokenizer's; None
            to train on all of them.
        self_correction: in training, the largest probability with which the bits that later levels see are flipped, to be
            repaired by them (https://huggingface.co/papers/2412.04431, section 3.3); 0 for none.
        num_corrupted_levels: only the first so many levels are corrupted; None for all.

    Raises:
        ConfigError: values out of range, or that exclude each other.
    """

    model_type = "unimm_scale_plan"
    visible: Literal["coarser", "own"] = "coarser"
    level_weights: list[float] | tuple[float, ...] | None = None
    balance_levels: bool = False
    level_embedding: bool = True
    num_level_rows: int | None = None
    position_table: bool | None = None
    position_map: list[int] | tuple[int, int] | None = None
    reference_grids: list[list[int]] | tuple[tuple[int, int], ...] | None = None
    level_draws: dict[str, Any] | None = None
    self_correction: float | int = 0.0
    num_corrupted_levels: int | None = None

    needs_tokenizer: ClassVar[bool] = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.level_weights is not None and self.balance_levels:
            raise ConfigError("give either level_weights or balance_levels, given both")
        if self.position_map is not None and self.position_table:
            raise ConfigError("give either position_map or position_table, given both")
        if self.position_map is not None and (len(self.position_map) != 2 or min(self.position_map) < 1):
            raise ConfigError(f"position_map must be rows and columns of at least 1, given {self.position_map}")
        if self.num_level_rows is not None and not self.level_embedding:
            raise ConfigError(
                f"num_level_rows={self.num_level_rows} is the size of a table that level_embedding=False leaves out"
            )
        grids = self.reference_grids
        if grids is not None and (not grids or any(len(grid) != 2 or min(grid) < 1 for grid in grids)):
            raise ConfigError(f"reference_grids are (height, width) of at least 1, given {grids}")
        if not 0 <= self.self_correction <= 1:
            raise ConfigError(f"self_correction is a probability, given {self.self_correction}")
        if self.level_draws is not None:
            LevelDraws.of(self.level_draws)
            if not self.takes_any_levels:
                raise ConfigError(
                    "level_draws needs a plan that takes any list of levels: set position_map or position_table=False, and "
                    "leave level_weights out"
                )
            if self.self_correction:
                raise ConfigError(
                    "level_draws leaves levels out, self_correction repairs them by later ones that add to them: give one of "
                    "the two"
                )

    @property
    def has_position_table(self) -> bool:
        """Whether every slot of one pyramid has a vector of its own."""
        return self.position_map is None if self.position_table is None else self.position_table

    @property
    def takes_any_levels(self) -> bool:
        """Whether nothing but the number of rows of the level table ties the plan to one pyramid."""
        return not self.has_position_table and self.level_weights is None

    @property
    def tokenizer_needs(self) -> tuple[str, ...]:
        """What the tokenizer must be able to do."""
        asked = {"whole_levels": self.level_draws is not None, "self_correction": self.self_correction > 0}
        return tuple(name for name, is_asked in asked.items() if is_asked)

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
        return self._make(hidden_size, layout, kind)

    def _make(self, hidden_size: int, layout: TokenLayout, kind: TokenKind) -> ScalePlan:
        return ScalePlan(self, hidden_size, layout, kind)


class ScalePlan(PredictionPlan):
    """A slot starts from the running reconstruction resized to its level; the first level starts from the condition.

    `slot = start(level) + level embedding + position embedding`, where `start` is the condition vector and a learned
    start position for the first level, a projection of the resized reconstruction for the others. What the reconstruction
    is, the tokenizer says: the sum of all levels so far, or the last one, where every level holds the whole picture.

    Options of a drawing: `levels`, sides or `(height, width)` from coarse to fine, where the config leaves them open;
    `sampled_sides`, the sides of square levels whose tokens are drawn, while all others take the likeliest.
    """

    starts_from_reconstruction = True
    option_names: tuple[str, ...] = ("levels", "sampled_sides")

    def __init__(self, config: ScalePlanConfig, hidden_size: int, layout: TokenLayout, kind: TokenKind):
        super().__init__()
        self.layout = layout
        self.kind = kind
        self.config = config
        self.level_weights = config.level_weights
        self.sees_own_level_only = config.visible == "own"
        self.uses_cache = not self.sees_own_level_only
        self.start_embedding = nn.Embedding(layout.level_lengths[0], hidden_size)
        self.level_draws = None if config.level_draws is None else LevelDraws.of(config.level_draws)
        self.position_map = self.position_embedding = self.level_embedding = None
        if config.position_map is not None:
            self.position_map = PositionMap(hidden_size, *config.position_map)
        if config.has_position_table:
            self.position_embedding = nn.Embedding(layout.length, hidden_size)
        if config.level_embedding:
            self.level_embedding = nn.Embedding(config.num_level_rows or layout.num_levels, hidden_size)
        self.input_projection = nn.Linear(kind.channels, hidden_size)

    @property
    def takes_features(self) -> bool:  # type: ignore[override]
        return self.training and self.config.self_correction > 0

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
        self.check_layout(tokens.layout)
        assert tokenizer is not None
        if self.training and self.level_draws is not None:
            tokens = take_levels(tokens, self.level_draws.draw(randomness or GeneratorRandomness()))
        layout, targets = tokens.layout, tokens.values
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
        embeddings = torch.cat([first, rest], dim=1) + self._tables(layout, range(layout.num_levels), first.device)
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

    def loss_weights(self, layout: TokenLayout, device: torch.device | str = "cpu") -> torch.Tensor | None:
        """Weight of every token in the loss, `(length,)` fp32; None where all weigh alike."""
        if self.config.balance_levels:
            finest = layout.level_lengths[-1]
            each = torch.tensor([(finest / length) ** 0.5 for length in layout.level_lengths])
            weights = each[layout.level_ids()]
            return (weights / weights.mean()).to(device)
        if self.level_weights is None:
            return None
        return torch.tensor(self.level_weights, device=device)[layout.level_ids(device)]

    def check_layout(self, layout: TokenLayout) -> None:
        """Refuses pyramids that this model cannot fill.

        Raises:
            LayoutError: another pyramid than the model's own, where the config ties the plan to that one; else grids that
                do not grow from the same first one, or more levels than the level table has rows.
        """
        if layout == self.layout:
            return
        if not self.config.takes_any_levels:
            raise LayoutError(
                f"this model was built for the pyramid {self.layout}, given {layout}: only a plan without position table and "
                "level_weights takes others"
            )
        most = None if self.level_embedding is None else self.level_embedding.num_embeddings
        grows = layout.num_dimensions == 2 and all(
            earlier <= later
            for coarse, fine in zip(layout.levels, layout.levels[1:], strict=False)
            for earlier, later in zip(coarse, fine, strict=True)
        )
        fits = layout.num_levels >= 2 and (most is None or layout.num_levels <= most)
        if not grows or not fits or layout.levels[0] != self.layout.levels[0]:
            number = "2 or more" if most is None else f"2 to {most}"
            raise LayoutError(
                f"this model fills pyramids of {number} grids that grow from {'x'.join(map(str, self.layout.levels[0]))}, "
                f"given {layout}"
            )

    def generation_layout(self, tokenizer: VisualTokenizer | None = None, **options: Any) -> TokenLayout:
        levels = options.get("levels")
        layout = self.layout if levels is None else TokenLayout.pyramid(levels)
        self.check_layout(layout)
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
            coordinates=self.coordinates(layout).to(device),
            is_prefix=torch.zeros(layout.length, dtype=torch.bool, device=device),
            position_ids=torch.arange(layout.length, device=device)[None],
        )

    def coordinates(self, layout: TokenLayout) -> torch.Tensor:
        """Rows and columns of all slots, `(length, 2)` int64, on the reference grid where there is one."""
        grids = self.config.reference_grids
        return layout.coordinates() if grids is None else reference_coordinates(layout, grids)

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
        """Level and position vectors of a range of levels, `(tokens, hidden)`, those of them that the plan has."""
        slots = slice(layout.offsets[levels.start], layout.offsets[levels.stop])
        tables = []
        if self.level_embedding is not None:
            tables.append(self.level_embedding(layout.level_ids(device)[slots]))
        if self.position_map is not None:
            tables.append(torch.cat([self.position_map(layout.levels[level]) for level in levels]))
        if self.position_embedding is not None:
            tables.append(self.position_embedding(torch.arange(slots.start, slots.stop, device=device)))
        if not tables:
            return torch.zeros(slots.stop - slots.start, self.input_projection.out_features, device=device)
        return sum(tables[1:], tables[0])
