"""The masked plan: counts, orders, what a hidden token may influence, and that steps equal the training pass."""

import math

import pytest
import torch
from factories import build, condition_inputs, mar_config, masked_config, random_ids, raster_config
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm import TokenKind, TokenLayout, VisualTokens
from unimm.errors import ConfigError, LayoutError
from unimm.generation import GeneratorRandomness
from unimm.generation.loop import predict
from unimm.generation.session import BackboneSession
from unimm.heads import HeadSample
from unimm.plans import MaskedPlanConfig
from unimm.tokens import take_tokens

NAMES = ("masked", pytest.param("mar", marks=pytest.mark.needs("diffusers")))


def plan_of(length, **fields):
    layout = TokenLayout.sequence(length)
    return MaskedPlanConfig(**fields).build(8, layout, TokenKind(codebook_size=4)), layout


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.data())
def test_every_step_predicts_a_token_and_the_hidden_ones_follow_the_cosine(length, data):
    steps = data.draw(st.integers(1, length))
    plan, layout = plan_of(length)
    numbers = [step.predicting for step in plan.steps(layout, 0, num_steps=steps)]
    assert len(numbers) == steps
    assert min(numbers) >= 1
    assert sum(numbers) == length
    hidden = length
    for index, number in enumerate(numbers[:-1]):
        hidden -= number
        assert hidden <= max(1, math.floor(length * math.cos(math.pi / 2 * (index + 1) / steps)))


def test_the_counts_of_the_published_setting():
    plan, layout = plan_of(256)
    numbers = [step.predicting for step in plan.steps(layout, 0, num_steps=64)]
    assert numbers[:4] == [1, 1, 1, 1]
    assert max(numbers) == 7
    assert [step.predicting for step in plan.steps(layout, 0, num_steps=256)] == [1] * 256


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(0, 10_000))
def test_every_token_of_every_sample_is_placed_once(length, seed):
    plan, layout = plan_of(length, num_steps=7)
    canvas = plan.start(
        layout, 3, torch.device("cpu"), randomness=GeneratorRandomness(torch.Generator().manual_seed(seed))
    )
    places = torch.cat([plan.places(canvas, step) for step in plan.steps(layout, 2)], dim=1)
    assert torch.equal(places.sort(dim=1).values, torch.arange(length).expand(3, -1))


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 1, exclude_max=True))
def test_hidden_shares_keep_to_their_bounds_and_the_inverse_is_one(share):
    plan, _ = plan_of(4)
    ratio = plan.mask_ratio(share)
    assert 0.7 <= ratio <= 1
    assert plan.share_of_ratio(ratio) == pytest.approx(share, abs=1e-6)


def test_hidden_shares_have_the_mean_of_the_truncated_normal():
    plan, _ = plan_of(4)
    mean = sum(plan.mask_ratio((n + 0.5) / 4000) for n in range(4000)) / 4000
    density = [math.exp(-0.5 * x**2) / math.sqrt(2 * math.pi) for x in (-1.2, 0.0)]
    mass = 0.5 - 0.5 * (1 + math.erf(-1.2 / math.sqrt(2)))
    assert mean == pytest.approx(1 + 0.25 * (density[0] - density[1]) / mass, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_step_gives_what_a_training_pass_with_the_same_hidden_tokens_gives(name):
    model = build(name)
    values, condition = random_ids(model, 3), model.condition(**condition_inputs(model, 3))
    steps = model.plan.steps(model.layout, condition.prefix_length)
    session = BackboneSession(model.plan, model.backbone, model.layout, condition, steps[0].slots.stop, None)
    canvas = model.plan.start(model.layout, 3, values.device)
    for step in steps:
        states, _ = predict(model.plan, session, canvas, step)
        places = model.plan.places(canvas, step)
        hidden = canvas.state[:, : model.layout.length - step.num_placed + step.predicting]
        given = model.plan.inputs_with_hidden(VisualTokens.of(model.layout, values), condition, hidden)
        output = model.backbone(
            inputs_embeds=given.embeddings,
            positions=model.backbone.encode_positions(given.positions),
            rule=given.rule,
            **given.backbone_options,
        )
        expected = take_tokens(output.last_hidden_state, places + condition.prefix_length)
        assert torch.allclose(states, expected, atol=1e-5)
        model.plan.place(canvas, step, HeadSample(take_tokens(values, places)))
    assert torch.equal(canvas.values, values)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_what_a_hidden_token_is_changes_nothing_and_what_a_known_one_is_does(name):
    model = build(name)
    values, condition = random_ids(model, 2), model.condition(**condition_inputs(model, 2))
    hidden = torch.tensor([[0, 3, 7, 9], [1, 2, 3, 15]])

    def states(tokens):
        given = model.plan.inputs_with_hidden(VisualTokens.of(model.layout, tokens), condition, hidden)
        return model.backbone(
            inputs_embeds=given.embeddings,
            positions=model.backbone.encode_positions(given.positions),
            rule=given.rule,
            **given.backbone_options,
        ).last_hidden_state

    before = states(values)
    changed = values.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 32
    assert torch.equal(states(changed), before)
    changed[0, 8] = (changed[0, 8] + 1) % 32
    assert not torch.allclose(states(changed)[0], before[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_runs_once_per_step_and_guidance_one_runs_no_unconditional_row(name):
    model = build(name)
    rows = []
    handle = model.backbone.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    model.generate(labels=[1, 2], plan_options={"num_steps": 3}, generator=torch.Generator().manual_seed(0))
    model.generate(labels=[1, 2], guidance_scale=2.0, generator=torch.Generator().manual_seed(0))
    handle.remove()
    assert rows == [2] * 3 + [4] * 5


@pytest.mark.needs("diffusers")
def test_drawing_follows_its_seed_and_its_number_of_steps():
    model = build("mar")

    def draw(seed, **options):
        return model.generate(labels=[1], generator=torch.Generator().manual_seed(seed), **options).sequences

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(draw(0), draw(0, num_inference_steps=7))
    assert draw(0).shape == (1, 16, 16)
    assert model.generate(labels=[1], output_type="pt").images.shape == (1, 3, 16, 16)


@pytest.mark.needs("diffusers")
def test_previews_show_what_is_placed():
    from unimm import ImageStreamer

    class Collect(ImageStreamer):
        def __init__(self):
            self.shown = []

        def put(self, progress):
            self.shown.append((progress.num_tokens, progress.preview))

        def end(self):
            pass

    model, streamer = build("mar"), Collect()
    result = model.generate(labels=[1], streamer=streamer, generator=torch.Generator().manual_seed(0))
    blocks = [(pixels.unfold(2, 4, 4).unfold(3, 4, 4).abs().amax((1, 4, 5)) > 0).sum() for _, pixels in streamer.shown]
    assert [number for number, _ in streamer.shown] == [int(number) for number in blocks]
    assert torch.allclose(streamer.shown[-1][1], result.images)


def test_numbers_of_steps_that_cannot_be_are_refused():
    model = build("masked")
    for steps in (0, 17, 2.5, True):
        with pytest.raises(ConfigError, match=r"num_steps must be a whole number from 1 to 16"):
            model.generate(labels=[1], plan_options={"num_steps": steps})
    with pytest.raises(ConfigError, match=r"num_steps"):
        model.generate(labels=[1], plan_options={"num_step": 3})


@pytest.mark.needs("diffusers")
def test_parts_that_do_not_fit_are_refused_in_one_sentence():
    with pytest.raises(ConfigError, match=r"unimm_masked_plan.*known.*unimm_visual_transformer"):
        masked_config(plan_config={"model_type": "unimm_masked_plan", "hidden_slots": "left_out"})
    with pytest.raises(ConfigError, match=r"unimm_encoder_decoder.*known.*unimm_raster_plan"):
        mar_config(plan_config={"model_type": "unimm_raster_plan"})
    with pytest.raises(ConfigError, match=r"unimm_masked_plan.*'prefix'"):
        mar_config(condition_config={"model_type": "unimm_class_condition", "form": "vector"})
    with pytest.raises(ConfigError, match=r"prefix_length.*'vector'"):
        mar_config(condition_config={"model_type": "unimm_class_condition", "form": "vector", "prefix_length": 2})
    from transformers import AutoModel

    with pytest.raises(ConfigError, match=r"categorical head.*continuous"):
        AutoModel.from_config(mar_config(head_config={"model_type": "unimm_categorical_head"}))
    with pytest.raises(ConfigError, match=r"diffusion head.*continuous latents"):
        AutoModel.from_config(raster_config(head_config={"model_type": "unimm_diffusion_head"}))
    wrong = AutoModel.from_config(masked_config(plan_config={"model_type": "unimm_masked_plan", "prefix_length": 2}))
    with pytest.raises(LayoutError, match=r"prefix of 2 slots, the condition gives 1"):
        wrong.generate(labels=[1])
