"""Options of the scale plan: pyramids of any size, reference grids, balanced levels, self-correction."""

import pytest
import torch
from factories import ADALN, BITS, bits_config, build, condition_inputs, scale_config
from transformers import AutoModel

from unimm import TokenKind, TokenLayout
from unimm.errors import ConfigError, LayoutError
from unimm.plans import ScalePlanConfig
from unimm.systems.infinity import NUM_SCALES, SCALES, scales

KIND = TokenKind(8, 2, 8)
FREE = {"position_table": False, "num_level_rows": 15}


def plan_of(sizes, **fields):
    return ScalePlanConfig(**fields).build(16, TokenLayout.pyramid(sizes), KIND)


@pytest.mark.parametrize("ratio", SCALES)
def test_positions_of_smaller_resolutions_are_the_first_ones_of_the_megapixel_list(ratio):
    grids = tuple(sizes[-1] for sizes in SCALES.values())
    plan = plan_of(scales(1.0, "0.06M"), reference_grids=grids, **FREE)
    whole = plan.coordinates(TokenLayout.pyramid(scales(ratio, "1M")))
    for resolution in NUM_SCALES:
        layout = TokenLayout.pyramid(scales(ratio, resolution))
        assert torch.equal(plan.coordinates(layout), whole[: layout.length])
    assert whole.amax(0).tolist() == [side - 1 for side in SCALES[ratio][-1]]


def test_coordinates_are_rounded_half_to_even_on_the_reference_grid():
    plan = plan_of([1, 2], reference_grids=((5, 5), (9, 3)), **FREE)
    rows = plan.coordinates(TokenLayout.pyramid([(1, 1), (2, 2)]))[1:, 0]
    assert rows.tolist() == [0, 0, 2, 2]
    tall = plan.coordinates(TokenLayout.pyramid([(1, 1), (3, 1)]))[1:]
    assert tall.tolist() == [[0, 0], [3, 0], [6, 0]]


def test_balanced_levels_weigh_by_the_root_of_their_area_and_average_one():
    layout = TokenLayout.pyramid([1, 2, 4])
    weights = plan_of([1, 2, 4], balance_levels=True).loss_weights(layout)
    assert weights.mean().item() == pytest.approx(1.0)
    assert (weights[0] / weights[-1]).item() == pytest.approx(4.0)
    assert (weights[1] / weights[-1]).item() == pytest.approx(2.0)


@torch.no_grad()
def test_one_model_reads_and_draws_pyramids_of_several_sizes():
    model = build("scale_bits")
    wide = [(1, 1), (2, 3), (3, 6)]
    inputs = condition_inputs(model, 2)
    drawn = model.generate(**inputs, plan_options={"levels": wide}, do_sample=False, output_logits=True)
    assert drawn.images.shape == (2, 3, 12, 24)
    layout = TokenLayout.pyramid(wide)
    read = model(image_ids=drawn.sequences, layout=layout, **inputs)
    assert torch.allclose(read.logits, drawn.logits, atol=1e-5)
    pixels = torch.rand(2, 3, 12, 24) * 2 - 1
    assert model.encode_images(pixels, layout).layout == layout
    assert model(pixel_values=pixels, layout=layout, **inputs).loss.isfinite()
    with pytest.raises(LayoutError, match=r"2 to 5 grids"):
        model.generate(**inputs, plan_options={"levels": [1, 1, 1, 1, 2, 4]})
    with pytest.raises(LayoutError, match=r"do not end"):
        model.encode_images(pixels, TokenLayout.pyramid([1, 2]))
    table = AutoModel.from_config(scale_config())
    with pytest.raises(LayoutError, match=r"built for the pyramid"):
        table(
            image_ids=torch.zeros(1, 5, dtype=torch.long),
            layout=TokenLayout.pyramid([1, 2]),
            labels=torch.zeros(1).long(),
        )


def test_self_correction_changes_the_loss_in_training_alone():
    model, inputs = build("scale_bits"), condition_inputs(build("scale_bits"), 2)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    clean = model(pixel_values=pixels, **inputs).loss
    assert torch.equal(model(pixel_values=pixels, **inputs).loss, clean)
    torch.manual_seed(0)
    corrupted = model.train()(pixel_values=pixels, **inputs, drop_condition=False).loss
    assert not torch.allclose(corrupted, clean)
    straight = AutoModel.from_config(
        bits_config(plan_config={**bits_config().plan_config.to_dict(), "self_correction": 0})
    )
    straight.load_state_dict(model.state_dict())
    straight.train()
    assert torch.allclose(straight(pixel_values=pixels, **inputs, drop_condition=False).loss, clean, atol=1e-6)


@torch.no_grad()
def test_a_position_map_and_a_level_table_live_together():
    plan = {"model_type": "unimm_scale_plan", "position_map": (3, 3), "num_level_rows": 4}
    model = AutoModel.from_config(scale_config(plan_config=plan)).eval()
    levels = [1, 2, (2, 3), (3, 5)]
    drawn = model.generate(labels=[1, 2], do_sample=False, plan_options={"levels": levels}, output_logits=True)
    read = model(image_ids=drawn.sequences, layout=TokenLayout.pyramid(levels), labels=torch.tensor([1, 2]))
    assert torch.allclose(read.logits, drawn.logits, atol=1e-5)
    with pytest.raises(LayoutError, match=r"2 to 4 grids that grow from 1x1"):
        model.generate(labels=[1], plan_options={"levels": [1, 2, 3, 4, 5]})


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"needs a tokenizer that can do self_correction"):
        AutoModel.from_config(scale_config(plan_config={"model_type": "unimm_scale_plan", "self_correction": 0.3}))
    with pytest.raises(ConfigError, match=r"probability"):
        ScalePlanConfig(self_correction=1.5)
    with pytest.raises(ConfigError, match=r"either level_weights or balance_levels"):
        ScalePlanConfig(level_weights=(1.0, 2.0), balance_levels=True)
    with pytest.raises(ConfigError, match=r"either position_map or position_table"):
        ScalePlanConfig(position_map=(4, 4), position_table=True)
    with pytest.raises(ConfigError, match=r"leaves out"):
        ScalePlanConfig(level_embedding=False, num_level_rows=4)
    with pytest.raises(ConfigError, match=r"too few"):
        plan_of([1, 2, 4], num_level_rows=2)
    with pytest.raises(ConfigError, match=r"reference_grids"):
        ScalePlanConfig(reference_grids=((0, 4),))
    with pytest.raises(ConfigError, match=r"'memory'"):
        scale_config(backbone_config={**ADALN, "memory_size": 32})
    with pytest.raises(ConfigError, match=r"'adaln'"):
        scale_config(backbone_config={**ADALN, "block": "llama", "memory_size": 32})
    with pytest.raises(ConfigError, match=r"one id per token"):
        AutoModel.from_config(bits_config(head_config={"model_type": "unimm_categorical_head"}))
    with pytest.raises(ConfigError, match=r"several codes"):
        AutoModel.from_config(scale_config(head_config={"model_type": "unimm_bitwise_head"}))
    assert BITS["patch_side"] == 2
