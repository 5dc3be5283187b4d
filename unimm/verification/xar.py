"""Replay of xAR's reference numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..generation import LinearGuidance, RecordedRandomness
from ..heads.flow import network_times
from .harness import Case, Probe

GUIDANCE, NUM_STEPS, NUM_CELLS = 2.7, 5, 4


def replay(model: Any, case: Case, probe: Probe) -> Mapping[str, torch.Tensor]:
    given, out = case.inputs, {}
    draws = RecordedRandomness(
        {
            "condition_drop": given["loss.label_drop_u"],
            "time": given["loss.time"].double().logit(),
            "noise": given["loss.noise"],
        }
    )
    taps = {
        "z_proj_ln": "backbone.input_norm",
        "enc_block0": "backbone.encoder.0",
        "enc_norm": "backbone.encoder_norm",
        "dec_block0": "backbone.decoder.0",
    }
    with probe.watch(**taps) as seen:
        trained = model(
            image_ids=given["loss.latents"].flatten(2).mT,
            labels=given["loss.labels"],
            drop_condition=True,
            randomness=draws,
        )
    out["loss.v"] = model.head.velocity(trained.predicting_states)
    out["loss.loss"] = trained.loss[None]
    out |= {f"loss.{name}": tensor for name, tensor in seen.items()}
    out["loss.grad_z_proj"] = probe.gradients(trained.loss)["z_proj.weight"]

    cells = range(NUM_CELLS)
    draws = RecordedRandomness(
        {
            "noise": torch.cat([given[f"sample.cell{cell}.init"].flatten() for cell in cells]),
            "step_noise": torch.cat([given[f"sample.cell{cell}.noise"].flatten() for cell in cells]),
        }
    )
    with probe.watch_calls("head.proj") as velocities:
        drawn = model.generate(
            labels=given["sample.labels"],
            guidance_scale=LinearGuidance(1.0, GUIDANCE),
            num_inference_steps=NUM_STEPS,
            randomness=draws,
        )
    for cell in cells:
        out[f"sample.cell{cell}.t_index"] = network_times(model.head.times(NUM_STEPS)[:-1]).long()
        out[f"sample.cell{cell}.v_first"] = velocities[NUM_STEPS * cell]
        out[f"sample.cell{cell}.v_last"] = velocities[NUM_STEPS * cell + NUM_STEPS - 1]
    out["sample.latents"] = drawn.sequences.mT.unflatten(2, model.layout.final)
    out["token_order"] = model.plan.order()
    return out
