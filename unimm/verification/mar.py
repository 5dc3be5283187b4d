"""Replay of MAR's reference numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ..conditions.base import stack_conditions
from ..generation import Guide, RecordedRandomness
from ..generation.loop import predict, progress_of
from ..generation.session import BackboneSession
from ..heads import HeadSample
from ..heads.gaussian_diffusion import GaussianDiffusion, kept_steps
from ..systems.mar import linear_guidance
from ..tokenizers.patches import patchify, unpatchify
from ..tokens import VisualTokens, take_tokens
from .harness import Case, Probe

TABLES = ("betas", "alphas_cumprod", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2")


def replay(model: Any, case: Case, probe: Probe) -> Mapping[str, torch.Tensor]:
    if "ch_mult" in case.settings:
        return _tokenizer(model, case, probe)
    forward, states = _forward(model, case, probe)
    out = forward | _head(model, case, states) | _loss(model, case, probe) | _schedule(case)
    for name, call in (("sample", case.config["call"]), ("sample_plain", case.config["call"]["plain"])):
        out |= _sample(model, case, name, call["cfg"], call["temperature"])
    return out


def _tokens(model: Any, case: Case) -> torch.Tensor:
    return patchify(case.inputs["forward.latents"], case.settings["patch_size"])


def _pass(model: Any, tokens: torch.Tensor, condition: Any, hidden: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """The slots and the decoder's states of all tokens, when those at `hidden` are."""
    given = model.plan.inputs_with_hidden(VisualTokens(model.layout, latents=tokens), condition, hidden)
    output = model.backbone(
        inputs_embeds=given.embeddings,
        positions=model.backbone.encode_positions(given.positions),
        rule=given.rule,
        **given.backbone_options,
    )
    return given, output.last_hidden_state[:, condition.prefix_length :]


@torch.no_grad()
def _forward(model: Any, case: Case, probe: Probe) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    tokens, mask = _tokens(model, case), case.inputs["forward.mask"].long()
    hidden = mask.argsort(dim=1, descending=True, stable=True)[:, : mask[0].sum()]
    stages = {"enc_block0": "encoder_layers.0", "encoder_out": "encoder_norm"}
    stages |= {"dec_block0": "decoder_layers.0", "dec_norm": "decoder_norm"}
    with probe.watch(**{name: f"backbone.{path}" for name, path in stages.items()}) as seen:
        given, states = _pass(model, tokens, model.condition(labels=case.inputs["forward.labels"]), hidden)
    out = {"tokens": tokens, "after_z_proj_ln": given.embeddings, "z": states} | seen
    return {f"forward.{name}": value for name, value in out.items()}, states


@torch.no_grad()
def _head(model: Any, case: Case, states: torch.Tensor) -> dict[str, torch.Tensor]:
    noisy, hidden = case.inputs["forward.head_x"][:, None], states.flatten(0, 1)[:6, None]
    plain = model.head.predict(noisy, case.inputs["forward.head_t"], hidden)
    guided = model.head.predict(noisy, case.inputs["forward.head_t_cfg"], hidden, Guide(2.5, num_contexts=2))
    return {
        "forward.head": torch.cat(plain, dim=-1)[:, 0],
        "forward.head_cfg": torch.cat(guided, dim=-1)[:, 0],
    }


def _loss(model: Any, case: Case, probe: Probe) -> dict[str, torch.Tensor]:
    given, tokens = case.inputs, _tokens(model, case)
    labels, orders = given["forward.labels"], given["loss.orders"]
    drop = given["loss.label_drop_u"]
    # Recorded with the draws outermost.
    times = given["loss.t"].view(-1, *tokens.shape[:2]).transpose(0, 1)
    noise = given["loss.noise"].view(-1, *tokens.shape).transpose(0, 1)
    plan, ratio = model.plan, given["loss.mask_rate"].item()
    hidden = orders[:, : -int(-tokens.shape[1] * ratio // 1)].sort(dim=1).values
    with torch.no_grad():
        condition = model.condition(labels=labels, dropped=drop < model.condition.drop_probability)
        squared_error, bits = model.head.loss_terms(_pass(model, tokens, condition, hidden)[1], tokens, times, noise)
    at_hidden = hidden[:, None].expand(-1, times.shape[1], -1)
    draws = {
        "condition_drop": drop,
        "mask_ratio": torch.full((len(tokens),), plan.share_of_ratio(ratio)),
        "order": orders.argsort(dim=1) / orders.shape[1],
        "time": (times.gather(2, at_hidden) + 0.5) / 1000,
        "noise": noise.gather(2, at_hidden[..., None].expand(-1, -1, -1, noise.shape[-1])),
    }
    output = model(image_ids=tokens, labels=labels, drop_condition=True, randomness=RecordedRandomness(draws))
    gradients = probe.gradients(output.loss)
    return {
        "loss.loss": output.loss[None],
        "loss.mse": squared_error.transpose(0, 1).flatten(),
        "loss.vb": bits.transpose(0, 1).flatten(),
        "loss.grad_z_proj": gradients["z_proj.weight"],
        "loss.grad_mask_token": gradients["mask_token"],
    }


def _schedule(case: Case) -> dict[str, torch.Tensor]:
    out = {
        f"schedule.map.{name.replace(',', '_')}": torch.tensor(kept_steps(1000, name))
        for name in ("100", "25", "ddim5", "3,2,1")
    }
    for name, process, stride in (
        ("train", GaussianDiffusion(1000), 111),
        ("gen", GaussianDiffusion(1000, case.settings["num_sampling_steps"]), 1),
    ):
        out[f"schedule.{name}.timestep_map"] = torch.tensor(process.timesteps[::stride])
        out |= {f"schedule.{name}.{table}": torch.from_numpy(getattr(process, table)[::stride]) for table in TABLES}
    return out


@torch.no_grad()
def _sample(model: Any, case: Case, name: str, scale: float, temperature: float) -> dict[str, torch.Tensor]:
    given, out = case.inputs, {}
    labels, orders = given[f"{name}.labels"], given[f"{name}.orders"]
    schedule, order = linear_guidance(scale, model.layout.length), orders.argsort(dim=1) / orders.shape[1]
    condition, num_contexts = model.condition(labels=labels), 1 if scale == 1.0 else 2
    steps = model.plan.steps(model.layout, condition.prefix_length, num_steps=case.config["call"]["num_iter"])
    starts = [given[f"{name}.step{step.index}.init"].view(len(labels), step.predicting, -1) for step in steps]
    noises = [given[f"{name}.step{step.index}.noise"].unflatten(1, (-1, step.predicting)).unbind(0) for step in steps]
    drawn = model.generate(
        labels=labels,
        guidance_scale=schedule,
        temperature=temperature,
        plan_options={"num_steps": len(steps)},
        randomness={
            "order": order,
            "start": torch.cat([start.flatten() for start in starts]),
            # The last reverse step draws nothing.
            "noise": torch.cat([noise[: len(labels)].flatten() for parts in noises for noise in parts[:-1]]),
        },
    ).sequences
    out[f"{name}.latents"] = unpatchify(drawn, case.settings["patch_size"], model.layout.final)

    # Once more step by step, with both contexts' rows.
    conditions = stack_conditions([condition, model.condition.null(labels=labels)][:num_contexts])
    session = BackboneSession(model.plan, model.backbone, model.layout, conditions, steps[0].slots.stop, None)
    canvas = model.plan.start(model.layout, len(labels), labels.device, randomness=RecordedRandomness({"order": order}))
    for step, progress in zip(steps, progress_of(steps, model.layout), strict=True):
        guide, each = Guide(schedule.scale(progress), num_contexts), iter(noises[step.index])
        states, _ = predict(model.plan, session, canvas, step)
        start = guide.spread(starts[step.index])
        rows = model.head.denoise(states, guide, start, partial(next, each), temperature=temperature)
        model.plan.place(canvas, step, HeadSample(take_tokens(drawn, model.plan.places(canvas, step))))
        out |= {
            f"{name}.step{step.index}.z": states.flatten(0, 1),
            f"{name}.step{step.index}.tokens": rows.flatten(0, 1),
        }
        out[f"{name}.step{step.index}.cfg"] = torch.tensor([guide.scale], dtype=torch.float64)
    return out


def _tokenizer(model: Any, case: Case, probe: Probe) -> dict[str, torch.Tensor]:
    given, size = case.inputs, case.inputs["image"].shape[-2:]
    watched = {"moments": "quant_conv", "enc_conv_in": "encoder.conv_in"}
    watched |= {"enc_mid": "encoder.mid_block", "dec_mid": "decoder.mid_block"}
    draws = RecordedRandomness({"posterior": given["eps"]})
    with torch.no_grad(), probe.watch(**{name: f"autoencoder.{path}" for name, path in watched.items()}) as seen:
        tokens = model.encode(given["image"], randomness=draws)
        out = {"image": model.decode(tokens, size=tuple(size), clamp=False)}
    latents = unpatchify(tokens.values, 1, tokens.layout.final)
    return out | seen | {"latent": latents / model.autoencoder.config.scaling_factor}
