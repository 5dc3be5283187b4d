"""The contract of a prediction plan: which tokens a step predicts, what it may see, and what its slots start from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ConfigError, LayoutError, nearest
from ..tokens import TokenKind, TokenLayout, TokenPlaces, VisualTokens, put_tokens, take_tokens
from .attention import AttentionRule

if TYPE_CHECKING:
    from ..conditions.base import Condition
    from ..generation.randomness import Randomness
    from ..generation.session import BackboneSession
    from ..heads.base import Denoise, HeadSample
    from ..tokenizers.base import VisualTokenizer


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
class TokenGroup:
    """Tokens that are predicted together and stand on one grid, for heads that look at all of them at once.

    Args:
        tokens: their range among the targets.
        shape: sides of the grid that they fill in raster order.
    """

    tokens: slice
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PlanInputs:
    """One teacher-forced pass.

    Args:
        embeddings: `(batch, slots, hidden)`, what every slot starts from.
        positions: where the slots stand.
        rule: what every slot may see.
        predicting: index of the slot whose hidden state predicts each target: `(targets,)` int64, `(batch, targets)`
            where it differs from sample to sample, or `(targets, taps)` where several hidden states speak of a target,
            with -1 where one of them does not (`(batch, targets, taps)` does not occur).
        targets: `(batch, targets[, codes])` ids or `(batch, targets, channels)` latents.
        loss_weights: `(targets,)` or `(batch, targets)` weight of each target in the loss; None for 1 everywhere.
        groups: targets that are predicted together, for heads that look at all of them at once.
        phase: which of a backbone's branches and of a model's heads predicts.
        condition: what steers this pass instead of the sample's condition, where that depends on the slot.
        backbone_options: further arguments of the backbone (see `PredictionPlan.backbone_options`).
    """

    embeddings: torch.Tensor
    positions: SlotPositions
    rule: AttentionRule
    predicting: torch.Tensor
    targets: torch.Tensor
    loss_weights: torch.Tensor | None = None
    groups: tuple[TokenGroup, ...] | None = None
    phase: int = 0
    condition: Condition | None = None
    backbone_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanStep:
    """One prediction: it appends the slots `slots` to the sequence and fills the tokens `tokens` of the canvas.

    Args:
        index: number of the step.
        slots: range of new slots, counted from the start of the sequence, prefix included.
        tokens: places on the canvas that this step predicts; None where they are known only when it comes to it
            (`PredictionPlan.places`).
        predicting: how many of the new slots, at the end of the range, predict; or the index of the predicting new slot
            per token, as in `PlanInputs.predicting`.
        num_placed: tokens of the canvas that are final after this step.
        level: the layout's level that the step works on.
        phase: which of a backbone's branches and of a model's heads predicts.
        stands_alone: the step sees its own slots only, and no later one sees them.
        takes_likeliest: the step's tokens are the likeliest ones, also where the caller draws.
    """

    index: int
    slots: slice
    tokens: TokenPlaces | None
    predicting: int | torch.Tensor
    num_placed: int
    level: int = 0
    phase: int = 0
    stands_alone: bool = False
    takes_likeliest: bool = False


@dataclass
class Canvas:
    """The tokens placed so far.

    Args:
        layout: the arrangement being filled.
        values: `(batch, length[, codes])` int64 ids or `(batch, length, channels)` latents, valid where placed.
        state: what the plan carries from step to step (the scale plan: the running reconstruction).
    """

    layout: TokenLayout
    values: torch.Tensor
    state: Any = None

    @property
    def tokens(self) -> VisualTokens:
        return VisualTokens.of(self.layout, self.values)

    @property
    def batch_size(self) -> int:
        return self.values.shape[0]

    def read(self, places: TokenPlaces) -> torch.Tensor:
        """The tokens at some places, `(batch, number, …)`."""
        return take_tokens(self.values, places)

    def write(self, places: TokenPlaces, tokens: torch.Tensor) -> None:
        """Puts `(batch, number, …)` tokens at some places."""
        put_tokens(self.values, places, tokens.to(self.values.dtype))

    def snapshot(self) -> Canvas:
        """A copy that later steps do not change."""
        state = self.state
        return Canvas(self.layout, self.values.clone(), state.clone() if isinstance(state, torch.Tensor) else state)


class PredictionPlan(nn.Module, ABC):
    """Which tokens are predicted together at each step, what that step may see, and what each slot starts from.

    A plan owns the parameters that make slots (token embeddings, level and position tables); the tokenizer is passed
    in where a plan needs it, so that it is never registered twice.

    A whole generation is one sequence of slots in the order in which steps append them. The prefix of the condition
    comes first.
    """

    kind: TokenKind
    layout: TokenLayout

    #: Whether stepwise generation keeps keys and values of earlier steps.
    uses_cache = True
    #: Whether slots start from the tokenizer's reconstruction of the canvas, so that soft codes can be placed.
    starts_from_reconstruction = False
    #: Whether the backbone itself denoises tokens (`denoiser`); such a plan's passes also take `corrupt`, the head's way to
    #: make noisy tokens, times and targets of clean ones.
    denoises = False
    #: Whether the passes of this training step also take `features`, the map that the tokens were quantized from.
    takes_features = False
    #: Options of `steps` and `generation_layout` that a caller may choose per drawing, by name.
    option_names: tuple[str, ...] = ()

    @abstractmethod
    def training_inputs(
        self,
        tokens: VisualTokens,
        condition: Condition,
        tokenizer: VisualTokenizer | None = None,
        *,
        randomness: Randomness | None = None,
        feed_every_token: bool = False,
    ) -> PlanInputs:
        """Slots, targets and attention of one teacher-forced pass.

        Args:
            tokens: the ground truth.
            condition: what steers the sample.
            tokenizer: needed by plans whose slots start from a reconstruction.
            randomness: source of a plan's own draws (orders, masks).
            feed_every_token: also give the last token a slot, though its hidden state predicts nothing (to read out
                features of all tokens).

        Raises:
            LayoutError: the tokens' layout does not suit the plan.
        """

    def training_passes(self, *args: Any, **kwargs: Any) -> Generator[PlanInputs, torch.Tensor, None]:
        """The teacher-forced passes of one training step; arguments as `training_inputs`.

        Most plans have one. A plan with several gets the hidden states of a pass's targets, `(batch, targets, hidden)`,
        before it has to give the next.
        """
        yield self.training_inputs(*args, **kwargs)

    @abstractmethod
    def steps(self, layout: TokenLayout, prefix_length: int, **options: Any) -> Sequence[PlanStep]:
        """The steps that fill `layout` after a prefix of `prefix_length` slots.

        Args:
            options: what the caller chose, of `option_names`.
        """

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

    def generation_layout(self, tokenizer: VisualTokenizer | None = None, **options: Any) -> TokenLayout:
        """The layout that one drawing fills: the model's own, unless an option chooses another.

        Raises:
            LayoutError: options that give a layout which this plan or the tokenizer cannot fill.
        """
        return self.layout

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuses options of a drawing that this plan does not have.

        Raises:
            ConfigError: with the nearest known one.
        """
        for name in options:
            if name not in self.option_names:
                known = ", ".join(self.option_names) or "none"
                raise ConfigError(
                    f"{type(self).__name__} takes no option '{name}'{nearest(name, self.option_names)} (it has {known})"
                )

    def start(
        self,
        layout: TokenLayout,
        batch_size: int,
        device: torch.device,
        tokenizer: VisualTokenizer | None = None,
        randomness: Randomness | None = None,
    ) -> Canvas:
        """An empty canvas for `batch_size` samples.

        Args:
            randomness: source of draws that hold for the whole canvas (an order).
        """
        return Canvas(layout, self.kind.blank(batch_size, layout.length, device))

    def places(self, canvas: Canvas, step: PlanStep) -> TokenPlaces:
        """Where on the canvas the step's tokens stand."""
        assert step.tokens is not None
        return step.tokens

    def predicting(self, canvas: Canvas, step: PlanStep) -> int | torch.Tensor:
        """Which of the new slots predict, as in `PlanStep.predicting`; or `(batch, tokens)` indices into them."""
        return step.predicting

    def backbone_options(self, canvas: Canvas, step: PlanStep, num_rows: int) -> dict[str, Any]:
        """Further arguments of the backbone at this step, for plans that need a backbone of a special kind.

        `known`: `(rows, slots)` bool, slots whose tokens are there (encoder-decoder backbones leave the others out).
        `phase`: the branch that predicts.

        Args:
            num_rows: rows of all contexts.
        """
        return {}

    def known(self, canvas: Canvas, step: PlanStep) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Which of the step's tokens are given already, `(batch, tokens)` bool, and their values; for heads that draw a
        whole grid around what is known."""
        return None, None

    def denoiser(
        self, session: BackboneSession, canvas: Canvas, step: PlanStep, tokenizer: VisualTokenizer | None = None
    ) -> Denoise | None:
        """The backbone as the network that denoises the step's tokens, for plans of that kind; None for all others.

        Such a plan itself runs what the noisy tokens look at (`session.run`), and gives a function that runs them without
        leaving a trace (`remember=False`).
        """
        return None

    def groups(self, layout: TokenLayout, step: PlanStep) -> tuple[TokenGroup, ...] | None:
        """The grids that the step's tokens fill, for heads that look at all of them at once."""
        return None

    def place(
        self,
        canvas: Canvas,
        step: PlanStep,
        sample: HeadSample,
        tokenizer: VisualTokenizer | None = None,
        hidden_states: torch.Tensor | None = None,
    ) -> None:
        """Writes a step's tokens onto the canvas.

        Args:
            sample: the tokens, with soft codes and confidences where the head gives them.
            hidden_states: `(condition rows, tokens, hidden)`, what they were predicted from.
        """
        canvas.write(self.places(canvas, step), sample.values)

    def decode(self, canvas: Canvas, tokenizer: VisualTokenizer) -> torch.Tensor:
        """Pixels `(batch, channels, height, width)` in [-1, 1] of a finished canvas."""
        return tokenizer.decode(canvas.tokens)

    def preview(self, canvas: Canvas, step: PlanStep, tokenizer: VisualTokenizer) -> torch.Tensor:
        """Pixels `(batch, channels, height, width)` in [-1, 1] of the canvas as it is after a step.

        Raises:
            LayoutError: this plan's canvas cannot be shown before it is finished.
        """
        if step.num_placed < canvas.layout.length:
            raise LayoutError(
                f"{type(self).__name__} cannot show an unfinished canvas: {step.num_placed} of {canvas.layout.length} "
                "tokens are placed"
            )
        return self.decode(canvas, tokenizer)
