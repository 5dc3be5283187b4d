"""Wrong kinds, shapes, ranges and ids at the public functions: a class of `unimm.errors` that says what to do."""

from functools import cache

import numpy as np
import pytest
import torch
from factories import (
    ADALN,
    LLAMA,
    PYRAMID,
    VQ,
    build,
    build_with_processor,
    conditional_config,
    prompts,
    raster_config,
    training_inputs,
)
from PIL import Image

from unimm import (
    ConstantGuidance,
    ImageGenerationPipeline,
    ImageIteratorStreamer,
    IntervalGuidance,
    LinearGuidance,
    SoftCodes,
    TokenLayout,
    UniMMImageProcessor,
    UniMMProcessor,
    VisualTokens,
)
from unimm.backbones import VisualTransformerConfig
from unimm.data.digits import digits_dataset
from unimm.data.loading import load_rows
from unimm.data.photographs import photographs_dataset
from unimm.data.shapes import ShapesSampler
from unimm.data.transforms import as_output_type, make_grid, to_pixel_values
from unimm.errors import CodebookError, ConfigError, DataError, ImageError, LayoutError
from unimm.evaluation.benchmarks import run_benchmark
from unimm.evaluation.shapes import ShapesJudge, evaluate_generations, wilson_interval
from unimm.generation.loop import Inpainting
from unimm.memory import describe_generation
from unimm.models import word_tokenizer
from unimm.tokenizers import KLTokenizer, VQTokenizerConfig
from unimm.tokens import check_ids

model = cache(build)
speaker = cache(lambda: build_with_processor(max_position_embeddings=64))
GRID = TokenLayout.grid(4)
IDS = torch.zeros(1, 16, dtype=torch.long)
PIXELS = torch.zeros(1, 3, 16, 16)
NAN = float("nan")


def refused(error, message, call):
    with pytest.raises(error, match=message) as caught:
        call()
    # The class itself: its bases ValueError and OSError would be too little.
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "levels", [None, 3, (3, 3), "16x16", (("a", "b"),), ((1.5, 2),), ((NAN, 2),)], ids=lambda one: repr(one)
)
def test_a_layout_is_made_of_whole_numbers(levels):
    refused(
        LayoutError,
        r"a list of levels, each a list of whole numbers such as \(\(16, 16\),\)",
        lambda: TokenLayout(levels),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TokenLayout.grid("2"), r"whole numbers"),
        (lambda: TokenLayout.pyramid(3), r"a pyramid is a list of sides"),
        (lambda: GRID.level_slice(5), r"levels 0 to 0, asked for 5"),
        (lambda: GRID.level_slice(-1), r"asked for -1"),
        (lambda: GRID.first_levels("1"), r"first '1' levels"),
        (lambda: VisualTokens(((4, 4),), ids=IDS), r"need a TokenLayout"),
        (lambda: VisualTokens(GRID, ids=IDS.tolist()), r"ids must be a tensor .*given a list"),
        (lambda: VisualTokens(GRID, ids=IDS.bool()), r"ids must be integers.*given bool of shape"),
        (lambda: VisualTokens(GRID, latents=IDS[..., None]), r"latents must be floating point, given int64"),
        (lambda: VisualTokens(GRID, latents=[1.0]), r"latents must be a tensor"),
        (lambda: check_ids([1], 3), r"token ids must be a tensor"),
        (lambda: check_ids(torch.ones(2), 3), r"token ids must be integers"),
    ],
)
def test_layouts_and_tokens_refuse_other_kinds(call, message):
    refused(LayoutError, message, call)


def test_ids_of_other_integer_types_become_int64():
    for dtype in (torch.int32, torch.uint8):
        assert VisualTokens(GRID, ids=IDS.to(dtype)).values.dtype == torch.int64
    generator = model("raster")
    assert torch.isfinite(generator(image_ids=IDS.int(), labels=torch.tensor([1])).loss)


TOKENIZERS = (
    "vq_tokenizer",
    "multiscale_tokenizer",
    pytest.param("kl_tokenizer", marks=pytest.mark.needs("diffusers")),
)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (None, LayoutError, r"\(batch, 3, height, width\), given None"),
        (PIXELS.numpy(), LayoutError, r"given ndarray of float32 of shape \(1, 3, 16, 16\)"),
        (Image.new("RGB", (16, 16)), LayoutError, r"given a Image"),
        (PIXELS[0], LayoutError, r"given float32 of shape \(3, 16, 16\)"),
        (PIXELS[:0], LayoutError, r"hold no picture"),
        (PIXELS * NAN, ImageError, r"from nan to nan"),
        (PIXELS + 255, ImageError, r"lie in \[-1, 1\], found values from 255 to 255: scale 8-bit pixels"),
    ],
    ids=["none", "array", "PIL", "one picture", "no picture", "nan", "8 bit"],
)
def test_tokenizers_refuse_what_are_no_pixels(name, pixels, error, message):
    refused(error, message, lambda: model(name).encode(pixels))
    refused(error, message, lambda: model(name)(pixels))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_decode_tokens_of_their_own_form_only(name):
    tokenizer = model(name)
    good = tokenizer.encode(PIXELS)
    for tokens in (None, IDS, [1]):
        refused(LayoutError, r"decodes VisualTokens, given", lambda tokens=tokens: tokenizer.decode(tokens))
    for size in ("16", 16, (16, 16, 16), (16.5, 16), (None, 16)):
        refused(LayoutError, r"a size is \(height, width\)", lambda size=size: tokenizer.decode(good, size=size))
    for sides in (("16", "16"), (16.0, 16.0), (None, None)):
        refused(LayoutError, r"whole numbers of pixels", lambda sides=sides: tokenizer.layout_for(*sides))
    refused(ConfigError, r"whole pixels", lambda: tokenizer.enable_tiling("large"))
    refused(ConfigError, r"whole pixels", lambda: tokenizer.enable_tiling(16.0, 4.0))


@pytest.mark.parametrize(
    ("name", "tokens", "message"),
    [
        (
            "vq_tokenizer",
            VisualTokens(GRID, ids=IDS[..., None].repeat(1, 1, 2)),
            r"one id per token, given .*\(1, 16, 2\)",
        ),
        (
            "vq_tokenizer",
            VisualTokens(GRID, latents=torch.zeros(1, 16, 3)),
            r"have 8 channels, given float32 .*\(1, 16, 3\)",
        ),
        ("multiscale_tokenizer", VisualTokens(TokenLayout.sequence(16), ids=IDS), r"decodes grids .*given 16"),
    ],
)
def test_tokenizers_refuse_tokens_of_another_codebook(name, tokens, message):
    refused(LayoutError, message, lambda: model(name).decode(tokens))


@pytest.mark.needs("diffusers")
def test_the_kl_tokenizer_checks_channels_and_the_generator():
    tokenizer: KLTokenizer = model("kl_tokenizer")
    few = VisualTokens(GRID, latents=torch.zeros(1, 16, 3))
    refused(LayoutError, r"have 4 channels", lambda: tokenizer.decode(few))
    refused(ConfigError, r"must be a torch.Generator, given 3", lambda: tokenizer.encode(PIXELS, generator=3))


@pytest.mark.parametrize("name", ["vq_tokenizer", "multiscale_tokenizer"])
def test_embedding_checks_kind_and_range(name):
    tokenizer = model(name)
    for ids in (None, [1], 3):
        refused(LayoutError, r"ids must be a tensor", lambda ids=ids: tokenizer.embed(ids))
    for ids in (torch.zeros(2), torch.tensor([True])):
        refused(LayoutError, r"ids must be integers", lambda ids=ids: tokenizer.embed(ids))
    for value in (-1, 32):
        refused(CodebookError, rf"\[0, 31\].*from {value}", lambda value=value: tokenizer.embed(torch.tensor([value])))


def test_the_multiscale_tokenizer_checks_the_inputs_of_its_canvas():
    tokenizer = model("multiscale_tokenizer")
    layout = tokenizer.config.layout
    latents = VisualTokens(layout, latents=torch.zeros(1, 21, 8))
    refused(LayoutError, r"start from ids, given latents", lambda: tokenizer.teacher_inputs(latents))
    wrong = VisualTokens(layout, ids=torch.full((1, 21), 99))
    refused(CodebookError, r"from 99 to 99", lambda: tokenizer.teacher_inputs(wrong))
    refused(LayoutError, r"canvas must be \(batch, 8, ", lambda: tokenizer.decode_canvas(torch.zeros(1, 3, 4, 4)))
    refused(LayoutError, r"layout must be a TokenLayout", lambda: tokenizer.decode(tokenizer.encode(PIXELS), layout=3))
    refused(LayoutError, r"a pyramid is a list", lambda: tokenizer.layout_for(16, 16, levels=3))


LABELS = torch.tensor([1])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"image_ids": IDS.tolist()}, LayoutError, r"image_ids must be a tensor"),
        ({"image_ids": IDS[..., None]}, LayoutError, r"image_ids must be a tensor of shape \(batch, tokens\)"),
        ({"image_ids": IDS.bool()}, LayoutError, r"image_ids must be integers"),
        ({"image_ids": IDS[:0]}, LayoutError, r"hold no picture"),
        ({"pixel_values": "picture.png"}, LayoutError, r"pixel_values must be a tensor.*given 'picture.png'"),
        ({"image_ids": IDS, "labels": [1]}, ConfigError, r"labels must be a tensor"),
        ({"image_ids": IDS, "labels": LABELS.bool()}, ConfigError, r"labels must be int64.*given bool"),
        ({"image_ids": IDS, "labels": LABELS.byte()}, ConfigError, r"labels must be int64.*given uint8"),
        ({"image_ids": IDS, "valid": [1]}, ConfigError, r"valid must be a tensor"),
        ({"image_ids": IDS, "valid": torch.ones(3)}, ConfigError, r"valid has 3 entries for 1 pictures"),
        ({"image_ids": IDS, "randomness": torch.Generator()}, ConfigError, r"GeneratorRandomness\(generator\)"),
    ],
)
def test_an_image_generators_forward_refuses_what_does_not_fit(given, error, message):
    refused(error, message, lambda: model("raster")(**{"labels": LABELS, **given}))


@pytest.mark.parametrize("labels", [True, [True], 1j, torch.tensor([0.5])])
def test_labels_of_no_integers_are_refused(labels):
    refused(ConfigError, r"labels must be integers", lambda: model("raster").generate(labels=labels))


FEATURES = torch.zeros(1, 6, 12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text_features": [1]}, r"text_features must be a tensor"),
        ({"text_features": FEATURES.long()}, r"text features must be floating point, given int64"),
        ({"text_features": FEATURES * NAN}, r"text_features hold values that are not finite"),
        ({"text_features": FEATURES, "text_mask": "x"}, r"text_mask must be a tensor"),
        ({"prompt_embeds": FEATURES.numpy()}, r"prompt_embeds must be a tensor .*given ndarray"),
        ({"prompt_embeds": FEATURES, "prompt_attention_mask": [1]}, r"prompt_attention_mask must be a tensor"),
        ({"prompt_embeds": FEATURES, "negative_prompt_embeds": 3}, r"negative_prompt_embeds must be a tensor"),
    ],
)
def test_text_features_of_another_kind_are_refused(given, message):
    refused(ConfigError, message, lambda: model("text").generate(**given, guidance_scale=2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": float("inf")}, r"positive and finite"),
        ({"guidance_scale": {"type": "constant", "value": "x"}}, r"finite number, given 'x'"),
        ({"guidance_scale": {"type": "linear", "first": None, "last": 2}}, r"finite number, given None"),
        ({"logits_processor": [3]}, r"processors \(callables\), given 3"),
        ({"randomness": {"token": [0.5]}}, r"recorded draws 'token' must be a tensor"),
    ],
)
def test_options_of_drawing_that_make_no_sense_are_refused(options, message):
    refused(ConfigError, message, lambda: model("raster").generate(labels=[1], **options))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConstantGuidance(NAN), r"finite number, given nan"),
        (lambda: ConstantGuidance("x"), r"finite number, given 'x'"),
        (lambda: LinearGuidance(None, 1), r"finite number, given None"),
        (lambda: IntervalGuidance(2, "a", 3), r"whole steps .*start='a'"),
        (lambda: IntervalGuidance(2, 5, 3), r"start <= stop, given start=5 and stop=3"),
        (lambda: SoftCodes("x"), r"finite numbers"),
        (lambda: SoftCodes(start=-1), r"start and minimum above 0"),
        (lambda: SoftCodes(start=NAN), r"finite numbers"),
        (lambda: ImageIteratorStreamer("x"), r"whole number of at least 1, given 'x'"),
        (lambda: ImageIteratorStreamer(1, "soon"), r"timeout must be seconds"),
        (lambda: model("raster").image_options(None), r"must be a mapping"),
    ],
)
def test_the_objects_of_sampling_check_their_numbers(call, message):
    refused(ConfigError, message, call)


@pytest.mark.parametrize(
    ("ids", "mask", "error", "message"),
    [
        (IDS.repeat(3, 1), torch.ones(4, 4), LayoutError, r"3 given pictures for 2 to draw"),
        (IDS + 99, torch.ones(4, 4), CodebookError, r"\[0, 31\].*99"),
        (IDS, torch.ones(2, 2), LayoutError, r"mask must be \(4, 4\)"),
    ],
)
def test_in_painting_that_does_not_fit_is_refused_before_anything_is_drawn(ids, mask, error, message):
    inpainting = Inpainting(VisualTokens(GRID, ids=ids), mask)
    calls = []
    options = {"inpainting": inpainting, "callback_on_step_end": lambda *step: calls.append(step)}
    refused(error, message, lambda: model("raster").generate(labels=[1, 2], **options))
    assert calls == []
    refused(LayoutError, r"VisualTokens and a mask", lambda: Inpainting([1], mask))


def mixed(**changes):
    return {**training_inputs(model("conditional")), **changes}


VISUAL = torch.full((2, 22), 8)
SHORT = torch.tensor([[2, 20]])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ConfigError, r"input_ids or inputs_embeds"),
        ({"input_ids": [[1]]}, LayoutError, r"input_ids must be a tensor"),
        ({"input_ids": SHORT.float()}, LayoutError, r"input_ids must be integers"),
        ({"input_ids": SHORT[:, :0]}, LayoutError, r"hold no token"),
        ({"input_ids": SHORT + 999}, CodebookError, r"input_ids must lie in \[0, 47\].*another tokenizer"),
        ({"input_ids": -SHORT}, CodebookError, r"from -20"),
        ({"input_ids": SHORT, "attention_mask": torch.ones(1, 5)}, LayoutError, r"attention_mask must be \(1, 2\)"),
        ({"input_ids": SHORT, "attention_mask": [[1, 1]]}, LayoutError, r"attention_mask must be a tensor"),
        ({"input_ids": SHORT, "cache": 3}, ConfigError, r"cache must be a transformers Cache"),
        ({"input_ids": SHORT, "logits_to_keep": -1}, ConfigError, r"at least 0, given -1"),
        ({"inputs_embeds": torch.zeros(1, 3, 33)}, LayoutError, r"must have 32 channels"),
        (mixed(image_ids=IDS.repeat(2, 1) + 99), CodebookError, r"\[0, 31\]"),
        (mixed(image_ids=[1]), LayoutError, r"image_ids must be a tensor"),
        (mixed(image_ids=torch.zeros(2, 16)), LayoutError, r"image_ids must be integers"),
        (mixed(pixel_values=PIXELS.repeat(2, 1, 1, 1)), ConfigError, r"as image_ids or as pixels, given both"),
        (mixed(labels=VISUAL[:, :4]), LayoutError, r"labels must be \(2, 22\)"),
        (mixed(labels=VISUAL.float()), LayoutError, r"labels must be integers"),
        (mixed(labels=VISUAL + 99), CodebookError, r"labels other than -100 must lie in \[0, 47\]"),
        (mixed(labels=VISUAL - 13), CodebookError, r"from -5"),
        (mixed(labels=VISUAL), LayoutError, r"12 labels say visual_token_id \(8\) where the text has no"),
    ],
)
def test_a_conditional_models_forward_refuses_what_does_not_fit(given, error, message):
    refused(error, message, lambda: model("conditional")(**given))


def test_a_sequence_longer_than_the_context_is_refused_in_training_too():
    own, _ = speaker()
    refused(LayoutError, r"200 tokens.*ends at 64", lambda: own(input_ids=torch.full((1, 200), 11)))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 3, 8, 8), r"\(pictures, 3, 16, 16\), given float32 of shape \(1, 3, 8, 8\)"),
        (torch.zeros(1, 4, 16, 16), r"given float32 of shape \(1, 4, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"floating point .*given uint8"),
        ([1], r"must be a tensor"),
    ],
)
def test_a_vision_encoder_reads_pictures_of_its_size_only(pixels, message):
    reader = model("conditional_vision")
    refused(LayoutError, message, lambda: reader.get_image_features(pixels))
    refused(ConfigError, r"no vision encoder", lambda: model("conditional").get_image_features(PIXELS))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(None, r"must be a tensor"), ([1], r"must be a tensor"), (IDS[0], r"must be a tensor"), (IDS.bool(), r"integers")],
)
def test_pictures_are_decoded_from_ids_only(tokens, message):
    refused(LayoutError, message, lambda: model("conditional").decode_image_tokens(tokens))


@pytest.mark.parametrize(
    ("mode", "options", "error", "message"),
    [
        ("text", {"max_new_tokens": 0}, ConfigError, r"max_new_tokens must be a whole number of at least 1"),
        ("text", {"max_new_tokens": "x"}, ConfigError, r"max_new_tokens must be .*given 'x'"),
        ("text", {"max_new_tokens": 1.5}, ConfigError, r"given 1.5"),
        ("text", {"temperature": -1.0, "do_sample": True}, ConfigError, r"temperature must be a number above 0"),
        ("text", {"top_p": 7.0, "do_sample": True}, ConfigError, r"top_p must be a number in \(0, 1\], given 7.0"),
        ("text", {"top_k": -1, "do_sample": True}, ConfigError, r"top_k must be"),
        ("text", {"nonsense": 1}, ConfigError, r"writing text: .*nonsense"),
        ("text", {"num_return_sequences": 2}, ConfigError, r"writing text: .*num_return_sequences"),
        ("text", {"generation_config": {}}, ConfigError, r"must be a GenerationConfig"),
        ("text", {"eos_token_id": "x"}, ConfigError, r"eos_token_id must be an id"),
        ("text", {"logits_processor": [3]}, ConfigError, r"list of processors"),
        ("text", {"inputs": SHORT}, ConfigError, r"as input_ids or as inputs, given both"),
        ("text", {"image_ids": [1]}, LayoutError, r"image_ids must be a tensor"),
        ("image", {"pixel_values": PIXELS}, LayoutError, r"1 pictures of 16 slots .*0 placeholders"),
        ("image", {"pixel_values": [1]}, LayoutError, r"pixel_values must be a tensor"),
        ("image", {"negative_input_ids": [[1]]}, ConfigError, r"prompts as negative_input_ids"),
        ("interleaved", {"image_options": 3}, ConfigError, r"image_options must be a mapping"),
        ("interleaved", {"image_options": {"guidence_scale": 3}}, ConfigError, r"did you mean 'guidance_scale'"),
        ("interleaved", {"image_options": {"temperature": -1.0}}, ConfigError, r"temperature must be positive"),
        ("interleaved", {"max_images": -1}, ConfigError, r"max_images must be a whole number"),
        ("interleaved", {"max_new_tokens": "x"}, ConfigError, r"max_new_tokens must be a whole number"),
        ("interleaved", {"return_dict_in_generate": True}, ConfigError, r"takes no 'return_dict_in_generate'"),
    ],
)
def test_generate_refuses_options_and_pictures_that_do_not_fit(mode, options, error, message):
    own, processor = speaker()
    inputs = prompts(processor, "draw")
    refused(error, message, lambda: own.generate(**inputs, generation_mode=mode, **options))


@pytest.mark.parametrize("mode", ["text", "image", "interleaved"])
def test_masks_of_another_kind_or_with_padding_at_the_end_are_refused(mode):
    own, _ = speaker()
    ids, mask = torch.tensor([[2, 11, 12, 0]]), torch.tensor([[1, 1, 1, 0]])
    refused(ConfigError, r"padded on the right", lambda: own.generate(ids, mask, generation_mode=mode))
    refused(ConfigError, r"mask must be a tensor", lambda: own.generate(ids, mask.tolist(), generation_mode=mode))


RED = Image.new("RGB", (8, 8), "red")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"text": "a", "return_tensors": "xx"}, ConfigError, r"cannot make a batch .*xx is not a valid"),
        ({"text": ["a", "a red"], "padding": False}, ConfigError, r"cannot make a batch .*padding"),
        ({"text": "a", "padding": "xx"}, ConfigError, r"cannot make a batch"),
        ({"text": "a", "padding_side": "right"}, ConfigError, r"padded on the left"),
        (
            {"text": "a <|image|>", "images": RED, "max_length": 2, "truncation": True},
            LayoutError,
            r"leave room for whole",
        ),
        ({"text": "a <|image|> <|visual|>", "images": RED}, LayoutError, r"17 placeholders for 1 pictures of 16"),
        ({"text": "a <|image|>", "images": np.zeros((8, 8, 5), "uint8")}, ImageError, r"1, 3 or 4 channels"),
        ({"text": "a <|image|>", "images": np.zeros((0, 8, 3), "uint8")}, ImageError, r"of shape \(0, 8, 3\)"),
        (
            {"text": "a <|image|>", "images": "http://localhost:1/x.png"},
            ImageError,
            r"localhost:1/x.png. cannot be read",
        ),
    ],
)
def test_the_processor_refuses_what_it_cannot_make_a_batch_of(call, error, message):
    refused(error, message, lambda: speaker()[1](**call))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda one: one.apply_chat_template([{"role": "user", "content": None}]), DataError, r"list of parts"),
        (lambda one: one.apply_chat_template([{"role": 3, "content": "a"}]), DataError, r"text as its role"),
        (lambda one: one.encode_conversation(None), DataError, r"list of messages"),
        (lambda one: one.encode_conversation([3]), DataError, r"at least one assistant message"),
        (lambda one: one.encode_conversation([{"content": "a"}]), DataError, r"at least one assistant message"),
        (lambda one: one.encode_conversation([{"role": "assistant", "content": None}]), DataError, r"list of parts"),
        (lambda one: one.image_processor.postprocess(None), ImageError, r"floating point pixels .*given None"),
        (lambda one: one.image_processor.postprocess(PIXELS.byte()), ImageError, r"given uint8"),
        (lambda one: one.post_process_multimodal_output(None), DataError, r"ids \(batch, length\), given None"),
        (lambda one: UniMMProcessor(UniMMImageProcessor(), None), ConfigError, r"needs a text tokenizer"),
        (
            lambda one: UniMMProcessor(one.image_processor, one.tokenizer, num_visual_tokens=-1),
            ConfigError,
            r"at least 1",
        ),
        (lambda one: word_tokenizer(None), DataError, r"list of words"),
        (lambda one: word_tokenizer([1]), DataError, r"list of words"),
    ],
)
def test_the_processors_methods_refuse_other_kinds(call, error, message):
    refused(error, message, lambda: call(speaker()[1]))


def test_pipelines_refuse_other_kinds():
    pipe = ImageGenerationPipeline(*speaker())
    refused(DataError, r"a string, a conversation", lambda: pipe(text=3))
    refused(DataError, r"a string, a conversation", lambda: pipe(1.5))
    refused(ConfigError, r"generate_kwargs must be a mapping", lambda: pipe(text="a", generate_kwargs=3))
    refused(ConfigError, r"must be a UniMMProcessor, given a int", lambda: ImageGenerationPipeline(speaker()[0], 3))
    generator = model("raster")
    refused(ConfigError, r"a processor has no effect", lambda: ImageGenerationPipeline(generator, speaker()[1]))
    drawer = ImageGenerationPipeline(model("text_empty_prompt"))
    refused(DataError, r"prompt 1 must be a string with at least one word", lambda: drawer(prompt=["a", " "]))


CLASS = {"model_type": "unimm_class_condition"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: raster_config(image_size=0), ConfigError, r"image_size must be a side or .*above 0, given 0"),
        (lambda: conditional_config(image_size=-16), ConfigError, r"given -16"),
        (
            lambda: raster_config(tokenizer_config={"model_type": "unimm_raster_plan"}),
            ConfigError,
            r"tokenizer_config must be a visual tokenizer .*given 'unimm_raster_plan'",
        ),
        (lambda: raster_config(plan_config={"model_type": "unimm_categorical_head"}), ConfigError, r"must be a plan"),
        (lambda: raster_config(head_config={"model_type": "unimm_raster_plan"}), ConfigError, r"must be a head"),
        (lambda: raster_config(condition_config={"model_type": "unimm_raster_plan"}), ConfigError, r"a condition"),
        (lambda: raster_config(backbone_config=VQ), ConfigError, r"must be a backbone.*given 'unimm_vq_tokenizer'"),
        (lambda: raster_config(backbone_config={"model_type": "bert"}), ConfigError, r"backbone.*given 'bert'"),
        (lambda: raster_config(plan_config={"model_type": 3}), ConfigError, r"no config of type '3'"),
        (
            lambda: raster_config(condition_config={**CLASS, "num_classes": 0}),
            ConfigError,
            r"num_classes of at least 1",
        ),
        (lambda: raster_config(condition_config={**CLASS, "drop_probability": 2}), ConfigError, r"in \[0, 1\]"),
        (
            lambda: raster_config(tokenizer_config=None, token_layout=((2, -2),), codebook_size=8),
            ConfigError,
            r"at least 1 token",
        ),
        (
            lambda: raster_config(tokenizer_config=None, token_layout=((2, 2),), codebook_size=0),
            ConfigError,
            r"codebook_size must be at least 1",
        ),
        (
            lambda: conditional_config(text_config={"model_type": "siglip_vision_model"}),
            ConfigError,
            r"causal language",
        ),
        (
            lambda: conditional_config(text_config={"model_type": "t5"}),
            ConfigError,
            r"causal language model, given 't5'",
        ),
        (lambda: conditional_config(vision_config={"model_type": "qwen3"}), ConfigError, r"vision encoder"),
        (lambda: conditional_config(head_config={"model_type": "unimm_raster_plan"}), ConfigError, r"must be a head"),
        (lambda: conditional_config(null_prompt_ids=(999,)), ConfigError, r"vocabulary size 48, found 999"),
        (lambda: conditional_config(text_loss_weight=-1), ConfigError, r"must be at least 0"),
        (lambda: VisualTransformerConfig(**{**LLAMA, "num_attention_heads": 0}), ConfigError, r"at least 1, given 0"),
        (lambda: VisualTransformerConfig(**{**ADALN, "num_hidden_layers": -1}), ConfigError, r"num_hidden_layers"),
        (lambda: VQTokenizerConfig(**{**VQ, "num_norm_groups": 0}), ConfigError, r"num_norm_groups must be at least 1"),
        (lambda: VQTokenizerConfig(**{**VQ, "code_channels": 0}), ConfigError, r"code_channels must be at least 1"),
        (lambda: describe_generation(VisualTransformerConfig(**LLAMA)), ConfigError, r"draws no pictures"),
    ],
)
def test_configs_refuse_parts_and_sizes_that_cannot_be_built(call, error, message):
    refused(error, message, call)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": 3}, r"options must be a mapping"),
        ({"sampling": [1]}, r"sampling must be a mapping"),
        ({"num": 0}, r"num must be a whole number of at least 1"),
        ({"name": "digits", "options": {"nonsense": 1}}, r"'digits' has no options, given nonsense"),
        ({"options": {"backgrounds": 3}}, r"backgrounds must be a list, given 3"),
    ],
)
def test_benchmarks_refuse_options_that_they_do_not_have(options, message):
    own, processor = speaker()
    refused(
        ConfigError,
        message,
        lambda: run_benchmark(**{"name": "shapes", "num": 1, **options}, model=own, processor=processor),
    )
    refused(ConfigError, r"given a VQTokenizer", lambda: run_benchmark("shapes", model("vq_tokenizer"), processor))


def test_the_pyramid_of_another_tokenizer_is_refused_by_the_generator():
    other = VisualTokens(TokenLayout.pyramid([1, 4]), ids=torch.zeros(1, 17, dtype=torch.long))
    refused(LayoutError, r"1x1 \+ 2x2 \+ 4x4 has 21 tokens, given 17", lambda: model("scale").as_tokens(other.values))
    assert PYRAMID["levels"] == (1, 2, 4)


SQUARE = np.zeros((32, 32, 3), "uint8")


@pytest.mark.needs("datasets")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load_rows("digits", 3), DataError, r"no split '3'"),
        (lambda: load_rows("digits", num_rows=1.5), DataError, r"num_rows must be 1 or more, given 1.5"),
        (lambda: load_rows("digits", seed="x"), DataError, r"seed must be 0 or more, given 'x'"),
        (lambda: load_rows("digits", streaming="yes"), DataError, r"streaming must be True or False"),
        (lambda: digits_dataset(resolution="x"), ConfigError, r"resolution must be 10 or more, given 'x'"),
        (lambda: photographs_dataset(num_rows="x"), ConfigError, r"num_rows must be 1 or more"),
        (lambda: photographs_dataset(resolution="x"), ConfigError, r"1 to 300.*given 'x'"),
    ],
)
def test_data_sets_check_the_kinds_of_their_options(call, error, message):
    refused(error, message, call)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ShapesSampler("train", num_rows=-1), ConfigError, r"num_rows must be 1 or more, given -1"),
        (lambda: ShapesSampler("train", seed="x"), ConfigError, r"seed must be 0 or more"),
        (lambda: ShapesSampler("train", resolution="x"), ImageError, r"16 pixels a side or more, but got 'x'"),
        (lambda: ShapesSampler("train", words=(3,)), ConfigError, r"words must be words"),
        (lambda: ShapesSampler("train", held_out_share="x"), ConfigError, r"a share in \[0, 1\], but got 'x'"),
        (lambda: to_pixel_values(None, 16, 16), ImageError, r"a list of pictures, given None"),
        (lambda: to_pixel_values([3], 16, 16), ImageError, r"a PIL picture or a uint8 array .*given 3"),
        (lambda: to_pixel_values([SQUARE], "a", 16), ConfigError, r"given 'a' and 16"),
        (lambda: make_grid(None, None), ImageError, r"a list of pictures"),
        (lambda: as_output_type(None, "pt"), ImageError, r"pixels must be a tensor"),
        (lambda: ShapesJudge().judge(SQUARE, 3), DataError, r"a sentence of the world's grammar, given 3"),
        (lambda: evaluate_generations([SQUARE], None), DataError, r"captions must be a list"),
    ],
)
def test_pictures_and_judges_refuse_other_kinds(call, error, message):
    refused(error, message, call)


def test_a_rate_lies_within_its_cases():
    with pytest.raises(ValueError, match="must lie in 0 to 3, but got 5"):
        wilson_interval(5, 3)
