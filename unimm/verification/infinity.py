"""Replay of Infinity's reference numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..generation import RecordedRandomness
from .harness import Case, Probe


def replay(model: Any, case: Case, probe: Probe) -> Mapping[str, torch.Tensor]:
    return _tokenizer(model, case)


def _tokenizer(model: Any, case: Case) -> dict[str, torch.Tensor]:
    given, layout, out = case.inputs, model.config.layout, {}
    strength = case.settings["bsc"]["noise_apply_strength"]
    with torch.no_grad():
        out["h"] = features = model.encode_features(given["image"])
        tokens = model.encode(given["image"])
        out |= {"bits": tokens.ids, "quantized": model.eval().quantize(features).quantized}
        out["reconstruction"] = model.decode_canvas(out["quantized"])
        canvases = list(model.quantizer.running(tokens.ids, layout))
        resized = [
            model.quantizer.resize_canvas(canvas, size, "area")
            for canvas, size in zip(canvases, layout.levels[1:], strict=False)
        ]
        out["area_inputs"] = torch.cat(resized, dim=1).transpose(1, 2)
        out["summed_codes"] = model.running_reconstruction(tokens)[:, :, None]
        out["reconstruction_from_bits"] = model.decode(tokens)
        out["reconstruction_2scales"] = model.decode(tokens.first_levels(2))
        each, overall, probabilities = model.entropies(given["entropy_z"].flatten(0, -2))
        out |= {"entropy.per_sample": each, "entropy.codebook": overall, "entropy.mean_prob": probabilities}
        draws = flips(given, len(features), strength)
        targets, inputs = model.self_corrected(features, layout, draws, strength=strength)
        out |= {"bsc.target_bits": targets, "bsc.generator_input": inputs}
        out |= {"clean.target_bits": tokens.ids, "clean.generator_input": model.teacher_inputs(tokens)}
    return out


def flips(given: Mapping[str, torch.Tensor], batch_size: int, strength: float) -> RecordedRandomness:
    """The recorded flips: one strength per level for the whole batch, in whole percents, is one per sample here."""
    percents = given["bsc.strength_percent"].repeat_interleave(batch_size)
    draws = {"flip_strength": (percents + 0.5) / (round(100 * strength) + 1), "flip": given["bsc.uniform"]}
    if "loss.cond_drop_uniform" in given:
        draws["condition_drop"] = given["loss.cond_drop_uniform"]
    return RecordedRandomness(draws)
