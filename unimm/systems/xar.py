"""xAR: cells of latents one after the other, each by flow matching in the whole backbone, from noisy context in training
(https://huggingface.co/papers/2502.20388).

Its own: sizes, names of the released checkpoints, and how the reference spells its arguments. The rest is
`plans/groups.py`, `backbones/halves.py` and `heads/flow.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import PreTrainedConfig

from ..conversion.base import Converter, Preset, Rename, System
from ..generation.guidance import LinearGuidance
from ..models.image_generation import UniMMImageGenerationConfig


def generator_config(
    num_layers: tuple[int, int],
    num_heads: int,
    hidden_size: int,
    *,
    num_decoder_heads: int | None = None,
    grid: int = 16,
    unit: str = "cell",
    size: int | None = 8,
    channels: int = 16,
    mlp_ratio: float = 4.0,
    num_classes: int = 1000,
    drop_probability: float = 0.1,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    num_inference_steps: int = 50,
) -> UniMMImageGenerationConfig:
    """A generator of `grid x grid` latents; blocks of the first and of the second half."""
    return UniMMImageGenerationConfig(
        condition_config={
            "model_type": "unimm_class_condition",
            "num_classes": num_classes,
            "form": "vector",
            "drop_probability": drop_probability,
        },
        plan_config={"model_type": "unimm_groups_plan", "unit": unit, "size": size},
        backbone_config={
            "model_type": "unimm_halves_transformer",
            "hidden_size": hidden_size,
            "num_encoder_layers": num_layers[0],
            "num_decoder_layers": num_layers[1],
            "num_attention_heads": num_heads,
            "num_decoder_attention_heads": num_decoder_heads,
            "intermediate_size": int(int(hidden_size * mlp_ratio) * 2 / 3),
            "num_positions": grid * grid,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
        },
        head_config={"model_type": "unimm_flow_head", "num_inference_steps": num_inference_steps},
        image_size=16 * grid,
        token_layout=((grid, grid),),
        latent_channels=channels,
    )


def config_from_reference(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The config for the reference's constructor arguments; grid, cells and channels are fixed there."""
    return generator_config(
        (settings["encoder_depth"], settings["decoder_depth"]),
        settings["encoder_num_heads"],
        settings["encoder_embed_dim"],
        num_decoder_heads=settings["decoder_num_heads"],
        mlp_ratio=settings["mlp_ratio"],
        drop_probability=settings["label_drop_prob"],
        dropout=settings["proj_dropout"],
        attention_dropout=settings["attn_dropout"],
    )


def stack_rules(released: str, ours: str) -> tuple[Rename, ...]:
    """Names of one half's blocks."""
    return (
        Rename(f"{released}.{{n}}.attn.qkv.{{p}}", f"{ours}.{{n}}.attention.qkv.{{p}}"),
        Rename(f"{released}.{{n}}.attn.proj.{{p}}", f"{ours}.{{n}}.attention.proj.{{p}}"),
        Rename(f"{released}.{{n}}.mlp.fc1_g.{{p}}", f"{ours}.{{n}}.feed_forward.gate.{{p}}"),
        Rename(f"{released}.{{n}}.mlp.fc1_x.{{p}}", f"{ours}.{{n}}.feed_forward.up.{{p}}"),
        Rename(f"{released}.{{n}}.mlp.fc2.{{p}}", f"{ours}.{{n}}.feed_forward.down.{{p}}"),
        Rename(f"{released}.{{n}}.ada_lin.1.{{p}}", f"{ours}.{{n}}.modulation.linear.{{p}}"),
    )


#: What FlowAR's files share with xAR's.
COMMON_RULES = (
    Rename("class_emb.weight", "condition.embedding.weight"),
    Rename("z_proj.{p}", "plan.token_embedding.{p}"),
    Rename("z_proj_ln.weight", "backbone.input_norm.weight"),
    Rename("encoder_pos_embed_learned", "backbone.encoder_positions.weight", leading_ones=1),
    *stack_rules("encoder_blocks", "backbone.encoder"),
    Rename("encoder_norm.weight", "backbone.encoder_norm.weight"),
    Rename("decoder_embed.{p}", "backbone.between.{p}"),
    Rename("decoder_pos_embed_learned", "backbone.decoder_positions.weight", leading_ones=1),
    *stack_rules("decoder_blocks", "backbone.decoder"),
    Rename("decoder_norm.weight", "backbone.final_norm.weight"),
)
RULES = (
    *COMMON_RULES,
    Rename("time_embed.mlp.0.{p}", "plan.time_embedding.first.{p}"),
    Rename("time_embed.mlp.2.{p}", "plan.time_embedding.second.{p}"),
    Rename("pred.{p}", "head.proj.{p}"),
)
IGNORED = ("mask", r".*\.rope\.\w+")
WRAPPERS = ("model_ema", "model", "module", "state_dict")


def converter(config: PreTrainedConfig) -> Converter:
    """Names of the released file."""
    return Converter(RULES, ignored=IGNORED, wrappers=WRAPPERS)


def _preset(
    letter: str, layers: int, heads: int, hidden_size: int, parameters: float, scale: float, steps: int
) -> Preset:
    config = partial(generator_config, (layers, layers), heads, hidden_size, dropout=0.1, num_inference_steps=steps)
    sampling = {"guidance_scale": LinearGuidance(1.0, scale), "num_inference_steps": steps}
    return Preset(config, parameters, f"xAR-{letter}.pth", "OliverRen/xAR", sampling)


SYSTEM = System(
    name="xar",
    title="xAR",
    paper="2502.20388",
    code_license="unknown",
    weights_license="unknown",
    presets={
        "base": _preset("B", 8, 12, 768, 172, 2.7, 40),
        "large": _preset("L", 16, 16, 1024, 608, 2.3, 50),
        # The paper rounds to 1.1B; its widths and depths count to this.
        "huge": _preset("H", 20, 16, 1280, 1186, 2.2, 50),
    },
    converter=converter,
    config_from_reference=config_from_reference,
    axes={
        "tokenizer": "KL autoencoder",
        "plan": "groups (cells)",
        "backbone": "transformer in two halves",
        "head": "flow matching through the backbone",
        "condition": "class vector with time",
    },
)
