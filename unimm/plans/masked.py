"""Masked prediction in a random order: several tokens per step, fewer hidden ones at each by a cosine.

https://huggingface.co/papers/2202.04200 for ids, https://huggingface.co/papers/2406.11838 for latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn
from transformers import initialization as init

from ..conditions.base import Condition
from ..configuration import UniMMConfig
from ..errors import ConfigError, LayoutError
from ..generation.randomness import GeneratorRandomness
from ..tokens import TokenKind, TokenLayout, TokenPlaces, VisualTokens
from .attention import AttentionRule
from .base import Canvas, PlanInputs, PlanStep, PredictionPlan, SlotPositions
from .embeddings import token_embedding

if TYPE_CHECKING:
    from ..generation.randomness import Randomness
    from ..tokenizers.base import VisualTokenizer


class MaskedPlanConfig(UniMMConfig):
    """A random part of the tokens is hidden; the hidden ones are predicted from the others, all at once.

    In training the hidden share of a batch is a normal draw with `mask_ratio_mean` and `mask_ratio_deviation`, cut to
    `[mask_ratio_least, 1]`.

    Args:
        num_steps: steps of a drawing, where the caller does not choose (`plan_options={"num_steps": …}`).
        hidden_slots: what stands where a token is hidden: `mask` puts a learned vector there, for any backbone; `left_out`
            leaves such slots to the backbone, which must be able to (`unimm_encoder_decoder`).
        learned_positions: add a learned vector per slot, prefix included.
        prefix_length: slots of the condition's prefix, where positions are learned.
        input_norm: a layer norm over all slots.
        norm_eps: of that norm.
        mask_ratio_mean: of the share of hidden tokens in training.
        mask_ratio_deviation: of the same, before it is cut.
        mask_ratio_least: the smallest share.

    Raises:
        ConfigError: a value out of range.
    """

    model_type = "unimm_masked_plan"
    num_steps: int = 64
    hidden_slots: Literal["mask", "left_out"] = "mask"
    learned_positions: bool = True
    prefix_length: int = 0
    input_norm: bool = False
    norm_eps: float = 1e-6
    mask_ratio_mean: float | int = 1.0
    mask_ratio_deviation: float | int = 0.25
    mask_ratio_least: float | int = 0.7

    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_steps < 1 or self.prefix_length < 0:
            raise ConfigError(
                "a masked plan needs num_steps of at least 1 and prefix_length of at least 0, given "
                f"{self.num_steps} and {self.prefix_length}"
            )
        if self.mask_ratio_deviation <= 0 or not 0 <= self.mask_ratio_least < 1:
            raise ConfigError(
                "the share of hidden tokens needs mask_ratio_deviation above 0 and mask_ratio_least in [0, 1), given "
                f"{self.mask_ratio_deviation} and {self.mask_ratio_least}"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """What the backbone must be able to do."""
        return ("known",) if self.hidden_slots == "left_out" else ()

    @property
    def condition_form(self) -> str | None:
        # Where hidden tokens are left out, the first step has nothing else than the prefix to look at.
        return "prefix" if self.hidden_slots == "left_out" else None

    def build(self, hidden_size: int, layout: TokenLayout, kind: TokenKind) -> MaskedPlan:
        if layout.num_levels != 1:
            raise LayoutError(
                f"the masked plan predicts one grid or sequence, the tokenizer gives {layout.num_levels} levels "
                f"({layout}): use the scale plan with it, or a tokenizer with a single level"
            )
        return MaskedPlan(self, hidden_size, layout, kind)


class MaskedPlan(PredictionPlan):
    """All slots at every step: the prefix, then one slot per token, known or hidden; a slot predicts its own token.

    The order of a canvas is a permutation: its last entries are predicted first. After step `k` of `S`,
    `max(1, min(hidden - 1, floor(length * cos(pi / 2 * (k + 1) / S))))` tokens are still hidden, after the last none.
    """

    uses_cache = False
    option_names = ("num_steps",)

    def __init__(self, config: MaskedPlanConfig, hidden_size: int, layout: TokenLayout, kind: TokenKind):
        super().__init__()
        self.config = config
        self.layout = layout
        self.kind = kind
        self.token_embedding = token_embedding(kind, hidden_size)
        if config.hidden_slots == "mask":
            self.mask_embedding = nn.Parameter(torch.zeros(hidden_size))
        if config.learned_positions:
            self.position_embedding = nn.Embedding(config.prefix_length + layout.length, hidden_size)
        self.input_norm = nn.LayerNorm(hidden_size, eps=config.norm_eps) if config.input_norm else nn.Identity()

    def init_own_weights(self, std: float) -> None:
        """The mask's vector as an embedding."""
        if self.config.hidden_slots == "mask":
            init.normal_(self.mask_embedding, std=std)

    def training_inputs(
        self,
        tokens: VisualTokens,
        condition: Condition,
        tokenizer: VisualTokenizer | None = None,
        *,
        randomness: Randomness | None = None,
        feed_every_token: bool = False,
    ) -> PlanInputs:
        """As in every plan; draws a number of hidden tokens for the batch and an order per sample."""
        randomness = randomness or GeneratorRandomness()
        # Their number is a shape, so it is drawn on the host; one row per sample, so that generators per sample serve too.
        share = randomness.uniform((tokens.batch_size,), "mask_ratio", torch.device("cpu"))[0].item()
        number = math.ceil(self.mask_ratio(share) * tokens.layout.length)
        order = self._order(tokens.layout, tokens.batch_size, tokens.device, randomness)
        return self.inputs_with_hidden(tokens, condition, order[:, : max(number, 1)])

    def mask_ratio(self, share: float) -> float:
        """The hidden share that this share of all draws does not exceed."""
        normal, lowest, highest = self._mask_ratios()
        probability = lowest + share * (highest - lowest)
        # Far from the mean the distribution function runs out of digits.
        ratio = normal.inv_cdf(min(max(probability, 1e-12), 1 - 1e-12))
        return min(max(ratio, float(self.config.mask_ratio_least)), 1.0)

    def share_of_ratio(self, ratio: float) -> float:
        """The share of all draws that a hidden share is not exceeded in: the inverse of `mask_ratio`."""
        normal, lowest, highest = self._mask_ratios()
        return (normal.cdf(ratio) - lowest) / (highest - lowest)

    def inputs_with_hidden(self, tokens: VisualTokens, condition: Condition, hidden: torch.Tensor) -> PlanInputs:
        """One pass in which given tokens are hidden, and are the targets.

        Args:
            tokens: the ground truth.
            condition: what steers the samples.
            hidden: `(batch, number)` int64 places of the hidden tokens, each once.

        Raises:
            LayoutError: tokens of another layout, or a prefix of another length than the plan was built for.
        """
        if tokens.layout != self.layout:
            raise LayoutError(f"this model was built for tokens of {self.layout}, given tokens of {tokens.layout}")
        hidden = hidden.sort(dim=1).values
        known = self._known(hidden, condition)
        return PlanInputs(
            embeddings=self._embed(tokens.values, known, condition),
            positions=self.positions(self.layout, condition),
            rule=self.rule(self.layout, condition),
            predicting=hidden + condition.prefix_length,
            targets=torch.gather(tokens.values, 1, _like(hidden, tokens.values)),
            backbone_options=self._options(known, self.layout.length - hidden.shape[1] + condition.prefix_length),
        )

    def steps(
        self, layout: TokenLayout, prefix_length: int, num_steps: int | None = None, **options: Any
    ) -> Sequence[PlanStep]:
        numbers = self.hidden_numbers(layout.length, num_steps)
        return [
            PlanStep(
                index,
                slice(0, prefix_length + layout.length),
                tokens=None,
                predicting=before - after,
                num_placed=layout.length - after,
                stands_alone=True,
            )
            for index, (before, after) in enumerate(zip([layout.length, *numbers], numbers, strict=False))
        ]

    def hidden_numbers(self, length: int, num_steps: int | None = None) -> list[int]:
        """Tokens that are still hidden after every step.

        Raises:
            ConfigError: more steps than tokens, of which each step predicts one at least.
        """
        steps = min(self.config.num_steps, length) if num_steps is None else num_steps
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= length:
            raise ConfigError(
                f"num_steps must be a whole number from 1 to {length}, since every step predicts a token, given {steps!r}"
            )
        numbers, hidden = [], length
        for index in range(steps - 1):
            wanted = math.floor(length * math.cos(math.pi / 2 * (index + 1) / steps))
            hidden = max(1, min(hidden - 1, wanted))
            numbers.append(hidden)
        return [*numbers, 0]

    def check_options(self, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        self.hidden_numbers(self.layout.length, options.get("num_steps"))

    def rule(self, layout: TokenLayout, condition: Condition) -> AttentionRule:
        length = condition.prefix_length + layout.length
        return AttentionRule((0,) * length, condition.key_mask(length))

    def positions(self, layout: TokenLayout, condition: Condition) -> SlotPositions:
        prefix_length, device = condition.prefix_length, condition.device
        length, coordinates = prefix_length + layout.length, layout.coordinates(device)
        return SlotPositions(
            coordinates=torch.cat([coordinates.new_zeros(prefix_length, layout.num_dimensions), coordinates]),
            is_prefix=torch.arange(length, device=device) < prefix_length,
            position_ids=condition.position_ids(length),
        )

    def start(
        self,
        layout: TokenLayout,
        batch_size: int,
        device: torch.device,
        tokenizer: VisualTokenizer | None = None,
        randomness: Randomness | None = None,
    ) -> Canvas:
        canvas = super().start(layout, batch_size, device)
        canvas.state = self._order(layout, batch_size, device, randomness or GeneratorRandomness())
        return canvas

    def places(self, canvas: Canvas, step: PlanStep) -> TokenPlaces:
        assert isinstance(step.predicting, int)
        still_hidden = canvas.layout.length - step.num_placed
        return canvas.state[:, still_hidden : still_hidden + step.predicting].sort(dim=1).values

    def predicting(self, canvas: Canvas, step: PlanStep) -> torch.Tensor:
        places = self.places(canvas, step)
        assert isinstance(places, torch.Tensor)
        return places + step.slots.stop - canvas.layout.length

    def slots(
        self, canvas: Canvas, step: PlanStep, condition: Condition, tokenizer: VisualTokenizer | None = None
    ) -> torch.Tensor:
        times = condition.num_rows // canvas.batch_size
        known = self._known(self._hidden(canvas, step).repeat(times, 1), condition)
        return self._embed(canvas.values.repeat(times, *[1] * (canvas.values.dim() - 1)), known, condition)

    def backbone_options(self, canvas: Canvas, step: PlanStep, num_rows: int) -> dict[str, Any]:
        hidden = self._hidden(canvas, step)
        known = torch.ones(canvas.batch_size, step.slots.stop, dtype=torch.bool, device=hidden.device)
        known.scatter_(1, hidden + step.slots.stop - canvas.layout.length, False)
        return self._options(known.repeat(num_rows // canvas.batch_size, 1), step.slots.stop - hidden.shape[1])

    def preview(self, canvas: Canvas, step: PlanStep, tokenizer: VisualTokenizer) -> torch.Tensor:
        """The canvas so far, mid-grey where tokens are hidden; grids of rows and columns only."""
        if canvas.layout.num_dimensions != 2:
            return super().preview(canvas, step, tokenizer)
        pixels = self.decode(canvas, tokenizer)
        placed = pixels.new_ones(canvas.batch_size, canvas.layout.length)
        placed.scatter_(1, canvas.state[:, : canvas.layout.length - step.num_placed], 0.0)
        grid = placed.view(-1, 1, *canvas.layout.final)
        return pixels * nn.functional.interpolate(grid, size=pixels.shape[-2:], mode="nearest")

    def _mask_ratios(self) -> tuple[NormalDist, float, float]:
        """The normal distribution of hidden shares, and the probabilities where it is cut."""
        config = self.config
        normal = NormalDist(float(config.mask_ratio_mean), float(config.mask_ratio_deviation))
        return normal, normal.cdf(float(config.mask_ratio_least)), normal.cdf(1.0)

    def _order(
        self, layout: TokenLayout, batch_size: int, device: torch.device, randomness: Randomness
    ) -> torch.Tensor:
        """A permutation of the tokens per sample, `(batch, length)`."""
        return randomness.uniform((batch_size, layout.length), "order", device).argsort(dim=1)

    def _hidden(self, canvas: Canvas, step: PlanStep) -> torch.Tensor:
        """Places that are hidden before a step, `(batch, number)`."""
        assert isinstance(step.predicting, int)
        return canvas.state[:, : canvas.layout.length - step.num_placed + step.predicting]

    def _known(self, hidden: torch.Tensor, condition: Condition) -> torch.Tensor:
        """`(rows, slots)` bool, True for the prefix and for tokens that are not hidden."""
        length = condition.prefix_length + self.layout.length
        known = torch.ones(len(hidden), length, dtype=torch.bool, device=hidden.device)
        return known.scatter_(1, hidden + condition.prefix_length, False)

    def _options(self, known: torch.Tensor, num_known: int) -> dict[str, Any]:
        if self.config.hidden_slots == "mask":
            return {}
        return {"known": known, "num_known": num_known}

    def _embed(self, values: torch.Tensor, known: torch.Tensor, condition: Condition) -> torch.Tensor:
        """All slots, `(rows, prefix + length, hidden)`."""
        if values.is_floating_point():
            values = values.to(self.token_embedding.weight.dtype)
        slots = self.token_embedding(values)
        if self.config.hidden_slots == "mask":
            slots = torch.where(known[:, condition.prefix_length :, None], slots, self.mask_embedding.to(slots.dtype))
        if condition.prefix is not None:
            slots = torch.cat([condition.prefix.to(slots.dtype), slots], dim=1)
        if self.config.learned_positions:
            if condition.prefix_length != self.config.prefix_length:
                raise LayoutError(
                    f"this plan learns positions for a prefix of {self.config.prefix_length} slots, the condition gives "
                    f"{condition.prefix_length}: set the plan's prefix_length to the condition's"
                )
            slots = slots + self.position_embedding(torch.arange(slots.shape[1], device=slots.device))
        return self.input_norm(slots)


def _like(places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Indices `(batch, number)` in the form of values `(batch, length, …)`."""
    extra = values.shape[2:]
    return places.view(*places.shape, *[1] * len(extra)).expand(*places.shape, *extra)
