"""Names of the latent-diffusion KL autoencoder in released files, against diffusers' `AutoencoderKL`."""

from __future__ import annotations

from .base import Rename

_RESIDUAL = (
    ("norm1.{p}", "norm1.{p}"),
    ("conv1.{p}", "conv1.{p}"),
    ("norm2.{p}", "norm2.{p}"),
    ("conv2.{p}", "conv2.{p}"),
    ("nin_shortcut.{p}", "conv_shortcut.{p}"),
)
_ATTENTION = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))


def kl_names(num_levels: int) -> tuple[Rename, ...]:
    """Rules for a `KLTokenizer`.

    The released decoder counts levels from the finest, diffusers' in the order in which they run; the released attention
    is made of 1x1 convolutions, diffusers' of linear layers.

    Args:
        num_levels: levels of the autoencoder.
    """
    rules = [Rename(f"{name}.{{p}}", f"autoencoder.{name}.{{p}}") for name in ("quant_conv", "post_quant_conv")]
    for side, stem, resample in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        ours = f"autoencoder.{side}"
        rules += [Rename(f"{side}.{name}.{{p}}", f"{ours}.{name}.{{p}}") for name in ("conv_in", "conv_out")]
        rules.append(Rename(f"{side}.norm_out.{{p}}", f"{ours}.conv_norm_out.{{p}}"))
        for level in range(num_levels):
            block = f"{ours}.{stem}_blocks.{level if side == 'encoder' else num_levels - 1 - level}"
            released = f"{side}.{stem}.{level}"
            rules += _residual(f"{released}.block.{{j}}", f"{block}.resnets.{{j}}")
            rules += _attention(f"{released}.attn.{{j}}", f"{block}.attentions.{{j}}")
            rules.append(Rename(f"{released}.{resample}.conv.{{p}}", f"{block}.{resample}rs.0.conv.{{p}}"))
        rules += _residual(f"{side}.mid.block_1", f"{ours}.mid_block.resnets.0")
        rules += _residual(f"{side}.mid.block_2", f"{ours}.mid_block.resnets.1")
        rules += _attention(f"{side}.mid.attn_1", f"{ours}.mid_block.attentions.0")
    return tuple(rules)


def _residual(released: str, ours: str) -> list[Rename]:
    return [Rename(f"{released}.{theirs}", f"{ours}.{own}") for theirs, own in _RESIDUAL]


def _attention(released: str, ours: str) -> list[Rename]:
    rules = [Rename(f"{released}.norm.{{p}}", f"{ours}.group_norm.{{p}}")]
    for theirs, own in _ATTENTION:
        rules.append(Rename(f"{released}.{theirs}.weight", f"{ours}.{own}.weight", trailing_ones=2))
        rules.append(Rename(f"{released}.{theirs}.bias", f"{ours}.{own}.bias"))
    return rules
