"""Groups of latents, each denoised by the backbone from clean earlier groups."""

from __future__ import annotations

import pytest
import torch
from factories import HALVES, LLAMA, build, generators, groups_config
from transformers import AutoModel

from unimm import TokenKind, TokenLayout, UniMMForImageGeneration
from unimm.errors import ConfigError, LayoutError
from unimm.generation import RecordedRandomness
from unimm.generation.guidance import LinearGuidance
from unimm.generation.loop import predict
from unimm.generation.session import BackboneSession
from unimm.heads import FlowHeadConfig, HeadSample
from unimm.plans import GroupsPlanConfig

LABELS = torch.tensor([1, 4])


def latents(batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 16, 3, generator=torch.Generator().manual_seed(seed))


def draws(times: torch.Tensor, noise: torch.Tensor) -> RecordedRandomness:
    """`(batch, groups)` times and `(batch, slots, channels)` noise of a training pass, as the plan asks for them."""
    split = noise.split(noise.shape[1] // times.shape[1], dim=1)
    return RecordedRandomness(
        {"time": times.double().T.logit(), "noise": torch.cat([part.flatten() for part in split])}
    )


@pytest.mark.parametrize(
    ("unit", "size", "first", "shape"),
    [
        ("cell", 2, (0, 1, 4, 5), (2, 2)),
        ("cell", 1, (0,), (1, 1)),
        ("stride", 2, (0, 2, 8, 10), (2, 2)),
        ("stride", 4, (0,), (1, 1)),
        ("level", None, tuple(range(16)), (4, 4)),
    ],
)
def test_groups_hold_every_token_once_and_fill_grids(unit, size, first, shape):
    layout = TokenLayout.grid(4)
    plan = GroupsPlanConfig(unit=unit, size=size).build(32, layout, TokenKind(channels=3))
    steps = plan.steps(layout, 0)
    assert tuple(steps[0].tokens.tolist()) == first
    assert plan.groups(layout, steps[0])[0].shape == shape
    assert sorted(plan.order().tolist()) == list(range(16))
    assert torch.equal(torch.cat([step.tokens for step in steps]), plan.order())
    assert [step.num_placed for step in steps] == [len(first) * (n + 1) for n in range(len(steps))]


def test_levels_of_a_pyramid_are_groups_of_their_own_shape():
    layout = TokenLayout.pyramid([1, 2, 4])
    plan = GroupsPlanConfig(unit="level", size=None).build(32, layout, TokenKind(channels=3))
    assert plan.lengths == (1, 4, 16)
    assert [plan.groups(layout, step)[0].shape for step in plan.steps(layout, 0)] == [(1, 1), (2, 2), (4, 4)]
    assert [step.level for step in plan.steps(layout, 0)] == [0, 1, 2]


@torch.no_grad()
@pytest.mark.parametrize("cache", ["static", "dynamic", None])
@pytest.mark.parametrize(("unit", "size"), [("cell", 2), ("stride", 2)])
def test_a_drawing_denoises_as_training_does_with_clean_earlier_groups(unit, size, cache):
    torch.manual_seed(0)
    model = AutoModel.from_config(groups_config(unit, size)).eval()
    plan, clean, noise = model.plan, latents(), latents(seed=1)
    condition = model.condition(labels=LABELS)
    session = BackboneSession(plan, model.backbone, model.layout, condition, 16, cache)
    canvas = plan.start(model.layout, 2, clean.device)
    time = torch.tensor([0.3, 0.7])
    for step in plan.steps(model.layout, 0):
        _, context = predict(plan, session, canvas, step)
        times = torch.full((2, 4), 1e-6)
        times[:, step.index] = time
        # Groups before the current one are all but clean, so the network is told time 0.
        trained = model(image_ids=clean, labels=LABELS, randomness=draws(times, noise))
        noisy = (1 - time[:, None, None]) * clean[:, step.tokens] + time[:, None, None] * noise[:, step.slots]
        for _ in range(2):
            # What was looked at once leaves no trace.
            states = context.denoise(noisy, (1000 * time).floor())
            assert torch.allclose(states, trained.predicting_states[:, step.slots], atol=2e-4)
        plan.place(canvas, step, HeadSample(clean[:, step.tokens]))


@torch.no_grad()
def test_a_velocity_does_not_depend_on_later_groups():
    model = build("groups")
    times, noise = torch.full((2, 4), 0.5), latents(seed=1)
    one = latents()
    other = one.clone()
    other[:, model.plan.order()[8:]] += 1.0
    first, second = (
        model(image_ids=tokens, labels=LABELS, randomness=draws(times, noise)).predicting_states
        for tokens in (one, other)
    )
    assert torch.equal(first[:, :8], second[:, :8])
    assert not torch.allclose(first[:, 8:], second[:, 8:], atol=1e-3)


def test_every_parameter_gets_a_gradient_and_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = build("groups").train()
        if checkpointing:
            model.activation_checkpointing_enable()
        times = torch.tensor([[0.2, 0.4, 0.6, 0.8]] * 2)
        loss = model(
            image_ids=latents(), labels=LABELS, drop_condition=False, randomness=draws(times, latents(seed=1))
        ).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-6)


@torch.no_grad()
def test_attention_implementations_give_the_same_loss():
    model = build("groups")
    times, losses = torch.tensor([[0.2, 0.4, 0.6, 0.8]] * 2), []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        drawn = draws(times, latents(seed=1))
        losses.append(model(image_ids=latents(), labels=LABELS, randomness=drawn).loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_caches_and_single_samples_draw_the_same_as_a_batch():
    model = build("groups")
    options = {"guidance_scale": LinearGuidance(1.0, 3.0)}
    expected = model.generate(labels=LABELS, generator=generators(0, 1), **options).sequences
    for extra in ({"cache_implementation": "dynamic"}, {"use_cache": False}):
        drawn = model.generate(labels=LABELS, generator=generators(0, 1), **options, **extra).sequences
        assert torch.allclose(drawn, expected, atol=1e-4)
    for row in range(2):
        alone = model.generate(labels=LABELS[row : row + 1], generator=generators(row), **options).sequences
        assert torch.allclose(alone, expected[row : row + 1], atol=1e-4)


def test_a_group_without_guidance_is_drawn_from_the_condition_alone():
    model = build("groups")
    plain = model.generate(labels=LABELS, generator=generators(0, 1)).sequences
    guided = model.generate(
        labels=LABELS, generator=generators(0, 1), guidance_scale=LinearGuidance(1.0, 4.0)
    ).sequences
    first, last = model.plan.order()[:4], model.plan.order()[12:]
    assert torch.allclose(plain[:, first], guided[:, first], atol=1e-5)
    assert not torch.allclose(plain[:, last], guided[:, last], atol=1e-3)


def test_half_precision_draws_finite_latents(tmp_path):
    build("groups").save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert isinstance(model, UniMMForImageGeneration)
    drawn = model.generate(labels=LABELS, generator=generators(0, 1), guidance_scale=LinearGuidance(1.0, 2.0)).sequences
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()


def test_parts_that_do_not_fit_are_refused_in_one_sentence():
    with pytest.raises(ConfigError, match="makes the backbone itself denoise"):
        groups_config(plan_config={"model_type": "unimm_raster_plan"}, backbone_config=LLAMA, condition_config=None)
    with pytest.raises(ConfigError, match="needs a backbone that can do slot_conditions"):
        groups_config(backbone_config=LLAMA)
    with pytest.raises(ConfigError, match="need no size"):
        GroupsPlanConfig(unit="level", size=2)
    with pytest.raises(ConfigError, match="must be a multiple of num_decoder_attention_heads"):
        groups_config(backbone_config={**HALVES, "num_decoder_attention_heads": 3})
    with pytest.raises(LayoutError, match="whose sides are multiples of 3"):
        GroupsPlanConfig(size=3).build(32, TokenLayout.grid(4), TokenKind(channels=3))
    with pytest.raises(LayoutError, match="denoises continuous latents"):
        GroupsPlanConfig(size=2).build(32, TokenLayout.grid(4), TokenKind(3, codebook_size=8))
    with pytest.raises(ConfigError, match="predicts continuous latents"):
        FlowHeadConfig().build(32, TokenKind(3, codebook_size=8))
    model = build("groups")
    with pytest.raises(ConfigError, match="only draws"):
        model.generate(labels=LABELS, do_sample=False)
    short = AutoModel.from_config(groups_config(backbone_config={**HALVES, "num_positions": 15}))
    with pytest.raises(ConfigError, match="have 15 rows, the sequence has 16 slots"):
        short.generate(labels=LABELS)
