"""Replay of FlowAR's reference numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..generation import LinearGuidance, RecordedRandomness
from ..generation.guidance import Guide
from ..generation.loop import progress_of
from .harness import Case, Probe


def replay(model: Any, case: Case, probe: Probe) -> Mapping[str, torch.Tensor]:
    given = case.inputs
    out: dict[str, torch.Tensor] = {}
    pyramid = model.plan.generation_layout()
    levels = range(pyramid.num_levels)

    def recorded(name: str) -> torch.Tensor:
        return torch.cat([given[name.format(level)].flatten() for level in levels])

    draws = {
        "condition_drop": given["loss.label_drop_u"],
        "time": recorded("loss.scale{}.t"),
        "noise": recorded("loss.scale{}.noise"),
    }
    taps = {"z_proj_ln": "backbone.input_norm", "enc_block0": "backbone.encoder.0", "dec_block0": "backbone.decoder.0"}
    with (
        probe.watch(**taps) as seen,
        probe.watch_calls("head.proj") as velocities,
        probe.watch_calls("head.layers.0") as blocks,
    ):
        trained = model(
            image_ids=given["loss.latents"].flatten(2).mT,
            labels=given["loss.labels"],
            drop_condition=True,
            randomness=RecordedRandomness(draws),
        )
    out |= {f"loss.{name}": tensor for name, tensor in seen.items()}
    out["loss.z_proj_ln"] = seen["z_proj_ln"][:, :25]
    out["loss.flow_block0_last_scale"] = blocks[-1][:, :5]
    out |= {
        "loss.loss": trained.loss[None],
        "loss.z": trained.predicting_states,
        "loss.v": torch.cat(velocities, dim=1),
    }
    out["loss.grad_z_proj"] = probe.gradients(trained.loss)["z_proj.weight"]

    call = case.config["call"]
    guidance = LinearGuidance(1.0, call["cfg"], times=(0.0, call["guidance"]))
    scales = guidance.scales(progress_of(model.plan.steps(pyramid, 0), pyramid))
    with probe.watch_calls("backbone") as conditions:
        drawn = model.generate(
            labels=given["sample.labels"],
            guidance_scale=guidance,
            num_inference_steps=call["num_steps"],
            randomness=RecordedRandomness({"noise": recorded("sample.scale{}.init")}),
        ).sequences
    for level in levels:
        noise = RecordedRandomness({"noise": given[f"sample.scale{level}.init"]})
        guide = Guide(scales[level], 2, guidance.times)
        with torch.no_grad():
            out[f"sample.scale{level}.tokens"] = model.head.integrate(
                conditions[level], pyramid.levels[level], guide, noise, call["num_steps"]
            )
        out[f"sample.scale{level}.z"] = conditions[level][:, :4]
        out[f"sample.scale{level}.cfg"] = torch.tensor([scales[level]], dtype=torch.float64)
    out["sample.latents"] = drawn[:, pyramid.level_slice(pyramid.num_levels - 1)].mT.unflatten(2, pyramid.final)
    return out
