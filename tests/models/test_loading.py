"""Loading in 8 and 4 bits, and with parts on disk."""

import copy
import logging

import pytest
import torch
from factories import CONDITIONALS, CONFIGS, GENERATORS, build, condition_inputs, training_inputs
from transformers import AutoModel, BitsAndBytesConfig

from unimm.backbones.attention import Attention
from unimm.models.building import override_config
from unimm.models.loading import QUANTIZATIONS, quantization_config

MODELS = GENERATORS + CONDITIONALS
#: Norm of the logits' difference from full precision over their norm, at width 256 with random weights; measured 0.002 to
#: 0.022 in 8 bits and 0.013 to 0.193 in 4, over raster, scale and conditional models.
TOLERANCES = {"int8": 0.03, "nf4": 0.25}

needs_bitsandbytes = pytest.mark.needs("bitsandbytes")


def quantized(model, folder, kind):
    model.save_pretrained(folder)
    return AutoModel.from_pretrained(folder, quantization_config=quantization_config(kind)).eval()


def wide(name):
    """A model whose weights are mostly the linear layers of its backbone, as those of real ones are."""
    sizes: dict = {"hidden_size": 256, "intermediate_size": 512}
    config = CONFIGS[name]()
    if name in CONDITIONALS:
        overrides = {"text_config": {**sizes, "head_dim": 64}}
        if config.vision_config is not None:
            overrides["vision_config"] = {"hidden_size": 64, "intermediate_size": 128}
    else:
        overrides = {"backbone_config": {"text_config": {**sizes, "head_dim": 64}} if name == "llm_raster" else sizes}
    torch.manual_seed(0)
    return AutoModel.from_config(override_config(config, overrides)).eval()


def draw(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if hasattr(model, "condition"):
        return model.generate(**condition_inputs(model, 2), guidance_scale=2.0, generator=generator).sequences
    prompts = torch.tensor([[2, 20, 21], [2, 22, 23]])
    return model.generate(prompts, generation_mode="image", guidance_scale=2.0, generator=generator)


def is_quantized(module):
    return type(module).__module__.startswith("bitsandbytes")


@needs_bitsandbytes
@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("name", ["scale_shared_modulation", "llm_raster", "conditional_vision"])
def test_only_the_backbones_layers_are_quantized_and_all_others_are_as_they_were(name, kind, tmp_path):
    model = wide(name)
    loaded = quantized(model, tmp_path, kind)
    changed = {name for name, module in loaded.named_modules() if is_quantized(module)}
    inside = ("language_model.model.", "vision_encoder.") if name in CONDITIONALS else ("backbone.",)
    assert changed
    assert all(name.startswith(inside) and "modulation" not in name for name in changed)
    original = dict(model.named_parameters())
    for key, tensor in loaded.named_parameters():
        if key.rpartition(".")[0] not in changed:
            assert tensor.dtype == original[key].dtype, key
            assert torch.equal(tensor, original[key]), key
    codebook = loaded.tokenizer.quantizer.codebook.weight
    assert codebook.dtype == torch.float32
    assert draw(loaded).shape == draw(model).shape


@needs_bitsandbytes
@torch.no_grad()
@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("name", ["raster", "conditional"])
def test_quantized_logits_are_near_those_of_full_precision_and_the_weights_are_small(name, kind, tmp_path):
    model = wide(name)
    loaded = quantized(model, tmp_path, kind)
    inputs = training_inputs(model)
    expected, found = model(**inputs), loaded(**inputs)
    error = (found.logits - expected.logits).norm() / expected.logits.norm()
    assert 0 < error < TOLERANCES[kind]
    assert torch.allclose(found.loss, expected.loss, rtol=0.05)
    layers = [module for name, module in loaded.named_modules() if is_quantized(module)]
    num_weights = sum(layer.in_features * layer.out_features for layer in layers)
    saved = model.get_memory_footprint() - loaded.get_memory_footprint()
    assert saved == num_weights * {"int8": 3, "nf4": 3.5}[kind]
    assert loaded.get_memory_footprint() < 0.7 * model.get_memory_footprint()


@needs_bitsandbytes
@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_a_quantized_model_comes_back_from_its_own_folder(kind, tmp_path):
    loaded = quantized(wide("scale"), tmp_path / "full", kind)
    loaded.save_pretrained(tmp_path / "quantized")
    again = AutoModel.from_pretrained(tmp_path / "quantized").eval()
    assert torch.equal(draw(again), draw(loaded))


@needs_bitsandbytes
def test_the_callers_quantization_config_is_left_alone_and_its_own_list_of_modules_counts(tmp_path):
    wide("scale").save_pretrained(tmp_path)
    config = quantization_config("nf4")
    before = copy.deepcopy(config.to_dict())
    AutoModel.from_pretrained(tmp_path, quantization_config=config)
    assert config.to_dict() == before
    own = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["tokenizer", "backbone", "plan"])
    loaded = AutoModel.from_pretrained(tmp_path, quantization_config=own)
    assert {name for name, module in loaded.named_modules() if is_quantized(module)} == {"head.modulation", "head.proj"}


@needs_bitsandbytes
@pytest.mark.parametrize(("name", "targets"), [("scale", ["qkv", "up"]), ("conditional", ["q_proj", "up_proj"])])
def test_adapters_on_a_four_bit_model_get_gradients_and_nothing_else_does(name, targets, tmp_path):
    from peft import LoraConfig, get_peft_model

    wide_model = wide(name)
    with torch.no_grad():
        for key, tensor in wide_model.named_parameters():
            # Gates start nearly shut, and nothing behind them would count.
            if key.endswith("modulation.linear.bias"):
                tensor[: len(tensor) // 3] = 1.0
    model = quantized(wide_model, tmp_path, "nf4").eval()
    inputs = training_inputs(model)
    before = model(**inputs).loss
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets)).train()
    adapted(**inputs).loss.backward()
    trained = {key: tensor for key, tensor in adapted.named_parameters() if tensor.requires_grad}
    assert trained
    assert all("lora_" in key and tensor.grad is not None for key, tensor in trained.items())
    with torch.no_grad():
        for tensor in trained.values():
            tensor -= 0.5 * tensor.grad
    assert adapted.eval()(**inputs).loss < before


def test_an_adapter_on_the_fused_projection_is_not_bypassed_by_the_query_bias():
    from peft import LoraConfig, get_peft_model

    model = build("scale")
    assert model.backbone.config.query_value_bias
    inputs = training_inputs(model)
    before = model(**inputs).loss
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["qkv"], init_lora_weights=False)).eval()
    assert not torch.allclose(adapted(**inputs).loss, before)


def test_the_query_bias_is_added_to_queries_and_values_alone():
    attention = build("scale").backbone.layers[0].attention
    assert isinstance(attention, Attention)
    with torch.no_grad():
        attention.query_bias.fill_(1.0)
        attention.value_bias.fill_(2.0)
    seen = {}

    class Recorder:
        def update(self, key, value, layer_index):
            seen.update(key=key, value=value)
            return key, value

    from unimm.backbones.positions import EncodedPositions

    positions = EncodedPositions(None, torch.arange(3)[None])
    with torch.no_grad():
        attention(torch.zeros(1, 3, 32), positions, None, False, Recorder())
    assert torch.equal(seen["key"], torch.zeros_like(seen["key"]))
    assert torch.equal(seen["value"], torch.full_like(seen["value"], 2.0))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_on_disk_draws_the_same_and_says_what_lies_there(name, tmp_path, caplog):
    model = build(name)
    model.save_pretrained(tmp_path / "model")
    with caplog.at_level(logging.WARNING, logger="unimm"):
        loaded = AutoModel.from_pretrained(
            tmp_path / "model", device_map={"": "disk"}, offload_folder=str(tmp_path / "offload")
        ).eval()
        assert {tensor.device.type for tensor in loaded.parameters()} == {"meta"}
        assert torch.equal(draw(loaded), draw(model))
    (record,) = [record for record in caplog.records if record.name == "unimm.models.loading"]
    megabytes = sum(tensor.numel() for tensor in model.parameters()) * 4 / 1e6
    assert f"the whole model ({megabytes:,.1f} MB) lie on disk" in record.getMessage()


@pytest.mark.parametrize("name", ["scale", "conditional"])
def test_parts_on_disk_beside_parts_in_memory_draw_the_same(name, tmp_path, caplog):
    model = build(name)
    model.save_pretrained(tmp_path / "model")
    trunk = "language_model.model.layers" if name == "conditional" else "backbone.layers"
    rest = [key for key, _ in model.named_parameters() if not key.startswith(f"{trunk}.1.")]
    device_map = {
        **{key.rpartition(".")[0]: "cpu" for key in rest},
        **{key.rpartition(".")[0]: "cpu" for key, _ in model.named_buffers()},
        f"{trunk}.1": "disk",
    }
    with caplog.at_level(logging.WARNING, logger="unimm"):
        loaded = AutoModel.from_pretrained(tmp_path / "model", device_map=device_map).eval()
    assert f"{trunk}.1 (" in caplog.text
    assert torch.equal(draw(loaded), draw(model))


def test_a_model_in_memory_says_nothing_of_a_disk(tmp_path, caplog):
    build("raster").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="unimm"):
        AutoModel.from_pretrained(tmp_path, device_map="cpu")
    assert "disk" not in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["raster", "scale", "conditional"])
def test_parts_on_the_cpu_are_brought_to_the_gpu_where_they_run(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    first = "language_model" if name == "conditional" else "backbone"
    device_map = {child: "cpu" if child == first else 0 for child, _ in model.named_children()}
    loaded = AutoModel.from_pretrained(tmp_path, device_map=device_map).eval()
    assert loaded.device.type == "cuda"
    if name == "conditional":
        prompts = torch.tensor([[2, 20, 21]], device=loaded.device)
        assert loaded.generate(prompts, generation_mode="image", do_sample=False).device.type == "cuda"
    else:
        expected = model.to(loaded.device).generate(**condition_inputs(model, 2), do_sample=False).sequences
        assert torch.equal(loaded.generate(**condition_inputs(loaded, 2), do_sample=False).sequences, expected)


@pytest.mark.gpu
@needs_bitsandbytes
@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_a_quantized_model_is_loaded_onto_the_gpu_and_draws_there(kind, tmp_path):
    loaded = quantized(wide("scale"), tmp_path, kind)
    assert loaded.device.type == "cuda"
    assert draw(loaded).device.type == "cuda"


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_without_bitsandbytes_the_error_names_the_extra(kind, tmp_path, monkeypatch):
    from unimm.errors import MissingDependencyError

    build("raster").save_pretrained(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match=r"bitsandbytes is needed .*pip install 'unimm\[quantization\]'"):
        quantization_config(kind)
    settings = {"quant_method": "bitsandbytes", f"load_in_{ {'int8': 8, 'nf4': 4}[kind] }bit": True}
    with pytest.raises(MissingDependencyError, match=r"bitsandbytes is needed .*pip install 'unimm\[quantization\]'"):
        AutoModel.from_pretrained(tmp_path, quantization_config=settings)
