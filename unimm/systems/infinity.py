"""Infinity: next-scale prediction of bits, for text to image (https://huggingface.co/papers/2412.04431).

Its own: sizes, the aspect ratios' scale lists, and names of the released checkpoints. The rest is `tokenizers/bitwise.py`,
`plans/scale.py`, `conditions/pooled_text.py`, `backbones/transformer.py` (blocks `adaln` with cross-attention) and
`heads/bitwise.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..conversion.base import Converter, Preset, Rename, System
from ..conversion.vqgan_names import taming_names, with_prefix
from ..errors import ConfigError
from ..generation.guidance import ConstantGuidance
from ..models.image_generation import UniMMImageGenerationConfig
from ..tokenizers import BitwisePyramidTokenizerConfig

#: Heights and widths of the scale lists up to a megapixel, by the ratio of height to width.
_TALL = {
    1.25: ((1, 2, 3, 5, 10, 15, 20, 25, 30, 35, 45, 55, 70), (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 36, 44, 56)),
    1.333: ((1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 48, 60, 72), (1, 2, 3, 6, 9, 12, 15, 18, 21, 27, 36, 45, 54)),
    1.5: ((1, 2, 3, 6, 9, 15, 21, 27, 33, 39, 48, 63, 78), (1, 2, 2, 4, 6, 10, 14, 18, 22, 26, 32, 42, 52)),
    1.75: ((1, 2, 3, 7, 11, 14, 21, 28, 35, 42, 56, 70, 84), (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48)),
    2.0: ((1, 2, 4, 6, 10, 16, 22, 30, 38, 46, 60, 74, 90), (1, 2, 2, 3, 5, 8, 11, 15, 19, 23, 30, 37, 45)),
    2.5: ((1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 65, 80, 100), (1, 2, 2, 4, 6, 8, 10, 12, 16, 20, 26, 32, 40)),
    3.0: ((1, 2, 6, 9, 15, 21, 27, 36, 45, 54, 72, 90, 111), (1, 2, 2, 3, 5, 7, 9, 12, 15, 18, 24, 30, 37)),
}
_SQUARE = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
_WIDE = {1.25: 0.8, 1.333: 0.75, 1.5: 0.666, 1.75: 0.571, 2.0: 0.5, 2.5: 0.4, 3.0: 0.333}
#: Scale lists by the ratio of height to width, up to a megapixel; a smaller picture takes the first entries.
SCALES: dict[float, tuple[tuple[int, int], ...]] = {
    1.0: tuple(zip(_SQUARE, _SQUARE, strict=True)),
    **{ratio: tuple(zip(*sides, strict=True)) for ratio, sides in _TALL.items()},
    **{_WIDE[ratio]: tuple(zip(*reversed(sides), strict=True)) for ratio, sides in _TALL.items()},
}
#: What positions are scaled to, at every resolution.
REFERENCE_GRIDS = tuple(sizes[-1] for sizes in SCALES.values())
#: How many entries of a list a resolution takes.
NUM_SCALES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}

TOKENIZER_PREFIX = "vae_local."
WRAPPERS = ("vae", "model", "module", "state_dict")
IGNORED = (r"(vae_local\.)?quantizer?\.lfq\.mask", r".*\.zero_k_bias", r"lvl_1L", r"attn_bias_for_masking")
#: Rows of the released level tables, whatever the number of scales.
NUM_LEVEL_ROWS = 15


def scales(ratio: float, resolution: str) -> tuple[tuple[int, int], ...]:
    """The sizes of a pyramid, from coarse to fine.

    Args:
        ratio: height over width, one of `SCALES`.
        resolution: one of `NUM_SCALES`.
    """
    return SCALES[ratio][: NUM_SCALES[resolution]]


def tokenizer_config(
    num_bits: int = 32, sizes: Sequence[Any] = scales(1.0, "1M"), **changes: Any
) -> BitwisePyramidTokenizerConfig:
    """A released tokenizer, with other fields replaced."""
    fields = {"encoder_channels": num_bits, "code_channels": num_bits, "levels": tuple(sizes)}
    return BitwisePyramidTokenizerConfig(**{**fields, **changes})


def _tokenizer_from_reference(
    settings: Mapping[str, Any], sizes: Sequence[Sequence[int]], patch_side: int = 1
) -> BitwisePyramidTokenizerConfig:
    return tokenizer_config(
        settings["codebook_dim"],
        [tuple(size[-2:]) for size in sizes],
        base_channels=settings["base_ch"],
        channel_multipliers=tuple(settings["ch_mult"]),
        num_norm_groups=settings["norm_num_groups"],
        patch_side=patch_side,
    )


def generator_config(
    depth: int,
    tokenizer: BitwisePyramidTokenizerConfig,
    *,
    hidden_size: int,
    num_heads: int,
    mlp_ratio: float = 4.0,
    text_size: int = 2048,
    text_length: int = 512,
    drop_probability: float = 0.1,
    reference_grids: Sequence[tuple[int, int]] = REFERENCE_GRIDS,
    balance_levels: bool = True,
    self_correction: float = 0.3,
    norm_eps: float = 1e-6,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    text_encoder: Mapping[str, Any] | None = None,
) -> UniMMImageGenerationConfig:
    """A generator; the pooling of the text has one head per 128 channels of its features."""
    rows, columns = tokenizer.layout.final
    return UniMMImageGenerationConfig(
        tokenizer_config=tokenizer,
        condition_config={
            "model_type": "unimm_pooled_text_condition",
            "feature_size": text_size,
            "length": text_length,
            "num_pooling_heads": text_size // 128,
            "norm_eps": norm_eps,
            "drop_probability": drop_probability,
            "text_encoder": None if text_encoder is None else dict(text_encoder),
        },
        plan_config={
            "model_type": "unimm_scale_plan",
            "position_table": False,
            "num_level_rows": NUM_LEVEL_ROWS,
            "reference_grids": tuple(tuple(grid) for grid in reference_grids),
            "balance_levels": balance_levels,
            "self_correction": self_correction,
            "num_corrupted_levels": 13,
        },
        backbone_config={
            "model_type": "unimm_visual_transformer",
            "block": "adaln",
            "hidden_size": hidden_size,
            "num_hidden_layers": depth,
            "num_attention_heads": num_heads,
            "intermediate_size": round(hidden_size * mlp_ratio / 256) * 256,
            "memory_size": hidden_size,
            "share_modulation": True,
            "use_bias": True,
            "query_value_bias": True,
            "normalize_queries_and_keys": True,
            "softmax_scale": 1.0,
            "rotary_theta": 10000.0,
            "norm_eps": norm_eps,
            "dropout": dropout,
            "drop_path": drop_path,
            "initializer_range": None,
            "gate_initializer_gain": 1e-3,
            "scale_residual_initializer": True,
        },
        head_config={
            "model_type": "unimm_bitwise_head",
            "norm": "adaln",
            "norm_eps": norm_eps,
            "bias": True,
            "initializer_gain": 0.02,
        },
        image_size=(rows * tokenizer.stride, columns * tokenizer.stride),
    )


#: Options of the reference that change what it computes, and the values that unimm has.
_SUPPORTED = {
    "cos_attn": True,
    "shared_aln": True,
    "head_aln": True,
    "rms_norm": False,
    "swiglu": False,
    "nm0": False,
    "head_depth": 1,
    "rand_uncond": False,
    "add_lvl_embeding_only_first_block": 1,
    "use_bit_label": 1,
    "rope2d_each_sa_layer": 1,
    "rope2d_normalized_by_hw": 2,
}


def config_from_reference(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The config for the reference's constructor arguments (a generator with its tokenizer, or the tokenizer alone).

    Raises:
        ConfigError: options of the reference that its released models do not use.
    """
    if "infinity" not in settings:
        return _tokenizer_from_reference(settings, settings["scale_schedule"])
    generator, run = settings["infinity"], settings["run"]
    other = {name: generator[name] for name, value in _SUPPORTED.items() if generator.get(name, value) != value}
    if other or generator["cross_attn_layer_scale"] >= 0:
        raise ConfigError(
            f"Infinity's released models have {_SUPPORTED} and no cross_attn_layer_scale, given {other} and "
            f"cross_attn_layer_scale={generator['cross_attn_layer_scale']}"
        )
    sizes = run["sample_scales"]
    tokenizer = _tokenizer_from_reference(settings["vae"], sizes, 2 if generator["apply_spatial_patchify"] else 1)
    return generator_config(
        generator["depth"],
        tokenizer,
        hidden_size=generator["embed_dim"],
        num_heads=generator["num_heads"],
        mlp_ratio=generator["mlp_ratio"],
        text_size=generator["text_channels"],
        text_length=generator["text_maxlen"],
        drop_probability=generator["cond_drop_rate"],
        reference_grids=[tuple(lists["1M"][-1]) for lists in generator["scale_table"].values()],
        balance_levels=run["reweight"],
        norm_eps=generator["norm_eps"],
        dropout=generator["drop_rate"],
        drop_path=generator["drop_path_rate"],
    )


_BLOCK = (
    ("ada_gss", "modulation_offset.weight", 2),
    ("sa.mat_qkv.weight", "attention.qkv.weight", 0),
    ("sa.q_bias", "attention.query_bias", 0),
    ("sa.v_bias", "attention.value_bias", 0),
    ("sa.scale_mul_1H11", "attention.log_scale", 0),
    ("sa.proj.{p}", "attention.proj.{p}", 0),
    ("ca_norm.{p}", "cross_attention_norm.{p}", 0),
    ("ca.mat_q.{p}", "cross_attention.query.{p}", 0),
    ("ca.mat_kv.weight", "cross_attention.key_value.weight", 0),
    ("ca.v_bias", "cross_attention.value_bias", 0),
    ("ca.proj.{p}", "cross_attention.proj.{p}", 0),
    ("ffn.fc1.{p}", "feed_forward.up.{p}", 0),
    ("ffn.fc2.{p}", "feed_forward.down.{p}", 0),
)
GENERATOR_RULES = (
    *(Rename(f"blocks.{{n}}.{theirs}", f"backbone.layers.{{n}}.{ours}", ones) for theirs, ours, ones in _BLOCK),
    Rename("cfg_uncond", "condition.null_features"),
    Rename("text_norm.weight", "condition.norm.weight"),
    Rename("text_proj_for_sos.ca.mat_q", "condition.pooling.queries", leading_ones=1),
    Rename("text_proj_for_sos.ca.mat_kv.weight", "condition.pooling.key_value.weight"),
    Rename("text_proj_for_sos.ca.v_bias", "condition.pooling.value_bias"),
    Rename("text_proj_for_sos.ca.proj.{p}", "condition.pooling.proj.{p}"),
    Rename("text_proj_for_ca.0.{p}", "condition.fc1.{p}"),
    Rename("text_proj_for_ca.2.{p}", "condition.fc2.{p}"),
    Rename("pos_start", "plan.start_embedding.weight", leading_ones=1),
    Rename("lvl_embed.weight", "plan.level_embedding.weight"),
    Rename("word_embed.{p}", "plan.input_projection.{p}"),
    Rename("shared_ada_lin.1.{p}", "backbone.shared_modulation.linear.{p}"),
    Rename("head_nm.ada_lin.1.{p}", "head.modulation.{p}"),
    Rename("head.{p}", "head.proj.{p}"),
)
_CHUNK = re.compile(r"block_chunks\.(\d+)\.module\.(\d+)\.")


@dataclass(frozen=True)
class ChunkedConverter(Converter):
    """Released files number blocks inside of chunks of equal length (or, with one chunk, plainly).

    Args:
        depth: number of blocks. Files are written with 8 chunks, or the largest divisor that depth shares with 8.
    """

    depth: int = 1

    def to_ours(self, released: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = [_CHUNK.match(name) for name in released]
        length = 1 + max((int(one[2]) for one in found if one), default=0)
        plain = {
            _CHUNK.sub(lambda one: f"blocks.{int(one[1]) * length + int(one[2])}.", name): tensor
            for name, tensor in released.items()
        }
        return super().to_ours(plain)

    def to_released(self, ours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        length = self.depth // math.gcd(self.depth, 8)

        def chunked(found: re.Match[str]) -> str:
            chunk, index = divmod(int(found[1]), length)
            return f"block_chunks.{chunk}.module.{index}."

        return {
            re.sub(r"^blocks\.(\d+)\.", chunked, name): tensor for name, tensor in super().to_released(ours).items()
        }


def _tokenizer_rules(config: BitwisePyramidTokenizerConfig) -> tuple[Rename, ...]:
    """Every convolution and norm sits in a wrapper; files without the wrappers' names load too."""
    plain = [
        rule
        for rule in taming_names(len(config.channel_multipliers), fused_attention=True)
        if ".attn" not in rule.released and "quant_conv" not in rule.released
    ]
    wrapped = [Rename(_wrapped(rule.released), rule.ours) for rule in plain]
    return (*wrapped, *plain)


def _wrapped(released: str) -> str:
    stem = released.removesuffix(".{p}")
    kind = "norm" if stem.rsplit(".", 1)[-1].startswith("norm") else "conv"
    return f"{stem}.{kind}.{{p}}"


def converter(config: PreTrainedConfig) -> Converter:
    """Names of a generator's or a tokenizer's file."""
    if isinstance(config, BitwisePyramidTokenizerConfig):
        return Converter(_tokenizer_rules(config), ignored=IGNORED, wrappers=WRAPPERS)
    rules = GENERATOR_RULES + with_prefix(_tokenizer_rules(config.tokenizer_config), TOKENIZER_PREFIX, "tokenizer.")
    return ChunkedConverter(rules, IGNORED, WRAPPERS, depth=config.backbone_config.num_hidden_layers)


#: The released demo's.
SAMPLING = {"guidance_scale": ConstantGuidance(4.0), "temperature": 0.5, "top_p": 0.97}
TEXT_ENCODER = {"path": "google/flan-t5-xl", "max_length": 512}
HUB_ID = "FoundationVision/infinity"


def _preset(
    depth: int,
    hidden_size: int,
    num_heads: int,
    parameters: float,
    *,
    released_file: str = "",
    resolution: str = "1M",
    patchify: bool = False,
) -> Preset:
    """`parameters` were counted here: the paper names its models by rounded figures alone."""

    def config() -> UniMMImageGenerationConfig:
        sizes = scales(1.0, resolution)
        tokenizer = patchify_tokenizer_config(sizes) if patchify else tokenizer_config(32, sizes)
        return generator_config(
            depth, tokenizer, hidden_size=hidden_size, num_heads=num_heads, text_encoder=TEXT_ENCODER
        )

    return Preset(config, parameters, released_file, HUB_ID if released_file else "", SAMPLING)


def patchify_tokenizer_config(sizes: Sequence[Any] = scales(1.0, "1M")) -> BitwisePyramidTokenizerConfig:
    """The 8B models' tokenizer: stride 8, 14 bits, 2 x 2 vectors to a token."""
    return tokenizer_config(14, sizes, channel_multipliers=(1, 2, 4, 4), patch_side=2)


def _tokenizer_preset(num_bits: int, file: str, parameters: float) -> Preset:
    return Preset(lambda: tokenizer_config(num_bits), parameters, file, HUB_ID)


PRESETS: dict[str, Preset] = {
    "tokenizer-d16": _tokenizer_preset(16, "infinity_vae_d16.pth", 110),
    "tokenizer-d24": _tokenizer_preset(24, "infinity_vae_d24.pth", 110),
    "tokenizer-d32": _tokenizer_preset(32, "infinity_vae_d32.pth", 110),
    "tokenizer-d32-reg": _tokenizer_preset(32, "infinity_vae_d32reg.pth", 110),
    "tokenizer-d32-256": Preset(
        lambda: tokenizer_config(32, scales(1.0, "0.06M")), 110, "infinity_vae_d32reg.pth", HUB_ID
    ),
    "tokenizer-d64": _tokenizer_preset(64, "infinity_vae_d64.pth", 110),
    "tokenizer-d56-patchify": Preset(patchify_tokenizer_config, 81.6, "infinity_vae_d56_f8_14_patchify.pth", HUB_ID),
    "125m": _preset(12, 768, 8, 125.2),
    "layer16": _preset(16, 1152, 12, 361.6),
    "1b": _preset(24, 1536, 16, 940.9),
    "2b": _preset(32, 2048, 16, 2204.6, released_file="infinity_2b_reg.pth"),
    # The first stage of training: no file of it is released.
    "2b-256": _preset(32, 2048, 16, 2204.6, resolution="0.06M"),
    "layer32": _preset(32, 2080, 20, 2256.7),
    "layer40": _preset(40, 2688, 24, 4716.4),
    "layer48": _preset(48, 3360, 28, 8767.2),
    "8b": _preset(40, 3584, 28, 8375.8, released_file="infinity_8b_weights", patchify=True),
    "8b-512": _preset(
        40, 3584, 28, 8375.8, released_file="infinity_8b_512x512_weights", resolution="0.25M", patchify=True
    ),
}

SYSTEM = System(
    name="infinity",
    title="Infinity",
    paper="2412.04431",
    code_license="MIT",
    weights_license="unknown",
    presets=PRESETS,
    converter=converter,
    config_from_reference=config_from_reference,
    tokenizer_prefix=TOKENIZER_PREFIX,
    axes={
        "tokenizer": "bitwise multi-scale residual (BSQ)",
        "plan": "scale",
        "backbone": "visual transformer (AdaLN blocks with cross-attention)",
        "head": "bitwise with AdaLN",
        "condition": "text, pooled and by cross-attention",
    },
)
