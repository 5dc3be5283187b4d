"""Replay of Infinity's reference numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..generation import ListedGuidance, RecordedRandomness
from ..tokens import TokenLayout
from .harness import Case, Probe


def replay(model: Any, case: Case, probe: Probe) -> Mapping[str, torch.Tensor]:
    return _tokenizer(model, case) if "infinity" not in case.settings else _generator(model, case, probe)


def _generator(model: Any, case: Case, probe: Probe) -> dict[str, torch.Tensor]:
    given, run = case.inputs, case.settings["run"]
    out: dict[str, torch.Tensor] = {}
    layout = TokenLayout(tuple(map(tuple, run["train_scales"])))
    prompts = _padded(given["text_cond.text"], given["text_cond.lens"])
    parts = {"self_attention0": "attention", "cross_attention0": "cross_attention", "block0": ""}
    watched = {name: f"backbone.layers.0.{part}".rstrip(".") for name, part in parts.items()}
    with torch.no_grad(), probe.watch(pooled_text="condition.pooling", text_kv="condition.fc2", **watched) as seen:
        tokens = model.encode_images(given["image"], layout)
        forward = model(image_ids=tokens.ids, layout=layout, **prompts)
    seen["text_kv"] = seen["text_kv"][prompts["text_mask"]]
    out |= {f"forward.{name}": states for name, states in seen.items()}
    out |= {"forward.input": model.tokenizer.teacher_inputs(tokens), "forward.target_bits": tokens.ids}
    out |= {"forward.embedding": forward.slots, "forward.logits": forward.logits.flatten(2)}

    draws = flips(given, tokens.batch_size, 0.3)
    loss = model.train()(pixel_values=given["image"], layout=layout, **prompts, randomness=draws).loss
    model.eval()
    out |= {"loss.value": loss, "loss.grad_word_embed": 100 * probe.gradients(loss)["word_embed.weight"]}
    weights = model.plan.loss_weights(layout)
    if weights is not None:
        out["loss.weights"] = weights[None] / weights.sum()

    common = {
        "prompt_embeds": (prompts := _padded(given["sample.text"], given["sample.lens"]))["text_features"],
        "prompt_attention_mask": prompts["text_mask"],
        "guidance_scale": ListedGuidance(tuple(run["cfg_list"])),
        "output_logits": True,
    }
    filters = {"temperature": run["tau_list"], "top_k": run["top_k"], "top_p": run["top_p"] or 1.0}
    temperatures = torch.tensor(run["tau_list"])[model.layout.level_ids(), None, None]
    drawn = model.generate(**common, **filters, randomness={"token": given["sample.uniform"]})
    greedy = model.generate(**common, do_sample=False)
    mixed = model.generate(**common, do_sample=False, guidance_layer=run["layer_cfg"][0])
    out |= {"sample.bits": drawn.sequences, "sample.image": drawn.images, "greedy.image": greedy.images}
    out["sample.codes"] = model.tokenizer.running_reconstruction(model.as_tokens(drawn.sequences))
    out |= {"greedy.bits": greedy.sequences, "layer_cfg.bits": mixed.sequences}
    out["layer_cfg.logits"] = mixed.logits / temperatures
    for name, result in {"sample": drawn, "greedy": greedy}.items():
        out[f"{name}.guided_logits"] = result.logits / temperatures
    return out


def _padded(packed: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
    """Prompts of unequal length under each other, padded on the right, and which positions are real."""
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    features = torch.zeros(*mask.shape, packed.shape[-1])
    features[mask] = packed
    return {"text_features": features, "text_mask": mask}


def _tokenizer(model: Any, case: Case) -> dict[str, torch.Tensor]:
    given, layout = case.inputs, model.config.layout
    out: dict[str, torch.Tensor] = {}
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
