"""VAR: next-scale prediction over a pyramid of residual VQ tokens (https://huggingface.co/papers/2404.02905).

Its own: sizes, names of the released checkpoints, and how the reference spells its arguments. The rest is
`plans/scale.py`, `backbones/transformer.py` (blocks `adaln`), `heads/categorical.py` and `tokenizers/multiscale_vq.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from ..conversion.base import Converter, Preset, Rename, System
from ..conversion.vqgan_names import taming_names, with_prefix
from ..generation.guidance import LinearGuidance
from ..models.image_generation import UniMMImageGenerationConfig
from ..tokenizers import MultiScaleVQTokenizerConfig

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
    plan: Mapping[str, Any] | None = None,
) -> UniMMImageGenerationConfig:
    """A generator of depth `d`: width `64 d`, `d` heads, stochastic depth `0.1 d / 24`; `plan` has the plan's fields."""
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
        plan_config={"model_type": "unimm_scale_plan", **(plan or {})},
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
WRAPPERS = ("trainer.var_wo_ddp", "trainer.vae_local", "model", "module", "state_dict", "ema")
#: Where the tokenizer's keys stand when both released files become one.
TOKENIZER_PREFIX = "vae_local."


def tokenizer_config(sides: Sequence[int] = SIDES_256, **changes: Any) -> MultiScaleVQTokenizerConfig:
    """The released tokenizer with another list of scales, or other fields replaced."""
    return MultiScaleVQTokenizerConfig(**{"levels": tuple(sides), **changes})


def _tokenizer_from_reference(settings: Mapping[str, Any]) -> MultiScaleVQTokenizerConfig:
    return tokenizer_config(
        settings["v_patch_nums"],
        base_channels=settings["ch"],
        channel_multipliers=tuple(settings.get("ch_mult", (1, 1, 2, 2, 4))),
        num_residual_blocks=settings.get("num_res_blocks", 2),
        encoder_channels=settings["z_channels"],
        code_channels=settings["z_channels"],
        quantization_kernel_size=settings["quant_conv_ks"],
        num_norm_groups=settings.get("norm_num_groups", 32),
        dropout=settings["dropout"],
        codebook_size=settings["vocab_size"],
        similarity="cosine" if settings["using_znorm"] else "euclidean",
        commitment_weight=settings["beta"],
        refinement_ratio=settings["quant_resi"],
        num_refinements=settings["share_quant_resi"] or None,
    )


def config_from_reference(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The config for the reference's constructor arguments (a generator with its tokenizer, or the tokenizer alone)."""
    if "var" not in settings:
        return _tokenizer_from_reference(settings)
    generator = settings["var"]
    tokenizer = _tokenizer_from_reference(settings["vae"])
    return generator_config(
        generator["depth"],
        tokenizer,
        image_size=16 * generator["patch_nums"][-1],
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
        label_smoothing=settings["loss"]["label_smooth"],
    )


def _tokenizer_rules(config: MultiScaleVQTokenizerConfig) -> tuple[Rename, ...]:
    refinements = {None: "quantize.quant_resi.{n}.{p}", 1: "quantize.quant_resi.qresi.{p}"}
    released = refinements.get(config.num_refinements, "quantize.quant_resi.qresi_ls.{n}.{p}")
    return (
        *taming_names(len(config.channel_multipliers), fused_attention=True),
        Rename("quantize.embedding.weight", "quantizer.codebook.weight"),
        Rename(released, "quantizer.refinements.{n}.{p}" if "{n}" in released else "quantizer.refinements.0.{p}"),
    )


def converter(config: PreTrainedConfig) -> Converter:
    """Names of a generator's or a tokenizer's file."""
    if isinstance(config, MultiScaleVQTokenizerConfig):
        rules = _tokenizer_rules(config)
    else:
        tokenizer_rules = _tokenizer_rules(config.tokenizer_config)
        rules = GENERATOR_RULES + with_prefix(tokenizer_rules, TOKENIZER_PREFIX, "tokenizer.")
    return Converter(rules, ignored=IGNORED, wrappers=WRAPPERS)


#: The paper's: `cfg` 1.5, which rises from no guidance at the first map to `1 + cfg` at the last.
SAMPLING = {"guidance_scale": LinearGuidance(1.0, 2.5), "top_k": 900, "top_p": 0.96}


def _preset(depth: int, parameters: float, sides: Sequence[int], *, share_modulation: bool = False) -> Preset:
    return Preset(
        config=lambda: generator_config(
            depth, tokenizer_config(sides), image_size=16 * sides[-1], share_modulation=share_modulation
        ),
        parameters=parameters,
        released_file=f"var_d{depth}.pth",
        hub_id="FoundationVision/var",
        sampling=SAMPLING,
    )


PRESETS = {
    "tokenizer": Preset(tokenizer_config, 109, "vae_ch160v4096z32.pth", "FoundationVision/var"),
    "d16": _preset(16, 310, SIDES_256),
    "d20": _preset(20, 600, SIDES_256),
    "d24": _preset(24, 1030, SIDES_256),
    "d30": _preset(30, 2010, SIDES_256),
    "d36-s": _preset(36, 2350, SIDES_512, share_modulation=True),
}

SYSTEM = System(
    name="var",
    title="VAR",
    paper="2404.02905",
    code_license="MIT",
    weights_license="unknown",
    presets=PRESETS,
    converter=converter,
    config_from_reference=config_from_reference,
    tokenizer_prefix=TOKENIZER_PREFIX,
    axes={
        "tokenizer": "multi-scale residual VQ",
        "plan": "scale",
        "backbone": "visual transformer (AdaLN blocks)",
        "head": "categorical with AdaLN",
        "condition": "class vector",
    },
)
