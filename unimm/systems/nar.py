"""NAR: pictures and videos outward from a corner, every token from its neighbours (https://huggingface.co/papers/2503.10696).

Its own: sizes, names of the released checkpoints, and how the reference spells its arguments. The rest is LlamaGen's
(`systems/llamagen.py`) with `plans/neighbour.py`, `heads/direction.py` and the taps of `backbones/transformer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedConfig

from ..conversion.base import Converter, Preset, Rename, System
from ..conversion.llama_names import TRUNK_RULES, WRAPPERS
from ..conversion.vqgan_names import with_prefix
from ..models.building import replace_fields
from ..models.image_generation import UniMMImageGenerationConfig
from . import llamagen

#: Layers before the extra ones, heads and width.
SIZES = {
    "B": (12, 12, 768),
    "M": (18, 16, 1024),
    "L": (24, 16, 1024),
    "LP": (30, 20, 1280),
    "XL": (36, 20, 1280),
    "XXL": (48, 24, 1536),
}
#: Names of the last norms and output layers, in the order of depth.
PICTURE_NAMES = (("norm", "output"), ("medusa_norm", "medusa_output"))
VIDEO_NAMES = (("norm_R", "output_R"), ("norm_D", "output_D"), ("norm_B", "output_B"))


def generator_config(
    num_layers: int,
    num_heads: int,
    hidden_size: int,
    *,
    layout: Sequence[int],
    blocks_per_direction: int = 1,
    **options: Any,
) -> UniMMImageGenerationConfig:
    """A generator of a grid `(height, width)` or a video `(frames, height, width)` of ids, without the tokenizer.

    Args:
        num_layers: blocks before the first direction's output; further ones follow for each other direction.
        layout: the grid.
        blocks_per_direction: further blocks before each direction's output.
        options: as `llamagen.generator_config`.
    """
    is_video, num_taps = len(layout) == 3, len(layout)
    depths = [num_layers + index * blocks_per_direction for index in range(num_taps)]
    base = llamagen.generator_config(depths[-1], num_heads, hidden_size, grid=layout[-1], **options)
    plan = {"model_type": "unimm_neighbour_plan", "dropout": base.plan_config.dropout}
    backbone = base.backbone_config.to_dict() | {"tap_depths": depths}
    head: dict[str, Any] = {"model_type": "unimm_direction_head", "num_taps": num_taps}
    if is_video:
        plan["num_prefix_positions"] = 1
        backbone["rotary_theta"] = None
    else:
        head["initializer_gains"] = [0.0] + [1.0] * (num_taps - 1)
    return replace_fields(
        base,
        plan_config=plan,
        backbone_config=backbone,
        head_config=head,
        image_size=[(8 if is_video else 16) * side for side in layout[-2:]],
        token_layout=[list(layout)],
    )


def config_from_reference(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The config for the reference's constructor arguments of the picture or the video model."""
    options: dict[str, Any] = {
        "codebook_size": settings["vocab_size"],
        "multiple_of": settings["multiple_of"],
        "num_classes": settings["num_classes"],
        "drop_probability": settings["class_dropout_prob"],
        "dropout": settings["resid_dropout_p"],
    }
    if "latent_shape" in settings:
        layout = tuple(settings["latent_shape"])
    else:
        layout = (round(settings["block_size"] ** 0.5),) * 2
        options |= {
            "text": settings["model_type"] == "t2i",
            "feature_size": settings["caption_dim"],
            "text_length": settings["cls_token_num"],
            "blocks_per_direction": settings["medusa_attention_num"],
        }
    return generator_config(settings["n_layer"], settings["n_head"], settings["dim"], layout=layout, **options)


def converter(config: PreTrainedConfig) -> Converter:
    """Names of a generator's file; the tokenizer of the picture models is LlamaGen's."""
    if not isinstance(config, UniMMImageGenerationConfig):
        return llamagen.converter(config)
    names = VIDEO_NAMES if config.head_config.num_taps == 3 else PICTURE_NAMES
    rules = [
        *TRUNK_RULES,
        Rename("abs_pe", "plan.position_embedding.weight", leading_ones=1),
        Rename(f"{names[-1][0]}.weight", "backbone.final_norm.weight"),
    ]
    for tap, (norm, output) in enumerate(names):
        rules.append(Rename(f"{norm}.weight", f"backbone.tap_norms.{tap}.weight"))
        rules.append(Rename(f"{output}.weight", f"head.projections.{tap}.weight"))
    tokenizer_rules = with_prefix(llamagen.TOKENIZER_RULES, llamagen.TOKENIZER_PREFIX, "tokenizer.")
    return Converter((*rules, *tokenizer_rules), ignored=("freqs_cis",), wrappers=WRAPPERS)


#: Scores are measured at a constant guidance of about 2 without top-k.
SAMPLING = {"guidance_scale": 2.0}


def _picture_preset(size: str, parameters: float) -> Preset:
    return Preset(partial(generator_config, *SIZES[size], layout=(16, 16)), parameters, sampling=SAMPLING)


def _video_preset(size: str, parameters: float) -> Preset:
    config = partial(generator_config, *SIZES[size], layout=(4, 16, 16), codebook_size=8192, num_classes=101)
    # No sampling of the videos is published: plain draws from the model.
    return Preset(config, parameters, sampling={"guidance_scale": 1.0, "top_k": 0, "top_p": 1.0})


PRESETS = {
    "c2i-B-256": _picture_preset("B", 130),
    # The paper rounds to 290; blocks, tables and both heads add up to this.
    "c2i-M-256": _picture_preset("M", 295),
    "c2i-L-256": _picture_preset("L", 372),
    "c2i-XL-256": _picture_preset("XL", 816),
    "c2i-XXL-256": _picture_preset("XXL", 1460),
    "t2i-XL-512": Preset(
        partial(generator_config, *SIZES["XL"], layout=(32, 32), text=True, text_encoder=llamagen.TEXT_ENCODER),
        816,
        "t2i_XL_stage2_512.pt",
        "yefly/NAR-XL-t2i-stage2",
        sampling=llamagen.TEXT_SAMPLING,
    ),
    # Counted: 632 million, where stated for LP, are without the blocks and heads of the second and third direction.
    "video-L": _video_preset("L", 369),
    "video-LP": _video_preset("LP", 694),
    "video-XL": _video_preset("XL", 816),
}

SYSTEM = System(
    name="nar",
    title="NAR",
    paper="2503.10696",
    code_license="MIT",
    weights_license="unknown",
    presets=PRESETS,
    converter=converter,
    config_from_reference=config_from_reference,
    tokenizer_prefix=llamagen.TOKENIZER_PREFIX,
    axes={
        "tokenizer": "VQ, unit codes (videos: ids alone)",
        "plan": "neighbour",
        "backbone": "visual transformer (llama blocks, 2D rotary or a table, taps)",
        "head": "one direction per depth, averaged",
        "condition": "class or text prefix",
    },
)
