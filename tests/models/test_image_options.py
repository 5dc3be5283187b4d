"""Options of drawing: what the caller says, what the folder says, defaults; and what makes no sense."""

import logging

import pytest
import torch
from factories import build, build_with_processor, prompts
from transformers import AutoModel, GenerationConfig

from unimm import ImageOptions, IntervalGuidance, LinearGuidance, SoftCodes
from unimm.errors import ConfigError, LayoutError, UniMMError
from unimm.generation import ConstantGuidance, as_schedule


def test_the_caller_wins_over_the_given_config_which_wins_over_the_models_which_wins_over_the_default():
    options = ImageOptions.resolve({"top_k": 1, "top_p": None}, {"top_k": 2, "temperature": 0.5}, {"temperature": 0.7})
    assert (options.top_k, options.temperature, options.top_p) == (1, 0.5, 1.0)
    assert options.given == {"top_k"}


def test_an_image_generator_draws_with_its_generation_config_where_the_caller_says_nothing():
    model = build("raster")
    first = {"labels": [1], "output_logits": True}
    model.set_image_sampling(guidance_scale=3.0, top_k=1)
    by_default = model.generate(**first)
    assert torch.equal(by_default.logits, model.generate(**first, guidance_scale=3.0, do_sample=False).logits)
    said = model.generate(**first, guidance_scale=1.0, do_sample=False)
    assert not torch.equal(said.logits, by_default.logits)
    given = model.generate(**first, generation_config=GenerationConfig(guidance_scale=1.0, do_sample=False))
    assert torch.equal(given.logits, said.logits)


def test_a_conditional_model_keeps_the_defaults_of_pictures_apart_from_those_of_text():
    model, processor = build_with_processor()
    inputs = prompts(processor, "a red circle", generation_mode="image")
    greedy = model.generate(**inputs, generation_mode="image", do_sample=False)
    words = model.generate(**inputs, max_new_tokens=4)
    model.generation_config.top_k, model.generation_config.do_sample = 1, True
    assert not torch.equal(model.generate(**inputs, generation_mode="image"), greedy)
    model.generation_config.do_sample = model.generation_config.top_k = None
    model.set_image_sampling(do_sample=False)
    assert torch.equal(model.generate(**inputs, generation_mode="image"), greedy)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), words)
    other = GenerationConfig(
        image_sampling={"top_k": 1, "do_sample": True, "guidance_scale": {"type": "constant", "value": 1}}
    )
    assert torch.equal(model.generate(**inputs, generation_mode="image", generation_config=other), greedy)


@pytest.mark.parametrize("name", ["scale", "conditional"])
@pytest.mark.parametrize("schedule", [2.0, LinearGuidance(1, 2.5), IntervalGuidance(3.0, 0, 1), ConstantGuidance(4.0)])
def test_sampling_defaults_are_saved_with_the_model(name, schedule, tmp_path):
    model = build(name)
    model.set_image_sampling(guidance_scale=schedule, top_k=7, top_p=0.9)
    model.save_pretrained(tmp_path)
    options = AutoModel.from_pretrained(tmp_path).image_options({})
    assert options.guidance == as_schedule(schedule)
    assert (options.top_k, options.top_p, options.do_sample) == (7, 0.9, True)


def test_defaults_that_cannot_be_saved_or_read_are_refused():
    model = build("conditional")
    with pytest.raises(ConfigError, match=r"keeps no 'generator'"):
        model.set_image_sampling(generator=torch.Generator())
    with pytest.raises(ConfigError, match=r"top_p in \(0, 1\]"):
        model.set_image_sampling(top_p=3.0)
    model.generation_config.image_sampling = {"topk": 3}
    with pytest.raises(ConfigError, match=r"takes no 'topk' \(did you mean 'top_k'"):
        model.image_options({})
    model.generation_config.image_sampling = 3
    with pytest.raises(ConfigError, match=r"must be a mapping"):
        model.image_options({})
    with pytest.raises(ConfigError, match=r"no guidance schedule of type 'lineal' \(did you mean 'linear'"):
        as_schedule({"type": "lineal"})
    with pytest.raises(ConfigError, match=r"of type 'linear' cannot be made"):
        as_schedule({"type": "linear", "value": 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidence_scale": 2.0}, r"takes no 'guidence_scale' \(did you mean 'guidance_scale'"),
        ({"pixel_values": torch.zeros(1, 3, 16, 16)}, r"takes no 'pixel_values'"),
        ({"guidance_scale": "strong"}, r"finite number or a GuidanceSchedule"),
        ({"guidance_scale": float("nan")}, r"finite number"),
        ({"temperature": 0.0}, r"temperature must be positive"),
        ({"top_k": 1.5}, r"top_k"),
        ({"do_sample": "yes"}, r"do_sample"),
        ({"num_images_per_prompt": 0}, r"num_images_per_prompt must be at least 1"),
        ({"output_type": "jpeg"}, r"output_type"),
        ({"generator": 3}, r"torch.Generator or a list"),
        ({"generator": [torch.Generator(), 3]}, r"torch.Generator or a list"),
        ({"generator": [torch.Generator()] * 3}, r"3 generators were given for 2 pictures"),
        ({"generator": torch.Generator(), "randomness": {}}, r"either a generator or randomness"),
        ({"streamer": print}, r"streamer"),
        ({"callback_on_step_end": 3}, r"must be callable"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["logit"]},
            r"no tensor 'logit' \(did you mean 'logits'",
        ),
        ({"generation_config": {"top_k": 3}}, r"must be a GenerationConfig"),
        ({"soft_codes": SoftCodes()}, r"soft codes need a plan"),
        ({"cache_implementation": "paged"}, r"cache_implementation"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_both_models(options, message):
    model, processor = build_with_processor()
    inputs = prompts(processor, "a red circle", "circle", generation_mode="image")
    with pytest.raises(ConfigError, match=message):
        build("raster").generate(labels=[1, 2], **options)
    if "pixel_values" not in options:
        with pytest.raises(ConfigError, match=message):
            model.generate(**inputs, generation_mode="image", **options)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (None, 32), (16, 8)])
def test_a_size_that_the_model_does_not_draw_is_refused(height, width):
    model, processor = build_with_processor()
    with pytest.raises(LayoutError, match=r"draws pictures of 16 x 16 pixels .*asked for"):
        build("scale").generate(labels=[1], height=height, width=width)
    with pytest.raises(LayoutError, match=r"draws pictures of 16 x 16 pixels"):
        model.generate(**prompts(processor, "a circle"), generation_mode="image", height=height, width=width)
    assert build("scale").generate(labels=[1], height=16, width=16).images.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], r"labels is empty"),
        (["cat"], r"labels must be integers"),
        (object(), r"labels must be integers"),
        ([0.5], r"labels must be integers"),
        ([[1, 2]], r"shape \(batch,\)"),
        ([99], r"must lie in \[0, 5\]"),
        (None, r"takes labels, given nothing"),
    ],
)
def test_labels_that_make_no_sense_are_refused(labels, message):
    with pytest.raises(ConfigError, match=message):
        build("raster").generate(labels=labels)


def warned(caplog, draw):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="unimm"):
        draw()
    return " ".join(caplog.messages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": IntervalGuidance(3.0, 50, 60)}, "is 1 at all 16 steps"),
        ({"guidance_scale": 3.0, "labels": [5]}, "the condition is the null condition itself"),
        ({"do_sample": False, "top_k": 3}, "top_k, because the likeliest id is taken"),
        ({"do_sample": False, "generator": torch.Generator()}, "generator, because the likeliest id is taken"),
        ({"use_cache": False, "cache_implementation": "static"}, "use_cache is False"),
    ],
)
def test_what_has_no_effect_is_warned_about(options, message, caplog):
    model = build("raster")
    assert message in warned(caplog, lambda: model.generate(**({"labels": [1]} | options)))


def test_guidance_without_a_null_prompt_and_a_negative_prompt_without_guidance_are_warned_about(caplog):
    model, processor = build_with_processor()
    inputs = prompts(processor, "a red circle", generation_mode="image")
    negative = {"negative_input_ids": inputs["input_ids"]}
    assert "negative prompt" in warned(caplog, lambda: model.generate(**inputs, **negative, generation_mode="image"))
    model.config.null_prompt_ids = ()
    options = {"generation_mode": "image", "guidance_scale": 3.0}
    assert "no null condition" in warned(caplog, lambda: model.generate(**inputs, **options))
    unlike = prompts(processor, "blue", generation_mode="image")["input_ids"]
    assert warned(caplog, lambda: model.generate(**inputs, negative_input_ids=unlike, **options)) == ""


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0, "do_sample": False},
        {"guidance_scale": LinearGuidance(1, 2)},
        {"guidance_scale": 3.0, "top_k": 4, "generator": torch.Generator()},
        {"use_cache": False},
    ],
)
def test_what_has_an_effect_is_not_warned_about(options, caplog):
    assert warned(caplog, lambda: build("raster").generate(labels=[1], **options)) == ""


def test_a_generator_without_a_tokenizer_gives_ids_and_says_so():
    from factories import raster_config

    model = AutoModel.from_config(raster_config(tokenizer_config=None, token_layout=((4, 4),), codebook_size=32)).eval()
    drawn = model.generate(labels=[1], output_type="latent")
    assert torch.equal(drawn.images, drawn.sequences)
    assert model.generate(labels=[1]).images is None
    with pytest.raises(UniMMError, match=r"no visual tokenizer and gives ids, not 'pil'"):
        model.generate(labels=[1], output_type="pil")
