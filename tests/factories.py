"""Tiny models of every class, for the tests that all classes go through."""

from __future__ import annotations

import torch
from transformers import AutoModel, Qwen3Config, SiglipVisionConfig

from unimm import UniMMConditionalConfig, UniMMImageGenerationConfig, UniMMImageProcessor, UniMMProcessor
from unimm.backbones import EncoderDecoderConfig, HalvesTransformerConfig, LLMBackboneConfig, VisualTransformerConfig
from unimm.models import word_tokenizer
from unimm.tokenizers import (
    BitwisePyramidTokenizerConfig,
    KLTokenizerConfig,
    MultiScaleVQTokenizerConfig,
    VQTokenizerConfig,
)
from unimm.tokenizers.losses import PatchDiscriminatorConfig, StyleDiscriminatorConfig

AUTOENCODER = {
    "base_channels": 8,
    "channel_multipliers": (1, 2, 2),
    "num_residual_blocks": 1,
    "encoder_channels": 16,
    "code_channels": 8,
    "codebook_size": 32,
    "num_norm_groups": 4,
    "usage_window": 256,
}
VQ = {"model_type": "unimm_vq_tokenizer", **AUTOENCODER}
PYRAMID = {"model_type": "unimm_multiscale_vq_tokenizer", **AUTOENCODER, "levels": (1, 2, 4)}
BITS = {
    "model_type": "unimm_bitwise_pyramid_tokenizer",
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "num_residual_blocks": 1,
    "encoder_channels": 6,
    "code_channels": 6,
    "num_norm_groups": 4,
    "levels": (1, 2, 4),
    "patch_side": 2,
}
LLAMA = {
    "model_type": "unimm_visual_transformer",
    "block": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
ADALN = {
    "model_type": "unimm_visual_transformer",
    "block": "adaln",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "use_bias": True,
    "query_value_bias": True,
    "normalize_queries_and_keys": True,
    "softmax_scale": 1.0,
    "rotary_theta": None,
    "initializer_range": None,
    "gate_initializer_gain": 1.0,
}
KL = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
ENCODER_DECODER = {
    "model_type": "unimm_encoder_decoder",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "decoder_hidden_size": 24,
    "decoder_num_layers": 2,
    "decoder_num_heads": 3,
    "decoder_intermediate_size": 48,
    "num_slots": 19,
    "num_prefix_slots": 3,
}
TEXT = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "tie_word_embeddings": False,
}

T5 = {"model_type": "t5", "d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 3}
CLIP = {
    "model_type": "clip_text_model",
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 8,
}
WORDS = ("a", "red", "blue", "circle", "square", "left", "of")


def raster_config(**changes) -> UniMMImageGenerationConfig:
    fields = {
        "tokenizer_config": VQ,
        "condition_config": {"model_type": "unimm_class_condition", "num_classes": 5, "form": "prefix"},
        "plan_config": {"model_type": "unimm_raster_plan"},
        "backbone_config": LLAMA,
        "head_config": {"model_type": "unimm_categorical_head"},
        "image_size": 16,
    }
    return UniMMImageGenerationConfig(**{**fields, **changes})


def text_config(**changes) -> UniMMImageGenerationConfig:
    condition = {"model_type": "unimm_text_condition", "feature_size": 12, "length": 6}
    return raster_config(condition_config=condition, **changes)


def prompt_config(null: str = "empty_prompt", encoder: dict | None = None, **changes) -> UniMMImageGenerationConfig:
    """A text-conditional generator with a text encoder of its own."""
    condition = {
        "model_type": "unimm_text_condition",
        "feature_size": 12,
        "length": 6,
        "null": null,
        "text_encoder": {"encoder_config": encoder or T5, "words": WORDS},
    }
    return raster_config(condition_config=condition, **changes)


def scale_config(**changes) -> UniMMImageGenerationConfig:
    fields = {
        "tokenizer_config": PYRAMID,
        "condition_config": {"model_type": "unimm_class_condition", "num_classes": 5, "form": "vector"},
        "plan_config": {"model_type": "unimm_scale_plan"},
        "backbone_config": ADALN,
        "head_config": {"model_type": "unimm_categorical_head", "norm": "adaln", "bias": True},
        "image_size": 16,
    }
    return UniMMImageGenerationConfig(**{**fields, **changes})


def whole_levels_config(**changes) -> UniMMImageGenerationConfig:
    """A generator for any list of scales, over levels that each hold the whole picture."""
    fields = {
        "tokenizer_config": {**VQ, "levels": (1, 2, 3, 4)},
        "plan_config": {"model_type": "unimm_scale_plan", "level_embedding": False, "position_map": (5, 6)},
    }
    return scale_config(**{**fields, **changes})


def bits_config(**changes) -> UniMMImageGenerationConfig:
    """Bits of a pyramid, text by cross-attention, rotary positions on a reference grid."""
    fields = {
        "tokenizer_config": BITS,
        "condition_config": {
            "model_type": "unimm_pooled_text_condition",
            "feature_size": 12,
            "length": 8,
            "num_pooling_heads": 2,
        },
        "plan_config": {
            "model_type": "unimm_scale_plan",
            "position_table": False,
            "num_level_rows": 5,
            "reference_grids": ((8, 8), (12, 8)),
            "balance_levels": True,
            "self_correction": 0.3,
        },
        "backbone_config": {**ADALN, "share_modulation": True, "memory_size": 32, "rotary_theta": 10000.0},
        "head_config": {"model_type": "unimm_bitwise_head", "norm": "adaln", "bias": True},
    }
    return scale_config(**{**fields, **changes})


def neighbour_config(**changes) -> UniMMImageGenerationConfig:
    fields = {
        "plan_config": {"model_type": "unimm_neighbour_plan"},
        "backbone_config": {**LLAMA, "tap_depths": (1, 2)},
        "head_config": {"model_type": "unimm_direction_head", "num_taps": 2},
    }
    return raster_config(**{**fields, **changes})


def neighbour_text_config(**changes) -> UniMMImageGenerationConfig:
    """Texts before the picture, and learned positions instead of rotary ones."""
    return neighbour_config(
        condition_config={"model_type": "unimm_text_condition", "feature_size": 12, "length": 6},
        plan_config={"model_type": "unimm_neighbour_plan", "num_prefix_positions": 6},
        backbone_config={**LLAMA, "tap_depths": (1, 2), "rotary_theta": None},
        **changes,
    )


HALVES = {
    "model_type": "unimm_halves_transformer",
    "hidden_size": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "num_decoder_attention_heads": 2,
    "intermediate_size": 40,
    "num_positions": 16,
}


def groups_config(unit: str = "cell", size: int | None = 2, **changes) -> UniMMImageGenerationConfig:
    """A generator of 4 x 4 latents, without a tokenizer."""
    fields = {
        "condition_config": {"model_type": "unimm_class_condition", "num_classes": 5, "form": "vector"},
        "plan_config": {"model_type": "unimm_groups_plan", "unit": unit, "size": size},
        "backbone_config": HALVES,
        "head_config": {"model_type": "unimm_flow_head", "num_inference_steps": 3},
        "image_size": 16,
        "token_layout": ((4, 4),),
        "latent_channels": 3,
    }
    return UniMMImageGenerationConfig(**{**fields, **changes})


def masked_config(**changes) -> UniMMImageGenerationConfig:
    """Ids in a random order, a learned vector where they are hidden."""
    return raster_config(
        **{"plan_config": {"model_type": "unimm_masked_plan", "num_steps": 5, "prefix_length": 1}, **changes}
    )


def mar_config(**changes) -> UniMMImageGenerationConfig:
    """Latents in a random order; the encoder does not see hidden ones, a diffusion head draws them."""
    fields = {
        "tokenizer_config": {"model_type": "unimm_kl_tokenizer", "autoencoder": KL, "patch_size": 2},
        "condition_config": {
            "model_type": "unimm_class_condition",
            "num_classes": 5,
            "form": "prefix",
            "prefix_length": 3,
        },
        "plan_config": {
            "model_type": "unimm_masked_plan",
            "num_steps": 5,
            "hidden_slots": "left_out",
            "prefix_length": 3,
            "input_norm": True,
        },
        "backbone_config": ENCODER_DECODER,
        "head_config": {
            "model_type": "unimm_diffusion_head",
            "hidden_size": 24,
            "num_layers": 2,
            "respacing": "ddim4",
            "num_noise_draws": 2,
            "output_initializer_range": 0.02,
        },
        "image_size": 16,
    }
    return UniMMImageGenerationConfig(**{**fields, **changes})


def latent_scale_config(cross_attention: bool = False, **changes) -> UniMMImageGenerationConfig:
    """Next-scale prediction of 4 x 4 latents, without a tokenizer."""
    fields = {
        "plan_config": {"model_type": "unimm_latent_scale_plan", "sides": (1, 2, 4)},
        "backbone_config": {**HALVES, "num_positions": 21, "output_positions": True},
        "head_config": {
            "model_type": "unimm_flow_transformer_head",
            "width": 16,
            "num_layers": 2,
            "head_width": 8,
            "extent": 4,
            "num_inference_steps": 4,
            "cross_attention": cross_attention,
        },
    }
    return groups_config(**{**fields, **changes})


def masked_scale_config(**changes) -> UniMMImageGenerationConfig:
    """A generator that predicts a level at once, and then its least certain tokens again."""
    head = {"model_type": "unimm_categorical_head", "norm": "adaln", "bias": True}
    fields = {
        "plan_config": {"model_type": "unimm_masked_scale_plan"},
        "backbone_config": {**ADALN, "model_type": "unimm_branched_transformer", "branch_layers": 1},
        "head_config": {"model_type": "unimm_phase_heads", "head_config": head},
    }
    return scale_config(**{**fields, **changes})


def llm_raster_config(**changes) -> UniMMImageGenerationConfig:
    backbone = {"model_type": "unimm_llm_backbone", "text_config": {"model_type": "qwen3", **TEXT}}
    return raster_config(backbone_config=backbone, **changes)


def conditional_config(vision: bool = False, **changes) -> UniMMConditionalConfig:
    fields = {
        "text_config": Qwen3Config(**TEXT),
        "tokenizer_config": VQ,
        "head_config": {"model_type": "unimm_categorical_head"},
        "image_size": 16,
        "image_token_id": 7,
        "visual_token_id": 8,
        "image_start_token_id": 9,
        "image_end_token_id": 10,
        "null_prompt_ids": (2,),
    }
    if vision:
        fields["vision_config"] = SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    return UniMMConditionalConfig(**{**fields, **changes})


CONFIGS = {
    "raster": raster_config,
    "text": text_config,
    "text_empty_prompt": prompt_config,
    "neighbour": neighbour_config,
    "neighbour_text": neighbour_text_config,
    "scale": scale_config,
    "scale_shared_modulation": lambda: scale_config(backbone_config={**ADALN, "share_modulation": True}),
    "scale_whole_levels": whole_levels_config,
    "scale_bits": bits_config,
    "scale_masked": masked_scale_config,
    "llm_raster": llm_raster_config,
    "groups": groups_config,
    "masked": masked_config,
    "mar": mar_config,
    "latent_scale": latent_scale_config,
    "latent_scale_cross": lambda: latent_scale_config(cross_attention=True),
    "conditional": conditional_config,
    "conditional_tied": lambda: conditional_config(text_config=Qwen3Config(**{**TEXT, "tie_word_embeddings": True})),
    "conditional_vision": lambda: conditional_config(vision=True),
    "backbone_llama": lambda: VisualTransformerConfig(**LLAMA),
    "backbone_adaln": lambda: VisualTransformerConfig(**ADALN),
    "backbone_halves": lambda: HalvesTransformerConfig(**HALVES),
    "backbone_encoder_decoder": lambda: EncoderDecoderConfig(**ENCODER_DECODER),
    "backbone_llm": lambda: LLMBackboneConfig(text_config={"model_type": "qwen3", **TEXT}),
    "vq_tokenizer": lambda: VQTokenizerConfig(**VQ),
    "patch_tokenizer": lambda: VQTokenizerConfig(**{**VQ, "patches": True, "channel_multipliers": (1, 1, 1)}),
    "multiscale_tokenizer": lambda: MultiScaleVQTokenizerConfig(**PYRAMID),
    "kl_tokenizer": lambda: KLTokenizerConfig(autoencoder=KL),
    "bitwise_tokenizer": lambda: BitwisePyramidTokenizerConfig(**BITS),
    "patch_discriminator": lambda: PatchDiscriminatorConfig(base_channels=8),
    "style_discriminator": lambda: StyleDiscriminatorConfig(
        base_channels=4, max_channels=16, num_levels=2, group_size=2
    ),
}
GENERATORS = (
    "raster",
    "text",
    "scale",
    "scale_shared_modulation",
    "scale_whole_levels",
    "scale_bits",
    "llm_raster",
    "neighbour",
    "neighbour_text",
    "scale_masked",
)
#: Generators without a cache, whose steps and teacher-forced passes hide different tokens.
MASKED = ("masked", "mar")
CONDITIONALS = ("conditional", "conditional_tied", "conditional_vision")


def build(name: str, seed: int = 0):
    torch.manual_seed(seed)
    return AutoModel.from_config(CONFIGS[name]()).eval()


CHAT_WORDS = ["draw", "a", "red", "circle", "what", "colour", "is", "it", "blue", "green", "square", "and", "then"]


def build_with_processor(seed: int = 0, **text):
    """A conditional model and the processor that speaks its words; `text` changes the language model."""
    processor = UniMMProcessor(
        UniMMImageProcessor(size={"height": 16, "width": 16}), word_tokenizer(CHAT_WORDS), num_visual_tokens=16
    )
    tokenizer = processor.tokenizer
    names = ("image", "visual", "image_start", "image_end")
    sizes = {**TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **text}
    config = conditional_config(
        text_config=Qwen3Config(**sizes),
        null_prompt_ids=processor.null_prompt_ids,
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names},
    )
    torch.manual_seed(seed)
    return AutoModel.from_config(config).eval(), processor


def prompts(processor, *texts, **options):
    """Texts as messages of a user who waits for an answer."""
    chats = [
        processor.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in texts
    ]
    return processor(text=chats, **options)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def condition_inputs(model, batch: int, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if model.condition.input_names[0] == "labels":
        return {"labels": torch.randint(0, 5, (batch,), generator=generator)}
    features = torch.randn(batch, 6, 12, generator=generator)
    mask = torch.ones(batch, 6, dtype=torch.long)
    left = model.config.condition_config.form == "prefix"
    for row in range(batch):
        mask[row, slice(0, row % 4) if left else slice(6 - row % 4, 6)] = 0
    return {"text_features": features * mask[..., None], "text_mask": mask}


def random_ids(model, batch: int, seed: int = 2) -> torch.Tensor:
    if not model.kind.is_discrete:
        shape = (batch, model.layout.length, model.kind.channels)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    codes = () if model.kind.num_codes == 1 else (model.kind.num_codes,)
    shape = (batch, model.layout.length, *codes)
    return torch.randint(0, model.kind.codebook_size, shape, generator=torch.Generator().manual_seed(seed))


def training_inputs(model, batch: int = 2) -> dict[str, torch.Tensor]:
    """What one forward pass with a loss takes, for image generators and conditional models."""
    if hasattr(model, "condition"):
        return {"image_ids": random_ids(model, batch), **condition_inputs(model, batch)}
    length = model.layout.length
    input_ids = torch.tensor([[2, 20, 21, 9, *[8] * length, 10, 3]] * batch)
    labels = torch.tensor([[-100, -100, -100, 9, *[8] * length, 10, 3]] * batch)
    inputs = {"input_ids": input_ids, "labels": labels, "image_ids": random_ids(model, batch)}
    if model.vision_encoder is not None:
        read = torch.tensor([[9, *[7] * model.num_image_features, 10]] * batch)
        inputs["input_ids"] = torch.cat([read, input_ids], dim=1)
        inputs["labels"] = torch.cat([torch.full_like(read, -100), labels], dim=1)
        inputs["pixel_values"] = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return inputs
