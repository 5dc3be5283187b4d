import pytest
import torch
from factories import CONDITIONALS, TEXT, VQ, build, build_with_processor, conditional_config, prompts, random_ids
from PIL import Image
from transformers import AutoModel, AutoProcessor, Qwen3Config

from unimm import UniMMConditionalConfig, UniMMProcessor
from unimm.errors import ConfigError, LayoutError


@pytest.fixture(scope="module")
def parts():
    return build_with_processor()


@pytest.fixture(scope="module")
def model(parts):
    return parts[0]


@pytest.fixture(scope="module")
def processor(parts):
    return parts[1]


def picture(colour=(200, 30, 30)):
    return Image.new("RGB", (16, 16), colour)


def test_prompts_of_unequal_length_draw_what_each_draws_alone(model, processor):
    texts = ("a red circle", "draw a blue square and then a green circle", "circle")
    together = prompts(processor, *texts, generation_mode="image")
    assert together["attention_mask"].sum(1).unique().numel() > 1
    options = {
        "generation_mode": "image",
        "guidance_scale": 3.0,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    batch = model.generate(**together, **options, generator=[torch.Generator().manual_seed(row) for row in range(3)])
    for row, text in enumerate(texts):
        alone = model.generate(
            **prompts(processor, text, generation_mode="image"),
            **options,
            generator=[torch.Generator().manual_seed(row)],
        )
        assert torch.allclose(alone.logits[0], batch.logits[row], atol=1e-4)
        assert torch.equal(alone.sequences[0], batch.sequences[row])


def test_teacher_forced_image_logits_are_those_of_drawing(model, processor):
    inputs = prompts(processor, "a red circle", generation_mode="image")
    drawn = model.generate(
        **inputs, generation_mode="image", return_dict_in_generate=True, output_logits=True, do_sample=False
    )
    placeholders = torch.full((1, 16), model.config.visual_token_id)
    sequence = torch.cat([inputs["input_ids"], placeholders], dim=1)
    hidden = model(input_ids=sequence, image_ids=drawn.sequences).last_hidden_state
    assert torch.allclose(model.head.logits(hidden[:, -17:-1]), drawn.logits, atol=1e-4)


def test_text_generation_with_and_without_a_cache_agrees(model, processor):
    inputs = prompts(processor, "what colour is it <|image|>", images=[picture()])
    texts = [model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*texts)


def test_a_picture_in_the_prompt_changes_the_answer_distribution(model, processor):
    text = "what colour is it <|image|>"
    logits = [
        model(**prompts(processor, text, images=[picture(colour)])).logits[:, -1]
        for colour in ((250, 0, 0), (0, 0, 250))
    ]
    assert not torch.allclose(*logits)


def test_text_generation_never_writes_picture_tokens(model, processor):
    inputs = prompts(processor, "draw a red circle")
    special = {model.config.image_token_id, model.config.visual_token_id, model.config.image_start_token_id}
    written = model.generate(**inputs, max_new_tokens=40, do_sample=True, eos_token_id=None)
    assert not special & set(written[0, inputs["input_ids"].shape[1] :].tolist())


def test_interleaved_generation_draws_where_the_model_opens_a_picture(model, processor):
    inputs = prompts(processor, "draw a red circle", generation_mode="image")
    result = model.generate(
        **inputs, generation_mode="interleaved", max_new_tokens=5, max_images=2, do_sample=False, eos_token_id=[]
    )
    length = inputs["input_ids"].shape[1]
    new = result.sequences[0, length:].tolist()
    assert new[:16] == [model.config.visual_token_id] * 16
    assert new[16] == model.config.image_end_token_id
    assert len(new) == 17 + 5
    assert result.images.shape == (1, 3, 16, 16)
    torch.manual_seed(0)
    alone = model.generate(**inputs, generation_mode="image", do_sample=False)
    again = model.generate(
        **inputs,
        generation_mode="interleaved",
        max_new_tokens=5,
        max_images=1,
        do_sample=False,
        eos_token_id=[],
        image_options={"do_sample": False},
    )
    assert torch.equal(again.image_ids, alone)


def test_a_drawn_picture_is_context_for_the_text_after_it(model, processor):
    """The text that follows a drawn picture is what the model writes after that same picture given in the prompt."""
    inputs = prompts(processor, "draw a red circle", generation_mode="image")
    options = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": []}
    result = model.generate(
        **inputs, generation_mode="interleaved", max_images=1, image_options={"do_sample": False}, **options
    )
    prompt = result.sequences[:, :-4]
    given = model.generate(prompt, image_ids=result.image_ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(given, result.sequences)


def test_any_order_and_number_of_pictures_trains(model, processor):
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "then"}, {"type": "image"}]}
    encoded = processor.encode_conversation([user, answer, user, answer])
    ids, labels = torch.tensor([encoded["input_ids"]]), torch.tensor([encoded["labels"]])
    assert int((ids == model.config.visual_token_id).sum()) == 6 * 16
    assert int((labels == model.config.visual_token_id).sum()) == 2 * 16
    pixels = torch.rand(6, 3, 16, 16) * 2 - 1
    output = model(input_ids=ids, labels=labels, visual_pixel_values=pixels)
    assert output.image_loss > 0
    assert output.text_loss > 0


def test_the_loss_is_that_of_the_rows_alone(model, processor):
    rows = []
    for text in ("a red circle", "draw a blue square and then a green circle"):
        answer = {"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "then"}]}
        rows.append(processor.encode_conversation([{"role": "user", "content": text}, answer]))
    ids = random_ids(model, 2)
    alone = [
        model(
            input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]]), image_ids=ids[i : i + 1]
        )
        for i, row in enumerate(rows)
    ]
    length = max(len(row["input_ids"]) for row in rows)
    padded = {
        key: torch.tensor([row[key] + [fill] * (length - len(row[key])) for row in rows])
        for key, fill in (("input_ids", processor.tokenizer.pad_token_id), ("labels", -100))
    }
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows])
    together = model(**padded, attention_mask=mask, image_ids=ids)
    for part in ("image_loss", "text_loss"):
        assert torch.allclose(together[part], (alone[0][part] + alone[1][part]) / 2, atol=1e-5)


def test_dropping_the_prompt_leaves_the_null_prompt_of_guidance(processor):
    messages = [
        {"role": "user", "content": "a red circle"},
        {"role": "assistant", "content": [{"type": "image"}]},
    ]
    dropped = processor.encode_conversation(messages, drop_prompt=True)["input_ids"]
    start = processor.tokenizer.convert_tokens_to_ids("<|image_start|>")
    assert tuple(dropped[: dropped.index(start)]) == processor.null_prompt_ids


def test_the_processor_saves_and_loads_with_the_model(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, UniMMProcessor)
    inputs = prompts(processor, "what colour is it <|image|>", images=[picture()])
    again = prompts(loaded, "what colour is it <|image|>", images=[picture()])
    assert inputs.keys() == again.keys()
    assert all(torch.equal(inputs[key], again[key]) for key in inputs)


def test_pictures_come_back_as_pil(model, processor):
    ids = model.generate(**prompts(processor, "a red circle", generation_mode="image"), generation_mode="image")
    images = processor.post_process_multimodal_output(model.decode_image_tokens(ids), generation_mode="image")
    assert [image.size for image in images] == [(16, 16)]
    with pytest.raises(ConfigError, match=r"generation_mode"):
        processor.post_process_multimodal_output(ids, generation_mode="audio")


def test_a_vision_encoder_reads_what_visual_tokens_draw():
    model = build("conditional_vision")
    length, features = model.layout.length, model.num_image_features
    read = [9, *[7] * features, 10]
    ids = torch.tensor([[*read, 20, 9, *[8] * length, 10]])
    output = model(input_ids=ids, pixel_values=torch.randn(1, 3, 16, 16), image_ids=random_ids(model, 1))
    assert output.logits.shape == (1, ids.shape[1], 48)
    drawn = model.generate(
        torch.tensor([[*read, 20]]), pixel_values=torch.randn(1, 3, 16, 16), generation_mode="image", guidance_scale=2.0
    )
    assert drawn.shape == (1, length)


@pytest.mark.parametrize("name", CONDITIONALS)
def test_text_logits_can_be_asked_for_the_last_positions_only(name):
    model = build(name)
    ids = torch.tensor([[2, 20, 21, 22]])
    assert torch.allclose(model(input_ids=ids, logits_to_keep=1).logits, model(input_ids=ids).logits[:, -1:], atol=1e-6)


def test_tied_embeddings_stay_tied_through_saving(tmp_path):
    model = build("conditional_tied")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_pictures_and_placeholders_that_do_not_match_are_refused(model, processor):
    with pytest.raises(LayoutError, match=r"1 '<|image|>' but 2 pictures|have 1 .* but 2 pictures"):
        processor(text="what <|image|>", images=[picture(), picture()])
    ids = processor(text="what <|image|>", images=[picture()])["input_ids"]
    with pytest.raises(LayoutError, match=r"no image_ids were given"):
        model(input_ids=ids)
    with pytest.raises(LayoutError, match=r"2 pictures of 16 slots"):
        model(input_ids=ids, image_ids=random_ids(model, 2))
    with pytest.raises(LayoutError, match=r"built for images of"):
        model(input_ids=ids, pixel_values=torch.zeros(1, 3, 32, 32))


def test_a_prompt_or_mode_that_makes_no_sense_is_refused(model):
    with pytest.raises(ConfigError, match=r"at least one token"):
        model.generate(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"'text', 'image' or 'interleaved'"):
        model.generate(torch.tensor([[1]]), generation_mode="video")
    with pytest.raises(ConfigError, match=r"one sample at a time"):
        model.generate(torch.tensor([[1], [1]]), generation_mode="interleaved")


def test_special_tokens_that_collide_or_lie_outside_of_the_vocabulary_are_refused():
    with pytest.raises(ConfigError, match=r"four different ids"):
        conditional_config(image_token_id=8)
    with pytest.raises(ConfigError, match=r"below the vocabulary size 48"):
        conditional_config(image_end_token_id=48)
    with pytest.raises(ConfigError, match=r"prefix"):
        UniMMConditionalConfig(
            text_config=Qwen3Config(**TEXT), tokenizer_config=VQ, plan_config={"model_type": "unimm_scale_plan"}
        )
