"""The multi-scale VQ tokenizer and its pyramid accumulator."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.errors import CodebookError, ConfigError, LayoutError
from unimm.tokenizers import MultiScaleVQTokenizer, MultiScaleVQTokenizerConfig
from unimm.tokens import TokenLayout, VisualTokens

SETTINGS = {
    "base_channels": 8,
    "channel_multipliers": (1, 1, 2),
    "num_residual_blocks": 1,
    "encoder_channels": 8,
    "code_channels": 8,
    "codebook_size": 48,
    "num_norm_groups": 4,
    "levels": (1, 2, 3, 4),
}


def build(**options: object) -> MultiScaleVQTokenizer:
    torch.manual_seed(0)
    tokenizer = MultiScaleVQTokenizer(MultiScaleVQTokenizerConfig(**{**SETTINGS, **options})).eval()
    torch.nn.init.normal_(tokenizer.quantizer.codebook.weight, std=0.4)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> MultiScaleVQTokenizer:
    return build()


@st.composite
def pyramids(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Pyramids of 1 to 5 growing grids of up to 6 x 7."""
    number = draw(st.integers(1, 5))
    heights = sorted(draw(st.lists(st.integers(1, 6), min_size=number, max_size=number)))
    widths = sorted(draw(st.lists(st.integers(1, 7), min_size=number, max_size=number)))
    return list(zip(heights, widths, strict=True))


def test_decoding_the_encoded_ids_is_the_reconstruction(tokenizer: MultiScaleVQTokenizer) -> None:
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        tokens, output = tokenizer.encode(pixels), tokenizer(pixels)
        assert tokens.layout == TokenLayout.pyramid((1, 2, 3, 4))
        assert torch.equal(output.tokens.ids, tokens.ids)
        assert torch.equal(tokenizer.decode(tokens, clamp=False), output.reconstruction)
        assert output.codebook_usage == len(tokens.ids.unique()) / 48


@settings(max_examples=20, deadline=None)
@given(levels=pyramids(), seed=st.integers(0, 1000))
def test_the_map_from_ids_is_the_map_from_encoding(
    tokenizer: MultiScaleVQTokenizer, levels: list[tuple[int, int]], seed: int
) -> None:
    layout = TokenLayout.pyramid(levels)
    features = torch.randn(2, 8, *layout.final, generator=torch.Generator().manual_seed(seed))
    output = tokenizer.quantize(features, layout)
    tokens = VisualTokens(layout, ids=output.ids)
    assert torch.equal(tokenizer.running_reconstruction(tokens, layout=layout), output.quantized)
    assert torch.equal(output.ids, tokenizer.quantizer.encode(features, layout))
    canvas = tokenizer.initial_canvas(2, layout, "cpu")
    for level in range(layout.num_levels):
        canvas = tokenizer.accumulate(canvas, tokenizer.embed(tokens.level(level)), level, layout)
        prefix = tokenizer.running_reconstruction(tokens.first_levels(level + 1), layout=layout)
        assert torch.equal(canvas, prefix)


@settings(max_examples=10, deadline=None)
@given(levels=pyramids(), seed=st.integers(0, 1000))
def test_every_level_takes_the_codes_nearest_to_what_is_left(
    tokenizer: MultiScaleVQTokenizer, levels: list[tuple[int, int]], seed: int
) -> None:
    layout = TokenLayout.pyramid(levels)
    features = torch.randn(1, 8, *layout.final, generator=torch.Generator().manual_seed(seed))
    ids = tokenizer.quantize(features, layout).ids
    canvas = torch.zeros_like(features)
    for level, size in enumerate(layout.levels):
        left = F.adaptive_avg_pool2d(features - canvas, size).flatten(2)[0].T
        distances = torch.cdist(left.double(), tokenizer.codebook.double())
        chosen = ids[0, layout.level_slice(level)]
        assert (distances.gather(1, chosen[:, None])[:, 0] <= distances.min(1).values + 1e-4).all()
        canvas = tokenizer.accumulate(canvas, tokenizer.embed(chosen[None]), level, layout)


@settings(max_examples=10, deadline=None)
@given(levels=pyramids(), seed=st.integers(0, 1000))
def test_teacher_inputs_are_the_resized_canvases_of_generation(
    tokenizer: MultiScaleVQTokenizer, levels: list[tuple[int, int]], seed: int
) -> None:
    layout = TokenLayout.pyramid(levels)
    ids = torch.randint(48, (2, layout.length), generator=torch.Generator().manual_seed(seed))
    tokens = VisualTokens(layout, ids=ids)
    inputs = tokenizer.teacher_inputs(tokens)
    assert inputs.shape == (2, layout.length - layout.level_lengths[0], 8)
    canvas, first = tokenizer.initial_canvas(2, layout, "cpu"), layout.level_lengths[0]
    for level in range(layout.num_levels - 1):
        canvas = tokenizer.accumulate(canvas, tokenizer.embed(tokens.level(level)), level, layout)
        here = layout.level_slice(level + 1)
        resized = tokenizer.resize_canvas(canvas, layout.levels[level + 1])
        assert torch.equal(inputs[:, here.start - first : here.stop - first], resized)


def test_a_level_is_upsampled_bicubically_and_refined_by_half(tokenizer: MultiScaleVQTokenizer) -> None:
    layout, codes = TokenLayout.pyramid((1, 2, 3, 4)), torch.randn(2, 9, 8)
    grid = codes.transpose(1, 2).unflatten(-1, (3, 3))
    grid = F.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False)
    expected = 0.5 * grid + 0.5 * tokenizer.quantizer.refinements[2](grid)
    assert torch.allclose(tokenizer.contribution(codes, 2, layout), expected, atol=1e-6)


def test_the_last_level_is_not_resized_and_without_refinement_adds_its_codes() -> None:
    tokenizer = build(num_refinements=0)
    codes = torch.randn(2, 16, 8)
    added = tokenizer.contribution(codes, 3, TokenLayout.pyramid((1, 2, 3, 4)))
    assert torch.equal(added.flatten(2).transpose(1, 2), codes)


def test_resize_modes_are_the_configs() -> None:
    tokenizer = build(num_refinements=0, upsample_mode="nearest", downsample_mode="bilinear")
    codes = torch.randn(1, 4, 8)
    added = tokenizer.contribution(codes, 1, TokenLayout.pyramid((1, 2, 4)))
    assert torch.equal(added, codes.transpose(1, 2).view(1, 8, 2, 2).repeat_interleave(2, -1).repeat_interleave(2, -2))
    expected = F.interpolate(added, size=(3, 3), mode="bilinear", align_corners=False)
    assert torch.equal(tokenizer.resize_canvas(added, (3, 3)), expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("number", "num_levels", "expected"),
    [
        # Levels 2 and 7 of ten lie halfway between ticks; these are the choices in double precision.
        (4, 10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
        (4, 14, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]),
        (4, 4, [0, 1, 2, 3]),
        (1, 5, [0, 0, 0, 0, 0]),
        (7, 7, [0, 1, 2, 3, 4, 5, 6]),
        (2, 3, [0, 0, 1]),
        (3, 1, [0]),
    ],
)
def test_levels_share_refinements_by_their_place_in_the_pyramid(
    number: int, num_levels: int, expected: list[int]
) -> None:
    quantizer = build(num_refinements=number).quantizer
    assert [quantizer.refinement_index(level, num_levels) for level in range(num_levels)] == expected


def test_no_number_of_refinements_means_one_per_level() -> None:
    assert len(build(num_refinements=None).quantizer.refinements) == 4


def test_the_output_has_the_gradient_of_the_features(tokenizer: MultiScaleVQTokenizer) -> None:
    features, cotangent = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(2, 8, 4, 4)
    output = tokenizer.quantize(features)
    (gradient,) = torch.autograd.grad((output.quantized * cotangent).sum(), features)
    assert torch.equal(gradient, cotangent)


def test_loss_terms_are_means_over_the_running_maps(tokenizer: MultiScaleVQTokenizer) -> None:
    features = torch.randn(2, 8, 4, 4)
    output = tokenizer.quantize(features)
    tokens = VisualTokens(tokenizer.config.layout, ids=output.ids)
    errors = torch.stack(
        [F.mse_loss(tokenizer.running_reconstruction(tokens.first_levels(k)), features) for k in (1, 2, 3, 4)]
    )
    assert torch.allclose(output.losses["codebook"], errors.mean())
    assert torch.allclose(output.losses["commitment"], 0.25 * errors.mean())


def test_codes_and_refinements_get_gradients_from_the_codebook_term(tokenizer: MultiScaleVQTokenizer) -> None:
    loss = tokenizer.quantize(torch.randn(2, 8, 4, 4)).losses["codebook"]
    parameters = [tokenizer.quantizer.codebook.weight, *tokenizer.quantizer.refinements.parameters()]
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss, parameters))


def test_the_entropy_term_reaches_the_features() -> None:
    tokenizer = build(entropy_weight=0.1, entropy_temperature=0.5)
    features = torch.randn(2, 8, 4, 4, requires_grad=True)
    losses = tokenizer.quantize(features).losses
    (gradient,) = torch.autograd.grad(losses["entropy"], features)
    assert gradient.abs().sum() > 0


def test_a_picture_that_is_not_square_needs_its_own_levels(tokenizer: MultiScaleVQTokenizer) -> None:
    pixels, levels = torch.rand(1, 3, 16, 24) * 2 - 1, [(1, 1), (2, 3), (4, 6)]
    with pytest.raises(LayoutError, match="do not end at 4x6"):
        tokenizer.encode(pixels)
    tokens = tokenizer.encode(pixels, levels=levels)
    assert tokens.layout == TokenLayout.pyramid(levels)
    assert tokenizer.decode(tokens).shape == pixels.shape
    assert torch.equal(tokenizer.decode(tokens, size=(16, 24)), tokenizer.decode(tokens))
    with pytest.raises(LayoutError, match=r"the given levels .* do not end at 4x6"):
        tokenizer.encode(pixels, levels=[1, 2, 4])


def test_the_first_levels_decode_to_the_full_size(tokenizer: MultiScaleVQTokenizer) -> None:
    tokens = tokenizer.encode(torch.rand(1, 3, 16, 16) * 2 - 1)
    pictures = [tokenizer.decode(tokens.first_levels(number)) for number in (1, 2, 3, 4)]
    assert {picture.shape for picture in pictures} == {(1, 3, 16, 16)}
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(pictures))
    assert torch.equal(pictures[3], tokenizer.decode(tokens))


def test_first_levels_of_another_pyramid_need_that_pyramid(tokenizer: MultiScaleVQTokenizer) -> None:
    whole = TokenLayout.pyramid([(1, 1), (2, 3), (4, 6)])
    tokens = VisualTokens(whole.first_levels(2), ids=torch.zeros(1, 7, dtype=torch.long))
    assert tokenizer.decode(tokens, layout=whole).shape[-2:] == (16, 24)
    with pytest.raises(LayoutError, match="give the whole pyramid as layout"):
        tokenizer.decode(tokens, size=(16, 24))
    with pytest.raises(LayoutError, match="no first levels"):
        tokenizer.decode(tokens, layout=TokenLayout.pyramid([(1, 1), (4, 6)]))


def test_ids_outside_of_the_codebook_and_latents_are_refused(tokenizer: MultiScaleVQTokenizer) -> None:
    layout = TokenLayout.pyramid((1, 2, 3, 4))
    with pytest.raises(CodebookError, match=r"\[0, 47\]"):
        tokenizer.decode(VisualTokens(layout, ids=torch.full((1, 30), 48)))
    with pytest.raises(LayoutError, match="decodes ids"):
        tokenizer.decode(VisualTokens(layout, latents=torch.zeros(1, 30, 8)))


def test_a_side_that_is_no_multiple_of_the_stride_is_refused(tokenizer: MultiScaleVQTokenizer) -> None:
    with pytest.raises(LayoutError, match="stride of 4"):
        tokenizer.encode(torch.zeros(1, 3, 16, 18))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (1, 4, 2)}, "grow from coarse to fine"),
        ({"levels": ()}, "at least one level"),
        ({"levels": ((1, 1, 1), (2, 2, 2))}, "grow from coarse to fine"),
        ({"unit_codes": True}, "unit_codes does not fit"),
        ({"refinement_kernel_size": 2}, "must be odd"),
        ({"upsample_mode": "cubic"}, "upsample_mode"),
    ],
)
def test_an_impossible_config_is_refused_in_one_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MultiScaleVQTokenizerConfig(**{**SETTINGS, **options})


@pytest.mark.parametrize(
    "options", [{}, {"revive_after": 2, "usage_window": 40, "ema_decay": 0.9}], ids=["plain", "statistics"]
)
def test_saving_and_loading_changes_no_weight_no_buffer_and_no_level(options: dict[str, object], tmp_path) -> None:
    tokenizer = build(**options, levels=((1, 1), (2, 3), (4, 4))).train()
    tokenizer(torch.rand(2, 3, 16, 16) * 2 - 1)
    tokenizer.save_pretrained(tmp_path)
    loaded = MultiScaleVQTokenizer.from_pretrained(tmp_path)
    before, after = tokenizer.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.config.levels == ((1, 1), (2, 3), (4, 4))


def test_training_updates_the_statistics_of_all_levels() -> None:
    tokenizer = build(usage_window=60).train()
    ids = tokenizer(torch.rand(2, 3, 16, 16) * 2 - 1).tokens.ids
    assert tokenizer.quantizer.codebook.recent_ids.tolist() == ids.flatten().tolist()


def test_the_canvas_keeps_full_precision_under_autocast(tokenizer: MultiScaleVQTokenizer) -> None:
    features = torch.randn(2, 8, 4, 4)
    plain = tokenizer.quantize(features)
    with torch.autocast("cpu", torch.bfloat16):
        inside = tokenizer.quantize(features)
    assert torch.equal(inside.ids, plain.ids)
    assert torch.equal(inside.quantized, plain.quantized)
