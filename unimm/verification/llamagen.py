"""Replay of LlamaGen's reference numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..generation import IntervalGuidance, RecordedRandomness, token_filters
from ..tokenizers.losses import adversarial_discriminator_loss, adversarial_generator_loss
from ..tokens import VisualTokens
from .harness import Case, Probe


def replay(model: Any, case: Case, probe: Probe) -> Mapping[str, torch.Tensor]:
    if "n_layer" in case.settings:
        return _generator(model, case, probe)
    return _tokenizer(model, case, probe) if "codebook_size" in case.settings else _discriminator(model, case)


def _generator(model: Any, case: Case, probe: Probe) -> dict[str, torch.Tensor]:
    given, out = case.inputs, {}
    if "caption" in given:
        condition = {"text_features": given["caption"], "text_mask": given["caption_mask"]}
    else:
        condition = {"labels": given["label"]}
    with torch.no_grad(), probe.watch(block0="backbone.layers.0") as seen:
        forward = model(image_ids=given["ids"], feed_every_token=True, **condition)
        out["forward.logits"] = model.head.logits(forward.last_hidden_state)
    out |= {"forward.embedding": forward.slots, "forward.block0": seen["block0"]}
    out["forward.norm"] = forward.last_hidden_state

    draws = {"condition_drop": 1.0 - given["loss.drop"].float()}
    extra = {"valid": given["loss.valid"]} if "loss.valid" in given else {}
    options = condition | extra | {"image_ids": given["ids"], "drop_condition": True}
    output = model(**options, randomness=RecordedRandomness(draws))
    gradients = probe.gradients(output.loss)
    out |= {"loss.logits": output.logits, "loss.loss": output.loss}
    out["loss.grad_tok_embeddings"] = gradients["tok_embeddings.weight"]
    out["loss.grad_wqkv0"] = gradients["layers.0.attention.wqkv.weight"]

    half = given["ids"].shape[1] // 2
    out["sample.ids_cfg"] = model.generate(**condition, guidance_scale=3.0, do_sample=False).sequences
    interval = IntervalGuidance(3.0, start=0, stop=half + 1)
    out["sample.ids_cfg_interval"] = model.generate(
        **condition, guidance_scale=interval, temperature=0.8, do_sample=False
    ).sequences
    out["sample.ids_nocfg"] = model.generate(**condition, do_sample=False).sequences

    logits = given["filter.logits"]
    for name, filters in {
        "probs": token_filters(temperature=0.7, top_k=9, top_p=0.8),
        "probs_topk_only": token_filters(top_k=5),
        "probs_topp_only": token_filters(top_p=0.5),
    }.items():
        out[f"filter.{name}"] = filters(logits.new_zeros(len(logits), 0, dtype=torch.long), logits).softmax(-1)
    return out


def _tokenizer(model: Any, case: Case, probe: Probe) -> dict[str, torch.Tensor]:
    given, out = case.inputs, {}
    with torch.no_grad(), probe.watch(conv_in="encoder.conv_in", encoder="encoder") as seen:
        features = model.encode_features(given["x"])
        tokens = model.encode(given["x"])
        out["encode.quant"] = model.quantize(features).quantized
        out["reconstruction"] = model(given["x"]).reconstruction
        ids = given["decode.indices"].view(tokens.ids.shape)
        out["decode.pixels"] = model.decode(VisualTokens(tokens.layout, ids=ids), clamp=False)
    out |= {"encode.conv_in": seen["conv_in"], "encode.encoder": seen["encoder"]}
    out |= {"encode.pre_quant": features, "encode.indices": tokens.ids.flatten()}
    trained = model.train()(given["x"])
    names = {"vq": "codebook", "commit": "commitment", "entropy": "entropy", "mse": "reconstruction"}
    out |= {f"loss.{theirs}": trained.losses[ours] for theirs, ours in names.items()}
    out["loss.codebook_usage"] = trained.codebook_usage
    out["loss.codebook_used_tail"] = model.quantizer.codebook.recent_ids[-tokens.ids.numel() :]
    gradients = probe.gradients(trained.loss)
    out["loss.grad_codebook"] = gradients["quantize.embedding.weight"]
    out["loss.grad_quant_conv"] = gradients["quant_conv.weight"]
    return out


def _discriminator(model: Any, case: Case) -> dict[str, torch.Tensor]:
    given = case.inputs
    with torch.no_grad():
        out = {"eval.logits_real": model(given["real"])}
        model.train()
        real, fake = model(given["real"]), model(given["fake"])
        out |= {"logits_real": real, "logits_fake": fake}
        for kind in ("hinge", "vanilla", "non_saturating"):
            out[f"{kind}_d"] = adversarial_discriminator_loss(
                real, fake, kind, logits_as_targets=kind == "non_saturating"
            )
        out["hinge_g"] = adversarial_generator_loss(fake, "hinge")
        out["non_saturating_g"] = adversarial_generator_loss(fake, "non_saturating", logits_as_targets=True)
    return out
