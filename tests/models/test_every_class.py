"""What every model class of the package must hold; a later class joins by one line in `tests/factories.py`."""

from __future__ import annotations

import json

import pytest
import torch
from factories import CONDITIONALS, CONFIGS, GENERATORS, MASKED, build, condition_inputs, random_ids, training_inputs
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from unimm.errors import ConfigError
from unimm.generation.loop import predict
from unimm.generation.session import BackboneSession
from unimm.heads import HeadSample
from unimm.models.building import override_config
from unimm.tokens import put_tokens, take_tokens

NEEDS = {name: pytest.mark.needs("diffusers") for name in ("kl_tokenizer", "mar")}
ALL = tuple(pytest.param(name, marks=NEEDS.get(name, ())) for name in CONFIGS)
TRAINABLE = tuple(pytest.param(name, marks=NEEDS.get(name, ())) for name in GENERATORS + MASKED + CONDITIONALS)
DRAWING = tuple(pytest.param(name, marks=NEEDS.get(name, ())) for name in GENERATORS + MASKED)


def loss_of(model, inputs):
    # Plans draw orders, heads noise.
    torch.manual_seed(0)
    return model(**inputs).loss


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_and_buffer_comes_back_from_a_saved_folder(name, tmp_path):
    model = build(name)
    saved = model.state_dict()
    with torch.no_grad():
        for index, tensor in enumerate(saved.values()):
            tensor.copy_((torch.arange(tensor.numel()) % 97 + index).view(tensor.shape).to(tensor.dtype))
    # Buffers that are not saved (rotary frequencies of a language model) must be computed anew.
    expected = {key: tensor.clone() for key, tensor in [*model.named_parameters(), *model.named_buffers()]}
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    found = dict([*loaded.named_parameters(), *loaded.named_buffers()])
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
        assert found[key].dtype == tensor.dtype, key


@pytest.mark.parametrize("name", ALL)
def test_a_saved_config_comes_back_equal(name, tmp_path):
    config = CONFIGS[name]()
    config.save_pretrained(tmp_path)
    loaded, original = AutoConfig.from_pretrained(tmp_path).to_dict(), config.to_dict()
    for fields in (loaded, original):
        fields.pop("_name_or_path")
    assert loaded == original


@pytest.mark.parametrize("name", ALL)
def test_a_config_refuses_unknown_fields_and_wrong_types(name):
    config = CONFIGS[name]()
    fields = {
        key: value for key, value in config.to_dict().items() if key not in ("model_type", "transformers_version")
    }
    with pytest.raises(ConfigError, match=r"has no field 'hiden_size'"):
        type(config)(**fields, hiden_size=3)
    numeric = next(
        (key for key, value in fields.items() if type(value) is int and key in type(config).__annotations__), None
    )
    if numeric is not None:
        with pytest.raises(ConfigError, match=numeric):
            type(config)(**{**fields, numeric: "many"})


@pytest.mark.parametrize("name", ALL)
def test_a_parameter_missing_from_the_checkpoint_is_initialised_and_the_others_are_kept(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    missing = [key for key in state if state[key].is_floating_point()][::3]
    save_file({key: tensor for key, tensor in state.items() if key not in missing}, file, metadata={"format": "pt"})
    loaded = AutoModel.from_pretrained(tmp_path).state_dict()
    for key, tensor in state.items():
        if key not in missing:
            assert torch.equal(loaded[key], tensor), key
        else:
            assert loaded[key].isfinite().all(), key
            assert loaded[key].abs().max() < 1e3, key


@pytest.mark.parametrize("name", ALL)
def test_fresh_weights_do_not_depend_on_building_on_the_meta_device_first(name, tmp_path):
    with torch.device("meta"):
        skeleton = AutoModel.from_config(CONFIGS[name]())
    assert {key: tensor.shape for key, tensor in skeleton.state_dict().items()} == {
        key: tensor.shape for key, tensor in build(name).state_dict().items()
    }
    for key, tensor in build(name).named_parameters():
        assert tensor.isfinite().all(), key


@pytest.mark.parametrize("name", ALL)
def test_shards_hold_the_same_model(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    loaded = AutoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ALL)
def test_half_precision_loads_and_keeps_the_codebook_exact(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    dtypes = {key: tensor.dtype for key, tensor in loaded.named_parameters()}
    assert torch.bfloat16 in dtypes.values()
    for key, dtype in dtypes.items():
        if "codebook" in key:
            assert dtype == torch.float32, key


@pytest.mark.parametrize("name", ALL)
def test_device_map_places_the_whole_model(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, device_map="cpu")
    assert {tensor.device.type for tensor in loaded.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_reloaded_model_gives_the_same_loss(name, tmp_path):
    model = build(name)
    inputs = training_inputs(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loss_of(loaded, inputs), loss_of(model, inputs))


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_tokenizer_stays_frozen_after_loading(name, tmp_path):
    build(name).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).train()
    assert not loaded.tokenizer.training
    assert not any(parameter.requires_grad for parameter in loaded.tokenizer.parameters())


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_trainable_parameter_gets_a_gradient(name):
    model = build(name).train()
    loss_of(
        model, training_inputs(model) | ({"drop_condition": False} if hasattr(model, "condition") else {})
    ).backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    # A vision encoder's pooling head reads nothing that the language model sees.
    # Learned null features stand in for dropped conditions only.
    without = [key for key in without if not key.startswith("vision_encoder") and key != "condition.null_features"]
    assert without == []


@pytest.mark.parametrize("name", TRAINABLE)
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(name):
    gradients = []
    for checkpointing in (False, True):
        model = build(name).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        loss = loss_of(model, training_inputs(model))
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None] + [loss.detach()])
    assert len(gradients[0]) == len(gradients[1])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-6)


@pytest.mark.parametrize("name", TRAINABLE)
def test_attention_implementations_agree(name):
    model = build(name)
    inputs = training_inputs(model)
    losses = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        losses.append(loss_of(model, inputs).detach())
    assert torch.allclose(*losses, atol=1e-5)


@pytest.mark.parametrize("name", ["raster", "text", "neighbour_text", "scale", "scale_bits"])
def test_flex_attention_agrees_with_sdpa_in_the_forward_pass(name):
    model = build(name)
    inputs = training_inputs(model)
    with torch.no_grad():
        expected = model(**inputs).logits
        model.set_attn_implementation("flex_attention")
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-4)


def stepwise_states(model, values, inputs, cache_implementation):
    """What the head reads for every token, `(batch, tokens[, taps], hidden)`: slots step by step, the true tokens placed."""
    condition = model.condition(**inputs)
    steps = model.plan.steps(model.layout, condition.prefix_length)
    num_slots = max(step.slots.stop for step in steps)
    cache = cache_implementation if model.plan.uses_cache else None
    session = BackboneSession(model.plan, model.backbone, model.layout, condition, num_slots, cache)
    canvas = model.plan.start(model.layout, len(values), values.device, model.tokenizer)
    states = None
    for step in steps:
        hidden_states, _ = predict(model.plan, session, canvas, step, model.tokenizer)
        places = model.plan.places(canvas, step)
        if states is None:
            states = torch.zeros(len(values), model.layout.length, *hidden_states.shape[2:])
        put_tokens(states, places, hidden_states)
        model.plan.place(canvas, step, HeadSample(take_tokens(values, places)), model.tokenizer, hidden_states)
    return states


@torch.no_grad()
@pytest.mark.parametrize("cache_implementation", ["static", "dynamic"])
@pytest.mark.parametrize("name", GENERATORS)
def test_steps_with_a_cache_give_what_teacher_forcing_gives(name, cache_implementation):
    model = build(name)
    ids, inputs = random_ids(model, 3), condition_inputs(model, 3)
    expected = model(image_ids=ids, **inputs).predicting_states
    assert torch.allclose(stepwise_states(model, ids, inputs, cache_implementation), expected, atol=1e-5)


@pytest.mark.parametrize("name", GENERATORS)
def test_sampling_with_and_without_a_cache_draws_the_same(name):
    model = build(name)
    inputs = condition_inputs(model, 2)
    results = [
        model.generate(
            **inputs,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(3),
            output_logits=True,
            use_cache=use_cache,
            cache_implementation=implementation,
        )
        for use_cache, implementation in ((True, "static"), (True, "dynamic"), (False, "static"))
    ]
    for other in results[1:]:
        assert torch.equal(other.sequences, results[0].sequences)
        assert torch.allclose(other.logits, results[0].logits, atol=1e-4)
        assert torch.allclose(other.images, results[0].images, atol=1e-4)


@pytest.mark.parametrize("name", DRAWING)
def test_a_batch_draws_what_its_samples_draw_alone(name):
    model = build(name)
    inputs = condition_inputs(model, 4)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    together = model.generate(**inputs, guidance_scale=2.0, top_k=10, top_p=0.9, generator=generators).sequences
    for row in range(4):
        one = {key: value[row : row + 1] for key, value in inputs.items()}
        alone = model.generate(
            **one, guidance_scale=2.0, top_k=10, top_p=0.9, generator=[torch.Generator().manual_seed(row)]
        ).sequences
        if model.kind.is_discrete:
            assert torch.equal(alone[0], together[row])
        else:
            assert torch.allclose(alone[0], together[row], atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("name", GENERATORS)
def test_guidance_one_is_no_guidance_and_runs_one_row_per_sample(name):
    model = build(name)
    inputs = condition_inputs(model, 2)
    rows = []
    handle = model.backbone.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    drawn = model.generate(**inputs, guidance_scale=1.0, generator=torch.Generator().manual_seed(0))
    handle.remove()
    num_steps = len(model.plan.steps(model.layout, model.condition(**inputs).prefix_length))
    assert len(rows) == num_steps == drawn.num_backbone_calls
    assert {batch for batch, _ in rows} == {2}
    positions = sum(slots for _, slots in rows)
    prefix_length = model.condition(**inputs).prefix_length
    assert positions == (model.layout.length if not prefix_length else prefix_length + model.layout.length - 1)


def test_the_unconditional_rows_are_dropped_after_the_last_guided_step():
    from unimm import IntervalGuidance

    model = build("raster")
    rows = []
    handle = model.backbone.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    model.generate(labels=[1, 2], guidance_scale=IntervalGuidance(3.0, 0, 4), do_sample=False)
    handle.remove()
    assert rows == [4] * 5 + [2] * (model.layout.length - 5)


@pytest.mark.parametrize("name", ["scale", "raster"])
def test_a_token_changes_no_prediction_that_comes_before_it(name):
    model = build(name)
    ids, inputs = random_ids(model, 1), condition_inputs(model, 1)
    before = model(image_ids=ids, **inputs).logits
    changed = ids.clone()
    level = 1 if name == "scale" else 0
    position = model.layout.offsets[level] + 2
    changed[0, position] = (changed[0, position] + 1) % 32
    after = model(image_ids=changed, **inputs).logits
    untouched = model.layout.offsets[level + 1] if name == "scale" else position + 1
    assert torch.equal(before[:, :untouched], after[:, :untouched])
    assert not torch.allclose(before[:, untouched:], after[:, untouched:])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raster", "scale"])
def test_a_compiled_backbone_gives_the_same_loss(name):
    model = build(name)
    inputs = training_inputs(model)
    expected = model(**inputs).loss
    model.backbone.compile()
    assert torch.allclose(model(**inputs).loss, expected, atol=1e-5)


def test_parts_that_do_not_fit_are_refused_when_the_config_is_built():
    from factories import ADALN, PYRAMID, raster_config, scale_config

    vector = {"model_type": "unimm_class_condition", "form": "vector"}
    with pytest.raises(ConfigError, match=r"unimm_raster_plan.*unimm_class_condition.*'prefix'"):
        raster_config(condition_config=vector)
    with pytest.raises(ConfigError, match=r"unimm_visual_transformer.*'vector'"):
        raster_config(backbone_config=ADALN)
    with pytest.raises(ConfigError, match=r"without a tokenizer"):
        scale_config(tokenizer_config=None, token_layout=((1, 1), (2, 2)), codebook_size=8)
    with pytest.raises(ValueError, match=r"one level|single level|levels"):
        AutoModel.from_config(raster_config(tokenizer_config=PYRAMID))
    with pytest.raises(ValueError, match=r"pyramid"):
        AutoModel.from_config(
            override_config(scale_config(), {"tokenizer_config": {"model_type": "unimm_vq_tokenizer"}})
        )


def test_an_unknown_override_names_the_nearest_field():
    from factories import raster_config

    with pytest.raises(ConfigError, match=r"hidden_size"):
        override_config(raster_config(), {"backbone_config": {"hiden_size": 64}})
    changed = override_config(raster_config(), {"backbone_config": {"num_hidden_layers": 3}})
    assert changed.backbone_config.num_hidden_layers == 3
    assert changed.backbone_config.hidden_size == 32
