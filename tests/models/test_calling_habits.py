"""Both models called as diffusers' pipelines and transformers' models are called."""

import numpy as np
import pytest
import torch
from factories import GENERATORS, build, build_with_processor, condition_inputs, generators, prompts
from transformers import AutoModel, TextStreamer

from unimm import SoftCodes
from unimm.errors import CodebookError, ConfigError, LayoutError
from unimm.tokens import VisualTokens

MODELS = (*GENERATORS, "conditional")


def drawer(name):
    """A function `draw(rows, **options)` of a model, and the model; `rows` chooses prompts of unequal length."""
    if name != "conditional":
        model = build(name)
        inputs = condition_inputs(model, 3)
        return lambda rows, **options: model.generate(
            **{key: value[list(rows)] for key, value in inputs.items()}, **options
        ), model
    model, processor = build_with_processor()
    texts = ("a red circle", "draw a blue square and then a green circle", "circle")

    def draw(rows, **options):
        inputs = prompts(processor, *(texts[row] for row in rows), generation_mode="image")
        return model.generate(**inputs, generation_mode="image", return_dict_in_generate=True, **options)

    return draw, model


def decoded(model, ids):
    return model.tokenizer.decode(VisualTokens(model.layout, ids=ids))


@pytest.mark.parametrize("name", MODELS)
def test_several_pictures_per_prompt_and_a_list_of_generators_are_one_by_one(name):
    draw, _ = drawer(name)
    options = {"guidance_scale": 3.0, "top_k": 20}
    together = draw((0, 1, 2), num_images_per_prompt=2, generator=generators(*range(6)), **options)
    assert together.images.shape == (6, 3, 16, 16)
    for picture in range(6):
        alone = draw((picture // 2,), generator=generators(picture), **options)
        assert torch.equal(alone.sequences[0], together.sequences[picture])
        assert torch.allclose(alone.images[0], together.images[picture], atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_guidance_one_is_no_guidance_bit_for_bit_and_doubles_no_batch(name):
    draw, model = drawer(name)
    backbone = model.backbone if hasattr(model, "backbone") else model.language_model.get_decoder()
    rows = []
    handle = backbone.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    guided_by_one = draw((0, 1), guidance_scale=1.0, generator=generators(1, 2), output_logits=True)
    assert set(rows) == {2}
    handle.remove()
    unguided = draw((0, 1), generator=generators(1, 2), output_logits=True)
    assert torch.equal(guided_by_one.logits, unguided.logits)
    assert torch.equal(guided_by_one.images, unguided.images)


@pytest.mark.parametrize("name", ["scale", "conditional"])
def test_pictures_come_in_the_form_that_was_asked_for(name):
    draw, model = drawer(name)
    options = {"do_sample": False}
    pixels = draw((0, 1), **options).images
    assert pixels.min() < 0
    pt, array, pil, ids, latent = (
        draw((0, 1), output_type=kind, **options).images for kind in ("pt", "np", "pil", "ids", "latent")
    )
    assert torch.allclose(pt, (pixels + 1) / 2, atol=1e-6)
    assert array.shape == (2, 16, 16, 3)
    assert np.allclose(array, pt.permute(0, 2, 3, 1).numpy())
    assert [picture.size for picture in pil] == [(16, 16)] * 2
    assert np.abs(np.asarray(pil[0]) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6
    assert torch.equal(ids, latent)
    assert ids.shape == (2, model.layout.length)


@pytest.mark.parametrize("name", MODELS)
def test_models_in_half_precision_draw_watch_and_convert(name, tmp_path):
    build(name).save_pretrained(tmp_path, max_shard_size="20KB")
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu").eval()
    options = {"guidance_scale": 2.0, "top_k": 8, "top_p": 0.9, "num_images_per_prompt": 2, "output_type": "np"}
    if name == "conditional":
        drawn = model.generate(torch.tensor([[2, 20]]), generation_mode="image", **options)
    else:
        inputs = {
            key: value.bfloat16() if value.is_floating_point() else value
            for key, value in condition_inputs(model, 1).items()
        }
        drawn = model.generate(**inputs, **options)
    assert drawn.images.shape == (2, 16, 16, 3)
    assert np.isfinite(drawn.images).all()


def test_diffusers_gives_the_same_forms():
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor()
    draw, _ = drawer("scale")
    pixels = draw((0, 1), do_sample=False).images
    for kind in ("pt", "np"):
        ours, theirs = draw((0, 1), do_sample=False, output_type=kind).images, processor.postprocess(pixels, kind)
        assert np.allclose(np.asarray(ours), np.asarray(theirs), atol=1e-6)
    theirs = processor.postprocess(pixels, "pil")
    ours = draw((0, 1), do_sample=False, output_type="pil").images
    assert all(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ["raster", "scale", "conditional"])
def test_the_callback_sees_every_step_and_what_it_returns_is_placed(name):
    draw, model = drawer(name)
    seen = []

    def watch(called, step, num_tokens, tensors):
        assert called is model
        seen.append((step, num_tokens, {key: value.shape for key, value in tensors.items()}))
        return {"ids": torch.full_like(tensors["ids"], step)}

    drawn = draw((0, 1), callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["ids", "logits", "canvas"])
    steps = model.plan.steps(model.layout, 1)
    assert [one[:2] for one in seen] == [(step.index, step.tokens.stop) for step in steps]
    last = seen[-1][2]
    assert last["ids"] == (2, steps[-1].predicting)
    assert last["logits"] == (2, steps[-1].predicting, 32)
    assert last["canvas"] == (2, steps[-1].tokens.start)
    for step in steps:
        assert (drawn.sequences[:, step.tokens] == step.index).all()
    assert torch.allclose(drawn.images, decoded(model, drawn.sequences), atol=1e-5)


def test_ids_from_a_callback_take_the_place_of_soft_codes():
    model = build("scale")
    ids = torch.arange(model.layout.length)[None] % 32
    drawn = model.generate(
        labels=[1],
        soft_codes=SoftCodes(),
        callback_on_step_end=lambda _, step, num_tokens, tensors: {
            "ids": ids[:, num_tokens - tensors["ids"].shape[1] : num_tokens]
        },
    )
    fixed = drawn.drawn != ids
    assert fixed.any()
    assert torch.equal(drawn.sequences, ids)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3, r"must return its tensors by name"),
        ({"latents": torch.zeros(1)}, r"returned 'latents', which it was not given"),
        ({"logits": torch.zeros(1)}, r"may replace 'ids'"),
        ({"ids": torch.zeros(1, 5, dtype=torch.long)}, r"integer ids of shape \(1, 1\)"),
        ({"ids": torch.zeros(1, 1)}, r"integer ids of shape"),
    ],
)
def test_a_callback_that_returns_what_cannot_be_used_is_refused(returned, message):
    options = {"callback_on_step_end_tensor_inputs": ["ids", "logits"]}
    with pytest.raises(ConfigError, match=message):
        build("raster").generate(labels=[1], callback_on_step_end=lambda *args: returned, **options)
    with pytest.raises(CodebookError):
        build("raster").generate(
            labels=[1], callback_on_step_end=lambda *args: {"ids": torch.full((1, 1), 99)}, **options
        )


def test_a_callback_that_only_looks_may_return_nothing():
    model = build("raster")
    plain = model.generate(labels=[1], generator=generators(0)).sequences
    watched = model.generate(labels=[1], generator=generators(0), callback_on_step_end=lambda *args: None).sequences
    assert torch.equal(plain, watched)


def test_negative_prompts_steer_pictures_and_the_null_prompt_as_one_changes_nothing():
    model, processor = build_with_processor()
    options = {"generation_mode": "image", "guidance_scale": 400.0, "do_sample": False}
    text = processor.apply_chat_template([{"role": "user", "content": "a red circle"}], add_generation_prompt=True)

    def draw(**negative):
        return model.generate(**processor(text=[text, text], generation_mode="image", **negative), **options)

    plain = draw()
    assert torch.equal(draw(negative_text=processor.null_prompt), plain)
    assert not torch.equal(draw(negative_text="blue"), plain)
    mixed = draw(negative_text=[processor.null_prompt, "blue"])
    assert torch.equal(mixed[0], plain[0])
    assert torch.equal(mixed[1], draw(negative_text="blue")[1])


def test_text_is_streamed_as_in_transformers_and_interleaved_text_as_one(capsys):
    model, processor = build_with_processor()
    inputs = prompts(processor, "what colour is it")
    written = model.generate(
        **inputs, max_new_tokens=5, eos_token_id=None, streamer=TextStreamer(processor.tokenizer, True)
    )
    expected = processor.tokenizer.decode(written[0, inputs["input_ids"].shape[1] :])
    assert capsys.readouterr().out.split() == expected.split()

    class Counting(TextStreamer):
        ends = prompts = 0

        def put(self, value):
            Counting.prompts += value.dim() == 2
            super().put(value)

        def end(self):
            Counting.ends += 1
            super().end()

    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[model.config.image_start_token_id] = 4 * weight.mean(0)
    inputs = prompts(processor, "draw", generation_mode="image")
    result = model.generate(
        **inputs, generation_mode="interleaved", max_new_tokens=6, max_images=3, streamer=Counting(processor.tokenizer)
    )
    assert len(result.images) >= 1
    assert (Counting.prompts, Counting.ends) == (1, 1)


@pytest.mark.parametrize(
    ("ids", "options", "error", "message"),
    [
        ([[1, 2]], {}, ConfigError, r"prompts as input_ids .*given a list"),
        (torch.tensor([1, 2]), {}, ConfigError, r"given \(2,\)"),
        (torch.zeros(0, 3, dtype=torch.long), {}, ConfigError, r"given \(0, 3\)"),
        (torch.rand(1, 3), {}, ConfigError, r"must be integers"),
        (torch.tensor([[1, 999]]), {}, CodebookError, r"from 1 to 999"),
        (torch.ones(1, 64, dtype=torch.long), {}, LayoutError, r"64 tokens, which leaves no room.*context of 64"),
        (
            torch.ones(2, 3, dtype=torch.long),
            {"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])},
            ConfigError,
            r"row 1",
        ),
        (torch.ones(1, 3, dtype=torch.long), {"attention_mask": torch.ones(1, 2)}, ConfigError, r"shape of input_ids"),
    ],
)
@pytest.mark.parametrize("mode", ["text", "image", "interleaved"])
def test_malformed_prompts_are_refused_in_every_mode(ids, options, error, message, mode):
    model, _ = build_with_processor(max_position_embeddings=64)
    with pytest.raises(error, match=message):
        model.generate(ids, generation_mode=mode, **options)


def test_a_prompt_that_leaves_no_room_for_a_picture_is_refused():
    model, processor = build_with_processor(max_position_embeddings=28)
    inputs = prompts(processor, "draw a red circle and a blue square and a green circle")
    with pytest.raises(LayoutError, match=r"a picture takes 15 more.*ends at 28"):
        model.generate(**inputs, generation_mode="image")
    short = prompts(processor, "draw")
    with pytest.raises(LayoutError, match=r"a picture takes 15 more"):
        model.generate(**short, generation_mode="image", guidance_scale=2.0, negative_input_ids=inputs["input_ids"])


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("audio", {}, r"'text', 'image' or 'interleaved', given 'audio'"),
        ("text", {"num_images_per_prompt": 2}, r"num_images_per_prompt are options of pictures: give them with"),
        ("text", {"negative_input_ids": torch.ones(1, 1)}, r"negative_input_ids are options of pictures"),
        ("text", {"streamer": print}, r"streamer of transformers"),
        ("interleaved", {"output_type": "pil"}, r"give them in image_options"),
        ("interleaved", {"image_options": {"num_images_per_prompt": 2}}, r"one picture goes into the sequence"),
        ("image", {"negative_attention_mask": torch.ones(1, 1)}, r"belongs to negative_input_ids"),
        ("image", {"negative_input_ids": torch.ones(3, 1, dtype=torch.long)}, r"3 negative prompts for 1 prompts"),
        ("image", {"max_new_tokens": 9}, r"takes no 'max_new_tokens'"),
        ("image", {"output_type": "pil", "return_dict_in_generate": False}, r"with return_dict_in_generate=True only"),
    ],
)
def test_options_of_another_mode_are_refused(mode, options, message):
    model, processor = build_with_processor()
    with pytest.raises(ConfigError, match=message):
        model.generate(**prompts(processor, "draw"), generation_mode=mode, **options)
