"""Infinity: next-scale prediction of bits, for text to image (https://huggingface.co/papers/2412.04431).

Its own: sizes, the aspect ratios' scale lists, and names of the released checkpoints. The rest is `tokenizers/bitwise.py`,
`plans/scale.py`, `conditions/pooled_text.py`, `backbones/transformer.py` (blocks `adaln` with cross-attention) and
`heads/bitwise.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from ..conversion.base import Converter, Preset, Rename, System
from ..conversion.vqgan_names import taming_names
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
#: How many entries of a list a resolution takes.
NUM_SCALES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}

TOKENIZER_PREFIX = "vae_local."
WRAPPERS = ("vae", "model", "module", "state_dict")
IGNORED = (r"(vae_local\.)?quantizer?\.lfq\.mask",)


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


def config_from_reference(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The config for the reference's constructor arguments (a generator with its tokenizer, or the tokenizer alone)."""
    return _tokenizer_from_reference(settings, settings["scale_schedule"])


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
    return Converter(_tokenizer_rules(config), ignored=IGNORED, wrappers=WRAPPERS)


PRESETS: dict[str, Preset] = {}

SYSTEM = System(
    name="infinity",
    title="Infinity",
    paper="2412.04431",
    code_license="MIT",
    weights_license="MIT",
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
