"""VAR: next-scale prediction over a pyramid of residual VQ tokens (https://huggingface.co/papers/2404.02905).

Its own: sizes, names of the released checkpoints, and how the reference spells its arguments. The rest is
`plans/scale.py`, `backbones/transformer.py` (blocks `adaln`), `heads/categorical.py` and `tokenizers/multiscale_vq.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedConfig

from ..models.image_generation import UniMMImageGenerationConfig
from ..conversion.base import Converter, Preset, Rename, System

SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SIDES_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)


def generator_config(
    depth: int,
    tokenizer: PreTrainedConfig,
    *,
    image_size: int,
    hidden_size: int | None = None,
    num_heads: int | None = None,
    mlp_ratio: float = 4.0,
    share_modulation: bool = False,
    normalize_queries_and_keys: bool = True,
    num_classes: int = 1000,
    drop_probability: float = 0.1,
    norm_eps: float = 1e-6,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float | None = None,
    label_smoothing: float = 0.0,
) -> UniMMImageGenerationConfig:
    """A generator of depth `d`: width `64 d`, `d` heads, stochastic depth `0.1 d / 24`."""
    hidden_size = 64 * depth if hidden_size is None else hidden_size
    num_heads = depth if num_heads is None else num_heads
    head_dim = hidden_size // num_heads
    return UniMMImageGenerationConfig(
        tokenizer_config=tokenizer,
        condition_config={
            "model_type": "unimm_class_condition",
            "num_classes": num_classes,
            "form": "vector",
            "drop_probability": drop_probability,
        },
        plan_config={"model_type": "unimm_scale_plan"},
        backbone_config={
            "model_type": "unimm_visual_transformer",
            "block": "adaln",
            "hidden_size": hidden_size,
            "num_hidden_layers": depth,
            "num_attention_heads": num_heads,
            "intermediate_size": round(hidden_size * mlp_ratio),
            "share_modulation": share_modulation,
            "use_bias": True,
            "query_value_bias": True,
            "normalize_queries_and_keys": normalize_queries_and_keys,
            # The reference divides by four times the usual root where queries and keys are not normalised.
            "softmax_scale": 1.0 if normalize_queries_and_keys else 0.25 * head_dim**-0.5,
            "rotary_theta": None,
            "norm_eps": norm_eps,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "drop_path": 0.1 * depth / 24 if drop_path is None else drop_path,
            "initializer_range": None,
            "gate_initializer_gain": 1e-3,
            "scale_residual_initializer": True,
        },
        head_config={
            "model_type": "unimm_categorical_head",
            "norm": "adaln",
            "norm_eps": norm_eps,
            "bias": True,
            "label_smoothing": label_smoothing,
            "initializer_gain": 0.02,
        },
        image_size=image_size,
    )


GENERATOR_RULES = (
    Rename("class_emb.weight", "condition.embedding.weight"),
    Rename("pos_start", "plan.start_embedding.weight", leading_ones=1),
    Rename("pos_1LC", "plan.position_embedding.weight", leading_ones=1),
    Rename("lvl_embed.weight", "plan.level_embedding.weight"),
    Rename("word_embed.{p}", "plan.input_projection.{p}"),
    Rename("blocks.{n}.attn.mat_qkv.weight", "backbone.layers.{n}.attention.qkv.weight"),
    Rename("blocks.{n}.attn.q_bias", "backbone.layers.{n}.attention.query_bias"),
    Rename("blocks.{n}.attn.v_bias", "backbone.layers.{n}.attention.value_bias"),
    Rename("blocks.{n}.attn.scale_mul_1H11", "backbone.layers.{n}.attention.log_scale"),
    Rename("blocks.{n}.attn.proj.{p}", "backbone.layers.{n}.attention.proj.{p}"),
    Rename("blocks.{n}.ffn.fc1.{p}", "backbone.layers.{n}.feed_forward.up.{p}"),
    Rename("blocks.{n}.ffn.fc2.{p}", "backbone.layers.{n}.feed_forward.down.{p}"),
    Rename("blocks.{n}.ada_lin.1.{p}", "backbone.layers.{n}.modulation.linear.{p}"),
    Rename("blocks.{n}.ada_gss", "backbone.layers.{n}.modulation_offset.weight", leading_ones=2),
    Rename("shared_ada_lin.1.{p}", "backbone.shared_modulation.linear.{p}"),
    Rename("head_nm.ada_lin.1.{p}", "head.modulation.{p}"),
    Rename("head.{p}", "head.proj.{p}"),
)
IGNORED = (
    r"lvl_1L",
    r"attn_bias_for_masking",
    r"blocks\.\d+\.attn\.zero_k_bias",
    r"(vae_local\.)?quantize\.ema_vocab_hit_SV",
)
WRAPPERS = ("trainer.var_wo_ddp", "model", "module", "state_dict", "ema")
