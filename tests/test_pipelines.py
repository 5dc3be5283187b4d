"""The light pipeline, and that its outputs are those of transformers' any-to-any pipeline."""

import importlib.util
import logging

import numpy as np
import pytest
import torch
from factories import build, build_with_processor, generators, prompts
from PIL import Image
from transformers import AutoModelForMultimodalLM, GenerationConfig

import unimm
from unimm.errors import CheckpointError, ConfigError, DataError
from unimm.pipelines import ImageGenerationPipeline

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
RED = Image.new("RGB", (16, 16), (200, 30, 30))
CHAT = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "what colour is it"}]}]

#: Calls that both any-to-any pipelines take.
CALLS = {
    "text": {"text": "what colour is it", "max_new_tokens": 5},
    "new text": {"text": "what colour is it", "max_new_tokens": 5, "return_full_text": False},
    "token ids": {"text": "what colour is it", "max_new_tokens": 5, "return_tensors": True},
    "texts": {"text": ["what is it", "a red circle is what colour"], "max_new_tokens": 5},
    "text with a picture": {"text": "what colour is it <|image|>", "images": RED, "max_new_tokens": 5},
    "conversation": {"text": CHAT, "max_new_tokens": 5},
    "conversations": {"text": [CHAT, CHAT], "max_new_tokens": 5},
    "default length": {"text": CHAT},
    "picture": {"text": "draw a red circle", "generation_mode": "image"},
    "pictures": {"text": ["draw", "draw a red circle"], "generation_mode": "image"},
    "picture of a conversation": {"text": CHAT, "generation_mode": "image"},
    "several pictures": {
        "text": "draw",
        "generation_mode": "image",
        "generate_kwargs": {"num_images_per_prompt": 3, "guidance_scale": 2.0},
    },
}


@pytest.fixture(scope="module")
def parts():
    return build_with_processor()


def comparable(records):
    if isinstance(records, list | tuple):
        return [comparable(one) for one in records]
    if isinstance(records, dict):
        return {key: comparable(one) for key, one in records.items()}
    if isinstance(records, Image.Image):
        return np.asarray(records).tolist()
    return records.tolist() if isinstance(records, torch.Tensor) else records


@pytest.mark.skipif(not HAS_TORCHVISION, reason="transformers' any-to-any pipeline needs torchvision")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_the_outputs_are_those_of_transformers_any_to_any_pipeline(parts, call, tmp_path):
    model, processor = parts
    theirs = unimm.pipeline(model, processor)
    assert type(theirs).__name__ == "AnyToAnyPipeline"
    torch.manual_seed(0)
    expected = theirs(**call)
    torch.manual_seed(0)
    assert comparable(ImageGenerationPipeline(model, processor)(**call)) == comparable(expected)


@pytest.mark.skipif(not HAS_TORCHVISION, reason="transformers' any-to-any pipeline needs torchvision")
def test_transformers_loads_the_any_to_any_pipeline_from_a_folder(parts, tmp_path):
    import transformers

    for part in parts:
        part.save_pretrained(tmp_path)
    theirs = transformers.pipeline("any-to-any", model=str(tmp_path), device="cpu")
    call = CALLS["text with a picture"]
    assert comparable(theirs(**call)) == comparable(ImageGenerationPipeline(*parts)(**call))


@pytest.mark.parametrize("name", CALLS)
def test_records_have_the_structure_of_transformers(parts, name):
    records = ImageGenerationPipeline(*parts)(**CALLS[name])
    number = {"texts": 2, "conversations": 2, "pictures": 2, "several pictures": 3}.get(name, 1)
    draws = CALLS[name].get("generation_mode") == "image"
    made = "generated_image" if draws else "generated_token_ids" if name == "token ids" else "generated_text"
    assert len(records) == number
    assert all(isinstance(one, list) == (name == "conversations") for one in records)
    for record in [part for one in records for part in (one if isinstance(one, list) else [one])]:
        assert record.keys() == {"input_text", made}
        assert not draws or record[made].size == (16, 16)


def test_the_light_pipeline_is_used_where_transformers_cannot_run_and_says_why(parts, caplog, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchvision" else find(name))
    with caplog.at_level(logging.WARNING, logger="unimm"):
        assert isinstance(unimm.pipeline(*parts), ImageGenerationPipeline)
        assert isinstance(unimm.pipeline(build("raster")), ImageGenerationPipeline)
    assert "needs torchvision, which is not installed" in caplog.messages[0]
    assert "no pipeline for image generators without a language model" in caplog.messages[1]


def test_labels_give_pictures_as_diffusers_does(tmp_path):
    model = build("scale")
    model.set_image_sampling(guidance_scale=2.0, top_k=5)
    ImageGenerationPipeline(model).save_pretrained(tmp_path)
    pipe = ImageGenerationPipeline.from_pretrained(tmp_path)
    out = pipe([1, 2], num_images_per_prompt=2, generator=generators(0, 1, 2, 3))
    assert [picture.size for picture in out.images] == [(16, 16)] * 4
    assert out[0] is out.images
    pixels = model.generate(labels=[1, 1, 2, 2], generator=generators(0, 1, 2, 3), output_type="np").images
    assert np.array_equal(np.stack([np.asarray(one) for one in out.images]), (pixels * 255).round().astype(np.uint8))
    assert pipe(labels=1, output_type="pt").images.shape == (1, 3, 16, 16)
    assert pipe(torch.tensor([1]), output_type="latent").images.shape == (1, model.layout.length)


def test_prompts_are_a_users_messages_to_a_conditional_model(parts):
    model, processor = parts
    pipe = ImageGenerationPipeline(model, processor)
    options = {"guidance_scale": 300.0, "do_sample": False}
    drawn = pipe(prompt="a red circle", negative_prompt="blue", output_type="latent", **options).images
    inputs = prompts(processor, "a red circle", generation_mode="image")
    negative = prompts(processor, "blue", generation_mode="image")["input_ids"]
    expected = model.generate(**inputs, generation_mode="image", negative_input_ids=negative, **options)
    assert torch.equal(drawn, expected)
    assert not torch.equal(pipe(prompt="a red circle", output_type="latent", **options).images, drawn)
    assert pipe(prompt=["a", "circle"], num_images_per_prompt=2).images[3].size == (16, 16)


def test_a_generation_config_and_flat_options_reach_generate(parts):
    pipe = ImageGenerationPipeline(*parts)
    flat = pipe("what", do_sample=False, max_new_tokens=3, return_full_text=False)
    config = GenerationConfig(do_sample=False, max_new_tokens=3)
    assert pipe("what", generation_config=config, return_full_text=False) == flat
    greedy = pipe("draw", generation_mode="image", do_sample=False)
    assert comparable(pipe("draw", generation_mode="image", top_k=1)) == comparable(greedy)


def test_a_saved_pipeline_loads_through_the_auto_classes_and_in_half_precision(parts, tmp_path):
    model, processor = parts
    ImageGenerationPipeline(model, processor).save_pretrained(tmp_path)
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert set(loaded.output_modalities) == {"text", "image"}
    pipe = ImageGenerationPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert pipe.dtype == torch.bfloat16
    assert pipe(prompt="a red circle", guidance_scale=2.0).images[0].size == (16, 16)
    assert pipe("what", max_new_tokens=2)[0]["generated_text"].startswith("what")
    assert pipe.to("cpu").device.type == "cpu"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({}, ConfigError, r"exactly one of prompt, labels and text, given none"),
        ({"prompt": "a", "text": "b"}, ConfigError, r"given prompt and text"),
        ({"inputs": "a", "text": "b"}, ConfigError, r"text was given twice"),
        ({"labels": [1]}, ConfigError, r"draws from prompts, not from labels"),
        ({"prompt": ""}, DataError, r"at least one word"),
        ({"prompt": []}, DataError, r"at least one, given \[\]"),
        ({"prompt": [3]}, DataError, r"prompt 0 must be a string"),
        ({"text": ""}, DataError, r"text 0 is empty"),
        ({"text": []}, DataError, r"at least one"),
        ({"prompt": "a", "images": RED}, ConfigError, r"belong to text"),
        ({"prompt": "a", "generation_mode": "text"}, ConfigError, r"belong to text"),
        ({"text": "a", "generation_mode": "audio"}, ConfigError, r"'text' or 'image', given 'audio'"),
        ({"text": "a", "generation_mode": "image", "output_type": "np"}, ConfigError, r"records hold PIL pictures"),
        ({"text": "a", "generation_mode": "image", "guidence_scale": 2}, ConfigError, r"takes no 'guidence_scale'"),
        ({"prompt": "a", "guidence_scale": 2}, ConfigError, r"did you mean 'guidance_scale'"),
        ({"text": [{"role": "user", "content": [{"type": "audio", "audio": "x"}]}]}, ConfigError, r"found 'audio'"),
    ],
)
def test_calls_that_make_no_sense_are_refused(parts, call, error, message):
    with pytest.raises(error, match=message):
        ImageGenerationPipeline(*parts)(**call)


def test_an_image_generator_reads_no_text_and_a_class_condition_no_prompts():
    pipe = ImageGenerationPipeline(build("raster"))
    with pytest.raises(ConfigError, match=r"read by a UniMMForConditionalGeneration"):
        pipe(text="a")
    with pytest.raises(ConfigError, match=r"draws from labels and takes no prompts"):
        pipe("a red circle")
    with pytest.raises(ConfigError, match=r"given labels and text|given none|exactly one"):
        pipe(labels=[1], text="a")


def test_models_that_do_not_fit_and_folders_that_are_no_models_are_refused(parts, tmp_path):
    model, processor = parts
    with pytest.raises(ConfigError, match=r"a VQTokenizer draws no pictures"):
        ImageGenerationPipeline(model.tokenizer)
    with pytest.raises(ConfigError, match=r"through a processor"):
        ImageGenerationPipeline(model)
    with pytest.raises(ConfigError, match=r"which is loaded already"):
        unimm.pipeline(model, processor, dtype=torch.float16)
    with pytest.raises(ConfigError, match=r"no config.json"):
        ImageGenerationPipeline.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"neither a folder here nor a Hub id"):
        ImageGenerationPipeline.from_pretrained("nowhere")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"a processor at .* cannot be loaded"):
        ImageGenerationPipeline.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"the model at .* cannot be loaded"):
        ImageGenerationPipeline.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the model at .* cannot be loaded"):
        ImageGenerationPipeline.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"is a file"):
        ImageGenerationPipeline.from_pretrained(tmp_path / "config.json")
