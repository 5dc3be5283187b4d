"""Groups of tokens one after the other, each denoised by the backbone (https://huggingface.co/papers/2502.20388)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn
from transformers import initialization as init

from ..backbones.time import TimeEmbedding
from ..conditions.base import Condition
from ..configuration import UniMMConfig
from ..errors import ConfigError, LayoutError
from ..tokens import TokenKind, TokenLayout, VisualTokens
from .base import AttentionRule, Canvas, PlanInputs, PlanStep, PredictionPlan, SlotPositions, TokenGroup

if TYPE_CHECKING:
    from ..generation.randomness import Randomness
    from ..generation.session import BackboneSession
    from ..heads.base import Corrupt, Denoise
    from ..tokenizers.base import VisualTokenizer

#: The time of tokens without noise.
CLEAN = 0.0


class GroupsPlanConfig(UniMMConfig):
    """Which tokens form a group.

    Args:
        unit: `cell`: blocks of `size` tokens a side, in raster order (`size` 1: single tokens). `stride`: every `size`-th
            token along every side, one group per phase. `level`: a level of the layout at a time, coarse to fine; all
            tokens at once where there is one level.
        size: side of a cell or length of the stride; None for levels.

    Raises:
        ConfigError: a size with levels, or none without.
    """

    model_type = "unimm_groups_plan"
    unit: Literal["cell", "stride", "level"] = "cell"
    size: int | None = 2

    needs_tokenizer: ClassVar[bool] = False
    denoises: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("slot_conditions",)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if (self.unit == "level") != (self.size is None) or (self.size is not None and self.size < 1):
            raise ConfigError(
                f"groups of unit '{self.unit}' need {'no size' if self.unit == 'level' else 'a size of at least 1'}, given "
                f"{self.size}"
            )

    @property
    def condition_form(self) -> str:
        return "vector"

    def build(self, hidden_size: int, layout: TokenLayout, kind: TokenKind) -> GroupsPlan:
        if kind.is_discrete:
            raise LayoutError(
                f"the groups plan denoises continuous latents, the tokenizer gives {kind}: use a KL tokenizer"
            )
        return GroupsPlan(self, hidden_size, layout, kind)


class GroupsPlan(PredictionPlan):
    """A slot starts from its own noisy token; it sees its group and all earlier ones.

    In training every group has noise of its own time, the context too. In a drawing a group is denoised while earlier
    groups, clean, are looked at. The condition of a slot is the sample's plus an embedding of its group's time.
    """

    denoises = True

    def __init__(self, config: GroupsPlanConfig, hidden_size: int, layout: TokenLayout, kind: TokenKind):
        super().__init__()
        self.config, self.layout, self.kind = config, layout, kind
        self.token_embedding = nn.Linear(kind.channels, hidden_size)
        self.time_embedding = TimeEmbedding(hidden_size)
        self.places_of_groups, self.shape = group_tokens(layout, config.unit, config.size)

    def init_own_weights(self, std: float) -> None:
        """A Xavier-uniform layer."""
        init.xavier_uniform_(self.token_embedding.weight)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of every group."""
        return tuple(len(places) for places in self.places_of_groups)

    def order(self, device: torch.device | str | None = None) -> torch.Tensor:
        """The token of every slot, `(slots,)`."""
        return torch.tensor([place for places in self.places_of_groups for place in places], device=device)

    def training_inputs(
        self,
        tokens: VisualTokens,
        condition: Condition,
        tokenizer: VisualTokenizer | None = None,
        *,
        randomness: Randomness | None = None,
        feed_every_token: bool = False,
        corrupt: Corrupt | None = None,
    ) -> PlanInputs:
        assert corrupt is not None
        assert randomness is not None
        ordered = tokens.values[:, self.order(tokens.device)]
        noisy = [corrupt(group, randomness) for group in ordered.split(self.lengths, dim=1)]
        return PlanInputs(
            embeddings=self._embed(torch.cat([group.values for group in noisy], dim=1)),
            positions=self.positions(tokens.layout, condition),
            rule=self.rule(tokens.layout, condition),
            predicting=torch.arange(tokens.layout.length, device=tokens.device),
            targets=torch.cat([group.targets for group in noisy], dim=1),
            groups=tuple(
                TokenGroup(slice(step.slots.start, step.slots.stop), self._shape(step.index))
                for step in self.steps(tokens.layout, 0)
            ),
            condition=self._timed(condition, torch.stack([group.times for group in noisy], dim=1)),
            backbone_options={"condition_runs": self.lengths},
        )

    def steps(self, layout: TokenLayout, prefix_length: int, **options: Any) -> Sequence[PlanStep]:
        steps, start = [], 0
        for index, places in enumerate(self.places_of_groups):
            stop = start + len(places)
            level = index if self.config.unit == "level" else 0
            slots = slice(start, stop)
            steps.append(PlanStep(index, slots, torch.tensor(places), len(places), num_placed=stop, level=level))
            start = stop
        return steps

    def rule(self, layout: TokenLayout, condition: Condition) -> AttentionRule:
        return AttentionRule(tuple(group for group, length in enumerate(self.lengths) for _ in range(length)))

    def positions(self, layout: TokenLayout, condition: Condition) -> SlotPositions:
        device = condition.device
        return SlotPositions(
            coordinates=layout.coordinates(device)[self.order(device)],
            is_prefix=torch.zeros(layout.length, dtype=torch.bool, device=device),
            position_ids=torch.arange(layout.length, device=device)[None],
        )

    def groups(self, layout: TokenLayout, step: PlanStep) -> tuple[TokenGroup, ...]:
        return (TokenGroup(slice(0, self.lengths[step.index]), self._shape(step.index)),)

    def slots(
        self, canvas: Canvas, step: PlanStep, condition: Condition, tokenizer: VisualTokenizer | None = None
    ) -> torch.Tensor:
        """The slots of a step's clean tokens."""
        return self._embed(canvas.read(self.places(canvas, step))).repeat(condition.num_rows // canvas.batch_size, 1, 1)

    def denoiser(
        self, session: BackboneSession, canvas: Canvas, step: PlanStep, tokenizer: VisualTokenizer | None = None
    ) -> Denoise:
        if step.index > 0:
            previous = self.steps(canvas.layout, 0)[step.index - 1]
            clean = torch.full((session.num_rows, 1), CLEAN, device=canvas.values.device)
            slots = self.slots(canvas, previous, session.condition)
            session.run(slots, previous.slots, condition=self._timed(session.condition, clean))

        def denoise(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            condition = self._timed(session.condition, times[:, None])
            output = session.run(self._embed(noisy), step.slots, remember=False, condition=condition)
            return output.last_hidden_state

        return denoise

    def preview(self, canvas: Canvas, step: PlanStep, tokenizer: VisualTokenizer) -> torch.Tensor:
        """The canvas so far, mid-grey where no token has been placed; pictures of one level only."""
        if canvas.layout.num_dimensions != 2 or canvas.layout.num_levels > 1:
            return super().preview(canvas, step, tokenizer)
        pixels = self.decode(canvas, tokenizer)
        placed = torch.zeros(canvas.layout.length, device=pixels.device, dtype=pixels.dtype)
        placed[self.order(pixels.device)[: step.num_placed]] = 1
        return pixels * nn.functional.interpolate(placed.view(1, 1, *canvas.layout.final), size=pixels.shape[-2:])

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.token_embedding(tokens.to(self.token_embedding.weight.dtype))

    def _timed(self, condition: Condition, times: torch.Tensor) -> Condition:
        """The condition of groups at some times `(rows, groups)`: vectors `(rows, groups, hidden)`."""
        assert condition.vector is not None
        return replace(condition, vector=condition.vector[:, None] + self.time_embedding(times))

    def _shape(self, group: int) -> tuple[int, ...]:
        return self.layout.levels[group] if self.shape is None else self.shape


def group_tokens(
    layout: TokenLayout, unit: str, size: int | None
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...] | None]:
    """The tokens of every group, each in raster order, and the shape of a group (None where it is that of its level).

    Raises:
        LayoutError: a size that does not divide the sides, or cells and strides of several levels.
    """
    if unit == "level":
        bounds = zip(layout.offsets, layout.offsets[1:], strict=False)
        return tuple(tuple(range(start, stop)) for start, stop in bounds), None
    assert size is not None
    if layout.num_levels > 1 or any(side % size for side in layout.final):
        raise LayoutError(
            f"groups of unit '{unit}' need one level whose sides are multiples of {size}, given {layout}: choose another "
            "size, or the unit 'level'"
        )
    counts = tuple(side // size for side in layout.final)
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, coordinates in enumerate(product(*map(range, layout.final))):
        group = tuple(one // size if unit == "cell" else one % size for one in coordinates)
        groups.setdefault(group, []).append(place)
    shape = (size,) * len(counts) if unit == "cell" else counts
    return tuple(tuple(groups[group]) for group in sorted(groups)), shape
