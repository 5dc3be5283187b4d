"""Pictures encoded and decoded in slices of a batch and in tiles."""

import itertools

import pytest
import torch
from factories import AUTOENCODER, build
from torch import nn

from unimm.errors import ConfigError
from unimm.tokenizers import VQTokenizer, VQTokenizerConfig
from unimm.tokenizers.tiling import Tiling, run_tiled, tile_weights, tiles_of
from unimm.tokens import VisualTokens

KINDS = ["vq_tokenizer", "multiscale_tokenizer", pytest.param("kl_tokenizer", marks=pytest.mark.needs("diffusers"))]


def vq_tokenizer(**changes) -> VQTokenizer:
    torch.manual_seed(0)
    return VQTokenizer(VQTokenizerConfig(**{**AUTOENCODER, **changes})).eval()


def pictures(batch, height, width):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_slices_of_a_batch_give_what_the_batch_gives(name):
    tokenizer = build(name)
    pixels = pictures(3, 16, 16)
    whole = tokenizer.encode(pixels)
    decoded = tokenizer.decode(whole)
    tokenizer.enable_slicing()
    # Convolution kernels are chosen by the batch's size, and round differently.
    assert torch.allclose(tokenizer.encode(pixels).values.float(), whole.values.float(), atol=1e-5)
    assert torch.allclose(tokenizer.decode(whole), decoded, atol=1e-5)
    tokenizer.disable_slicing()
    assert torch.equal(tokenizer.decode(whole), decoded)


def test_slices_run_one_picture_at_a_time():
    tokenizer = vq_tokenizer()
    rows = []
    tokenizer.decoder.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    tokens = tokenizer.encode(pictures(3, 16, 16))
    tokenizer.decode(tokens)
    tokenizer.enable_slicing()
    tokenizer.decode(tokens)
    assert rows == [3, 1, 1, 1]


@pytest.mark.parametrize("side", [64, 65, 96, 100, 128, 129, 161, 400])
@pytest.mark.parametrize(("size", "overlap", "blend"), [(64, 32, 32), (64, 16, 8), (64, 24, 1)])
def test_the_shares_of_all_tiles_add_up_to_one_and_tiles_cover_the_side(side, size, overlap, blend):
    tiling = Tiling(size, overlap, blend)
    tiles = tiles_of(side, tiling)
    total = torch.zeros(side)
    owned = torch.zeros(side)
    for tile, weights in zip(tiles, tile_weights(side, tiling, 1, torch.device("cpu")), strict=True):
        assert len(weights) == tile.stop - tile.start == size
        assert weights.min() >= 0
        total[tile.span(1)] += weights
        owned[tile.span(1)][tile.owned(size)] += 1
    assert torch.allclose(total, torch.ones(side))
    assert torch.equal(owned, torch.ones(side))
    assert all(earlier.stop - later.start >= overlap for earlier, later in itertools.pairwise(tiles))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (96, 40), (100, 132)])
def test_convolutions_on_tiles_are_exact_when_the_overlap_reaches_as_far_as_they_do(height, width):
    torch.manual_seed(0)
    stage = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.GELU(), nn.Conv2d(4, 3, 5, padding=2))
    pixels = pictures(2, height, width)
    # Radius 4 on either side of a blend of 4.
    tiled = run_tiled(stage, pixels, Tiling(32, 12, 4), input_stride=1, output_stride=1)
    assert torch.allclose(tiled, stage(pixels), atol=1e-6)
    short = run_tiled(stage, pixels, Tiling(32, 4, 4), input_stride=1, output_stride=1)
    assert torch.allclose(short, stage(pixels), atol=1e-6) == (max(height, width) <= 32)


def without_norms(tokenizer):
    for module in list(tokenizer.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return tokenizer


@torch.no_grad()
@pytest.mark.parametrize("multipliers", [(1, 2, 2), (2,)])
@pytest.mark.parametrize(("height", "width"), [(192, 128), (128, 208)])
def test_but_for_group_norms_a_tokenizer_on_tiles_is_exact_attention_included(height, width, multipliers):
    tokenizer = without_norms(vq_tokenizer(channel_multipliers=multipliers, base_channels=4, unit_codes=False))
    pixels = pictures(1, height // (4 if len(multipliers) == 1 else 1), width // (4 if len(multipliers) == 1 else 1))
    features = tokenizer.encode_features(pixels)
    decoded = tokenizer.decode_features(features)
    tokenizer.enable_tiling(128 if len(multipliers) > 1 else 32, 64 if len(multipliers) > 1 else 16)
    calls = []
    tokenizer.decoder.conv_out.register_forward_hook(lambda *arguments: calls.append(1))
    assert torch.allclose(tokenizer.encode_features(pixels), features, atol=1e-5 * float(features.abs().max()))
    again = tokenizer.decode_features(features)
    assert torch.allclose(again, decoded, atol=1e-5 * float(decoded.abs().max()))
    assert len(calls) > 1


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(192, 128), (128, 208)])
def test_exact_tiles_give_the_group_norms_the_whole_pictures_statistics(height, width):
    tokenizer = vq_tokenizer(unit_codes=False)
    pixels = pictures(1, height, width)
    features = tokenizer.encode_features(pixels)
    decoded = tokenizer.decode_features(features)
    tokenizer.enable_tiling(128, 64)
    inexact = tokenizer.decode_features(features)
    assert (inexact - decoded).abs().max() > 0.01 * decoded.abs().max()
    tokenizer.enable_tiling(128, 64, exact=True)
    assert torch.allclose(tokenizer.encode_features(pixels), features, atol=1e-5 * float(features.abs().max()))
    assert torch.allclose(tokenizer.decode_features(features), decoded, atol=1e-5 * float(decoded.abs().max()))
    # Nothing of it stays behind.
    tokenizer.disable_tiling()
    assert torch.equal(tokenizer.decode_features(features), decoded)


@torch.no_grad()
def test_a_run_that_fails_leaves_the_norms_as_they_were():
    tokenizer = vq_tokenizer()
    features = torch.randn(1, 8, 48, 32, generator=torch.Generator().manual_seed(0))
    decoded = tokenizer.decode_features(features)
    tokenizer.enable_tiling(128, 64, exact=True)
    handle = tokenizer.decoder.conv_out.register_forward_hook(lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokenizer.decode_features(features)
    handle.remove()
    tokenizer.disable_tiling()
    assert torch.equal(tokenizer.decode_features(features), decoded)


@torch.no_grad()
def test_without_exact_norms_tiles_come_near_the_whole_picture_and_fade_into_each_other():
    tokenizer = vq_tokenizer()
    coarse = torch.randn(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    features = nn.functional.interpolate(coarse, size=(32, 64), mode="bicubic", align_corners=True)
    whole = tokenizer.decode_features(features)
    tokenizer.enable_tiling(128, 64)
    tiled = tokenizer.decode_features(features)
    assert tiled.shape == whole.shape
    # Measured 0.24, with random weights.
    assert 0 < (tiled - whole).abs().mean() < 0.4 * whole.std()
    # Tiles start at columns 0, 64 and 128, so they meet in the middle of 64 to 128 and of 128 to 192.
    steps = (tiled - whole).diff(dim=-1).abs().mean(dim=(0, 1, 2))
    assert steps[31::32].max() < 1.5 * steps.mean()
    tokenizer.tiling = Tiling(128, 64, blend=1)
    unblended = (tokenizer.decode_features(features) - whole).diff(dim=-1).abs().mean(dim=(0, 1, 2))
    assert max(unblended[95], unblended[159]) > 1.5 * steps.mean()


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_a_picture_no_larger_than_a_tile_is_left_whole(name):
    tokenizer = build(name)
    tokens = tokenizer.encode(pictures(1, 16, 16))
    decoded = tokenizer.decode(tokens)
    tokenizer.enable_tiling(16, 8)
    assert torch.equal(tokenizer.decode(tokens), decoded)
    assert torch.equal(tokenizer.encode(pictures(1, 16, 16)).values, tokens.values)


@torch.no_grad()
@pytest.mark.needs("diffusers")
def test_kl_tokenizers_tile_as_diffusers_does():
    tokenizer = build("kl_tokenizer")
    pixels = pictures(1, 64, 96)
    whole = tokenizer.encode(pixels)
    decoded = tokenizer.decode(whole)
    tokenizer.enable_tiling(32, 8)
    tiled = tokenizer.encode(pixels)
    assert tiled.layout == whole.layout
    assert 0 < (tiled.latents - whole.latents).abs().mean() < whole.latents.std()
    latents = whole.latents.transpose(1, 2).unflatten(-1, whole.layout.final)
    latents = latents / tokenizer.autoencoder.config.scaling_factor
    expected = tokenizer.autoencoder.tiled_decode(latents).sample.clamp(-1, 1)
    assert torch.equal(tokenizer.decode(whole), expected)
    assert not torch.allclose(expected, decoded, atol=1e-3)
    tokenizer.disable_tiling()
    assert torch.equal(tokenizer.decode(whole), decoded)


@torch.no_grad()
def test_a_large_picture_is_encoded_and_decoded_through_the_usual_methods():
    tokenizer = vq_tokenizer()
    tokenizer.enable_tiling(64, 16)
    tokens = tokenizer.encode(pictures(2, 128, 96))
    assert isinstance(tokens, VisualTokens)
    assert tokens.layout.levels == ((32, 24),)
    assert tokenizer.decode(tokens).shape == (2, 3, 128, 96)


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [(62, 16, "multiples of the tokenizer's stride of 4"), (64, 40, "overlap <= size / 2"), (64, 0, "0 < blend")],
)
def test_tiles_that_do_not_fit_are_refused(size, overlap, message):
    with pytest.raises(ConfigError, match=message):
        vq_tokenizer().enable_tiling(size, overlap)
