"""FlexVAR: next-scale prediction without residuals, over any list of scales (https://huggingface.co/papers/2502.20313).

Its own: sizes, names of the released checkpoints, how the reference spells its arguments, and the guidance that it counts by
side. The rest is VAR's backbone and head (`systems/var.py`), `plans/scale.py` with a position map, and `tokenizers/vq.py` with
levels that each hold the whole picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedConfig

from ..conversion.base import Converter, Preset, Rename, System
from ..conversion.vqgan_names import llamagen_names, with_prefix
from ..generation.guidance import ListedGuidance
from ..models.image_generation import UniMMImageGenerationConfig
from ..plans.level_draws import LevelDraws
from ..tokenizers import VQTokenizerConfig
from . import var

#: All sides that training draws its lists from.
SIDES = tuple(range(1, 17))
#: The list of the published scores, and those of 13 steps and of 512 pixels.
SIDES_9 = (1, 2, 3, 4, 5, 7, 10, 13, 16)
SIDES_13 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16)
SIDES_512 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 23, 32)
#: Sides whose tokens are drawn; at all others the released sampler takes the likeliest.
SAMPLED_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
#: Where the tokenizer's keys stand when both released files become one.
TOKENIZER_PREFIX = "vae_local."


def tokenizer_config(sides: Sequence[int] = SIDES, **changes: Any) -> VQTokenizerConfig:
    """The released tokenizer with another list of scales, or other fields replaced."""
    return VQTokenizerConfig(
        **{"levels": tuple(sides), "codebook_size": 8912, "code_channels": 32, "usage_window": 0, **changes}
    )


def generator_config(
    depth: int, tokenizer: PreTrainedConfig, *, level_draws: Mapping[str, Any] | None = None, **fields: Any
) -> UniMMImageGenerationConfig:
    """VAR's generator with a position map of 32 x 32, and without level embeddings."""
    plan = {"level_embedding": False, "position_map": (32, 32), "level_draws": level_draws}
    return var.generator_config(depth, tokenizer, plan=plan, **fields)


def guidance(sides: Sequence[int], scale: float, largest: int = 16) -> ListedGuidance:
    """The published schedule of a list of sides: it rises from 1 to `1 + scale` over ten levels at most, and on from there.

    Args:
        sides: of the levels.
        scale: the reference's `cfg`.
        largest: side beyond which a level takes `1 + scale`.
    """
    rise = min(len(sides) - 1, 9)
    ratios = [level / rise if side <= largest else 1.0 for level, side in enumerate(sides)]
    return ListedGuidance(tuple(1.0 + scale * ratio for ratio in ratios))


def _tokenizer_from_reference(settings: Mapping[str, Any], sides: Sequence[int]) -> VQTokenizerConfig:
    return tokenizer_config(
        sides,
        base_channels=settings["ch"],
        channel_multipliers=tuple(settings["encoder_ch_mult"]),
        decoder_channel_multipliers=tuple(settings["decoder_ch_mult"]),
        num_residual_blocks=settings.get("encoder_num_res_blocks", 2),
        encoder_channels=settings["z_channels"],
        code_channels=settings["codebook_embed_dim"],
        codebook_size=settings["codebook_size"],
        unit_codes=settings["codebook_l2_norm"],
        commitment_weight=settings["commit_loss_beta"],
        entropy_weight=settings["entropy_loss_ratio"],
        num_norm_groups=settings.get("norm_num_groups", 32),
        dropout=settings["dropout_p"],
    )


def config_from_reference(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The config for the reference's constructor arguments (a generator with its tokenizer, or the tokenizer alone)."""
    if "flexvar" not in settings:
        return _tokenizer_from_reference(settings, settings["patch_nums"])
    generator = settings["flexvar"]
    sides = generator["patch_nums"]
    return generator_config(
        generator["depth"],
        _tokenizer_from_reference(settings["vae"], sides),
        image_size=16 * sides[-1],
        hidden_size=generator["embed_dim"],
        num_heads=generator["num_heads"],
        mlp_ratio=generator["mlp_ratio"],
        share_modulation=generator["shared_aln"],
        normalize_queries_and_keys=generator["attn_l2_norm"],
        num_classes=generator["num_classes"],
        drop_probability=generator["cond_drop_rate"],
        norm_eps=generator["norm_eps"],
        dropout=generator["drop_rate"],
        attention_dropout=generator["attn_drop_rate"],
        drop_path=generator["drop_path_rate"],
    )


TOKENIZER_RULES = (*llamagen_names(), Rename("quantize.embedding.weight", "quantizer.codebook.weight"))
GENERATOR_RULES = (Rename("pos_1LC", "plan.position_map.weight", leading_ones=1), *var.GENERATOR_RULES)


def converter(config: PreTrainedConfig) -> Converter:
    """Names of a generator's or a tokenizer's file."""
    if isinstance(config, VQTokenizerConfig):
        rules: tuple[Rename, ...] = TOKENIZER_RULES
    else:
        rules = GENERATOR_RULES + with_prefix(TOKENIZER_RULES, TOKENIZER_PREFIX, "tokenizer.")
    return Converter(rules, ignored=(*var.IGNORED, r"(vae_local\.)?quantize\.codebook_used"), wrappers=var.WRAPPERS)


#: Those of the published scores.
SAMPLING = {
    "guidance_scale": guidance(SIDES_9, 2.5),
    "top_k": 900,
    "top_p": 0.95,
    "plan_options": {"levels": list(SIDES_9), "sampled_sides": list(SAMPLED_SIDES)},
}


def _preset(depth: int, parameters: float, epoch: int) -> Preset:
    return Preset(
        config=lambda: generator_config(depth, tokenizer_config(), image_size=256, level_draws=asdict(LevelDraws())),
        parameters=parameters,
        released_file=f"FlexVARd{depth}-epo{epoch}.pth",
        hub_id="jiaosiyu1999/FlexVAR",
        sampling=SAMPLING,
    )


PRESETS = {
    "tokenizer": Preset(tokenizer_config, 72, "FlexVAE.pth", "jiaosiyu1999/FlexVAR"),
    "d16": _preset(16, 316, 179),
    "d20": _preset(20, 605, 249),
    "d24": _preset(24, 1040, 349),
}

SYSTEM = System(
    name="flexvar",
    title="FlexVAR",
    paper="2502.20313",
    code_license="MIT",
    weights_license="unknown",
    presets=PRESETS,
    converter=converter,
    config_from_reference=config_from_reference,
    tokenizer_prefix=TOKENIZER_PREFIX,
    axes={
        "tokenizer": "VQ, unit codes, a map per scale",
        "plan": "scale, any list of scales",
        "backbone": "visual transformer (AdaLN blocks)",
        "head": "categorical with AdaLN",
        "condition": "class vector",
    },
)
