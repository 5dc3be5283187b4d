import itertools

import hypothesis.strategies as st
import pytest
import torch
from factories import LLAMA, build, neighbour_config, raster_config
from hypothesis import given, settings
from transformers import AutoModel

from unimm import IntervalGuidance, NeighbourPlanConfig, TokenKind, TokenLayout, VisualTokens, VisualTransformerConfig
from unimm.conditions import Condition
from unimm.errors import ConfigError, LayoutError
from unimm.heads import DirectionHeadConfig, HeadContext
from unimm.plans.neighbour import generation_order

KIND = TokenKind(channels=4, codebook_size=16)
layouts = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(lambda sides: TokenLayout((tuple(sides),)))


def video_config(**changes):
    fields = {
        "tokenizer_config": None,
        "token_layout": ((2, 3, 4),),
        "codebook_size": 32,
        "plan_config": {"model_type": "unimm_neighbour_plan", "num_prefix_positions": 1},
        "backbone_config": {**LLAMA, "num_hidden_layers": 3, "tap_depths": (1, 2, 3), "rotary_theta": None},
        "head_config": {"model_type": "unimm_direction_head", "num_taps": 3},
    }
    return neighbour_config(**{**fields, **changes})


@settings(deadline=None, max_examples=60)
@given(layouts, st.integers(1, 3))
def test_steps_go_by_distance_and_every_token_is_predicted_by_its_nearer_neighbours(layout, prefix_length):
    plan = NeighbourPlanConfig().build(8, layout, KIND)
    steps = plan.steps(layout, prefix_length)
    assert len(steps) == sum(layout.final) - layout.num_dimensions + 1
    places = list(itertools.product(*map(range, layout.final)))
    order = [places[index] for index in generation_order(layout)]
    assert order == sorted(places, key=lambda place: (sum(place), place))
    assert torch.cat([step.tokens for step in steps]).tolist() == generation_order(layout).tolist()
    next_slot = 0
    for step in steps:
        assert step.slots.start == next_slot < step.slots.stop
        next_slot = step.slots.stop
        for token, taps in zip(step.tokens.tolist(), step.predicting.tolist(), strict=True):
            assert sum(places[token]) == step.index
            for axis, slot in zip(reversed(range(layout.num_dimensions)), taps, strict=True):
                behind = tuple(side - (axis == other) for other, side in enumerate(places[token]))
                if step.index == 0:
                    assert slot == prefix_length - 1
                elif behind[axis] < 0:
                    assert slot == -1
                else:
                    assert order[step.slots.start + slot - prefix_length] == behind
    # Nobody looks at the farthest token: it has no slot.
    assert next_slot == prefix_length + layout.length - 1


@settings(deadline=None, max_examples=40)
@given(layouts, st.integers(1, 3))
def test_a_slot_sees_the_prefix_and_all_tokens_that_are_no_farther(layout, prefix_length):
    plan = NeighbourPlanConfig().build(8, layout, KIND)
    condition = Condition(prefix=torch.zeros(1, prefix_length, 8))
    tokens = VisualTokens(layout, ids=torch.zeros(1, layout.length, dtype=torch.long))
    inputs = plan.training_inputs(tokens, condition, feed_every_token=True)
    seen = inputs.rule.dense()[0]
    distances = inputs.positions.coordinates[prefix_length:].sum(1)
    assert torch.equal(seen[prefix_length:, prefix_length:], distances[None] <= distances[:, None])
    assert torch.equal(seen[:prefix_length, :prefix_length], torch.ones(prefix_length, prefix_length).tril().bool())
    assert seen[prefix_length:, :prefix_length].all()
    assert not seen[:prefix_length, prefix_length:].any()
    expected = torch.cat([torch.arange(prefix_length), generation_order(layout) + prefix_length])
    assert torch.equal(inputs.positions.position_ids[0], expected)


@pytest.mark.parametrize(("config", "num_calls"), [(neighbour_config, 7), (video_config, 7)])
def test_a_token_changes_predictions_at_larger_distances_alone(config, num_calls):
    torch.manual_seed(0)
    model = AutoModel.from_config(config()).eval()
    ids = torch.randint(0, 32, (1, model.layout.length))
    labels = torch.tensor([3])
    assert model.generate(labels=labels, output_type="ids").num_backbone_calls == num_calls
    distances = model.layout.coordinates().sum(1)
    before = model(image_ids=ids, labels=labels).logits
    for token in range(model.layout.length):
        changed = ids.clone()
        changed[0, token] = (changed[0, token] + 1) % 32
        difference = (model(image_ids=changed, labels=labels).logits - before).abs().amax(-1)[0]
        assert (difference[distances <= distances[token]] == 0).all()
        assert (difference[distances > distances[token]] > 0).all()


def test_videos_are_drawn_as_teacher_forcing_predicts():
    torch.manual_seed(0)
    model = AutoModel.from_config(video_config()).eval()
    labels = torch.tensor([1, 4])
    drawn = model.generate(labels=labels, do_sample=False, output_type="ids").sequences
    assert torch.equal(model(image_ids=drawn, labels=labels).logits.argmax(-1), drawn)


def test_the_null_rows_are_dropped_after_the_last_guided_step():
    model = build("neighbour")
    rows = []
    handle = model.backbone.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    model.generate(labels=[1, 2], guidance_scale=IntervalGuidance(3.0, 0, 2), do_sample=False)
    handle.remove()
    assert rows == [4] * 3 + [2] * 4


def test_a_preview_shows_the_corner_and_grey_beyond_it():
    model = build("neighbour")
    plan = model.plan
    step = plan.steps(model.layout, 1)[2]
    canvas = plan.start(model.layout, 1, torch.device("cpu"), model.tokenizer)
    with torch.no_grad():
        pixels = plan.preview(canvas, step, model.tokenizer)
        whole = plan.decode(canvas, model.tokenizer)
    side = pixels.shape[-1] // model.layout.final[-1]
    assert torch.equal(pixels[..., :side, : 3 * side], whole[..., :side, : 3 * side])
    assert (pixels[..., :side, 3 * side :] == 0).all()
    assert (pixels[..., 3 * side :, :] == 0).all()


def test_logits_are_averaged_over_the_taps_that_speak():
    head = DirectionHeadConfig(num_taps=3).build(8, KIND)
    states = torch.randn(2, 4, 3, 8)
    spoken = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0]]).bool()
    # What does not speak must have no weight, whatever it is.
    logits = head.logits(states, HeadContext(spoken=spoken))
    for token, taps in enumerate(spoken):
        each = [head.projections[tap](states[:, token, tap]) for tap in taps.nonzero()[:, 0].tolist()]
        assert torch.allclose(logits[:, token], torch.stack(each).mean(0), atol=1e-6)
    targets = torch.randint(0, 16, (2, 4))
    context = HeadContext(spoken=spoken)
    assert torch.allclose(head.loss(states, targets, context), -head.log_prob(states, targets, context), atol=1e-6)


def test_gains_scale_the_first_weights_of_each_direction():
    torch.manual_seed(0)
    head = {"model_type": "unimm_direction_head", "num_taps": 2, "initializer_gains": (0.0, 1.0)}
    first, second = AutoModel.from_config(neighbour_config(head_config=head)).head.projections
    assert (first.weight == 0).all()
    assert second.weight.std().item() == pytest.approx(0.02, rel=0.15)


def test_two_taps_may_stand_at_one_depth_with_norms_of_their_own():
    config = neighbour_config(backbone_config={**LLAMA, "tap_depths": (2, 2)})
    model = AutoModel.from_config(config).eval()
    states = model(image_ids=torch.zeros(1, 16, dtype=torch.long), labels=torch.tensor([0])).predicting_states
    assert torch.equal(states[:, 0, 0], states[:, 0, 1])
    torch.nn.init.constant_(model.backbone.tap_norms[0].weight, 2.0)
    changed = model(image_ids=torch.zeros(1, 16, dtype=torch.long), labels=torch.tensor([0])).predicting_states
    assert torch.allclose(changed[:, 0, 0], 2 * changed[:, 0, 1])


def test_parts_that_do_not_agree_on_the_number_of_hidden_states_are_refused():
    with pytest.raises(ConfigError, match=r"unimm_neighbour_plan.*taps.*unimm_visual_transformer"):
        neighbour_config(backbone_config=LLAMA)
    with pytest.raises(ConfigError, match=r"unimm_neighbour_plan.*several depths.*unimm_categorical_head"):
        neighbour_config(head_config={"model_type": "unimm_categorical_head"})
    with pytest.raises(ConfigError, match=r"unimm_direction_head.*several depths.*unimm_raster_plan"):
        raster_config(head_config={"model_type": "unimm_direction_head"})
    with pytest.raises(ConfigError, match=r"hidden states of 2 depths.*unimm_direction_head' reads 3"):
        neighbour_config(head_config={"model_type": "unimm_direction_head", "num_taps": 3})
    with pytest.raises(ConfigError, match=r"hidden states of 2 depths.*unimm_categorical_head' reads one"):
        raster_config(backbone_config={**LLAMA, "tap_depths": (1, 2)})
    with pytest.raises(ConfigError, match=r"4x4 from 2 hidden states, 'unimm_direction_head' reads 3"):
        AutoModel.from_config(
            neighbour_config(
                backbone_config={**LLAMA, "tap_depths": (1, 2, 2)},
                head_config={"model_type": "unimm_direction_head", "num_taps": 3},
            )
        )


def test_sizes_that_cannot_be_are_refused():
    for depths in ((), (0, 2), (2, 1), (1,), (1, 3)):
        with pytest.raises(ConfigError, match=r"tap_depths must rise from at least 1 to num_hidden_layers \(2\)"):
            VisualTransformerConfig(**LLAMA, tap_depths=depths)
    with pytest.raises(ConfigError, match=r"num_taps must be at least 1, given 0"):
        DirectionHeadConfig(num_taps=0)
    with pytest.raises(ConfigError, match=r"initializer_gains has 1 entries for 2 taps"):
        DirectionHeadConfig(initializer_gains=(1.0,))
    with pytest.raises(ConfigError, match=r"num_prefix_positions must be at least 1.*given 0"):
        NeighbourPlanConfig(num_prefix_positions=0)
    with pytest.raises(LayoutError, match=r"neighbour plan predicts one grid.*2 levels"):
        NeighbourPlanConfig().build(8, TokenLayout.pyramid([1, 2]), KIND)
    plan = NeighbourPlanConfig(num_prefix_positions=2).build(8, TokenLayout.grid(2), KIND)
    tokens = VisualTokens(plan.layout, ids=torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"rows for 2 slots of the condition, which has 1"):
        plan.training_inputs(tokens, Condition(prefix=torch.zeros(1, 1, 8)))
    with pytest.raises(LayoutError, match=r"form 'prefix'"):
        plan.training_inputs(tokens, Condition(vector=torch.zeros(1, 8)))
