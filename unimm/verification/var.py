"""Replay of VAR's reference numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..generation import LinearGuidance, RecordedRandomness, SoftCodes
from ..generation.loop import Inpainting
from ..tokens import VisualTokens
from .harness import Case, Probe


def replay(model: Any, case: Case, probe: Probe) -> Mapping[str, torch.Tensor]:
    return _tokenizer(model, case, probe) if "var" not in case.settings else _generator(model, case, probe)


def _generator(model: Any, case: Case, probe: Probe) -> dict[str, torch.Tensor]:
    given, sampling, out = case.inputs, case.settings["sampling"], {}
    with torch.no_grad(), probe.watch(attn0="backbone.layers.0.attention", block0="backbone.layers.0") as seen:
        forward = model(image_ids=given["indices"], labels=given["label"], output_hidden_states=True)
        tokens = model.as_tokens(given["indices"])
        out["forward.teacher_input"] = model.tokenizer.teacher_inputs(tokens)
    out |= {"forward.embedding": forward.slots, "forward.logits": forward.logits}
    out |= {"forward.attn0": seen["attn0"], "forward.block0": seen["block0"]}
    out["forward.last_block"] = forward.hidden_states[-1]

    draws = RecordedRandomness({"condition_drop": given["loss.cond_drop_uniform"]})
    loss = model.train()(image_ids=given["indices"], labels=given["label"], randomness=draws).loss
    model.eval()
    gradients = probe.gradients(loss)
    out["loss.value"] = loss
    out["loss.grad_word_embed"] = 100 * gradients["word_embed.weight"]
    out["loss.grad_norm"] = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()

    labels, guidance = given["sample.label"], LinearGuidance(1, 1 + sampling["cfg"])
    filters = {"top_k": sampling["top_k"], "top_p": sampling["top_p"]}
    common = {"labels": labels, "guidance_scale": guidance, "output_logits": True}
    drawn = model.generate(**common, **filters, randomness={"token": given["sample.uniform"]})
    out |= {
        "sample.tokens": drawn.sequences,
        "sample.guided_logits": drawn.logits,
        "sample.image": (drawn.images + 1) / 2,
    }
    layout = model.layout
    second = model.tokenizer.teacher_inputs(model.as_tokens(drawn.sequences))[:, : layout.level_lengths[1]]
    out["sample.next_input_scale1"] = second.transpose(1, 2).unflatten(-1, layout.levels[1])
    greedy = model.generate(**common, do_sample=False)
    out |= {
        "greedy.tokens": greedy.sequences,
        "greedy.guided_logits": greedy.logits,
        "greedy.image": (greedy.images + 1) / 2,
    }

    if "smooth.exponential" in given:
        noise = torch.cat([part.flatten() for part in given["smooth.exponential"].split(layout.level_lengths, dim=1)])
        smooth = model.generate(**common, soft_codes=SoftCodes(), randomness={"soft_code": noise})
        out |= {"smooth.image": (smooth.images + 1) / 2, "smooth.guided_logits": smooth.logits}
        known = Inpainting(VisualTokens(layout, ids=given["indices"][:1]), given["edit.mask"])
        edited = model.generate(**common, do_sample=False, inpainting=known)
        out |= {"edit.image": (edited.images + 1) / 2, "edit.tokens": edited.drawn}
    return out


def _tokenizer(model: Any, case: Case, probe: Probe) -> dict[str, torch.Tensor]:
    given, out = case.inputs, {}
    with (
        torch.no_grad(),
        probe.watch(conv_in="encoder.conv_in", enc_out="encoder", post_quant="post_quant_conv") as seen,
    ):
        features, tokens = model.encode_features(given["image"]), model.encode(given["image"])
        out["reconstruction"] = model.decode(tokens)
        out["reconstruction_2scales"] = model.decode(tokens.first_levels(2))
        out |= {"f": features, "indices": tokens.ids, "generator_input": model.teacher_inputs(tokens)}
        out["f_hat"] = model.running_reconstruction(tokens)
        out["f_hat_scale1"] = model.running_reconstruction(tokens.first_levels(2))
        levels = [tuple(level) for level in case.settings["nonsquare_patch_nums"]]
        wide = model.encode(given["nonsquare.image"], levels=levels)
        out |= {"nonsquare.indices": wide.ids, "nonsquare.reconstruction": model.decode(wide)}
    out |= {"enc_conv_in": seen["conv_in"][..., ::8, ::8], "enc_out": seen["enc_out"], "post_quant": seen["post_quant"]}
    features = features.requires_grad_()
    quantized = model.train().quantize(features)
    loss = quantized.losses["codebook"] + quantized.losses["commitment"]
    out |= {"train.f_hat": quantized.quantized, "train.vq_loss": loss}
    out["train.reconstruction_unclamped"] = model.decode_features(quantized.quantized)
    objective = 100 * loss + (quantized.quantized * given["grad_seed"]).sum()
    out["train.grad_f"] = torch.autograd.grad(objective, features, retain_graph=True)[0]
    gradients = probe.gradients(objective)
    out["train.grad_codebook"] = gradients["quantize.embedding.weight"]
    out["train.grad_phi0"] = gradients["quantize.quant_resi.qresi_ls.0.weight"]
    return out
