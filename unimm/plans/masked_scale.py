"""Next-scale prediction whose levels are refined: the least certain tokens of a level are masked and predicted again
(https://huggingface.co/papers/2506.04421)."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import nn

from ..conditions.base import Condition
from ..errors import ConfigError
from ..generation.randomness import GeneratorRandomness
from ..tokens import TokenKind, TokenLayout, VisualTokens
from .base import Canvas, PlanInputs, PlanStep
from .scale import ScalePlan, ScalePlanConfig

if TYPE_CHECKING:
    from ..generation.randomness import Randomness
    from ..heads.base import HeadSample
    from ..tokenizers.base import VisualTokenizer


class MaskedScalePlanConfig(ScalePlanConfig):
    """The scale plan with a second way to predict a level: from those of its own tokens that are not masked.

    Args:
        refinement_only: only the second way, for its training; otherwise both, by a backbone and a head with two phases.

    Raises:
        ConfigError: a refinement that sees other levels, or other levels than the tokenizer's in training.
    """

    model_type = "unimm_masked_scale_plan"
    visible: Literal["coarser", "own"] = "own"
    refinement_only: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.visible != "own":
            raise ConfigError(
                "a level that is predicted again cannot be in a cache: the masked scale plan needs visible='own'"
            )
        if self.level_draws is not None or self.self_correction:
            raise ConfigError(
                "the masked scale plan repairs tokens by its second phase, over all levels as they are: leave level_draws and "
                "self_correction out"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """What the backbone must be able to do."""
        return () if self.refinement_only else ("phases",)

    def build(self, hidden_size: int, layout: TokenLayout, kind: TokenKind) -> MaskedScalePlan:
        return cast(MaskedScalePlan, super().build(hidden_size, layout, kind))

    def _make(self, hidden_size: int, layout: TokenLayout, kind: TokenKind) -> MaskedScalePlan:
        return MaskedScalePlan(self, hidden_size, layout, kind)


@dataclass(frozen=True)
class LevelStep(PlanStep):
    """A prediction of a level, after which some of its tokens are masked again.

    Args:
        num_masked: so many tokens, the least certain ones.
    """

    num_masked: int = 0


@dataclass(frozen=True)
class LevelState:
    """What stands between two predictions of a level.

    Args:
        reconstruction: of the levels before, `(batch, channels, h, w)`.
        masked: `(batch, tokens of the level)` bool, the tokens that the next step predicts again; None between levels.
    """

    reconstruction: torch.Tensor
    masked: torch.Tensor | None = None


class MaskedScalePlan(ScalePlan):
    """Predicts a level at once, as the scale plan does (phase 0), and then its least certain tokens again (phase 1).

    A slot of phase 1 adds what the level's own token contributes to the reconstruction, or a mask vector in its place.

    Option of a drawing: `schedule`, a list of counts for every level, which sum to its tokens. A level of one entry is
    drawn at once; further entries say how many tokens become final at each step. None draws every level at once.
    """

    option_names = (*ScalePlan.option_names, "schedule")

    def __init__(self, config: MaskedScalePlanConfig, hidden_size: int, layout: TokenLayout, kind: TokenKind):
        super().__init__(config, hidden_size, layout, kind)
        self.refinement_only = config.refinement_only
        self.mask_embedding = nn.Embedding(1, hidden_size)

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
        inputs = super().training_inputs(tokens, condition, tokenizer, randomness=randomness, features=features)
        if not self.refinement_only:
            return replace(inputs, backbone_options={"phase": 0})
        assert tokenizer is not None
        return self._masked_inputs(inputs, tokens, tokenizer, randomness)

    def training_passes(self, *args: Any, **kwargs: Any) -> Generator[PlanInputs, torch.Tensor, None]:
        """In training both phases, one after the other; the likelihood of an evaluation is that of phase 0."""
        inputs = self.training_inputs(*args, **kwargs)
        yield inputs
        if self.training and not self.refinement_only:
            tokens, _, tokenizer = args
            masked = self._masked_inputs(inputs, tokens, tokenizer, kwargs.get("randomness"))
            yield replace(masked, phase=1, backbone_options={"phase": 1})

    def draw_masked(self, layout: TokenLayout, randomness: Randomness | None, device: torch.device) -> torch.Tensor:
        """Places `(number,)` of the tokens that training masks, the same for the whole batch: a random share of all levels but
        the first, at least one token of each."""
        source = randomness or GeneratorRandomness()
        share = float(source.uniform((1,), "mask_share", torch.device("cpu"))[0])
        places = []
        for level in range(1, layout.num_levels):
            length = layout.level_lengths[level]
            order = source.uniform((length,), "mask_order", torch.device("cpu")).argsort()
            places.append(layout.offsets[level] + order[: max(1, math.ceil(share * length))])
        return torch.cat(places).to(device)

    def _masked_inputs(
        self, inputs: PlanInputs, tokens: VisualTokens, tokenizer: VisualTokenizer, randomness: Randomness | None
    ) -> PlanInputs:
        """Slots of phase 1, from those of phase 0."""
        places = self.draw_masked(tokens.layout, randomness, inputs.embeddings.device)
        masked = torch.zeros(tokens.layout.length, dtype=torch.bool, device=places.device)
        masked[places] = True
        first = tokens.layout.offsets[1]
        own = self._own_slots(self.own_contributions(tokens, tokenizer), masked[None, first:])
        embeddings = torch.cat([inputs.embeddings[:, :first], inputs.embeddings[:, first:] + own], dim=1)
        weights = masked.to(embeddings.dtype) * (tokens.layout.length / len(places))
        return replace(inputs, embeddings=embeddings, loss_weights=weights)

    @torch.no_grad()
    def own_contributions(self, tokens: VisualTokens, tokenizer: VisualTokenizer) -> torch.Tensor:
        """What all levels but the first contribute at their own size, `(batch, length - first level, channels)`."""
        layout = tokens.layout
        parts = []
        for level in range(1, layout.num_levels):
            codes = tokenizer.embed(tokens.level(level))
            parts.append(tokenizer.resize_canvas(tokenizer.contribution(codes, level, layout), layout.levels[level]))
        return torch.cat(parts, dim=1)

    def _own_slots(self, contributions: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """What a level's own tokens add to its slots; `masked` is `(batch or 1, tokens)`."""
        weight = self.input_projection.weight
        mask_vector = self.mask_embedding(torch.zeros(1, dtype=torch.long, device=masked.device))
        return torch.where(masked[..., None], mask_vector, F.linear(contributions.to(weight.dtype), weight))

    def check_options(self, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        schedule = options.get("schedule")
        if schedule is None:
            return
        if not isinstance(schedule, list | tuple) or any(
            not isinstance(counts, list | tuple) or any(not isinstance(count, int) or count < 1 for count in counts)
            for counts in schedule
        ):
            raise ConfigError(f"schedule must hold a list of counts of at least 1 for every level, given {schedule!r}")
        if self.refinement_only:
            raise ConfigError("schedule needs a model with both phases: this one has the refinement alone")

    def generation_layout(self, tokenizer: VisualTokenizer | None = None, **options: Any) -> TokenLayout:
        layout = super().generation_layout(tokenizer, **options)
        schedule = options.get("schedule")
        if schedule is not None and (
            tuple(sum(counts) for counts in schedule) != layout.level_lengths or len(schedule[0]) > 1
        ):
            raise ConfigError(
                f"schedule needs counts that sum to {layout.level_lengths}, one list per level and a single entry for the "
                f"first, given {schedule}"
            )
        return layout

    def steps(self, layout: TokenLayout, prefix_length: int, **options: Any) -> Sequence[PlanStep]:
        steps: list[PlanStep] = []
        schedule = options.get("schedule") or [(length,) for length in layout.level_lengths]
        for first, counts in zip(super().steps(layout, prefix_length, **options), schedule, strict=True):
            open_tokens = [sum(counts[number + 1 :]) for number in range(len(counts))]
            for number, num_masked in enumerate(open_tokens):
                steps.append(
                    LevelStep(
                        **{
                            **vars(first),
                            "index": len(steps),
                            "phase": min(number, 1),
                            "num_placed": layout.offsets[first.level + 1] - num_masked,
                        },
                        num_masked=num_masked,
                    )
                )
        return steps

    def backbone_options(self, canvas: Canvas, step: PlanStep, num_rows: int) -> dict[str, Any]:
        return {} if self.refinement_only else {"phase": step.phase}

    def start(
        self,
        layout: TokenLayout,
        batch_size: int,
        device: torch.device,
        tokenizer: VisualTokenizer | None = None,
        randomness: Randomness | None = None,
    ) -> Canvas:
        canvas = super().start(layout, batch_size, device, tokenizer, randomness)
        canvas.state = LevelState(canvas.state)
        return canvas

    def slots(
        self, canvas: Canvas, step: PlanStep, condition: Condition, tokenizer: VisualTokenizer | None = None
    ) -> torch.Tensor:
        state: LevelState = canvas.state
        slots = super().slots(replace(canvas, state=state.reconstruction), step, condition, tokenizer)
        if step.level == 0 or not (step.phase or self.refinement_only):
            return slots
        assert tokenizer is not None
        layout = canvas.layout
        ids = canvas.read(layout.level_slice(step.level))
        masked = (
            torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device) if state.masked is None else state.masked
        )
        contribution = tokenizer.contribution(tokenizer.embed(ids), step.level, layout)
        own = self._own_slots(tokenizer.resize_canvas(contribution, layout.levels[step.level]), masked)
        return slots + own.repeat(len(slots) // len(own), 1, 1)

    def place(
        self,
        canvas: Canvas,
        step: PlanStep,
        sample: HeadSample,
        tokenizer: VisualTokenizer | None = None,
        hidden_states: torch.Tensor | None = None,
    ) -> None:
        state: LevelState = canvas.state
        confidence = sample.confidence
        if state.masked is not None:
            kept = canvas.read(self.places(canvas, step))
            sample = replace(sample, values=torch.where(state.masked, sample.values, kept), embeddings=None)
            if confidence is not None:
                confidence = confidence.masked_fill(~state.masked, float("inf"))
        num_masked = step.num_masked if isinstance(step, LevelStep) else 0
        if num_masked:
            if confidence is None:
                raise ConfigError(
                    "a refined level needs a head that knows its tokens' probabilities, without soft codes"
                )
            canvas.write(self.places(canvas, step), sample.values)
            least = confidence.argsort(-1)[:, :num_masked]
            masked = torch.zeros_like(confidence, dtype=torch.bool).scatter_(1, least, True)
            canvas.state = LevelState(state.reconstruction, masked)
            return
        canvas.state = state.reconstruction
        super().place(canvas, step, sample, tokenizer, hidden_states)
        canvas.state = LevelState(canvas.state)

    def decode(self, canvas: Canvas, tokenizer: VisualTokenizer) -> torch.Tensor:
        return tokenizer.decode_canvas(canvas.state.reconstruction)
