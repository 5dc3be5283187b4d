"""Replay of NAR's reference numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..generation import IntervalGuidance, RecordedRandomness
from ..plans import AttentionRule
from ..plans.neighbour import generation_order
from .harness import Case, Probe


def replay(model: Any, case: Case, probe: Probe) -> Mapping[str, torch.Tensor]:
    given, out = case.inputs, {}
    if "caption" in given:
        inputs = {"text_features": given["caption"], "text_mask": given["caption_mask"]}
    else:
        inputs = {"labels": given["label"]}
    condition = model.condition(**inputs)
    # The sequence is kept in the order of generation, the reference's in raster order.
    order = generation_order(model.layout).argsort() + condition.prefix_length
    order = torch.cat([torch.arange(condition.prefix_length), order])
    num_slots = len(order)
    blocks = model.plan.rule(model.layout, condition, num_slots).blocks
    mask = AttentionRule(blocks).dense()[0]
    out["mask"] = mask[order][:, order]

    draws = {"condition_drop": 1.0 - given["loss.drop"].float()}
    options = inputs | {"image_ids": given["ids"], "drop_condition": True}
    loss = model(**options, randomness=RecordedRandomness(draws))
    gradients = probe.gradients(loss.loss)
    out["loss.loss"] = loss.loss
    out["sample.ids_nocfg"] = model.generate(**inputs, do_sample=False).sequences
    if model.layout.num_dimensions == 3:
        out |= {"loss.logits": loss.logits, "loss.grad_output_B": gradients["output_B.weight"]}
        out["loss.grad_abs_pe"] = gradients["abs_pe"]
        out["sample.ids_cfg"] = model.generate(**inputs, guidance_scale=2.0, do_sample=False).sequences
        return out

    out["loss.grad_medusa_output"] = gradients["medusa_output.weight"]
    out["loss.grad_tok_embeddings"] = gradients["tok_embeddings.weight"]
    parts = {"block0": "layers.0", "norm_right": "tap_norms.0", "norm_below": "final_norm"}
    watched = {name: f"backbone.{part}" for name, part in parts.items()}
    with torch.no_grad(), probe.watch(**watched) as seen:
        out["forward.logits"] = model(image_ids=given["ids"], **inputs, feed_every_token=True).logits
    out |= {f"forward.{name}": states[:, order] for name, states in seen.items()}

    drawn = model.generate(**inputs, guidance_scale=2.5, do_sample=False)
    out |= {"sample.ids_cfg": drawn.sequences, "sample.model_calls": torch.tensor(drawn.num_backbone_calls)}
    # The reference's interval counts the tokens that are there before a step.
    steps, half = model.plan.steps(model.layout, condition.prefix_length), model.layout.length // 2
    last = max(step.index for step in steps[1:] if steps[step.index - 1].num_placed <= half)
    interval = IntervalGuidance(2.5, start=0, stop=last)
    out["sample.ids_cfg_interval"] = model.generate(**inputs, guidance_scale=interval, do_sample=False).sequences
    return out
