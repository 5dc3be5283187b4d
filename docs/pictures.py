"""Draws the pictures of docs/axes/ from the package's own objects. Run it with `make docs`.

One function per page. Plans are those that are registered, so that a new one appears without an edit here.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from sklearn.datasets import load_sample_image
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import unimm
from unimm.backbones.positions import axial_rotary
from unimm.conditions import Condition
from unimm.conditions.base import stack_conditions
from unimm.errors import LayoutError, UniMMError
from unimm.files import atomic_file
from unimm.generation import token_filters
from unimm.generation.guidance import (
    ConstantGuidance,
    GuidanceSchedule,
    Guide,
    IntervalGuidance,
    LinearGuidance,
    Progress,
)
from unimm.generation.randomness import GeneratorRandomness
from unimm.heads import CategoricalHead, CategoricalHeadConfig, HeadContext, TokenSampling
from unimm.models import word_tokenizer
from unimm.plans import PredictionPlan
from unimm.tokenizers import MultiScaleVQTokenizerConfig
from unimm.tokenizers.quantizers import ResidualPyramidQuantizer, resize
from unimm.tokens import TokenKind, put_tokens

FOLDER = Path(__file__).resolve().parent / "axes"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "savefig.facecolor": "white",
}
BLUE, ORANGE, GREEN, GREY = "#3b6ea8", "#d9822b", "#4c9a5b", "#c9ced6"
#: Codes of the tokenizers' picture are all colours with these values per channel: fixed, so that no other processor's
#: rounding leads a search for better ones elsewhere.
STEPS = torch.tensor([-0.8, -0.25, 0.0, 0.25, 0.8])
#: Layouts small enough to be read; a plan is drawn on the first one that it takes.
LAYOUTS = (
    unimm.TokenLayout.grid(4),
    unimm.TokenLayout.pyramid([1, 2, 4]),
    unimm.TokenLayout.sequence(16),
    unimm.TokenLayout.video(2, 3, 3),
)


def draw_tokenizers() -> Figure:
    """A photograph through the residual pyramid with colours as codes: ids and running reconstruction, level by level."""
    layout = unimm.TokenLayout.pyramid([1, 2, 4, 8, 16, 32])
    photograph = load_sample_image("china.jpg")[:384, 128:512]
    pixels = _pixels(photograph, layout.final)
    config = MultiScaleVQTokenizerConfig(
        code_channels=3,
        codebook_size=len(STEPS) ** 3,
        num_refinements=0,
        upsample_mode="bilinear",
        levels=[1, 2, 4, 8, 16, 32],
    )
    quantizer = ResidualPyramidQuantizer(
        config,
        num_refinements=0,
        refinement_kernel_size=3,
        refinement_ratio=0.0,
        upsample_mode="bilinear",
        downsample_mode="area",
    )
    with torch.no_grad():
        quantizer.codebook.weight.copy_(torch.cartesian_prod(*[STEPS] * 3))
        ids = quantizer.encode(pixels, layout)
        running = list(quantizer.running(ids, layout))
    figure, axes = plt.subplots(2, layout.num_levels + 1, figsize=(11, 3.5), layout="constrained")
    _picture(axes[0, 0], pixels, "the picture")
    axes[1, 0].axis("off")
    axes[1, 0].text(0.5, 0.5, "ids of\neach level", ha="center", va="center")
    for level, side in enumerate(layout.levels):
        error = float((running[level] - pixels).square().mean())
        _picture(axes[0, level + 1], running[level], f"after {side[0]} x {side[1]}\nerror {error:.3f}")
        grid = ids[0, layout.level_slice(level)].view(side).numpy()
        axes[1, level + 1].imshow(grid, cmap="turbo", vmin=0, vmax=config.codebook_size - 1)
        axes[1, level + 1].set(xticks=[], yticks=[])
        if side[0] <= 4:
            for (row, column), value in np.ndenumerate(grid):
                axes[1, level + 1].text(column, row, str(value), ha="center", va="center", color="white", fontsize=7)
    return figure


def _pixels(photograph: np.ndarray, size: tuple[int, ...]) -> torch.Tensor:
    whole = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return resize(whole, size, "area")


def _picture(axis: Axes, pixels: torch.Tensor, title: str) -> None:
    axis.imshow(((pixels[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy(), interpolation="nearest")
    axis.set(xticks=[], yticks=[], title=title)


def registered_plans() -> dict[str, type]:
    """Config classes of the package's plans by short name: all that are registered with transformers."""
    names = sorted(name for name in CONFIG_MAPPING if name.startswith("unimm_") and name.endswith("_plan"))
    return {name.removeprefix("unimm_").removesuffix("_plan"): CONFIG_MAPPING[name] for name in names}


def small_plan(config: Any, hidden_size: int = 8) -> tuple[PredictionPlan, unimm.TokenLayout]:
    """A plan on the first of `LAYOUTS` that it takes.

    Raises:
        UniMMError: it takes none of them.
    """
    for kind in (TokenKind(4, 16), TokenKind(4)):
        for layout in LAYOUTS:
            try:
                return config.build(hidden_size, layout, kind), layout
            except LayoutError:
                continue
    raise UniMMError(f"{type(config).__name__} takes none of the layouts {', '.join(map(str, LAYOUTS))}: add one here")


def draw_plans() -> Figure:
    """Of every registered plan: the step at which each token is predicted, and which slot sees which."""
    plans = registered_plans()
    figure = plt.figure(figsize=(9, 3.3 * len(plans)), layout="constrained")
    for row, (name, config_class) in zip(
        figure.subfigures(len(plans), 1, squeeze=False)[:, 0], plans.items(), strict=True
    ):
        config = config_class()
        plan, _ = small_plan(config)
        layout = plan.generation_layout()
        hidden = torch.zeros(1, 8)
        condition = Condition(vector=hidden) if config.condition_form == "vector" else Condition(prefix=hidden[:, None])
        steps = plan.steps(layout, condition.prefix_length)
        generator = torch.Generator().manual_seed(0)
        canvas = plan.start(layout, 1, hidden.device, _StubTokenizer(), GeneratorRandomness(generator))
        order = torch.full((1, layout.length), -1)
        for step in steps:
            put_tokens(order, plan.places(canvas, step), torch.tensor(step.index))
        row.suptitle(
            f"{name}: {layout.length} tokens of {layout} in {len(steps)} steps", x=0.02, ha="left", fontsize=10
        )
        grids, mask = row.subfigures(1, 2, width_ratios=(3, 2))
        _draw_order(grids, order[0], layout, len(steps))
        _draw_mask(mask.subplots(), plan.rule(layout, condition).dense()[0], [step.slots for step in steps])
    return figure


class _StubTokenizer:
    """Stands in where a plan starts its canvas from a reconstruction: the order of its steps depends on none."""

    def initial_canvas(self, batch_size: int, layout: unimm.TokenLayout, device: torch.device) -> torch.Tensor:
        return torch.zeros(batch_size, 4, *layout.final, device=device)


def _draw_order(figure: Any, order: torch.Tensor, layout: unimm.TokenLayout, num_steps: int) -> None:
    grids = [order[layout.level_slice(level)].view(shape) for level, shape in enumerate(layout.levels)]
    if layout.num_dimensions == 1:
        grids = [grid[None] for grid in grids]
    elif layout.num_dimensions == 3:
        grids = [frame for grid in grids for frame in grid]
    axes = figure.subplots(1, len(grids), squeeze=False)[0]
    figure.supxlabel("step that predicts each token", fontsize=8)
    for axis, grid in zip(axes, grids, strict=True):
        axis.imshow(grid.numpy(), cmap="viridis", vmin=0, vmax=max(num_steps - 1, 1))
        axis.set(xticks=[], yticks=[])
        for (row, column), value in np.ndenumerate(grid.numpy()):
            colour = "black" if value > 0.7 * (num_steps - 1) else "white"
            axis.text(column, row, str(value), ha="center", va="center", color=colour, fontsize=7)


def _draw_mask(axis: Axes, visible: torch.Tensor, slots: list[Any]) -> None:
    axis.imshow(visible.numpy(), cmap=ListedColormap(["white", BLUE]), vmin=0, vmax=1)
    edges = sorted({step.start for step in slots if isinstance(step, slice)})
    for edge in edges:
        axis.axhline(edge - 0.5, color=GREY, linewidth=0.6)
        axis.axvline(edge - 0.5, color=GREY, linewidth=0.6)
    axis.set(xticks=[], yticks=[], xlabel="slots that are seen", ylabel="slots that see")
    for spine in axis.spines.values():
        spine.set(visible=True, color=GREY)


def draw_backbones() -> Figure:
    """How rotary positions over two axes compare places, and what a block of either kind does."""
    side, head_dim = 16, 64
    layout = unimm.TokenLayout.grid(side)
    no_prefix = torch.zeros(layout.length, dtype=torch.bool)
    cosine, sine = axial_rotary(layout.coordinates(), no_prefix, head_dim, 10000.0)
    centre = side // 2 * side + side // 2
    # The product of a query and a key that are equal before they are turned: the mean cosine of the angles between.
    similarity = (cosine * cosine[centre] + sine * sine[centre]).mean(1)
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.3), layout="constrained", width_ratios=(1, 1, 1, 1))
    angles = torch.atan2(sine, cosine).view(side, side, -1)
    for axis, channel, name in ((axes[0], 2, "rows"), (axes[1], 18, "columns")):
        axis.imshow(angles[..., channel].numpy(), cmap="twilight", vmin=-np.pi, vmax=np.pi)
        axis.set(xticks=[], yticks=[], title=f"angle of channel pair {channel}:\n{name}")
    shown = axes[2].imshow(similarity.view(side, side).numpy(), cmap="magma")
    axes[2].set(xticks=[], yticks=[], title="how much equal vectors\nagree with the centre's")
    figure.colorbar(shown, ax=axes[2], shrink=0.6)
    _draw_block(axes[3])
    return figure


def _draw_block(axis: Axes) -> None:
    """The AdaLN block, from the slots at the bottom to the sum at the top."""
    axis.set(xlim=(0, 10), ylim=(0, 11), title="an AdaLN block")
    axis.axis("off")
    boxes = [
        (1.2, "norm", "scale 1, shift 1"),
        (3.0, "attention", "gate 1"),
        (6.2, "norm", "scale 2, shift 2"),
        (8.0, "feed forward", "gate 2"),
    ]
    axis.annotate("", (2.6, 10.8), (2.6, 0), arrowprops={"arrowstyle": "->", "color": "black"})
    for bottom, name, modulation in boxes:
        _box(axis, 0.6, bottom + 0.5, name, BLUE, width=4)
        axis.annotate(
            modulation, (4.7, bottom + 0.5), (9.9, bottom + 0.5), fontsize=7, ha="right", va="center", color=ORANGE,
            arrowprops={"arrowstyle": "->", "color": ORANGE},
        )  # fmt: skip
    for bottom, top in ((0.6, 4.8), (5.6, 9.8)):
        axis.plot([2.6, 0.1, 0.1, 2.6], [bottom, bottom, top, top], color="black", linewidth=0.8)
        axis.plot([2.6], [top], marker="o", color="black", markersize=4)
    axis.text(10, 0.1, "from the condition", fontsize=7, color=ORANGE, ha="right")


def _box(axis: Axes, left: float, middle: float, text: str, colour: str, width: float = 3.2) -> None:
    style = {"boxstyle": "round,pad=0.05", "facecolor": "white", "edgecolor": colour}
    axis.add_patch(FancyBboxPatch((left, middle - 0.45), width, 0.9, zorder=3, **style))
    axis.text(left + width / 2, middle, text, ha="center", va="center", fontsize=8, zorder=4)


def draw_heads() -> Figure:
    """A categorical head: its distribution, guided, and draws beside `log_prob`."""
    generator = torch.Generator().manual_seed(3)
    head = CategoricalHead(CategoricalHeadConfig(), 8, TokenKind(codebook_size=12))
    with torch.no_grad():
        head.proj.weight.copy_(torch.randn(12, 8, generator=generator) * 0.55)
    hidden = torch.randn(2, 1, 8, generator=generator)
    logits = head.logits(hidden)
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained")
    ids = np.arange(12)
    axes[0].bar(ids - 0.2, logits[0, 0].softmax(-1).detach().numpy(), 0.4, color=BLUE, label="with the condition")
    axes[0].bar(ids + 0.2, logits[1, 0].softmax(-1).detach().numpy(), 0.4, color=GREY, label="without")
    axes[0].set(title="softmax of the hidden state", xlabel="id", ylabel="probability")
    for scale, colour in ((1.0, GREY), (2.0, BLUE), (4.0, ORANGE)):
        guided = Guide(scale, 2)(logits)[0, 0].softmax(-1).detach().numpy()
        axes[1].plot(ids, guided, marker="o", markersize=3, color=colour, label=f"scale {scale:g}")
    axes[1].set(title="guided", xlabel="id")
    number = 4000
    with torch.no_grad():
        sample = head.sample(
            hidden[:1].expand(1, number, 8),
            HeadContext(),
            Guide(),
            GeneratorRandomness(torch.Generator().manual_seed(0)),
            TokenSampling(),
        )
        expected = head.log_prob(hidden[:1].expand(1, 12, 8), torch.arange(12)[None])[0].exp().numpy()
    share = torch.bincount(sample.values[0], minlength=12).numpy() / number
    axes[2].bar(ids, share, color=GREEN, label=f"share of {number:,} draws of `sample`")
    axes[2].plot(ids, expected, "k_", markersize=14, label="exp of `log_prob`")
    axes[2].set(title="draws", xlabel="id")
    for axis in axes:
        axis.legend(fontsize=7, frameon=False)
        axis.set_xticks(ids)
    return figure


def draw_objectives() -> Figure:
    """What is a target in a conversation in which the assistant draws, and which loss it goes to."""
    from unimm import UniMMImageProcessor, UniMMProcessor

    words = word_tokenizer(["draw", "a", "red", "circle", "here", "it", "is"])
    processor = UniMMProcessor(UniMMImageProcessor(size={"height": 16, "width": 16}), words, num_visual_tokens=4)
    encoded = processor.encode_conversation(
        [
            {"role": "user", "content": "draw a red circle"},
            {"role": "assistant", "content": [{"type": "text", "text": "here it is"}, {"type": "image"}]},
        ]
    )
    visual = words.convert_tokens_to_ids("<|visual|>")
    names = words.convert_ids_to_tokens(encoded["input_ids"])
    labels = np.asarray(encoded["labels"])
    kinds = np.where(labels == -100, 0, np.where(labels == visual, 2, 1))
    figure, axis = plt.subplots(figsize=(11, 1.9), layout="constrained")
    colours = ("#eef0f3", BLUE, ORANGE)
    for place, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        axis.add_patch(FancyBboxPatch((place + 0.08, 0), 0.84, 1, boxstyle="square,pad=0", facecolor=colours[kind]))
        shown = name.strip("<|>").replace("_", "\n")
        axis.text(
            place + 0.5, 0.5, shown, ha="center", va="center", fontsize=7, color="black" if kind == 0 else "white"
        )
    for place in np.flatnonzero(kinds):
        axis.annotate(
            "", (place + 0.5, 1.02), (place - 0.5, 1.02),
            arrowprops={"arrowstyle": "->", "connectionstyle": "arc3,rad=-0.6", "color": colours[kinds[place]]},
        )  # fmt: skip
    handles = [matplotlib.patches.Patch(color=colour) for colour in colours]
    named = ("context: no target", "target of the text loss", "target of the image loss")
    axis.legend(handles, named, ncols=3, loc="lower center", bbox_to_anchor=(0.5, -0.5), frameon=False, fontsize=8)
    axis.set(xlim=(0, len(names)), ylim=(-0.05, 1.7))
    axis.axis("off")
    return figure


def draw_decoding() -> Figure:
    """Schedules of guidance over the steps, and what filters leave of a distribution."""
    num_steps = 10
    steps = np.arange(num_steps)
    schedules: dict[str, GuidanceSchedule] = {
        "ConstantGuidance(3)": ConstantGuidance(3.0),
        "LinearGuidance(1, 5)": LinearGuidance(1.0, 5.0),
        "IntervalGuidance(4, 2, 6)": IntervalGuidance(4.0, 2, 6),
    }
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained")
    for (name, schedule), colour in zip(schedules.items(), (BLUE, ORANGE, GREEN), strict=True):
        scales = schedule.scales(Progress.plain(num_steps))
        axes[0].plot(steps, scales, drawstyle="steps-mid", marker="o", markersize=3, color=colour, label=name)
    axes[0].set(title="guidance scale of every step", xlabel="step", xticks=steps, ylim=(0.5, 5.5))
    logits = torch.tensor([[3.2, 2.6, 2.4, 1.5, 1.2, 0.9, 0.1, 0.0, -0.4, -1.0, -1.5, -2.0]])
    ids = np.arange(logits.shape[1])
    no_ids = torch.zeros(1, 0, dtype=torch.long)
    axes[1].bar(ids, logits.softmax(-1)[0].numpy(), color=GREY, label="no filter")
    for shift, (name, options), colour in (
        (-0.25, ("top_k=5", {"top_k": 5}), BLUE),
        (0.25, ("top_p=0.8", {"top_p": 0.8}), ORANGE),
    ):
        kept = token_filters(**options)(no_ids, logits).softmax(-1)[0].numpy()
        axes[1].plot(ids[kept > 0] + shift, kept[kept > 0], "o", color=colour, markersize=4, label=name)
    axes[1].set(title="what filters leave", xlabel="id, likeliest first", ylabel="probability", xticks=ids)
    for temperature, colour in ((0.5, ORANGE), (1.0, GREY), (2.0, BLUE)):
        warmed = token_filters(temperature=temperature)(no_ids, logits).softmax(-1)[0].numpy()
        axes[2].plot(ids, warmed, marker="o", markersize=3, color=colour, label=f"temperature {temperature:g}")
    axes[2].set(title="temperature", xlabel="id, likeliest first", xticks=ids)
    for axis in axes:
        axis.legend(fontsize=7, frameon=False)
    return figure


def draw_conditions() -> Figure:
    """Two prompts above their null conditions in one batch: masks and positions of prefixes of unequal length."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]]).bool()
    prompts = Condition(prefix=torch.zeros(2, 6, 4), prefix_mask=mask)
    null = Condition(prefix=torch.zeros(2, 1, 4))
    both = stack_conditions([prompts, null])
    length = both.prefix_length + 5
    key_mask, positions = both.key_mask(length), both.position_ids(length)
    assert key_mask is not None
    figure, axes = plt.subplots(1, 2, figsize=(11, 2.6), layout="constrained", width_ratios=(3, 2))
    kinds = key_mask.long().clone()
    kinds[:, both.prefix_length :] = 2
    axes[0].imshow(kinds.numpy(), cmap=ListedColormap(["#eef0f3", BLUE, ORANGE]), vmin=0, vmax=2, aspect="auto")
    for (row, slot), kind in np.ndenumerate(kinds.numpy()):
        shown = "pad" if kind == 0 else str(int(positions[row, slot]))
        axes[0].text(slot, row, shown, ha="center", va="center", fontsize=7, color="black" if kind == 0 else "white")
    rows = ["prompt 1", "prompt 2", "null 1", "null 2"]
    axes[0].set(yticks=range(4), xticks=[], title="form 'prefix': slots before the tokens, with position ids")
    axes[0].set_yticklabels(rows)
    axes[0].set_xlabel("blue: the condition's slots, orange: slots of tokens")
    axis = axes[1]
    axis.set(xlim=(0, 10), ylim=(0, 4), title="form 'vector': one vector per sample")
    axis.axis("off")
    _box(axis, 0.2, 2, "condition\n(batch, hidden)", ORANGE)
    for middle, text in ((3.1, "every block's\nAdaLN"), (1.9, "first slot"), (0.7, "head's\nAdaLN")):
        _box(axis, 6.4, middle, text, BLUE)
        axis.annotate("", (6.3, middle), (3.5, 2), arrowprops={"arrowstyle": "->"})
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "tokenizers": draw_tokenizers,
    "plans": draw_plans,
    "backbones": draw_backbones,
    "heads": draw_heads,
    "objectives": draw_objectives,
    "decoding": draw_decoding,
    "conditions": draw_conditions,
}


def draw(name: str, path: Path) -> None:
    """Draws one picture as a PNG that holds nothing but its pixels: no date, no version."""
    torch.manual_seed(0)
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}):
        figure = PICTURES[name]()
        with atomic_file(path, "wb") as file:
            figure.savefig(file, format="png", metadata={"Software": None})
        plt.close(figure)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the pictures")
    folder = parser.parse_args().out
    for name in PICTURES:
        draw(name, folder / f"{name}.png")
        logging.info("wrote %s", folder / f"{name}.png")


if __name__ == "__main__":
    main()
