import math

import hypothesis.strategies as st
import pytest
import torch
from factories import BITS
from hypothesis import given, settings
from transformers import AutoModel

from unimm import BitwisePyramidTokenizerConfig, TokenLayout, VisualTokens
from unimm.errors import CodebookError, ConfigError, LayoutError
from unimm.generation import GeneratorRandomness, RecordedRandomness
from unimm.tokenizers.binary import BinaryPyramidQuantizer, bit_entropies, bits_of, codes_of


def tokenizer(seed=0, **changes):
    torch.manual_seed(seed)
    return AutoModel.from_config(BitwisePyramidTokenizerConfig(**{**BITS, **changes})).eval()


def quantizer(channels=16, patch_side=1):
    fields = {"encoder_channels": channels, "code_channels": channels, "patch_side": patch_side}
    return BinaryPyramidQuantizer(BitwisePyramidTokenizerConfig(**{**BITS, **fields}))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200), st.integers(0, 99))
def test_bits_and_codes_are_inverse_and_codes_have_unit_length(num_bits, seed):
    bits = torch.randint(0, 2, (5, num_bits), generator=torch.Generator().manual_seed(seed))
    codes = codes_of(bits, num_bits)
    assert torch.equal(bits_of(codes), bits)
    assert torch.allclose(codes.norm(dim=-1), torch.ones(5), atol=1e-5)


def test_a_token_of_sixty_four_bits_needs_no_table():
    model = tokenizer(encoder_channels=64, code_channels=64, patch_side=1)
    assert sum(parameter.numel() for parameter in model.quantizer.parameters()) == 0
    assert (model.token_kind.codebook_size, model.token_kind.num_codes, model.token_kind.channels) == (2, 64, 64)


@pytest.mark.parametrize("patch_side", [1, 2])
def test_the_sum_of_upsampled_codes_is_what_quantizing_gives(patch_side):
    model = tokenizer(patch_side=patch_side)
    pixels = torch.rand(2, 3, 8 * patch_side, 8 * patch_side) * 2 - 1
    quantized = model.quantize(model.encode_features(pixels))
    tokens = model.encode(pixels)
    assert torch.equal(tokens.ids, quantized.ids)
    assert torch.allclose(model.running_reconstruction(tokens), quantized.quantized, atol=1e-6)
    assert torch.equal(model.decode(tokens), model.decode_canvas(model.running_reconstruction(tokens)))


def test_a_patch_holds_the_bits_of_its_four_vectors_channel_by_channel():
    model = tokenizer()
    layout = TokenLayout(((1, 1), (1, 2)))
    bits = torch.randint(0, 2, (1, 3, 24))
    grid = model.quantizer.contribution(model.embed(bits[:, 1:]), 1, layout)
    assert grid.shape == (1, 6, 2, 4)
    for channel in range(6):
        for row in range(2):
            for column in range(4):
                bit = bits[0, 1 + column // 2, 4 * channel + 2 * row + column % 2]
                assert grid[0, channel, row, column].item() == pytest.approx((2 * bit.item() - 1) / math.sqrt(6))


def test_gradients_reach_the_encoder_through_every_term():
    model = tokenizer().train()
    output = model(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert output.losses.keys() == {"reconstruction", "commitment", "entropy"}
    for name, term in output.losses.items():
        (gradient,) = torch.autograd.grad(term, model.encoder.conv_in.weight, retain_graph=True)
        assert gradient.abs().sum() > 0, name


def test_the_entropy_penalty_prefers_sure_and_evenly_used_bits():
    sure = codes_of(torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]]), 2)
    each, overall, mean = bit_entropies(sure, 100.0)
    assert each < 1e-6
    assert overall.item() == pytest.approx(2 * math.log(2), abs=1e-4)
    assert torch.allclose(mean, torch.full((2, 2), 0.5))
    assert bit_entropies(torch.full((4, 2), 1e-6), 100.0)[0].item() == pytest.approx(2 * math.log(2), abs=1e-3)


def test_targets_are_the_clean_ones_until_the_first_flip_and_the_end_still_comes_near():
    layout = TokenLayout.pyramid([1, 2, 4, 6, 8, 8, 8, 8, 8, 8])
    model = tokenizer(encoder_channels=16, code_channels=16, patch_side=1, levels=layout.levels)
    features = torch.nn.functional.normalize(
        torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1)), dim=1
    )
    clean = model.quantized_tokens(features, layout).ids
    flip = [torch.ones(2, *size, 16) for size in layout.levels]
    flip[1][:, :, :, :3] = 0.0
    draws = RecordedRandomness(
        {"flip_strength": torch.full((20,), 0.999), "flip": torch.cat([x.flatten() for x in flip])}
    )
    targets, inputs = model.self_corrected(features, layout, draws, strength=0.3)
    assert torch.equal(targets[:, : layout.offsets[2]], clean[:, : layout.offsets[2]])
    assert not torch.equal(targets[:, layout.offsets[2] :], clean[:, layout.offsets[2] :])
    tokens = VisualTokens(layout, ids=targets)
    assert torch.equal(inputs[:, :4], model.teacher_inputs(VisualTokens(layout, ids=clean))[:, :4])
    # The flipped codes are what the later levels repair: the sum with them ends as near as the clean one.
    flipped = targets.clone()
    flipped[:, layout.level_slice(1), :3] ^= 1
    errors = [(canvas - features).square().mean().item() for canvas in model.quantizer.running(flipped, layout)]
    straight = (model.running_reconstruction(VisualTokens(layout, ids=clean)) - features).square().mean().item()
    assert errors[-1] < 1.25 * straight
    assert errors[-1] < errors[1]
    # Without the repair, the same mistakes stay.
    unrepaired = clean.clone()
    unrepaired[:, layout.level_slice(1), :3] ^= 1
    *_, canvas = model.quantizer.running(unrepaired, layout)
    assert (canvas - features).square().mean().item() > 1.5 * errors[-1]
    assert tokens.layout == layout


def test_self_correction_of_no_strength_is_teacher_forcing():
    model = tokenizer()
    features = torch.randn(3, 6, 8, 8)
    tokens = model.quantized_tokens(features, model.config.layout)
    targets, inputs = model.self_corrected(
        features, model.config.layout, GeneratorRandomness(torch.Generator().manual_seed(0)), strength=0.0
    )
    assert torch.equal(targets, tokens.ids)
    assert torch.equal(inputs, model.teacher_inputs(tokens))


def test_samples_are_corrupted_alike_alone_and_in_a_batch():
    model, layout = tokenizer(), BitwisePyramidTokenizerConfig(**BITS).layout
    features = torch.randn(3, 6, 8, 8)

    def corrected(rows, seeds):
        randomness = GeneratorRandomness([torch.Generator().manual_seed(seed) for seed in seeds])
        return model.self_corrected(features[rows], layout, randomness, strength=0.3)[1]

    assert torch.equal(corrected(slice(0, 3), (5, 6, 7))[1:2], corrected(slice(1, 2), (6,)))


def test_what_is_no_bit_is_refused():
    model = tokenizer()
    layout = model.config.layout
    with pytest.raises(CodebookError, match=r"0 to 1|2|range"):
        model.decode(VisualTokens(layout, ids=torch.full((1, layout.length, 24), 2)))
    with pytest.raises(LayoutError, match=r"24"):
        model.decode(VisualTokens(layout, ids=torch.zeros(1, layout.length, 6, dtype=torch.long)))
    with pytest.raises(LayoutError, match=r"24 bits"):
        model.embed(torch.zeros(1, 3, 6, dtype=torch.long))
    with pytest.raises(LayoutError, match=r"end"):
        model.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"must be equal"):
        BitwisePyramidTokenizerConfig(**{**BITS, "code_channels": 8})
    with pytest.raises(ConfigError, match=r"patch_side"):
        BitwisePyramidTokenizerConfig(**{**BITS, "patch_side": 0})
    with pytest.raises(ConfigError, match=r"grow"):
        BitwisePyramidTokenizerConfig(**{**BITS, "levels": (4, 2)})
