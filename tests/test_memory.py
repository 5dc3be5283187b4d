"""What models take in memory, told in advance, against what they take."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from factories import AUTOENCODER, CONFIGS, GENERATORS
from transformers import AutoModel

from unimm.memory import PRECISIONS, describe_generation, measure_peak, quantized_layers, weight_bytes
from unimm.models.building import override_config
from unimm.models.loading import quantization_config
from unimm.tokenizers import VQTokenizer, VQTokenizerConfig

ROOT = Path(__file__).parent.parent
WIDE = {"hidden_size": 256, "intermediate_size": 512}


def wide_config(name):
    config = CONFIGS[name]()
    if name == "conditional_tied":
        return override_config(config, {"text_config": {**WIDE, "head_dim": 64}})
    return override_config(config, {"backbone_config": WIDE})


def vq_tokenizer_on_meta():
    with torch.device("meta"):
        return VQTokenizer(VQTokenizerConfig(**AUTOENCODER)).eval()


def bytes_in_use(model):
    total = model.get_memory_footprint()
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            total += module.weight.quant_state.absmax.nbytes
        elif type(module).__name__ == "Linear8bitLt":
            total += module.weight.SCB.nbytes
    return total


@pytest.mark.needs("bitsandbytes")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["scale", "conditional_tied"])
def test_weights_in_every_precision_take_what_was_told(name, precision, tmp_path):
    config = wide_config(name)
    with torch.device("meta"):
        told = weight_bytes(AutoModel.from_config(config), precision)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    options = {"dtype": torch.float32 if precision == "float32" else torch.bfloat16}
    if precision in ("int8", "nf4"):
        options["quantization_config"] = quantization_config(precision)
    assert bytes_in_use(AutoModel.from_pretrained(tmp_path, **options)) == told


def test_the_layers_that_are_told_to_be_quantized_are_those_of_the_backbone_without_modulation():
    with torch.device("meta"):
        names = set(quantized_layers(AutoModel.from_config(CONFIGS["scale"]())))
    parts = ("attention.qkv", "attention.proj", "feed_forward.up", "feed_forward.down")
    assert names == {f"backbone.layers.{layer}.{part}" for layer in range(2) for part in parts}


@pytest.mark.parametrize("name", [*GENERATORS, "conditional", "vq_tokenizer", "multiscale_tokenizer"])
def test_figures_come_from_the_config_alone_and_halve_with_the_precision(name):
    half = describe_generation(CONFIGS[name]())
    full = describe_generation(CONFIGS[name](), torch.float32)
    assert half.weights == full.weights
    assert half.weights["nf4"] <= half.weights["int8"] <= half.weights["bfloat16"] < half.weights["float32"]
    assert full.cache == 2 * half.cache
    assert full.step >= half.step
    assert full.decoding == 2 * half.decoding > 0
    has_cache = not name.endswith("tokenizer")
    assert (half.cache > 0) == (half.step > 0) == has_cache


def test_the_cache_holds_keys_and_values_of_both_rows_for_all_slots():
    figures = describe_generation(CONFIGS["raster"]())
    rows, layers, heads, head_dim, slots = 2, 2, 2, 8, 16
    assert figures.cache == 2 * rows * layers * heads * head_dim * slots * 2


def test_the_peak_of_a_function_is_what_its_tensors_take_at_once():
    kilobyte = torch.empty(256)

    def work():
        first = kilobyte + 1
        first.mul_(2)
        second = first.view(16, 16)[:4] + 1
        del first, second
        return torch.empty(512).add(1)

    assert measure_peak(work) == 4 * 1024
    assert measure_peak(lambda: kilobyte.view(2, -1).t()) == 0


def test_attention_counts_without_its_matrix():
    query = torch.empty(1, 1, 1000, 4, device="meta")
    assert measure_peak(lambda: F.scaled_dot_product_attention(query, query, query)) == query.nbytes


def test_tiles_take_less_memory_than_the_whole_picture():
    tokenizer = vq_tokenizer_on_meta()
    pixels, features = torch.empty(1, 3, 1024, 1024, device="meta"), torch.empty(1, 8, 256, 256, device="meta")
    runs = (lambda: tokenizer.encode_features(pixels)), (lambda: tokenizer.decode_features(features))
    whole = [measure_peak(run) for run in runs]
    tokenizer.enable_tiling(256, 64)
    tiled = [measure_peak(run) for run in runs]
    assert all(small < 0.35 * large for small, large in zip(tiled, whole, strict=True))


def test_slices_take_the_memory_of_one_picture():
    tokenizer = vq_tokenizer_on_meta()
    one, eight = (torch.empty(batch, 8, 32, 32, device="meta") for batch in (1, 8))
    alone = measure_peak(lambda: tokenizer.decode_features(one))
    together = measure_peak(lambda: tokenizer.decode_features(eight))
    tokenizer.enable_slicing()
    sliced = measure_peak(lambda: tokenizer.decode_features(eight))
    pixels = 3 * 128 * 128 * 4
    assert together > 7 * alone
    assert sliced <= alone + 2 * 8 * pixels


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("memory_benchmark", ROOT / "benchmarks" / "memory.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def record():
    return json.loads(max((ROOT / "benchmarks" / "results").glob("memory-*.json")).read_text())


def test_the_page_on_memory_shows_the_newest_record(benchmark, record, tmp_path):
    page = tmp_path / "memory.md"
    page.write_text((ROOT / "docs" / "memory.md").read_text())
    benchmark.write_docs(record, page)
    assert page.read_text() == (ROOT / "docs" / "memory.md").read_text(), "run benchmarks/memory.py --docs --json …"


@pytest.mark.parametrize(("system", "preset"), [("var", "tokenizer"), ("llamagen", "c2i-B-256")])
def test_the_record_has_the_figures_of_today(benchmark, record, system, preset):
    (kept,) = [row for row in record["presets"] if (row["system"], row["preset"]) == (system, preset)]
    assert benchmark.told(system, preset) == {name: value for name, value in kept.items() if name != "measured"}


def test_what_was_measured_is_near_what_was_told(record):
    measured = [row for row in record["presets"] if row.get("measured") and row["cache"]]
    assert measured
    for row in measured:
        assert row["measured"]["drawn"] - row["measured"]["before"] == pytest.approx(row["total_float32"], rel=0.05)
