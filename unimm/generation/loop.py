"""The one sampling loop: every plan, backbone and head runs through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from transformers import LogitsProcessorList

from ..checks import described
from ..conditions.base import Condition, stack_conditions
from ..errors import LayoutError
from ..heads.base import PredictionHead
from ..plans.base import Canvas, PlanStep, PredictionPlan
from ..tokens import TokenLayout, VisualTokens, check_ids
from .caches import make_cache
from .filters import SoftCodes
from .guidance import GuidanceSchedule, combine
from .randomness import Randomness

if TYPE_CHECKING:
    from ..tokenizers.base import VisualTokenizer


@dataclass(frozen=True)
class Inpainting:
    """Token-level in-painting: known tokens stay where the mask says so, the others are drawn.

    Args:
        tokens: the given picture's tokens; one sample serves the whole batch, or one per sample.
        mask: `(height, width)` on the finest level, nonzero where the given token is kept. Coarser levels get it
            resized bilinearly and kept above one half.
        always_keep: levels with at most this many tokens are always kept: their tokens speak of the whole picture.
    """

    tokens: VisualTokens
    mask: torch.Tensor
    always_keep: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, VisualTokens) or not isinstance(self.mask, torch.Tensor):
            raise LayoutError(
                "in-painting needs the given picture's VisualTokens and a mask (height, width), given "
                f"{described(self.tokens)} and {described(self.mask)}"
            )

    def check(self, layout: TokenLayout, codebook_size: int, batch_size: int) -> None:
        """Refuses tokens that a drawing cannot keep. Waits for the device.

        Raises:
            LayoutError: tokens or a mask of another layout, or another number of pictures.
            CodebookError: ids outside of the codebook.
        """
        self.keep(layout)
        assert self.tokens.ids is not None
        if self.tokens.batch_size not in (1, batch_size):
            raise LayoutError(
                f"in-painting has {self.tokens.batch_size} given pictures for {batch_size} to draw: give one for all, or one "
                "for each"
            )
        check_ids(self.tokens.ids, codebook_size)

    def keep(self, layout: TokenLayout) -> torch.Tensor:
        """Which tokens of `layout` are kept, `(length,)` bool.

        Raises:
            LayoutError: the tokens or the mask do not match the layout.
        """
        if self.tokens.layout != layout or self.tokens.ids is None:
            raise LayoutError(f"in-painting needs given ids of the layout {layout}, given {self.tokens.layout}")
        if tuple(self.mask.shape) != layout.final:
            raise LayoutError(f"the in-painting mask must be {layout.final}, given {tuple(self.mask.shape)}")
        mask = self.mask[None, None].float()
        kept = []
        for level, length in zip(layout.levels, layout.level_lengths, strict=True):
            resized = F.interpolate(mask, size=level, mode="bilinear", align_corners=False)
            few = layout.num_levels > 1 and length <= self.always_keep
            kept.append(torch.ones_like(resized) if few else resized)
        return torch.cat([level.flatten() for level in kept]) > 0.5


@dataclass(frozen=True)
class GeneratedTokens:
    """What the loop gives back.

    Args:
        canvas: the finished canvas.
        drawn: `(batch, length)` ids as drawn, before known tokens replaced them.
        logits: `(batch, length, vocabulary)` after guidance, before filters; None unless asked for.
        num_backbone_calls: how often the backbone ran.
    """

    canvas: Canvas
    drawn: torch.Tensor
    logits: torch.Tensor | None
    num_backbone_calls: int


@torch.no_grad()
def generate_tokens(
    *,
    plan: PredictionPlan,
    backbone: Any,
    head: PredictionHead,
    layout: TokenLayout,
    condition: Condition,
    unconditional: Condition | None,
    guidance: GuidanceSchedule,
    randomness: Randomness,
    processors: LogitsProcessorList,
    tokenizer: VisualTokenizer | None = None,
    do_sample: bool = True,
    soft_codes: SoftCodes | None = None,
    inpainting: Inpainting | None = None,
    use_cache: bool = True,
    cache_implementation: Literal["static", "dynamic"] = "static",
    output_logits: bool = False,
    edit: Callable[[PlanStep, Mapping[str, torch.Tensor]], torch.Tensor] | None = None,
    callback: Callable[[PlanStep, Canvas], None] | None = None,
) -> GeneratedTokens:
    """Fills a canvas step by step.

    The unconditional context shares a doubled batch with the conditional one as long as a later step is guided, and is
    dropped after that. Nothing in the loop waits for the device.

    Args:
        layout: what to fill.
        condition: one row per sample.
        unconditional: the null context, or None to run without guidance.
        guidance: scale per step.
        use_cache: keep keys and values; without it every step runs the whole sequence again.
        edit: called before a step's tokens are placed, with that step's `ids` `(batch, tokens)`, its guided `logits`
            and the `canvas` ids `(batch, earlier tokens)`; gives the ids to place.
        callback: called after a step's tokens are placed.
    """
    batch_size, device = condition.num_rows, condition.device
    steps = plan.steps(layout, condition.prefix_length)
    last_guided = -1 if unconditional is None else guidance.last_guided_step(len(steps))
    if last_guided >= 0:
        assert unconditional is not None
        condition = stack_conditions([condition, unconditional])
        steps = plan.steps(layout, condition.prefix_length)
    rule = plan.rule(layout, condition)
    positions = backbone.encode_positions(plan.positions(layout, condition))
    modulations = backbone.encode_condition(condition.vector)
    canvas = plan.start(layout, batch_size, device, tokenizer)
    drawn = torch.zeros_like(canvas.ids)
    kept = None if inpainting is None else inpainting.keep(layout).to(device)
    cache = None
    if use_cache and plan.uses_cache:
        cache = make_cache(cache_implementation, backbone.config.num_hidden_layers, steps[-1].slots.stop)
    codebook = tokenizer.codebook if soft_codes is not None and tokenizer is not None else None
    sequence: list[torch.Tensor] = []
    collected: list[torch.Tensor] = []

    for step in steps:
        guided = step.index <= last_guided
        if not guided and condition.num_rows > batch_size:
            # No later step is guided: the unconditional rows have done their work.
            rows = torch.arange(batch_size, device=device)
            condition = condition.first_rows(batch_size)
            modulations = [None if part is None else part[:batch_size] for part in modulations]
            rule = plan.rule(layout, condition)
            if positions.position_ids.shape[0] > 1:
                positions = type(positions)(positions.rotary, positions.position_ids[:batch_size])
            if cache is not None:
                cache.batch_select_indices(rows)
            sequence = [part[:batch_size] for part in sequence]
        slots = plan.slots(canvas, step, condition, tokenizer)
        start = step.slots.start
        if cache is None:
            sequence.append(slots)
            slots, start = torch.cat(sequence, dim=1), 0
        output = backbone(
            inputs_embeds=slots,
            positions=positions[slice(start, step.slots.stop)],
            rule=rule,
            modulations=modulations,
            cache=cache,
            start=start,
        )
        scale = guidance.scale(step.index, len(steps))
        sample = head.sample(
            output.last_hidden_state[:, -step.num_predicting :],
            condition.vector,
            guide=partial(combine, scale=scale) if guided else _as_is,
            randomness=randomness,
            processors=processors,
            do_sample=do_sample,
            soft_codes=soft_codes,
            codebook=codebook,
            progress=step.index / max(len(steps) - 1, 1),
        )
        ids, embeddings = sample.ids, sample.embeddings
        drawn[:, step.tokens] = ids
        if kept is not None:
            assert inpainting is not None
            assert inpainting.tokens.ids is not None
            known = inpainting.tokens.ids[:, step.tokens].to(device)
            ids, embeddings = _replace(ids, embeddings, known, kept[step.tokens], tokenizer)
        if edit is not None:
            state = {"ids": ids, "logits": sample.logits, "canvas": canvas.ids[:, : step.tokens.start]}
            edited = edit(step, state)
            ids, embeddings = _replace(ids, embeddings, edited, edited != ids, tokenizer)
        plan.place(canvas, step, ids, tokenizer, embeddings)
        if output_logits:
            collected.append(sample.logits)
        if callback is not None:
            callback(step, canvas)
    return GeneratedTokens(
        canvas=canvas,
        drawn=drawn,
        logits=torch.cat(collected, dim=1) if output_logits else None,
        num_backbone_calls=len(steps),
    )


def _replace(
    ids: torch.Tensor,
    embeddings: torch.Tensor | None,
    replacements: torch.Tensor,
    where: torch.Tensor,
    tokenizer: VisualTokenizer | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Other ids at some places, with their codes where soft codes stand beside them."""
    ids = torch.where(where, replacements, ids)
    if embeddings is not None:
        assert tokenizer is not None
        embeddings = torch.where(where[..., None], tokenizer.embed(ids).to(embeddings), embeddings)
    return ids, embeddings


def _as_is(predictions: torch.Tensor) -> torch.Tensor:
    return predictions
