"""The one sampling loop: every plan, backbone and head runs through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F

from ..checks import described
from ..conditions.base import Condition, stack_conditions
from ..errors import LayoutError
from ..heads.base import HeadContext, HeadSample, PredictionHead, TokenSampling
from ..plans.base import Canvas, PlanStep, PredictionPlan
from ..tokens import TokenKind, TokenLayout, VisualTokens, put_tokens, take_tokens
from .filters import SoftCodes
from .guidance import GuidanceSchedule, Guide, Progress
from .randomness import Randomness
from .session import BackboneSession

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

    def check(self, layout: TokenLayout, kind: TokenKind, batch_size: int) -> None:
        """Refuses tokens that a drawing cannot keep. Waits for the device.

        Raises:
            LayoutError: tokens or a mask of another layout, or another number of pictures.
            CodebookError: ids outside of the codebook.
        """
        self.keep(layout)
        if self.tokens.batch_size not in (1, batch_size):
            raise LayoutError(
                f"in-painting has {self.tokens.batch_size} given pictures for {batch_size} to draw: give one for all, or one "
                "for each"
            )
        kind.check(self.tokens.values, "the tokens of in-painting")

    def keep(self, layout: TokenLayout) -> torch.Tensor:
        """Which tokens of `layout` are kept, `(length,)` bool.

        Raises:
            LayoutError: the tokens or the mask do not match the layout.
        """
        if self.tokens.layout != layout:
            raise LayoutError(f"in-painting needs given tokens of the layout {layout}, given {self.tokens.layout}")
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
    sampling: TokenSampling,
    tokenizer: VisualTokenizer | None = None,
    plan_options: Mapping[str, Any] | None = None,
    guidance_layer: int | None = None,
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
        sampling: filters, temperature, number of steps of a diffusion head.
        plan_options: of the plan's steps, as the caller chose them.
        guidance_layer: mix the contexts' hidden states after this block, counted from the end (-1), instead of logits.
        use_cache: keep keys and values; without it every step runs the whole sequence again.
        edit: called before a step's tokens are placed, with that step's `ids` `(batch, tokens)`, its guided `logits`
            and the `canvas` ids `(batch, earlier tokens)`; gives the ids to place.
        callback: called after a step's tokens are placed.
    """
    batch_size, device = condition.num_rows, condition.device
    steps = plan.steps(layout, condition.prefix_length, **(plan_options or {}))
    progress = progress_of(steps, layout)
    scales = guidance.scales(progress)
    last_guided = (
        -1 if unconditional is None else max((n for n, scale in enumerate(scales) if scale != 1.0), default=-1)
    )
    if last_guided >= 0:
        assert unconditional is not None
        condition = stack_conditions([condition, unconditional])
        steps = plan.steps(layout, condition.prefix_length, **(plan_options or {}))
    session = BackboneSession(
        plan,
        backbone,
        layout,
        condition,
        num_slots=max(step.slots.stop for step in steps),
        cache=cache_implementation if use_cache and plan.uses_cache else None,
    )
    canvas = plan.start(layout, batch_size, device, tokenizer, randomness)
    drawn = torch.zeros_like(canvas.values)
    kept = None if inpainting is None else inpainting.keep(layout).to(device)
    if soft_codes is not None and tokenizer is not None:
        sampling = replace(sampling, soft_codes=soft_codes, codebook=tokenizer.codebook)
    collected: list[torch.Tensor] = []

    for step in steps:
        guided = step.index <= last_guided
        if not guided and session.num_rows > batch_size:
            # No later step is guided: the unconditional rows have done their work.
            session.keep_first_rows(batch_size)
        guide = Guide(scales[step.index], num_contexts=2 if guided else 1, times=guidance.times)
        mixing = {}
        if guidance_layer is not None and guided and guide.scale != 1.0:
            mixing = {"mix_after": {backbone.config.num_hidden_layers + guidance_layer: guide.mix}}
        hidden_states, context = predict(plan, session, canvas, step, tokenizer, **mixing)
        if mixing and hidden_states is not None:
            # The contexts agree by now: the head reads the condition's rows alone.
            hidden_states = hidden_states[:batch_size]
            vector = None if context.vector is None else context.vector[:batch_size]
            context, guide = replace(context, vector=vector), Guide()
        sample = head.sample(
            hidden_states,
            context,
            guide,
            randomness,
            replace(
                sampling.at(step.level, step.index / max(len(steps) - 1, 1)),
                do_sample=sampling.do_sample and not step.takes_likeliest,
            ),
        )
        places = plan.places(canvas, step)
        put_tokens(drawn, places, sample.values.to(drawn.dtype))
        if kept is not None:
            assert inpainting is not None
            known = take_tokens(inpainting.tokens.values, places).to(sample.values)
            sample = _replace(sample, known, kept[places], tokenizer)
        if edit is not None:
            seen = canvas.values[:, : places.start] if isinstance(places, slice) else canvas.values
            state = {"ids": sample.values, "canvas": seen}
            if sample.logits is not None:
                state["logits"] = sample.logits
            edited = edit(step, state)
            changed = edited != sample.values
            sample = _replace(sample, edited, changed.flatten(2).any(-1) if changed.dim() > 2 else changed, tokenizer)
        plan.place(canvas, step, sample, tokenizer, hidden_states)
        if output_logits and sample.logits is not None:
            collected.append(sample.logits)
        if callback is not None:
            callback(step, canvas)
    return GeneratedTokens(
        canvas=canvas,
        drawn=drawn,
        logits=torch.cat(collected, dim=1) if collected else None,
        num_backbone_calls=session.num_calls,
    )


def progress_of(steps: Sequence[PlanStep], layout: TokenLayout) -> list[Progress]:
    """Where a drawing stands at each of its steps, for guidance schedules."""
    return [
        Progress(n, len(steps), step.level, layout.num_levels, step.num_placed / layout.length, step.phase)
        for n, step in enumerate(steps)
    ]


def predict(
    plan: PredictionPlan,
    session: BackboneSession,
    canvas: Canvas,
    step: PlanStep,
    tokenizer: VisualTokenizer | None = None,
    **backbone_options: Any,
) -> tuple[torch.Tensor | None, HeadContext]:
    """Runs the backbone over a step's slots: the hidden states that predict its tokens, and what else the head may know.

    Args:
        plan: makes the slots.
        session: the sequence so far; it grows by the step's slots.
        canvas: the tokens so far.
        step: the step.
        tokenizer: for plans whose slots start from a reconstruction.
        backbone_options: further arguments of the backbone.

    Returns:
        `(rows, tokens, hidden)` or `(rows, tokens, taps, hidden)`, rows of all contexts; None where the backbone is the
        head's network, which the context then has as `denoise`.
    """
    denoise = plan.denoiser(session, canvas, step, tokenizer)
    groups = plan.groups(canvas.layout, step)
    if denoise is not None:
        return None, HeadContext(session.condition.vector, groups=groups, phase=step.phase, denoise=denoise)
    slots = plan.slots(canvas, step, session.condition, tokenizer)
    options = plan.backbone_options(canvas, step, session.num_rows) | backbone_options
    output = session.run(slots, step.slots, alone=step.stands_alone, **options)
    hidden_states, spoken = gather_states(output, plan.predicting(canvas, step))
    known, values = plan.known(canvas, step)
    context = HeadContext(session.condition.vector, spoken, groups, step.phase, known, values)
    return hidden_states, context


def gather_states(output: Any, predicting: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The hidden states that predict.

    Args:
        output: of a backbone: `last_hidden_state` `(rows, slots, hidden)`, and `taps` where several speak of a token.
        predicting: as in `PlanStep.predicting`, or `(batch, tokens)` indices, which hold for every context.

    Returns:
        `(rows, tokens, hidden)` and None, or `(rows, tokens, taps, hidden)` and which of them speak, `(tokens, taps)`.
    """
    states = output.last_hidden_state
    if isinstance(predicting, int):
        return states[:, -predicting:], None
    predicting = predicting.to(states.device)
    if predicting.dim() == 1:
        return states[:, predicting], None
    if predicting.shape[-1] == len(getattr(output, "taps", None) or ()):
        parts = [tap[:, predicting[:, index].clamp(min=0)] for index, tap in enumerate(output.taps)]
        spoken = predicting >= 0
        return torch.stack(parts, dim=2) * spoken[..., None].to(states.dtype), spoken
    return take_tokens(states, predicting.repeat(states.shape[0] // predicting.shape[0], 1)), None


def _replace(
    sample: HeadSample, replacements: torch.Tensor, where: torch.Tensor, tokenizer: VisualTokenizer | None
) -> HeadSample:
    """Other tokens at some places `(tokens,)` or `(batch, tokens)`, with their codes where soft codes stand beside them."""
    wide = where.view(*where.shape, *[1] * (sample.values.dim() - 2)) if sample.values.dim() > 2 else where
    values, embeddings = torch.where(wide, replacements, sample.values), sample.embeddings
    if embeddings is not None:
        assert tokenizer is not None
        embeddings = torch.where(where[..., None], tokenizer.embed(values).to(embeddings), embeddings)
    return replace(sample, values=values, embeddings=embeddings)
