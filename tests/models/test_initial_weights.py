"""Parts and blocks that want other initial weights than their layers' own get them."""

import pytest
import torch
from factories import ADALN, LLAMA, raster_config, scale_config
from transformers import AutoModel


def built(config):
    torch.manual_seed(0)
    return AutoModel.from_config(config)


def test_a_head_scales_its_first_weights_by_its_gain():
    head = {"model_type": "unimm_categorical_head", "initializer_gain": 0.0}
    assert (built(raster_config(head_config=head)).head.proj.weight == 0).all()
    assert built(raster_config()).head.proj.weight.std().item() == pytest.approx(0.02, rel=0.15)


def test_gates_start_smaller_than_scales_and_shifts_by_their_gain():
    for share in (False, True):
        backbone = {**ADALN, "gate_initializer_gain": 0.0, "share_modulation": share}
        model = built(scale_config(backbone_config=backbone)).backbone
        block = model.layers[0]
        weight = block.modulation_offset.weight if share else block.modulation.linear.weight
        gates, others = weight.split([len(weight) // 3, len(weight) - len(weight) // 3])
        assert (gates == 0).all()
        assert others.std().item() == pytest.approx(0.5 * (1 / (3 * 32)) ** 0.5, rel=0.15)


def test_output_layers_of_branches_shrink_with_depth():
    plain, shrunk = (
        built(raster_config(backbone_config={**LLAMA, "scale_residual_initializer": choice})).backbone.layers[0]
        for choice in (False, True)
    )
    for path in ("attention.proj.weight", "feed_forward.down.weight"):
        ratio = shrunk.get_parameter(path).std() / plain.get_parameter(path).std()
        assert ratio.item() == pytest.approx(0.5, rel=0.15)  # 1 / sqrt(2 * 2 layers)


def test_loaded_weights_are_left_alone_and_missing_ones_start_as_they_should(tmp_path):
    from safetensors.torch import load_file, save_file

    head = {"model_type": "unimm_categorical_head", "initializer_gain": 0.0}
    model = built(raster_config(head_config=head))
    torch.nn.init.ones_(model.head.proj.weight)
    model.save_pretrained(tmp_path)
    assert (AutoModel.from_pretrained(tmp_path).head.proj.weight == 1).all()
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["head.proj.weight"]
    save_file(state, file, metadata={"format": "pt"})
    assert (AutoModel.from_pretrained(tmp_path).head.proj.weight == 0).all()
