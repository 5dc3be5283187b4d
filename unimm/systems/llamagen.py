"""LlamaGen: a Llama-style transformer over raster VQ tokens (https://huggingface.co/papers/2406.06525).

Its own: sizes, names of the released checkpoints, and how the reference spells its arguments. The rest is
`plans/raster.py`, `backbones/transformer.py` (blocks `llama`), `heads/categorical.py` and `tokenizers/vq.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ..conversion.base import Converter, Preset, Rename, System
from ..conversion.llama_names import TRUNK_RULES, WRAPPERS
from ..conversion.vqgan_names import llamagen_names, with_prefix
from ..models.image_generation import UniMMImageGenerationConfig
from ..tokenizers import VQTokenizerConfig
from ..tokenizers.losses import PatchDiscriminatorConfig

#: Where the tokenizer's keys stand when both released files become one.
TOKENIZER_PREFIX = "vq_model."
#: Reads the prompts of the text-conditional models.
TEXT_ENCODER = "google/flan-t5-xl"
#: Layers, heads and width.
SIZES = {
    "B": (12, 12, 768),
    "L": (24, 16, 1024),
    "XL": (36, 20, 1280),
    "XXL": (48, 24, 1536),
    "XXXL": (48, 40, 2560),
    "1B": (22, 32, 2048),
    "3B": (24, 32, 3200),
    "7B": (32, 32, 4096),
}


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
    text_encoder: str | None = None,
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
        if text_encoder is not None:
            condition["text_encoder"] = {"path": text_encoder}
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
    if "codebook_size" in settings:
        return tokenizer_config(
            base_channels=settings["ch"],
            channel_multipliers=tuple(settings["encoder_ch_mult"]),
            decoder_channel_multipliers=tuple(settings["decoder_ch_mult"]),
            num_residual_blocks=settings["num_res_blocks"],
            encoder_channels=settings["z_channels"],
            code_channels=settings["codebook_embed_dim"],
            codebook_size=settings["codebook_size"],
            unit_codes=settings["codebook_l2_norm"],
            commitment_weight=settings["commit_loss_beta"],
            entropy_weight=settings["entropy_loss_ratio"],
            dropout=settings["dropout_p"],
        )
    return PatchDiscriminatorConfig(
        image_channels=settings["input_nc"], base_channels=settings["ndf"], num_layers=settings["n_layers"]
    )


def tokenizer_config(**changes: Any) -> VQTokenizerConfig:
    """The released VQ-16 with some fields replaced."""
    return VQTokenizerConfig(**{"usage_window": 65536, **changes})


GENERATOR_RULES = (
    *TRUNK_RULES,
    Rename("norm.weight", "backbone.final_norm.weight"),
    Rename("output.weight", "head.proj.weight"),
)

TOKENIZER_RULES = (
    *llamagen_names(),
    Rename("quantize.embedding.weight", "quantizer.codebook.weight"),
    Rename("quantize.codebook_used", "quantizer.codebook.recent_ids"),
)


def discriminator_rules(num_layers: int) -> tuple[Rename, ...]:
    """The PatchGAN's `main.N` is numbered through convolutions, norms and activations."""
    rules = [Rename("main.0.{p}", "convolutions.0.{p}")]
    for layer in range(1, num_layers + 1):
        convolution = 3 * layer - 1
        rules.append(Rename(f"main.{convolution}.weight", f"convolutions.{layer}.weight"))
        rules += [
            Rename(f"main.{convolution + 1}.{name}", f"norms.{layer - 1}.{name}")
            for name in ("{p}", "running_mean", "running_var", "num_batches_tracked")
        ]
    rules.append(Rename(f"main.{3 * num_layers + 2}.{{p}}", f"convolutions.{num_layers + 1}.{{p}}"))
    return tuple(rules)


def converter(config: PreTrainedConfig) -> Converter:
    """Names of a generator's, a tokenizer's or a discriminator's file."""
    if isinstance(config, VQTokenizerConfig):
        rules: tuple[Rename, ...] = TOKENIZER_RULES
    elif isinstance(config, PatchDiscriminatorConfig):
        rules = discriminator_rules(config.num_layers)
    else:
        rules = GENERATOR_RULES + with_prefix(TOKENIZER_RULES, TOKENIZER_PREFIX, "tokenizer.")
    return Converter(rules, ignored=("freqs_cis",), wrappers=WRAPPERS)


#: Those of the released demonstrations; scores are measured at a guidance of 1.65 to 2 without top-k.
CLASS_SAMPLING = {"guidance_scale": 4.0, "top_k": 2000}
TEXT_SAMPLING = {"guidance_scale": 7.5, "top_k": 1000}


def _class_preset(size: str, grid: int, parameters: float, released: bool = True) -> Preset:
    return Preset(
        config=lambda: generator_config(*SIZES[size], grid=grid),
        parameters=parameters,
        released_file=f"c2i_{size}_{16 * grid}.pt" if released else "",
        hub_id="FoundationVision/LlamaGen" if released else "",
        sampling=CLASS_SAMPLING,
    )


def _text_preset(stage: int, grid: int) -> Preset:
    return Preset(
        config=lambda: generator_config(*SIZES["XL"], grid=grid, text=True, text_encoder=TEXT_ENCODER),
        parameters=775,
        released_file=f"t2i_XL_stage{stage}_{16 * grid}.pt",
        hub_id="peizesun/llamagen_t2i",
        sampling=TEXT_SAMPLING,
    )


PRESETS = {
    "vq-16": Preset(tokenizer_config, 72, "vq_ds16_c2i.pt", "FoundationVision/LlamaGen"),
    "vq-8": Preset(
        lambda: tokenizer_config(channel_multipliers=(1, 2, 2, 4)), 70, "vq_ds8_c2i.pt", "FoundationVision/LlamaGen"
    ),
    "c2i-B-256": _class_preset("B", 16, 111),
    "c2i-B-384": _class_preset("B", 24, 111),
    "c2i-L-256": _class_preset("L", 16, 343),
    "c2i-L-384": _class_preset("L", 24, 343),
    "c2i-XL-384": _class_preset("XL", 24, 775),
    "c2i-XXL-384": _class_preset("XXL", 24, 1400),
    "c2i-3B-384": _class_preset("3B", 24, 3100),
    "c2i-1B-384": _class_preset("1B", 24, 1200, released=False),
    "c2i-XXXL-384": _class_preset("XXXL", 24, 3900, released=False),
    "c2i-7B-384": _class_preset("7B", 24, 6600, released=False),
    "t2i-XL-256": _text_preset(1, 16),
    "t2i-XL-512": _text_preset(2, 32),
}

SYSTEM = System(
    name="llamagen",
    title="LlamaGen",
    paper="2406.06525",
    code_license="MIT",
    weights_license="unknown",
    presets=PRESETS,
    converter=converter,
    config_from_reference=config_from_reference,
    tokenizer_prefix=TOKENIZER_PREFIX,
    axes={
        "tokenizer": "VQ, unit codes",
        "plan": "raster",
        "backbone": "visual transformer (llama blocks, 2D rotary)",
        "head": "categorical",
        "condition": "class or text prefix",
    },
)
