"""Names of the convolutional VQ tokenizers in released files: two spellings that most of the field shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .base import Rename

_RESIDUAL = (
    ("norm1.{p}", "norm1.{p}"),
    ("conv1.{p}", "conv1.{p}"),
    ("norm2.{p}", "norm2.{p}"),
    ("conv2.{p}", "conv2.{p}"),
    ("nin_shortcut.{p}", "shortcut.{p}"),
)
_FUSED_ATTENTION = (("norm.{p}", "norm.{p}"), ("qkv.{p}", "qkv.{p}"), ("proj_out.{p}", "proj.{p}"))
_SEPARATE_ATTENTION = (
    ("norm.{p}", "norm.{p}"),
    ("q.{p}", "query.{p}"),
    ("k.{p}", "key.{p}"),
    ("v.{p}", "value.{p}"),
    ("proj_out.{p}", "proj.{p}"),
)
_ENDS = (
    *(
        Rename(f"{side}.{name}.{{p}}", f"{side}.{name}.{{p}}")
        for side in ("encoder", "decoder")
        for name in ("conv_in", "norm_out", "conv_out")
    ),
    Rename("quant_conv.{p}", "quant_conv.{p}"),
    Rename("post_quant_conv.{p}", "post_quant_conv.{p}"),
)


def _under(released: str, ours: str, pairs: Sequence[tuple[str, str]]) -> list[Rename]:
    return [Rename(f"{released}.{theirs}", f"{ours}.{own}") for theirs, own in pairs]


def taming_names(num_levels: int, *, fused_attention: bool) -> tuple[Rename, ...]:
    """Names of the latent-diffusion family (`encoder.down.I.block.J`, `decoder.up.I`, `mid.block_1`), as in VAR.

    The released decoder counts levels from the finest, ours in the order in which they run.

    Args:
        num_levels: levels of the autoencoder.
        fused_attention: one convolution for query, key and value.
    """
    attention = _FUSED_ATTENTION if fused_attention else _SEPARATE_ATTENTION
    rules = list(_ENDS)
    for side, stem, resample in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        for level in range(num_levels):
            ours = f"{side}.levels.{level if side == 'encoder' else num_levels - 1 - level}"
            rules += _under(f"{side}.{stem}.{level}.block.{{j}}", f"{ours}.blocks.{{j}}", _RESIDUAL)
            rules += _under(f"{side}.{stem}.{level}.attn.{{j}}", f"{ours}.attentions.{{j}}", attention)
            rules.append(Rename(f"{side}.{stem}.{level}.{resample}.conv.{{p}}", f"{ours}.resample.conv.{{p}}"))
        rules += _under(f"{side}.mid.block_1", f"{side}.middle.0", _RESIDUAL)
        rules += _under(f"{side}.mid.attn_1", f"{side}.middle.1", attention)
        rules += _under(f"{side}.mid.block_2", f"{side}.middle.2", _RESIDUAL)
    return tuple(rules)


def llamagen_names() -> tuple[Rename, ...]:
    """Names of LlamaGen's tokenizer and its relatives (`encoder.conv_blocks.I.res.J`, levels in the order they run)."""
    rules = list(_ENDS)
    for side, resample in (("encoder", "downsample"), ("decoder", "upsample")):
        rules += _under(f"{side}.conv_blocks.{{i}}.res.{{j}}", f"{side}.levels.{{i}}.blocks.{{j}}", _RESIDUAL)
        rules += _under(
            f"{side}.conv_blocks.{{i}}.attn.{{j}}", f"{side}.levels.{{i}}.attentions.{{j}}", _SEPARATE_ATTENTION
        )
        rules.append(
            Rename(f"{side}.conv_blocks.{{i}}.{resample}.conv.{{p}}", f"{side}.levels.{{i}}.resample.conv.{{p}}")
        )
        rules += _under(f"{side}.mid.0", f"{side}.middle.0", _RESIDUAL)
        rules += _under(f"{side}.mid.1", f"{side}.middle.1", _SEPARATE_ATTENTION)
        rules += _under(f"{side}.mid.2", f"{side}.middle.2", _RESIDUAL)
    return tuple(rules)


def with_prefix(rules: Sequence[Rename], released: str, ours: str) -> tuple[Rename, ...]:
    """The same rules for a tokenizer inside of a larger file and a larger model."""
    return tuple(replace(rule, released=released + rule.released, ours=ours + rule.ours) for rule in rules)
