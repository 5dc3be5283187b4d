"""HMAR: next-scale prediction that sees one scale at a time, with masked refinement inside of a scale
(https://huggingface.co/papers/2506.04421).

Its own: sizes, names of the released checkpoints, how the reference spells its arguments, and the weights of its levels. The
rest is VAR's (`systems/var.py`), `plans/masked_scale.py`, `backbones/branched.py` and `heads/phases.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist, mean, stdev
from typing import Any

from transformers import PreTrainedConfig

from ..conversion.base import Converter, Preset, Rename, System
from ..conversion.vqgan_names import with_prefix
from ..generation.guidance import LinearGuidance, PhaseGuidance
from ..models.building import replace_fields
from ..models.image_generation import UniMMImageGenerationConfig
from . import var

#: Blocks that each branch of the released models has for itself.
BRANCH_LAYERS = 8
#: Refines the second and the third map.
SCHEDULE = ((1,), (1, 3), (1, 1, 2, 5), (16,), (25,), (36,), (64,), (100,), (169,), (256,))


def equal_level_weights(sides: Sequence[int]) -> tuple[float, ...]:
    """Weights of tokens by which every level counts alike, `tokens in all / tokens of the level` (of the sum, not the mean)."""
    length = sum(side * side for side in sides)
    return tuple(length / side**2 for side in sides)


def lognorm_level_weights(sides: Sequence[int]) -> tuple[float, ...]:
    """Weights of tokens by which the middle levels count most, mean 1 over the tokens.

    A level's share is the normal density of the ratio of side to last side, taken from the other end of the list.
    """
    ratios = [side / sides[-1] for side in sides]
    density = NormalDist(mean(ratios), stdev(ratios)).pdf
    shares = [density(ratio) for ratio in reversed(ratios)]
    length = sum(side * side for side in sides)
    return tuple(length * share / sum(shares) / side**2 for share, side in zip(shares, sides, strict=True))


def guidance(scale: float) -> PhaseGuidance:
    """VAR's rising guidance of the next scale, none in the refinement; `scale` is the reference's `cfg`."""
    return PhaseGuidance((LinearGuidance(1.0, 1.0 + scale, over="levels"), 1.0))


def next_scale_config(
    depth: int, tokenizer: PreTrainedConfig, sides: Sequence[int], **fields: Any
) -> UniMMImageGenerationConfig:
    """The first stage: VAR's generator, seeing one scale at a time, with the middle scales weighing most."""
    plan = {"visible": "own", "level_weights": lognorm_level_weights(sides)}
    return var.generator_config(depth, tokenizer, image_size=16 * sides[-1], plan=plan, **fields)


def refinement_config(
    depth: int, tokenizer: PreTrainedConfig, sides: Sequence[int], **fields: Any
) -> UniMMImageGenerationConfig:
    """The second stage: the same network, which predicts masked tokens of a scale from the others."""
    plan = {"model_type": "unimm_masked_scale_plan", "visible": "own", "refinement_only": True}
    return var.generator_config(depth, tokenizer, image_size=16 * sides[-1], plan=plan, **fields)


def generator_config(
    depth: int,
    tokenizer: PreTrainedConfig,
    sides: Sequence[int],
    *,
    branch_layers: int = BRANCH_LAYERS,
    **fields: Any,
) -> UniMMImageGenerationConfig:
    """Both stages in one network: the last `branch_layers` blocks and the head exist twice."""
    config = refinement_config(depth, tokenizer, sides, **fields)
    plan, backbone = config.plan_config.to_dict(), config.backbone_config.to_dict()
    plan |= {"refinement_only": False, "level_weights": lognorm_level_weights(sides)}
    return replace_fields(
        config,
        plan_config=plan,
        backbone_config=backbone | {"model_type": "unimm_branched_transformer", "branch_layers": branch_layers},
        head_config={"model_type": "unimm_phase_heads", "head_config": config.head_config.to_dict()},
    )


def config_from_reference(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The config for the reference's constructor arguments: a network of the first or second stage, or the merged one."""
    given = settings["model"]
    tokenizer = var.config_from_reference(settings["vae"])
    fields: dict[str, Any] = {
        "hidden_size": given["embed_dim"],
        "num_heads": given["num_heads"],
        "mlp_ratio": given["mlp_ratio"],
        "share_modulation": given["shared_aln"],
        "normalize_queries_and_keys": given["attn_l2_norm"],
        "num_classes": given["num_classes"],
        "drop_probability": given["cond_drop_rate"],
        "norm_eps": given["norm_eps"],
        "dropout": given["drop_rate"],
        "attention_dropout": given["attn_drop_rate"],
        "drop_path": given["drop_path_rate"],
    }
    build = next_scale_config
    if "n_layers_train" in given:
        build = refinement_config
        if "using_block_sparse_attn" not in given:
            # Only the merged network is without that argument.
            build, fields["branch_layers"] = generator_config, given["n_layers_train"]
    return build(given["depth"], tokenizer, given["patch_nums"], **fields)


def _renamed(rules: Sequence[Rename], *replacements: tuple[str, str], ours: tuple[str, str]) -> list[Rename]:
    """VAR's rules for blocks or heads under other names."""
    renamed = []
    for rule in rules:
        for theirs, other in replacements:
            if rule.released.startswith(theirs):
                own = rule.ours.replace(*ours)
                renamed.append(Rename(rule.released.replace(theirs, other, 1), own, rule.leading_ones))
    return renamed


def _merged_rules(depth: int, branch_layers: int) -> tuple[Rename, ...]:
    blocks = ("blocks.{n}.", "backbone.layers.{n}")
    base = depth - branch_layers
    rules = _renamed(var.GENERATOR_RULES, (blocks[0], "base_blocks.{n}."), ours=(blocks[1], blocks[1]))
    for index in range(branch_layers):
        ours = f"backbone.layers.{base + index}"
        # Before the base's rules: the templates of those know no upper bound.
        rules = [
            *_renamed(var.GENERATOR_RULES, (blocks[0], f"ns_blocks.{index}."), ours=(blocks[1], ours)),
            *_renamed(
                var.GENERATOR_RULES,
                (blocks[0], f"mask_blocks.{index}."),
                ours=(blocks[1], f"backbone.branches.0.{index}"),
            ),
            *rules,
        ]
    for phase, name in enumerate(("ns_", "mask_")):
        heads = [rule for rule in var.GENERATOR_RULES if rule.released.startswith("head")]
        rules += [Rename(name + one.released, one.ours.replace("head.", f"head.heads.{phase}.", 1)) for one in heads]
    return tuple(rules)


#: Names that the second stage and the merged network have of their own.
REFINEMENT_RULES = (
    Rename("word_embed.weight", "plan.input_projection.weight"),
    Rename("word_embed_bias", "plan.input_projection.bias"),
    Rename("mask_embed.weight", "plan.mask_embedding.weight"),
)


def converter(config: PreTrainedConfig) -> Converter:
    """Names of a generator's or a tokenizer's file."""
    if not isinstance(config, UniMMImageGenerationConfig):
        return var.converter(config)
    rules: tuple[Rename, ...] = var.GENERATOR_RULES
    if config.plan_config.model_type == "unimm_masked_scale_plan":
        rules = REFINEMENT_RULES + rules
    if config.backbone_config.model_type == "unimm_branched_transformer":
        own = _merged_rules(config.backbone_config.num_hidden_layers, config.backbone_config.branch_layers)
        rules = REFINEMENT_RULES + own + rules
    tokenizer = var.converter(config.tokenizer_config).rules
    rules = rules + with_prefix(tokenizer, var.TOKENIZER_PREFIX, "tokenizer.")
    ignored = (*var.IGNORED, r"(base|ns|mask)_blocks\.\d+\.attn\.zero_k_bias")
    return Converter(rules, ignored=ignored, wrappers=var.WRAPPERS)


def train_refinement_only(model: Any, num_layers: int = BRANCH_LAYERS) -> None:
    """Freezes what the second stage keeps of the first: all but the last blocks, the head and the mask vector."""
    for part in (model.condition, model.plan, model.backbone):
        part.requires_grad_(False)
    model.plan.mask_embedding.requires_grad_(True)
    for layer in model.backbone.layers[-num_layers:]:
        layer.requires_grad_(True)


SAMPLING = {
    "guidance_scale": guidance(1.7),
    "top_k": 1000,
    "top_p": 0.99,
    "plan_options": {"schedule": [list(counts) for counts in SCHEDULE]},
}


def _preset(depth: int, parameters: float) -> Preset:
    return Preset(
        config=lambda: generator_config(depth, var.tokenizer_config(), var.SIDES_256),
        parameters=parameters,
        released_file=f"hmar-d{depth}.pth",
        hub_id="nvidia/HMAR",
        sampling=SAMPLING,
    )


PRESETS = {"d16": _preset(16, 468), "d20": _preset(20, 846), "d24": _preset(24, 1384), "d30": _preset(30, 2556)}

SYSTEM = System(
    name="hmar",
    title="HMAR",
    paper="2506.04421",
    code_license="NVIDIA License (non-commercial)",
    weights_license="NVIDIA License (non-commercial)",
    presets=PRESETS,
    converter=converter,
    config_from_reference=config_from_reference,
    tokenizer_prefix=var.TOKENIZER_PREFIX,
    axes={
        "tokenizer": "multi-scale residual VQ",
        "plan": "scale, own level only, masked refinement",
        "backbone": "visual transformer (AdaLN blocks), two ends",
        "head": "categorical with AdaLN, one per phase",
        "condition": "class vector",
    },
)
