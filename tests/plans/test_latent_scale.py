"""Scales of interpolated latents, each drawn by a flow transformer that looks at all of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from factories import build, generators, latent_scale_config
from transformers import AutoModel

from unimm import TokenKind, TokenLayout, VisualTokens
from unimm.errors import ConfigError, LayoutError
from unimm.generation import RecordedRandomness
from unimm.generation.guidance import Guide, LinearGuidance, as_schedule
from unimm.generation.loop import predict
from unimm.generation.session import BackboneSession
from unimm.heads import FlowTransformerHeadConfig, HeadSample
from unimm.plans import LatentScalePlanConfig

LABELS = torch.tensor([1, 4])
NAMES = ("latent_scale", "latent_scale_cross")


def latents(batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 16, 3, generator=torch.Generator().manual_seed(seed))


def draws(batch: int = 2) -> RecordedRandomness:
    generator = torch.Generator().manual_seed(5)
    return RecordedRandomness(
        {"time": torch.rand(3 * batch, generator=generator), "noise": torch.randn(batch * 21 * 3, generator=generator)}
    )


def test_coarser_scales_average_blocks_and_keep_the_mean():
    model, tokens = build("latent_scale"), latents()
    pyramid = model.plan.to_pyramid(VisualTokens(model.layout, latents=tokens))
    assert pyramid.layout == TokenLayout.pyramid([1, 2, 4])
    assert torch.equal(pyramid.level(2), tokens)
    blocks = tokens.view(2, 2, 2, 2, 2, 3).mean((2, 4)).flatten(1, 2)
    assert torch.allclose(pyramid.level(1), blocks, atol=1e-6)
    for level in range(3):
        assert torch.allclose(pyramid.level(level).mean(1), tokens.mean(1), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("cache", ["static", "dynamic", None])
def test_steps_give_what_teacher_forcing_gives(cache):
    model, tokens = build("latent_scale"), latents()
    expected = model(image_ids=tokens, labels=LABELS, randomness=draws()).predicting_states
    plan = model.plan
    layout, pyramid = plan.generation_layout(), plan.to_pyramid(VisualTokens(model.layout, latents=tokens))
    condition = model.condition(labels=LABELS)
    session = BackboneSession(plan, model.backbone, layout, condition, layout.length, cache)
    canvas = plan.start(layout, 2, tokens.device)
    for step in plan.steps(layout, 0):
        states, _ = predict(plan, session, canvas, step)
        assert torch.allclose(states, expected[:, step.slots], atol=1e-5)
        plan.place(canvas, step, HeadSample(pyramid.level(step.level)))


@torch.no_grad()
def test_finer_latents_with_the_same_averages_change_no_coarser_prediction():
    model, tokens = build("latent_scale"), latents()
    moved = F.pad(torch.ones(2, 1, 3), (0, 0, 0, 15)) - F.pad(torch.ones(2, 1, 3), (0, 0, 1, 14))
    first, second = (
        model(image_ids=one, labels=LABELS, randomness=draws()).predicting_states for one in (tokens, tokens + moved)
    )
    # The finest scale starts from the one before, so nothing sees a change inside of a block.
    assert torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient_and_checkpointing_changes_nothing(name):
    gradients = []
    for checkpointing in (False, True):
        model = build(name).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(image_ids=latents(), labels=LABELS, drop_condition=False, randomness=draws()).loss.backward()
        assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_caches_and_single_samples_draw_the_same_as_a_batch(name):
    model = build(name)
    options = {"guidance_scale": LinearGuidance(1.0, 3.0, times=(0.0, 0.7))}
    expected = model.generate(labels=LABELS, generator=generators(0, 1), **options).sequences
    assert expected.shape == (2, 21, 3)
    for extra in ({"cache_implementation": "dynamic"}, {"use_cache": False}):
        drawn = model.generate(labels=LABELS, generator=generators(0, 1), **options, **extra).sequences
        assert torch.allclose(drawn, expected, atol=1e-4)
    for row in range(2):
        alone = model.generate(labels=LABELS[row : row + 1], generator=generators(row), **options).sequences
        assert torch.allclose(alone, expected[row : row + 1], atol=1e-4)


@torch.no_grad()
def test_guidance_outside_of_its_times_is_none():
    model = build("latent_scale")
    hidden = torch.randn(4, 4, 32, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(2 * 2 * 4 * 3, generator=torch.Generator().manual_seed(2))

    def integrate(guide):
        return model.head.integrate(hidden, (2, 2), guide, RecordedRandomness({"noise": noise}))[:2]

    plain = integrate(Guide(1.0, 2))
    # The grid of four steps stops at 1, 0.3, 0.25 and 0.125: between the last of these and 0 lies nothing to guide.
    assert torch.equal(integrate(Guide(5.0, 2, (0.01, 0.1))), plain)
    assert not torch.allclose(integrate(Guide(5.0, 2, (0.0, 0.3))), plain, atol=1e-4)
    assert not torch.allclose(integrate(Guide(5.0, 2)), integrate(Guide(5.0, 2, (0.0, 0.3))), atol=1e-4)


def test_guidance_times_come_back_from_json_and_are_checked():
    schedule = LinearGuidance(1.0, 2.4, times=(0.0, 0.7))
    assert as_schedule(schedule.to_dict()) == schedule
    assert "times" not in LinearGuidance(1.0, 2.4).to_dict()
    with pytest.raises(ConfigError, match="two numbers with 0 <= first <= second <= 1"):
        LinearGuidance(1.0, 2.0, times=(0.8, 0.2))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="sides that rise"):
        LatentScalePlanConfig(sides=(1, 4, 2))
    with pytest.raises(LayoutError, match="the finest scale has the side 4"):
        LatentScalePlanConfig().build(32, TokenLayout.grid(8), TokenKind(channels=3))
    with pytest.raises(LayoutError, match="ids cannot be interpolated"):
        LatentScalePlanConfig().build(32, TokenLayout.grid(4), TokenKind(3, codebook_size=8))
    with pytest.raises(ConfigError, match="multiple of head_width"):
        FlowTransformerHeadConfig(width=100)
    with pytest.raises(ConfigError, match="only draws"):
        build("latent_scale").generate(labels=LABELS, do_sample=False)


def test_half_precision_draws_finite_latents(tmp_path):
    AutoModel.from_config(latent_scale_config(cross_attention=True)).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    drawn = model.generate(labels=LABELS, generator=generators(0, 1), guidance_scale=2.0).sequences
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()
