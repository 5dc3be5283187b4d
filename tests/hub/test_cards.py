"""The model card: what it tells, that its code runs, and that it tells nothing else."""

from __future__ import annotations

import json
import re
from unittest import mock

import pytest
import torch
import yaml
from factories import build
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel

from unimm import files
from unimm.conversion.checkpoints import card_facts, convert
from unimm.errors import ConfigError, LicenseError, OutputError
from unimm.hub.cards import CardFacts, Measurement, build_card, revise_card, write_card
from unimm.hub.evaluations import results_files
from unimm.hub.licenses import License
from unimm.hub.parts import count_parameters, parts_of, skeleton_of, weight_bytes
from unimm.models import UniMMImageProcessor, UniMMProcessor, word_tokenizer
from unimm.systems import get_system

RECIPE = {"model": {"path": "a"}, "training": {"max_steps": 3}}
RECORD = {
    "benchmark": "shapes",
    "judge": "ShapesJudge",
    "sampling": {"guidance_scale": 1.75},
    "rows": {
        "one object": {"n": 1000, "right": 0.853, "interval": [0.83, 0.874]},
        "psnr": {"n": 6, "value": 21.5, "interval": (20.0, 23.0)},
    },
}
FACTS = {
    "title": "A generator",
    "license": License("mit"),
    "stage": "pretrain",
    "tags": ["shapes", "unimm"],
    "datasets": ["shapes", "owner/pictures"],
    "base_model": ["owner/base"],
    "records": [RECORD],
    "measurements": [Measurement("drawing one picture", "1.5 s", "a machine")],
    "metrics": {"train_loss": 1.23456},
    "recipe": RECIPE,
}
SECTIONS = ["Parts", "Memory and speed", "Scores", "Training", "How to load", "Licences", "Citation", "Recipe"]


def headings(card: ModelCard) -> list[str]:
    return re.findall(r"^## (.+)$", card.text, flags=re.MULTILINE)


def test_a_card_has_its_header_parts_numbers_recipe_and_licences(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "grid.png")
    model = build("raster")
    path = write_card(tmp_path / "final", model, CardFacts(**FACTS, picture=tmp_path / "grid.png"))
    card = ModelCard.load(path)
    assert card.data.library_name == "unimm"
    assert (card.data.license, card.data.base_model) == ("mit", ["owner/base"])
    assert card.data.tags == ["unimm", "pretrain", "shapes"]
    assert card.data.datasets == ["owner/pictures"]
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert {one.metric_name: one.metric_value for one in card.data.eval_results} == {"one object": 0.853, "psnr": 21.5}
    assert "Benchmark shapes, judged by ShapesJudge; sampling guidance_scale = 1.75." in card.text
    assert "| one object | 85.3% | 83.0% to 87.4% | 1,000 |" in card.text
    assert "| psnr | 21.5 | 20 to 23 | 6 |" in card.text
    assert "| train_loss | 1.235 |" in card.text
    assert "| drawing one picture | 1.5 s | measured: a machine |" in card.text
    assert "| plan | `unimm_raster_plan` |" in card.text
    assert f"| all | `UniMMForImageGeneration` | | {count_parameters(model):,} |" in card.text
    assert "- Weights: mit" in card.text
    assert yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0]) == RECIPE
    assert (tmp_path / "final" / "samples.png").is_file()


def test_what_is_not_known_or_measured_is_left_out():
    card = build_card(build("raster"), CardFacts())
    assert card.data.license == "unknown"
    assert headings(card) == ["Parts", "Memory and speed", "How to load", "Licences"]
    assert "- Weights: not stated" in card.text
    assert "measured" not in card.text
    assert card.data.eval_results is None
    assert {"datasets", "base_model", "model-index"}.isdisjoint(card.data.to_dict())


def test_trained_and_converted_models_have_cards_of_one_anatomy():
    model = build("raster")
    trained = headings(build_card(model, CardFacts(**FACTS)))
    converted = headings(build_card(model, card_facts(get_system("llamagen"), ["owner/released"])))
    assert trained == [name for name in SECTIONS if name != "Citation"]
    assert converted == [name for name in SECTIONS if name in converted]
    assert "Citation" in converted


@pytest.mark.parametrize("name", ["raster", "scale", "text", "conditional", "vq_tokenizer", "backbone_llama"])
def test_the_loading_lines_of_a_card_run(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    if name == "conditional":
        size = {"height": 16, "width": 16}
        words = word_tokenizer([f"w{index}" for index in range(37)])
        UniMMProcessor(UniMMImageProcessor(size=size), words, num_visual_tokens=16).save_pretrained(tmp_path)
    write_card(tmp_path, model, CardFacts())
    code = ModelCard.load(tmp_path / "README.md").text.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code.replace("FOLDER_OR_HUB_ID", str(tmp_path)), names)
    assert type(names["model"]) is type(model)
    pictures = names.get("pixels", names.get("reconstructions"))
    assert name == "backbone_llama" or pictures.shape[1] == 3


@pytest.mark.parametrize("name", ["raster", "scale", "conditional_vision", "conditional_tied"])
def test_the_bytes_of_the_weights_are_those_of_the_loaded_model(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
        computed = weight_bytes(skeleton_of(model.config), dtype)
        assert computed == pytest.approx(loaded.get_memory_footprint(), rel=0.001)


@pytest.mark.parametrize("name", ["raster", "llm_raster", "conditional", "conditional_vision", "vq_tokenizer"])
def test_the_parts_hold_all_parameters(name):
    model = build(name)
    assert sum(part.num_parameters for part in parts_of(model)) == count_parameters(model)


def test_a_rate_without_its_number_interval_or_judge_is_refused():
    model = build("raster")
    with pytest.raises(ConfigError, match="'one object' needs"):
        build_card(model, CardFacts(records=[{**RECORD, "rows": {"one object": {"right": 0.5}}}]))
    with pytest.raises(ConfigError, match="needs benchmark, judge, rows"):
        build_card(model, CardFacts(records=[{"benchmark": "shapes", "rows": {}}]))


def test_a_card_is_written_whole_or_not_at_all(tmp_path):
    model = build("raster")
    with (
        mock.patch.object(files.os, "replace", side_effect=OSError(28, "No space left on device")),
        pytest.raises(OutputError),
    ):
        write_card(tmp_path, model, CardFacts())
    assert not list(tmp_path.iterdir())


def test_a_revised_card_changes_its_licence_scores_and_place_and_nothing_else():
    model = build("raster")
    before = build_card(model, CardFacts(title="T", recipe=RECIPE, stage="pretrain"))
    after = revise_card(before, license=License("mit"), place="me/x", records=[RECORD])
    expected = build_card(
        model, CardFacts(title="T", recipe=RECIPE, stage="pretrain", license=License("mit"), records=[RECORD])
    )
    assert after.text.split() == expected.text.replace("FOLDER_OR_HUB_ID", "me/x").split()
    assert after.data.to_dict() == expected.data.to_dict()
    again = revise_card(after, license=License("mit"), place="me/x", records=[RECORD])
    assert str(again) == str(after)


def test_a_card_from_elsewhere_keeps_its_text():
    card = ModelCard("---\nlicense: unknown\nlanguage: en\n---\n# Mine\n\nMy own words.\n")
    revised = revise_card(card, license=License("mit"), place="me/x", records=[RECORD])
    assert (revised.data.license, revised.data.language) == ("mit", "en")
    assert revised.data.eval_results[0].metric_value == 0.853
    assert "# Mine\n\nMy own words.\n\n## Scores\n" in revised.text


def test_records_of_data_that_is_not_public_get_no_file():
    assert list(results_files([RECORD])) == [".eval_results/shapes.yaml"]
    assert results_files([{**RECORD, "dataset": None}]) == {}
    (text,) = results_files([{**RECORD, "dataset": "owner/pictures"}]).values()
    assert {entry["dataset"]["id"] for entry in yaml.safe_load(text)} == {"owner/pictures"}


def test_converted_weights_carry_their_licence_source_and_citation(parity_cases, tmp_path):
    case = parity_cases["llamagen/c2i"]
    system = get_system("llamagen")
    config = system.config_from_reference(json.loads((case / "config.json").read_text())["constructor"])
    for name, license, stated in (("a", None, "unknown"), ("b", License.stated("cc-by-nc-4.0"), "cc-by-nc-4.0")):
        convert(system, case / "weights.safetensors", tmp_path / name, config=config, license=license)
        card = ModelCard.load(tmp_path / name / "README.md")
        assert card.data.license == stated
        assert "eprint = {2406.06525}" in card.text
        assert "- Reference implementation, of which no code is used: MIT" in card.text
    facts = card_facts(system, ["FoundationVision/LlamaGen", "", "FoundationVision/LlamaGen"])
    assert facts.base_model == ["FoundationVision/LlamaGen"]


def test_licences_in_words_of_a_release_become_what_the_hub_knows():
    assert License.released("MIT") == License("mit")
    assert License.released("unknown") == License()
    assert License.released("Example Research License") == License("other", "Example Research License")
    assert not License("other").is_known
    with pytest.raises(LicenseError, match=r"'cc-by-4\.0' has its own"):
        License.stated("cc-by-4.0", name="Mine")
