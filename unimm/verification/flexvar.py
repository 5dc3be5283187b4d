"""Replay of FlexVAR's reference numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..generation import RecordedRandomness
from ..systems.flexvar import SAMPLED_SIDES, guidance
from ..tokens import TokenLayout, VisualTokens
from .harness import Case, Probe


def replay(model: Any, case: Case, probe: Probe) -> Mapping[str, torch.Tensor]:
    return _generator(model, case, probe) if "flexvar" in case.settings else _tokenizer(model, case, probe)


def _generator(model: Any, case: Case, probe: Probe) -> dict[str, torch.Tensor]:
    given, run, out = case.inputs, case.settings["run"], {}
    with torch.no_grad(), probe.watch(block0="backbone.layers.0") as seen:
        tokens = model.encode_images(given["image"])
        forward = model(pixel_values=given["image"], labels=given["label"])
        out["forward.teacher_input"] = model.tokenizer.teacher_inputs(tokens)
    out |= {"forward.targets": tokens.ids, "forward.embedding": forward.slots, "forward.logits": forward.logits}
    out["forward.block0"] = seen["block0"]

    draws = RecordedRandomness({"condition_drop": given["loss.cond_drop_uniform"]})
    loss = model.train()(image_ids=tokens.ids, labels=given["label"], randomness=draws).loss
    model.eval()
    gradients = probe.gradients(loss)
    out["loss.value"] = loss
    out["loss.grad_word_embed"] = 100 * gradients["word_embed.weight"]
    out["loss.grad_pos"] = 100 * gradients["pos_1LC"][..., ::8, ::8]

    sides, labels = run["sample_patch_nums"], given["sample.label"]
    sampled = [side for side in SAMPLED_SIDES if side <= run["max_pn"]]
    drawn = model.generate(
        labels=labels,
        guidance_scale=guidance(sides, run["cfg"], run["max_pn"]),
        top_k=run["top_k"],
        top_p=run["top_p"],
        plan_options={"levels": sides, "sampled_sides": sampled},
        randomness={"token": given["sample.uniform"]},
        output_logits=True,
    )
    greedy = model.generate(
        labels=labels,
        guidance_scale=run["constant_cfg"],
        do_sample=False,
        plan_options={"levels": run["train_patch_nums"]},
        output_logits=True,
    )
    for name, result, levels in (("sample", drawn, sides), ("greedy", greedy, run["train_patch_nums"])):
        ids = VisualTokens(TokenLayout.pyramid(levels), ids=result.sequences)
        out |= {f"{name}.tokens": result.sequences, f"{name}.guided_logits": result.logits}
        out[f"{name}.image"] = model.tokenizer.decode(ids, clamp=False)
    return out


def _tokenizer(model: Any, case: Case, probe: Probe) -> dict[str, torch.Tensor]:
    given = case.inputs
    out: dict[str, torch.Tensor] = {}
    with torch.no_grad(), probe.watch(enc_out="encoder") as seen:
        features, tokens = model.encode_features(given["image"]), model.encode(given["image"])
        out |= {"pre_quant": features, "quant": model.quantize(features).quantized}
        layout, third = tokens.layout, tokens.layout.levels[2]
        out |= {"pyramid_indices": tokens.ids, "generator_input": model.teacher_inputs(tokens)}
        out["pyramid_quant_scale2"] = model.embed(tokens.level(2)).transpose(1, 2).unflatten(-1, third)
        out["decode_last"] = model.decode(tokens, clamp=False)
        out["decode_scale2"] = model.decode(tokens.first_levels(3), clamp=False)
        single = model.encode(given["image"], levels=[layout.final])
        out |= {"indices": single.ids, "decode_code": model.decode(single, clamp=False)}
        height, width = given["nonsquare.image"].shape[-2:]
        wide = model.encode(given["nonsquare.image"], levels=[(height // model.stride, width // model.stride)])
        out |= {"nonsquare.indices": wide.ids[0], "nonsquare.reconstruction": model.decode(wide, clamp=False)}
    out["enc_out"] = seen["enc_out"]
    features = features.requires_grad_()
    quantized = model.train().quantize(features)
    names = {"vq": "codebook", "commit": "commitment", "entropy": "entropy"}
    out |= {f"train.{theirs}_loss": quantized.losses[ours] for theirs, ours in names.items()}
    out["train.quant"] = quantized.quantized
    objective = 100 * sum(quantized.losses[ours] for ours in names.values())
    objective = objective + (quantized.quantized * given["grad_seed"]).sum()
    out["train.grad_pre_quant"] = torch.autograd.grad(objective, features, retain_graph=True)[0]
    out["train.grad_codebook"] = probe.gradients(objective)["quantize.embedding.weight"]
    return out
