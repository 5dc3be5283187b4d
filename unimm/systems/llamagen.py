"""LlamaGen: a Llama-style transformer over raster VQ tokens (https://huggingface.co/papers/2406.06525).

Its own: sizes, names of the released checkpoints, and how the reference spells its arguments. The rest is
`plans/raster.py`, `backbones/transformer.py` (blocks `llama`), `heads/categorical.py` and `tokenizers/vq.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import PreTrainedConfig

from ..models.image_generation import UniMMImageGenerationConfig
from .base import Converter, Preset, Rename, System

WRAPPERS = ("model", "module", "state_dict", "ema")


def generator_config(
    num_layers: int,
    num_heads: int,
    hidden_size: int,
    *,
    grid: int,
    text: bool = False,
    codebook_size: int = 16384,
    multiple_of: int = 256,
    num_key_value_heads: int | None = None,
    num_classes: int = 1000,
    feature_size: int = 2048,
    text_length: int = 120,
    drop_probability: float = 0.1,
    norm_eps: float = 1e-5,
    rope_theta: float = 10000,
    dropout: float = 0.1,
    drop_path: float = 0.0,
) -> UniMMImageGenerationConfig:
    """A generator of `grid x grid` ids, without the tokenizer (a file of its own in the release)."""
    intermediate = int(2 * 4 * hidden_size / 3)
    condition: dict[str, Any] = {"model_type": "unimm_class_condition", "num_classes": num_classes, "form": "prefix"}
    if text:
        condition = {"model_type": "unimm_text_condition", "feature_size": feature_size, "length": text_length}
    return UniMMImageGenerationConfig(
        condition_config={**condition, "drop_probability": drop_probability},
        plan_config={"model_type": "unimm_raster_plan", "dropout": dropout},
        backbone_config={
            "model_type": "unimm_visual_transformer",
            "block": "llama",
            "hidden_size": hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_key_value_heads,
            "intermediate_size": multiple_of * -(-intermediate // multiple_of),
            "norm_eps": norm_eps,
            "rotary_theta": rope_theta,
            "dropout": dropout,
            "drop_path": drop_path,
        },
        head_config={"model_type": "unimm_categorical_head", "initializer_gain": 0.0},
        image_size=16 * grid,
        token_layout=((grid, grid),),
        codebook_size=codebook_size,
    )


def config_from_reference(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The config for the reference's constructor arguments (generator, tokenizer or discriminator)."""
    if "n_layer" in settings:
        return generator_config(
            settings["n_layer"],
            settings["n_head"],
            settings["dim"],
            grid=round(settings["block_size"] ** 0.5),
            text=settings["model_type"] == "t2i",
            codebook_size=settings["vocab_size"],
            multiple_of=settings["multiple_of"],
            num_key_value_heads=settings["n_kv_head"],
            num_classes=settings["num_classes"],
            feature_size=settings["caption_dim"],
            text_length=settings["cls_token_num"],
            drop_probability=settings["class_dropout_prob"],
            norm_eps=settings["norm_eps"],
            rope_theta=settings["rope_base"],
            dropout=settings["resid_dropout_p"],
            drop_path=settings["drop_path_rate"],
        )
    raise RuntimeError


GENERATOR_RULES = (
    Rename("cls_embedding.embedding_table.weight", "condition.embedding.weight"),
    Rename("cls_embedding.cap_proj.fc1.weight", "condition.fc1.weight"),
    Rename("cls_embedding.cap_proj.fc2.weight", "condition.fc2.weight"),
    Rename("cls_embedding.uncond_embedding", "condition.null_features"),
    Rename("tok_embeddings.weight", "plan.token_embedding.weight"),
    Rename("layers.{n}.attention.wqkv.weight", "backbone.layers.{n}.attention.qkv.weight"),
    Rename("layers.{n}.attention.wo.weight", "backbone.layers.{n}.attention.proj.weight"),
    Rename("layers.{n}.feed_forward.w1.weight", "backbone.layers.{n}.feed_forward.gate.weight"),
    Rename("layers.{n}.feed_forward.w2.weight", "backbone.layers.{n}.feed_forward.down.weight"),
    Rename("layers.{n}.feed_forward.w3.weight", "backbone.layers.{n}.feed_forward.up.weight"),
    Rename("layers.{n}.attention_norm.weight", "backbone.layers.{n}.attention_norm.weight"),
    Rename("layers.{n}.ffn_norm.weight", "backbone.layers.{n}.feed_forward_norm.weight"),
    Rename("norm.weight", "backbone.final_norm.weight"),
    Rename("output.weight", "head.proj.weight"),
)


def converter(config: PreTrainedConfig) -> Converter:
    return Converter(GENERATOR_RULES, ignored=("freqs_cis",), wrappers=WRAPPERS)


SYSTEM = System(
    name="llamagen",
    title="LlamaGen",
    paper="2406.06525",
    code_license="MIT",
    weights_license="unknown",
    presets={},
    converter=converter,
    config_from_reference=config_from_reference,
)
