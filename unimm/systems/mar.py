"""MAR: masked autoregression over latents with a diffusion loss (https://huggingface.co/papers/2406.11838).

Its own: sizes, names of the released checkpoints, and how the reference spells its arguments. The rest is
`plans/masked.py`, `backbones/encoder_decoder.py`, `heads/diffusion.py` and `tokenizers/kl.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ..conversion.base import Converter, Join, Preset, Rename, System
from ..conversion.kl_names import kl_names
from ..conversion.vqgan_names import with_prefix
from ..generation.guidance import LinearGuidance
from ..models.image_generation import UniMMImageGenerationConfig
from ..tokenizers import KLTokenizerConfig


def tokenizer_config(
    *,
    base_channels: int = 128,
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
    num_residual_blocks: int = 2,
    latent_channels: int = 16,
    patch_size: int = 1,
    scaling_factor: float = 0.2325,
) -> KLTokenizerConfig:
    """The released autoencoder: 16 pixels per latent along a side, 16 channels, attention in the encoder's last level."""
    levels = len(channel_multipliers)
    return KLTokenizerConfig(
        autoencoder={
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": latent_channels,
            "block_out_channels": [base_channels * factor for factor in channel_multipliers],
            "layers_per_block": num_residual_blocks,
            "norm_num_groups": 32,
            "down_block_types": ["DownEncoderBlock2D"] * (levels - 1) + ["AttnDownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "mid_block_add_attention": True,
            "scaling_factor": scaling_factor,
        },
        patch_size=patch_size,
    )


def generator_config(
    hidden_size: int,
    depth: int,
    num_heads: int,
    *,
    head_depth: int,
    head_width: int,
    decoder_hidden_size: int | None = None,
    decoder_depth: int | None = None,
    decoder_heads: int | None = None,
    mlp_ratio: float = 4.0,
    image_size: int = 256,
    grid: int = 16,
    token_channels: int = 16,
    prefix_length: int = 64,
    num_classes: int = 1000,
    drop_probability: float = 0.1,
    attention_dropout: float = 0.1,
    dropout: float = 0.1,
    mask_ratio_least: float = 0.7,
    num_steps: int = 256,
    respacing: str = "100",
    num_noise_draws: int = 4,
) -> UniMMImageGenerationConfig:
    """A class-conditional generator of `grid x grid` latents; a decoder like the encoder where nothing is said of it."""
    decoder_width = decoder_hidden_size or hidden_size
    return UniMMImageGenerationConfig(
        condition_config={
            "model_type": "unimm_class_condition",
            "num_classes": num_classes,
            "form": "prefix",
            "prefix_length": prefix_length,
            "drop_probability": drop_probability,
        },
        plan_config={
            "model_type": "unimm_masked_plan",
            "num_steps": num_steps,
            "hidden_slots": "left_out",
            "prefix_length": prefix_length,
            "input_norm": True,
            "mask_ratio_least": mask_ratio_least,
        },
        backbone_config={
            "model_type": "unimm_encoder_decoder",
            "hidden_size": hidden_size,
            "num_hidden_layers": depth,
            "num_attention_heads": num_heads,
            "intermediate_size": round(hidden_size * mlp_ratio),
            "decoder_hidden_size": decoder_width,
            "decoder_num_layers": decoder_depth or depth,
            "decoder_num_heads": decoder_heads or num_heads,
            "decoder_intermediate_size": round(decoder_width * mlp_ratio),
            "num_slots": prefix_length + grid * grid,
            "num_prefix_slots": prefix_length,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
        },
        head_config={
            "model_type": "unimm_diffusion_head",
            "hidden_size": head_width,
            "num_layers": head_depth,
            "respacing": respacing,
            "num_noise_draws": num_noise_draws,
        },
        image_size=image_size,
        token_layout=((grid, grid),),
        latent_channels=token_channels,
    )


def config_from_reference(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The config for the reference's constructor arguments (a generator, or the autoencoder alone)."""
    if "ch_mult" in settings:
        return tokenizer_config(
            base_channels=settings["ch"],
            channel_multipliers=tuple(settings["ch_mult"]),
            num_residual_blocks=settings["num_res_blocks"],
            latent_channels=settings["embed_dim"],
        )
    patch_size = settings["patch_size"]
    return generator_config(
        settings["encoder_embed_dim"],
        settings["encoder_depth"],
        settings["encoder_num_heads"],
        head_depth=settings["diffloss_d"],
        head_width=settings["diffloss_w"],
        decoder_hidden_size=settings["decoder_embed_dim"],
        decoder_depth=settings["decoder_depth"],
        decoder_heads=settings["decoder_num_heads"],
        mlp_ratio=settings["mlp_ratio"],
        image_size=settings["img_size"],
        grid=settings["img_size"] // settings["vae_stride"] // patch_size,
        token_channels=settings["vae_embed_dim"] * patch_size**2,
        prefix_length=settings["buffer_size"],
        num_classes=settings["class_num"],
        drop_probability=settings["label_drop_prob"],
        attention_dropout=settings["attn_dropout"],
        dropout=settings["proj_dropout"],
        mask_ratio_least=settings["mask_ratio_min"],
        respacing=settings["num_sampling_steps"],
        num_noise_draws=settings["diffusion_batch_mul"],
    )


def _block_names(stage: str) -> tuple[Rename, ...]:
    released, ours = f"{stage}_blocks.{{n}}", f"backbone.{stage}_layers.{{n}}"
    return (
        Rename(f"{released}.norm1.{{p}}", f"{ours}.attention_norm.{{p}}"),
        Rename(f"{released}.norm2.{{p}}", f"{ours}.feed_forward_norm.{{p}}"),
        Rename(f"{released}.attn.qkv.{{p}}", f"{ours}.attention.qkv.{{p}}"),
        Rename(f"{released}.attn.proj.{{p}}", f"{ours}.attention.proj.{{p}}"),
        Rename(f"{released}.mlp.fc1.{{p}}", f"{ours}.up.{{p}}"),
        Rename(f"{released}.mlp.fc2.{{p}}", f"{ours}.down.{{p}}"),
        Rename(f"{stage}_norm.{{p}}", f"backbone.{stage}_norm.{{p}}"),
    )


#: The diffusion head's names, which several systems share.
HEAD_RULES = (
    Rename("diffloss.net.time_embed.mlp.0.{p}", "head.network.time_up.{p}"),
    Rename("diffloss.net.time_embed.mlp.2.{p}", "head.network.time_down.{p}"),
    Rename("diffloss.net.cond_embed.{p}", "head.network.condition_projection.{p}"),
    Rename("diffloss.net.input_proj.{p}", "head.network.input_projection.{p}"),
    Rename("diffloss.net.res_blocks.{n}.in_ln.{p}", "head.network.blocks.{n}.norm.{p}"),
    Rename("diffloss.net.res_blocks.{n}.mlp.0.{p}", "head.network.blocks.{n}.up.{p}"),
    Rename("diffloss.net.res_blocks.{n}.mlp.2.{p}", "head.network.blocks.{n}.down.{p}"),
    Rename("diffloss.net.res_blocks.{n}.adaLN_modulation.1.{p}", "head.network.blocks.{n}.modulation.{p}"),
    Rename("diffloss.net.final_layer.adaLN_modulation.1.{p}", "head.network.final_modulation.{p}"),
    Rename("diffloss.net.final_layer.linear.{p}", "head.network.output.{p}"),
)
GENERATOR_RULES = (
    Rename("z_proj.{p}", "plan.token_embedding.{p}"),
    Rename("z_proj_ln.{p}", "plan.input_norm.{p}"),
    Rename("encoder_pos_embed_learned", "plan.position_embedding.weight", leading_ones=1),
    *_block_names("encoder"),
    Rename("decoder_embed.{p}", "backbone.decoder_projection.{p}"),
    Rename("mask_token", "backbone.mask_embedding", leading_ones=2),
    Rename("decoder_pos_embed_learned", "backbone.decoder_positions.weight", leading_ones=1),
    *_block_names("decoder"),
    Rename("diffusion_pos_embed_learned", "backbone.output_positions.weight", leading_ones=1),
    *HEAD_RULES,
)
#: The unconditional vector is a parameter of its own there, and the last row of our table.
JOINS = (Join(("class_emb.weight", "fake_latent"), "condition.embedding.weight", rows=(None, 1)),)
WRAPPERS = ("model_ema", "model")
#: Where the autoencoder's keys stand when both released files become one.
TOKENIZER_PREFIX = "vae."


def converter(config: PreTrainedConfig) -> Converter:
    """Names of a generator's or the autoencoder's file."""
    if isinstance(config, KLTokenizerConfig):
        return Converter(_tokenizer_rules(config), wrappers=WRAPPERS)
    rules = GENERATOR_RULES
    if config.tokenizer_config is not None:
        rules += with_prefix(_tokenizer_rules(config.tokenizer_config), TOKENIZER_PREFIX, "tokenizer.")
    return Converter(rules, wrappers=WRAPPERS, joins=JOINS)


def _tokenizer_rules(config: KLTokenizerConfig) -> tuple[Rename, ...]:
    assert config.autoencoder is not None
    return kl_names(len(config.autoencoder["block_out_channels"]))


def linear_guidance(scale: float, length: int = 256) -> LinearGuidance:
    """The reference's linear schedule: from no guidance to almost `scale`, by the share of tokens that are there."""
    return LinearGuidance(1.0, scale, over="tokens", limit=1 - 1 / length)


def _preset(width: int, depth: int, heads: int, head: tuple[int, int], parameters: float, scale: float) -> Preset:
    return Preset(
        config=lambda: generator_config(width, depth, heads, head_depth=head[0], head_width=head[1]),
        parameters=parameters,
        released_file="checkpoint-last.pth",
        sampling={"guidance_scale": linear_guidance(scale)},
    )


PRESETS = {
    "tokenizer": Preset(tokenizer_config, 66, "kl16.ckpt"),
    "base": _preset(768, 12, 12, (6, 1024), 208, 2.9),
    "large": _preset(1024, 16, 16, (8, 1280), 479, 3.0),
    "huge": _preset(1280, 20, 16, (12, 1536), 943, 3.2),
}

SYSTEM = System(
    name="mar",
    title="MAR",
    paper="2406.11838",
    code_license="MIT",
    weights_license="unknown",
    presets=PRESETS,
    converter=converter,
    config_from_reference=config_from_reference,
    tokenizer_prefix=TOKENIZER_PREFIX,
    axes={
        "tokenizer": "KL latents",
        "plan": "masked, random order",
        "backbone": "encoder-decoder that leaves hidden tokens out",
        "head": "diffusion MLP per token",
        "condition": "class prefix of 64 equal slots",
    },
)
