"""Levels that each hold the whole picture, and lists of scales chosen at call time (FlexVAR)."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from factories import PYRAMID, build, whole_levels_config
from transformers import AutoModel

from unimm.errors import ConfigError, LayoutError
from unimm.generation import GeneratorRandomness
from unimm.generation.loop import Inpainting
from unimm.plans import ScalePlanConfig
from unimm.plans.level_draws import LevelDraws
from unimm.systems.flexvar import SIDES_9, guidance
from unimm.tokens import TokenLayout, VisualTokens

NAME = "scale_whole_levels"


@pytest.fixture
def model():
    return build(NAME)


def pictures(number=2, size=16):
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def draw(model, **options):
    return model.generate(
        labels=[1, 2], generator=torch.Generator().manual_seed(0), guidance_scale=2.0, output_logits=True, **options
    )


def test_the_same_weights_draw_any_list_of_scales_of_any_size_and_shape(model):
    for scales in ([1, 4], [1, 2, 5, 7], [1, (2, 3), (4, 6)]):
        layout, drawn = TokenLayout.pyramid(scales), draw(model, plan_options={"levels": scales})
        assert drawn.sequences.shape == (2, layout.length)
        assert drawn.images.shape == (2, 3, 4 * layout.final[0], 4 * layout.final[1])
        assert drawn.num_backbone_calls == len(scales)


def test_predictions_of_the_levels_that_two_lists_share_are_equal(model):
    one, other = (draw(model, plan_options={"levels": scales}) for scales in ([1, 2, 3, 4], [1, 2, 5]))
    assert torch.equal(one.logits[:, :5], other.logits[:, :5])
    assert torch.equal(one.sequences[:, :5], other.sequences[:, :5])


@torch.no_grad()
def test_a_drawing_over_other_scales_is_what_teacher_forcing_predicts(model):
    scales = [1, 3, 5]
    drawn = model.generate(labels=[1, 2], do_sample=False, plan_options={"levels": scales}, output_logits=True)
    layout = TokenLayout.pyramid(scales)
    forced = model(image_ids=drawn.sequences, layout=layout, labels=torch.tensor([1, 2]))
    assert torch.allclose(forced.logits, drawn.logits, atol=1e-5)


@torch.no_grad()
def test_pictures_of_another_size_are_encoded_with_a_list_of_levels(model):
    layout = TokenLayout.pyramid([1, (2, 3), (4, 6)])
    wide = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    inputs = {"layout": layout, "labels": torch.tensor([1, 2])}
    loss = model(pixel_values=wide, **inputs).loss
    assert torch.equal(loss, model(image_ids=model.encode_images(wide, layout).ids, **inputs).loss)
    with pytest.raises(LayoutError, match=r"by tokenizers that take levels, not by this model's KLTokenizer"):
        build("mar").encode_images(wide, layout)


def test_only_the_sampled_sides_are_drawn_and_the_others_take_the_likeliest(model):
    drawn = draw(model, plan_options={"sampled_sides": [1, 4]})
    likeliest = drawn.logits.argmax(-1) == drawn.sequences
    assert likeliest[:, 1:14].all()
    assert not likeliest[:, 14:].all()


def test_every_step_decodes_to_a_whole_picture_of_its_own_size(model):
    from unimm import ImageStreamer

    class Previews(ImageStreamer):
        def __init__(self):
            self.sizes = []

        def put(self, progress):
            self.sizes.append(tuple(progress.preview.shape[-2:]))

        def end(self):
            pass

    previews = Previews()
    draw(model, streamer=previews)
    assert previews.sizes == [(4, 4), (8, 8), (12, 12), (16, 16)]


def test_a_given_picture_is_refined_from_one_of_its_scales(model):
    tokens = model.encode_images(pictures(1))
    known = Inpainting(tokens, torch.zeros(4, 4), always_keep=9)
    drawn = draw(model, inpainting=known).sequences
    assert torch.equal(drawn[:, :14], tokens.ids[:, :14].expand(2, -1))
    assert not torch.equal(drawn[:, 14:], tokens.ids[:, 14:].expand(2, -1))


def test_codes_have_unit_length_and_the_codebooks_scale_changes_nothing(model):
    tokenizer = model.tokenizer
    tokens = tokenizer.encode(pictures())
    assert torch.allclose(tokenizer.embed(tokens.ids).norm(dim=-1), torch.ones(2, 30))
    before = tokenizer.decode(tokens)
    with torch.no_grad():
        tokenizer.quantizer.codebook.weight.mul_(3.0)
    assert torch.equal(tokenizer.encode(pictures()).ids, tokens.ids)
    assert torch.allclose(tokenizer.decode(tokens), before, atol=1e-5)


def test_a_level_does_not_depend_on_the_others(model):
    tokenizer = model.tokenizer
    tokens = tokenizer.encode(pictures())
    for level, side in enumerate((1, 2, 3, 4)):
        alone = tokenizer.encode(pictures(), levels=[side])
        assert torch.equal(alone.ids, tokens.level(level))
        assert torch.allclose(tokenizer.decode(alone), tokenizer.decode(tokens.first_levels(level + 1)), atol=1e-6)


def test_published_guidance_rises_over_ten_levels_at_most():
    scales = guidance(SIDES_9, 2.5).values
    assert (scales[0], scales[-1]) == (1.0, 3.5)
    longer = guidance((*range(1, 13), 32), 2.0).values
    assert longer[9] == 3.0
    assert longer[11] == pytest.approx(1 + 2 * 11 / 9)
    assert longer[12] == 3.0


def test_drawn_lists_are_flexvars():
    draws, randomness = LevelDraws(), GeneratorRandomness(torch.Generator().manual_seed(0))
    assert draws.sides == tuple(range(1, 17))
    lists = [tuple(draws.draw(randomness)) for _ in range(2000)]
    assert all(list(sides) == sorted(set(sides)) and sides[:2] == (1, 2) for sides in lists)
    assert max(sum(side * side for side in sides) for sides in lists) <= 680
    assert all(3 <= len(sides) <= 10 for sides in lists)
    # 5 % of the draws, of which 10 % drop a level.
    assert 0.03 < sum(sides == draws.usual for sides in lists) / 2000 < 0.06
    assert {side for sides in lists for side in sides} == set(range(1, 17))
    assert Counter(sides[-1] for sides in lists)[16] > 500


def test_training_draws_levels_and_evaluation_takes_them_all():
    draws = {"always": [1, 4], "some": [[1, 2, 3]], "usual_share": 0.0, "drop_above": []}
    plan = {"model_type": "unimm_scale_plan", "level_embedding": False, "position_map": [5, 6], "level_draws": draws}
    model = AutoModel.from_config(whole_levels_config(plan_config=plan))
    randomness = GeneratorRandomness(torch.Generator().manual_seed(0))
    lengths = set()
    for _ in range(12):
        slots = model.train()(pixel_values=pictures(), labels=torch.tensor([1, 2]), randomness=randomness).slots
        lengths.add(slots.shape[1])
    assert lengths == {1 + 4 + 16, 1 + 9 + 16}
    assert model.eval()(pixel_values=pictures(), labels=torch.tensor([1, 2])).slots.shape[1] == 30


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ConfigError, match=r"level_draws needs a plan that takes any list"):
        whole_levels_config(plan_config={"model_type": "unimm_scale_plan", "level_draws": {}})
    plan = {**model.config.plan_config.to_dict(), "level_draws": {}}
    with pytest.raises(ConfigError, match=r"needs a tokenizer that can do whole_levels"):
        whole_levels_config(plan_config=plan, tokenizer_config=PYRAMID)
    with pytest.raises(ConfigError, match=r"no field 'allways'.*always"):
        LevelDraws.of({"allways": [1]})
    with pytest.raises(ConfigError, match=r"level_draws leaves levels out"):
        ScalePlanConfig(**{**plan, "self_correction": 0.3})
    with pytest.raises(LayoutError, match=r"grow from 1x1"):
        draw(model, plan_options={"levels": [2, 4]})
    with pytest.raises(LayoutError, match=r"grow from 1x1"):
        draw(model, plan_options={"levels": [1, 4, 2]})
    with pytest.raises(ConfigError, match=r"sampled_sides"):
        draw(model, plan_options={"sampled_sides": 3})
    with pytest.raises(ConfigError, match=r"no option 'level'.*levels"):
        draw(model, plan_options={"level": [1, 2]})
    with pytest.raises(LayoutError, match=r"built for the pyramid.*only a plan without position table"):
        draw(build("scale"), plan_options={"levels": [1, 2]})
    with pytest.raises(LayoutError, match=r"decodes one grid"):
        build("vq_tokenizer").decode(VisualTokens(TokenLayout.pyramid([1, 2]), ids=torch.zeros(1, 5, dtype=torch.long)))
