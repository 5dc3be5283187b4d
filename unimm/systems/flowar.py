"""FlowAR: next-scale prediction of a KL autoencoder's latents, each scale by flow matching
(https://huggingface.co/papers/2412.15205).

Its own: sizes, names of the released checkpoints, and how the reference spells its arguments. The rest is
`plans/latent_scale.py`, `backbones/halves.py` and `heads/flow_transformer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedConfig

from ..conversion.base import Converter, Preset, Rename, System
from ..generation.guidance import LinearGuidance
from ..models.image_generation import UniMMImageGenerationConfig
from .xar import COMMON_RULES, IGNORED, WRAPPERS

SIDES = (1, 2, 4, 8, 16)


def generator_config(
    num_layers: tuple[int, int],
    num_heads: int,
    hidden_size: int,
    flow_layers: int,
    flow_width: int,
    *,
    cross_attention: bool,
    num_decoder_heads: int | None = None,
    sides: Sequence[int] = SIDES,
    channels: int = 16,
    mlp_ratio: float = 4.0,
    num_classes: int = 1000,
    drop_probability: float = 0.1,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    num_inference_steps: int = 25,
    time_grid: str = "two_part",
) -> UniMMImageGenerationConfig:
    """A generator of latents with the finest of `sides`; blocks of the first and of the second half."""
    return UniMMImageGenerationConfig(
        condition_config={
            "model_type": "unimm_class_condition",
            "num_classes": num_classes,
            "form": "vector",
            "drop_probability": drop_probability,
        },
        plan_config={"model_type": "unimm_latent_scale_plan", "sides": tuple(sides)},
        backbone_config={
            "model_type": "unimm_halves_transformer",
            "hidden_size": hidden_size,
            "num_encoder_layers": num_layers[0],
            "num_decoder_layers": num_layers[1],
            "num_attention_heads": num_heads,
            "num_decoder_attention_heads": num_decoder_heads,
            "intermediate_size": int(hidden_size * mlp_ratio * 2 / 3),
            "num_positions": sum(side * side for side in sides),
            "output_positions": True,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
        },
        head_config={
            "model_type": "unimm_flow_transformer_head",
            "width": flow_width,
            "num_layers": flow_layers,
            "cross_attention": cross_attention,
            "extent": sides[-1],
            "num_inference_steps": num_inference_steps,
            "time_grid": time_grid,
        },
        image_size=16 * sides[-1],
        token_layout=((sides[-1], sides[-1]),),
        latent_channels=channels,
    )


def config_from_reference(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The config for the reference's constructor arguments; the number of channels is fixed there."""
    return generator_config(
        (settings["encoder_depth"], settings["decoder_depth"]),
        settings["encoder_num_heads"],
        settings["encoder_embed_dim"],
        settings["diffloss_d"],
        settings["diffloss_w"],
        cross_attention=settings["cross"],
        num_decoder_heads=settings["decoder_num_heads"],
        sides=settings["scale"],
        mlp_ratio=settings["mlp_ratio"],
        drop_probability=settings["label_drop_prob"],
        dropout=settings["proj_dropout"],
        attention_dropout=settings["attn_dropout"],
    )


BLOCK = "flownet.res_blocks.{n}"
RULES = (
    *COMMON_RULES,
    Rename("diffusion_pos_embed_learned", "backbone.output_positions.weight", leading_ones=1),
    Rename("flownet.input_proj.{p}", "head.input_projection.{p}"),
    Rename("flownet.cond_embed.{p}", "head.condition_projection.{p}"),
    Rename("flownet.time_embed.mlp.0.{p}", "head.time_embedding.first.{p}"),
    Rename("flownet.time_embed.mlp.2.{p}", "head.time_embedding.second.{p}"),
    Rename(f"{BLOCK}.attn.qkv.weight", "head.layers.{n}.attention.qkv.weight"),
    Rename(f"{BLOCK}.attn.proj.{{p}}", "head.layers.{n}.attention.proj.{p}"),
    Rename(f"{BLOCK}.mlp.fc1_g.{{p}}", "head.layers.{n}.feed_forward.gate.{p}"),
    Rename(f"{BLOCK}.mlp.fc1_x.{{p}}", "head.layers.{n}.feed_forward.up.{p}"),
    Rename(f"{BLOCK}.mlp.fc2.{{p}}", "head.layers.{n}.feed_forward.down.{p}"),
    Rename(f"{BLOCK}.ada_lin.{{p}}", "head.layers.{n}.modulation.linear.{p}"),
    Rename(f"{BLOCK}.ada_lin_attn.{{p}}", "head.layers.{n}.attention_modulation.linear.{p}"),
    Rename(f"{BLOCK}.ada_lin_mlp.{{p}}", "head.layers.{n}.feed_forward_modulation.linear.{p}"),
    Rename(f"{BLOCK}.crossattn.q.weight", "head.layers.{n}.cross_attention.query.weight"),
    Rename(f"{BLOCK}.crossattn.kv.weight", "head.layers.{n}.cross_attention.key_value.weight"),
    Rename(f"{BLOCK}.crossattn.proj.{{p}}", "head.layers.{n}.cross_attention.proj.{p}"),
    Rename(f"{BLOCK}.norm2_1.weight", "head.layers.{n}.query_norm.weight"),
    Rename(f"{BLOCK}.norm2_2.weight", "head.layers.{n}.memory_norm.weight"),
    Rename("flownet.final_layer.adaLN_modulation.1.{p}", "head.final_modulation.linear.{p}"),
    Rename("flownet.final_layer.linear.{p}", "head.proj.{p}"),
)


def converter(config: PreTrainedConfig) -> Converter:
    """Names of the released file."""
    return Converter(RULES, ignored=IGNORED, wrappers=WRAPPERS)


def _preset(
    letter: str, config: partial[UniMMImageGenerationConfig], parameters: float, scale: float, end: float
) -> Preset:
    # The published guidance grows with the scale, and holds from the time `end` of a scale's way to data.
    sampling = {"guidance_scale": LinearGuidance(1.0, scale, times=(0.0, end))}
    return Preset(config, parameters, f"FlowAR-{letter}.pth", "OliverRen/FlowAR", sampling)


_SMALL = partial(generator_config, (6, 6), 12, 768, 2, 1024, cross_attention=False, dropout=0.1)
_LARGE = partial(generator_config, (8, 8), 16, 1024, 12, 1024, cross_attention=True, dropout=0.1)
_HUGE = partial(
    generator_config,
    (15, 15),
    16,
    1536,
    12,
    1536,
    cross_attention=True,
    dropout=0.1,
    num_inference_steps=50,
    time_grid="uniform",
)

SYSTEM = System(
    name="flowar",
    title="FlowAR",
    paper="2412.15205",
    code_license="unknown",
    weights_license="unknown",
    presets={
        # The size of the small one is our count.
        "small": _preset("S", _SMALL, 172, 4.3, 0.9),
        "large": _preset("L", _LARGE, 589, 2.4, 0.9),
        "huge": _preset("H", _HUGE, 1900, 2.4, 0.7),
    },
    converter=converter,
    config_from_reference=config_from_reference,
    axes={
        "tokenizer": "KL autoencoder",
        "plan": "latent scales",
        "backbone": "transformer in two halves",
        "head": "flow transformer over a scale",
        "condition": "class vector",
    },
)
