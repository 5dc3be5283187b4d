"""Replay of HMAR's reference numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ..generation import RecordedRandomness
from ..systems import hmar
from .harness import Case, Probe


def replay(model: Any, case: Case, probe: Probe) -> Mapping[str, torch.Tensor]:
    if "mask_schedule" in case.settings["run"]:
        return _merged(model, case)
    return _refinement(model, case, probe) if "p_mask" in case.settings["run"] else _next_scale(model, case, probe)


def _next_scale(model: Any, case: Case, probe: Probe) -> dict[str, torch.Tensor]:
    given, run, sides = case.inputs, case.settings["run"], case.settings["model"]["patch_nums"]
    out: dict[str, torch.Tensor] = {}
    with torch.no_grad(), probe.watch(block0="backbone.layers.0") as seen:
        forward = model(image_ids=given["indices"], labels=given["label"])
        out["forward.teacher_input"] = model.tokenizer.teacher_inputs(model.as_tokens(given["indices"]))
    out |= {"forward.embedding": forward.slots, "forward.logits": forward.logits, "forward.block0": seen["block0"]}
    model.train()
    for name, weights in (
        ("lognorm", hmar.lognorm_level_weights(sides)),
        ("equal", hmar.equal_level_weights(sides)),
        ("uniform", None),
    ):
        model.plan.level_weights = weights
        draws = RecordedRandomness({"condition_drop": given["loss.cond_drop_uniform"]})
        out[f"loss.{name}"] = model(image_ids=given["indices"], labels=given["label"], randomness=draws).loss
        if weights is not None:
            layout = model.layout
            out[f"loss.weights_{name}"] = torch.tensor(weights)[layout.level_ids()][None] / layout.length
    drawn = model.eval().generate(
        labels=given["sample.label"],
        guidance_scale=hmar.guidance(run["cfg"]),
        top_k=run["top_k"],
        top_p=run["top_p"],
        randomness={"token": given["sample.uniform"]},
        output_logits=True,
    )
    out |= {"sample.guided_logits": drawn.logits, "sample.tokens": drawn.sequences}
    out["sample.image"] = (drawn.images + 1) / 2
    return out


def _refinement(model: Any, case: Case, probe: Probe) -> dict[str, torch.Tensor]:
    given, run, layout = case.inputs, case.settings["run"], model.layout
    orders = [given[f"mask_order.{level}"] for level in range(1, layout.num_levels)]
    # An order comes back when the ranks of the positions are what is sorted.
    ranks = torch.cat([order.argsort() / len(order) for order in orders])
    draws = {"mask_share": torch.tensor([run["p_mask"]]), "mask_order": ranks}
    inputs = {"image_ids": given["indices"], "labels": given["label"]}
    with torch.no_grad(), probe.watch(block0="backbone.layers.0") as seen:
        forward = model(**inputs, randomness=RecordedRandomness(draws))
        masked = model.plan.draw_masked(layout, RecordedRandomness(draws), given["label"].device)
        features = model.plan.own_contributions(model.as_tokens(given["indices"]), model.tokenizer)
    out = {"forward.embedding": forward.slots, "forward.logits": forward.logits, "forward.block0": seen["block0"]}
    out["mask_input"] = features
    out["masked_positions"] = masked - layout.offsets[1]
    recorded = {**draws, "condition_drop": given["loss.cond_drop_uniform"]}
    out["loss.value"] = model.train()(**inputs, randomness=RecordedRandomness(recorded)).loss
    hmar.train_refinement_only(model.eval(), case.settings["model"]["n_layers_train"])
    named = [(name, one) for name, one in model.named_parameters() if not name.startswith("tokenizer.")]
    # The mask vector stands last in the reference.
    named.sort(key=lambda item: item[0].startswith("plan.mask_embedding"))
    out["trainable"] = torch.tensor([one.requires_grad for _, one in named])
    return out


def _merged(model: Any, case: Case) -> dict[str, torch.Tensor]:
    given, run = case.inputs, case.settings["run"]
    out: dict[str, torch.Tensor] = {}
    calls: list[torch.Tensor] = []

    def keep(drawer: Any, step: int, num_tokens: int, tensors: dict[str, torch.Tensor]) -> None:
        calls.append(tensors["ids"])

    draw = partial(
        model.generate, labels=given["sample.label"], guidance_scale=hmar.guidance(run["cfg"]), output_logits=True
    )
    schedule = {"schedule": run["mask_schedule"]}
    filters = {"top_k": run["top_k"], "top_p": run["top_p"]}
    uniform = {"token": given["sample.uniform"]}
    drawn = draw(**filters, plan_options=schedule, randomness=uniform, callback_on_step_end=keep)
    greedy = draw(do_sample=False, plan_options=schedule)
    plain = draw(**filters, randomness={"token": given["nomask.uniform"]})
    out |= {"sample.tokens_all_steps": torch.cat(calls, dim=1), "nomask.logits": plain.logits}
    for name, result in (("sample", drawn), ("greedy", greedy), ("nomask", plain)):
        out |= {f"{name}.tokens": result.sequences, f"{name}.image": (result.images + 1) / 2}
        if name != "nomask":
            out[f"{name}.logits_all_steps"] = result.logits
    return out
