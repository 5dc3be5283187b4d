"""The VQ tokenizer and the convolutional autoencoder in it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.errors import CodebookError, ConfigError, LayoutError
from unimm.tokenizers import VQTokenizer, VQTokenizerConfig
from unimm.tokens import TokenLayout, VisualTokens

SETTINGS = {
    "base_channels": 8,
    "channel_multipliers": (1, 2, 2),
    "num_residual_blocks": 1,
    "encoder_channels": 16,
    "code_channels": 6,
    "codebook_size": 32,
    "num_norm_groups": 4,
    "usage_window": 128,
}


@pytest.fixture
def tokenizer() -> VQTokenizer:
    return VQTokenizer(VQTokenizerConfig(**SETTINGS)).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24) * 2 - 1


def test_decoding_the_encoded_ids_is_the_reconstruction(tokenizer: VQTokenizer, pixels: torch.Tensor) -> None:
    with torch.no_grad():
        tokens, output = tokenizer.encode(pixels), tokenizer(pixels)
        assert tokens.layout == TokenLayout.grid(4, 6)
        assert torch.equal(output.tokens.ids, tokens.ids)
        assert torch.equal(tokenizer.decode(tokens, clamp=False), output.reconstruction)


def test_decoding_ids_equals_decoding_their_codes(tokenizer: VQTokenizer) -> None:
    ids, layout = torch.randint(32, (2, 12)), TokenLayout.grid(3, 4)
    pixels = tokenizer.decode(VisualTokens(layout, ids=ids))
    assert pixels.shape == (2, 3, 12, 16)
    assert torch.equal(tokenizer.decode(VisualTokens(layout, latents=tokenizer.embed(ids))), pixels)
    assert torch.equal(tokenizer.embed(ids), tokenizer.codebook[ids])


def test_a_picture_of_a_batch_is_tokenized_as_it_is_alone(tokenizer: VQTokenizer, pixels: torch.Tensor) -> None:
    together = tokenizer.encode(pixels).ids
    alone = torch.cat([tokenizer.encode(picture[None]).ids for picture in pixels])
    assert torch.equal(together, alone)


def test_clamping_clips_to_the_nominal_range(tokenizer: VQTokenizer, pixels: torch.Tensor) -> None:
    tokenizer.decoder.conv_out.weight.data.mul_(100)
    tokens = tokenizer.encode(pixels)
    raw = tokenizer.decode(tokens, clamp=False)
    assert raw.abs().max() > 1
    assert torch.equal(tokenizer.decode(tokens), raw.clamp(-1, 1))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), unit_codes=st.booleans())
def test_the_quantized_value_is_the_code_and_its_gradient_the_features(seed: int, unit_codes: bool) -> None:
    torch.manual_seed(seed)
    tokenizer = VQTokenizer(VQTokenizerConfig(**{**SETTINGS, "unit_codes": unit_codes}))
    features = torch.randn(2, 6, 3, 4, requires_grad=True)
    cotangent = torch.randn(2, 6, 3, 4)
    output = tokenizer.quantize(features)
    codes = tokenizer.embed(output.ids).transpose(1, 2).unflatten(-1, (3, 4))
    assert torch.equal(output.quantized, codes)
    (got,) = torch.autograd.grad((output.quantized * cotangent).sum(), features)
    passed = F.normalize(features, dim=1) if unit_codes else features
    (expected,) = torch.autograd.grad((passed * cotangent).sum(), features)
    assert torch.allclose(got, expected, atol=1e-6)


def test_loss_terms_are_their_formulas_times_their_weights(pixels: torch.Tensor) -> None:
    weights = {
        "squared_error_weight": 2.0,
        "absolute_error_weight": 0.5,
        "commitment_weight": 0.3,
        "codebook_weight": 3.0,
    }
    tokenizer = VQTokenizer(VQTokenizerConfig(**SETTINGS, **weights)).eval()
    output = tokenizer(pixels)
    features = F.normalize(tokenizer.encode_features(pixels), dim=1)
    codes = tokenizer.embed(output.tokens.ids).transpose(1, 2).unflatten(-1, features.shape[-2:])
    error = output.reconstruction - pixels
    distance = (codes - features).square().mean()
    assert set(output.losses) == {"reconstruction", "commitment", "codebook"}
    assert torch.allclose(output.losses["reconstruction"], 2 * error.square().mean() + 0.5 * error.abs().mean())
    assert torch.allclose(output.losses["commitment"], 0.3 * distance)
    assert torch.allclose(output.losses["codebook"], 3 * distance)
    assert torch.allclose(output.loss, sum(output.losses.values()))


def test_the_commitment_moves_latents_only_and_the_codebook_term_codes_only(
    tokenizer: VQTokenizer, pixels: torch.Tensor
) -> None:
    losses = tokenizer(pixels).losses
    weight, code = tokenizer.quant_conv.weight, tokenizer.quantizer.codebook.weight
    for name, moved, still in (("commitment", weight, code), ("codebook", code, weight)):
        moved_gradient, still_gradient = torch.autograd.grad(
            losses[name], [moved, still], retain_graph=True, allow_unused=True
        )
        assert moved_gradient.abs().sum() > 0
        assert still_gradient is None


def test_with_moving_averages_no_loss_reaches_the_codes(pixels: torch.Tensor) -> None:
    tokenizer = VQTokenizer(VQTokenizerConfig(**SETTINGS, ema_decay=0.9)).train()
    before = tokenizer.codebook.clone()
    output = tokenizer(pixels)
    output.loss.backward()
    assert "codebook" not in output.losses
    assert tokenizer.quantizer.codebook.weight.grad is None
    assert not torch.equal(tokenizer.codebook, before)


@pytest.mark.parametrize("shape", [(2, 3, 16, 18), (2, 3, 0, 16), (3, 16, 16), (2, 1, 16, 16)])
def test_a_picture_of_the_wrong_shape_is_refused(tokenizer: VQTokenizer, shape: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError, match=r"stride of 4|of shape"):
        tokenizer.encode(torch.zeros(shape))


def test_bytes_instead_of_floats_are_refused(tokenizer: VQTokenizer) -> None:
    with pytest.raises(LayoutError, match=r"floating point.*uint8"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize("bad", [-1, 32])
def test_ids_outside_of_the_codebook_are_refused(tokenizer: VQTokenizer, bad: int) -> None:
    with pytest.raises(CodebookError, match=r"\[0, 31\]"):
        tokenizer.decode(VisualTokens(TokenLayout.grid(2, 2), ids=torch.tensor([[0, 1, bad, 3]])))


def test_a_pyramid_a_sequence_or_another_size_is_refused(tokenizer: VQTokenizer) -> None:
    for layout in (TokenLayout.pyramid((1, 2)), TokenLayout.sequence(5)):
        with pytest.raises(LayoutError, match=r"decodes (one grid|grids)"):
            tokenizer.decode(VisualTokens(layout, ids=torch.zeros(1, 5, dtype=torch.long)))
    tokens = VisualTokens(TokenLayout.grid(2, 3), ids=torch.zeros(1, 6, dtype=torch.long))
    assert tokenizer.decode(tokens, size=(8, 12)).shape[-2:] == (8, 12)
    with pytest.raises(LayoutError, match="8x12 pixels, asked for 8x8"):
        tokenizer.decode(tokens, size=(8, 8))


@pytest.mark.parametrize(
    "options",
    [
        {"fused_attention_projection": True},
        {"attention": False},
        {"decoder_channel_multipliers": (2, 2, 1)},
        {"num_decoder_residual_blocks": 1},
        {"revive_after": 3, "initialize_from_data": True, "ema_decay": 0.9},
        {"usage_window": 0, "quantization_kernel_size": 3},
    ],
    ids=lambda options: "-".join(options),
)
def test_saving_and_loading_changes_no_weight_and_no_buffer(
    options: dict[str, object], pixels: torch.Tensor, tmp_path
) -> None:
    tokenizer = VQTokenizer(VQTokenizerConfig(**{**SETTINGS, **options})).train()
    tokenizer(pixels)
    tokenizer.save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path)
    before, after = tokenizer.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(loaded.encode(pixels).ids, tokenizer.eval().encode(pixels).ids)


def test_missing_weights_are_filled_and_loaded_ones_kept(tokenizer: VQTokenizer, tmp_path) -> None:
    state = {name: value for name, value in tokenizer.state_dict().items() if "conv_in.bias" not in name}
    del state["quantizer.codebook.recent_ids"]
    tokenizer.save_pretrained(tmp_path, state_dict=state)
    config = VQTokenizerConfig(**SETTINGS, revive_after=4)
    loaded = VQTokenizer.from_pretrained(tmp_path, config=config)
    assert torch.equal(loaded.encoder.conv_in.weight, tokenizer.encoder.conv_in.weight)
    assert torch.equal(loaded.codebook, tokenizer.codebook)
    assert loaded.encoder.conv_in.bias.abs().max() <= 27**-0.5
    assert loaded.quantizer.codebook.recent_ids.count_nonzero() == 0
    assert loaded.quantizer.codebook.idle_steps.count_nonzero() == 0


def test_the_codebook_stays_in_full_precision(tokenizer: VQTokenizer, pixels: torch.Tensor, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.encoder.conv_in.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.codebook, tokenizer.codebook)
    assert loaded.decode(loaded.encode(pixels)).dtype == torch.bfloat16
    assert loaded.quantize(loaded.encode_features(pixels)).quantized.dtype == torch.float32


def test_activation_checkpointing_changes_no_gradient(tokenizer: VQTokenizer, pixels: torch.Tensor) -> None:
    tokenizer.train()
    for module in tokenizer.modules():
        assert not getattr(module, "gradient_checkpointing", False)
    plain = torch.autograd.grad(tokenizer(pixels).losses["reconstruction"], tokenizer.encoder.conv_in.weight)[0]
    tokenizer.activation_checkpointing_enable()
    checkpointed = torch.autograd.grad(tokenizer(pixels).losses["reconstruction"], tokenizer.encoder.conv_in.weight)[0]
    assert torch.allclose(plain, checkpointed, atol=1e-7)
    blocks = [module for module in tokenizer.modules() if getattr(module, "gradient_checkpointing", False)]
    assert {type(block).__name__ for block in blocks} == {"ResidualBlock", "SpatialAttention"}


@pytest.mark.parametrize("stage", ["encoder", "decoder"])
def test_fused_and_separate_attention_projections_are_the_same_function(stage: str) -> None:
    fused = VQTokenizer(VQTokenizerConfig(**SETTINGS, fused_attention_projection=True))
    apart = VQTokenizer(VQTokenizerConfig(**SETTINGS))
    ours, theirs = getattr(fused, stage).middle[1], getattr(apart, stage).middle[1]
    for kind in ("weight", "bias"):
        parts = getattr(ours.qkv, kind).chunk(3)
        for projection, part in zip((theirs.query, theirs.key, theirs.value), parts, strict=True):
            getattr(projection, kind).data.copy_(part)
        getattr(theirs.proj, kind).data.copy_(getattr(ours.proj, kind))
    features = torch.randn(2, 16, 3, 5)
    query, key, value = ours.qkv(ours.norm(features)).flatten(2).chunk(3, dim=1)
    mixed = value @ (torch.einsum("bci,bcj->bij", query, key) / 4).softmax(-1).transpose(1, 2)
    expected = features + ours.proj(mixed.unflatten(-1, (3, 5)))
    assert torch.allclose(ours(features), expected, atol=1e-5)
    assert torch.allclose(theirs(features), expected, atol=1e-5)


def test_training_for_a_few_steps_lowers_the_error_and_uses_the_codebook() -> None:
    options = {**SETTINGS, "attention": False, "revive_after": 5, "initialize_from_data": True}
    tokenizer = VQTokenizer(VQTokenizerConfig(**options)).train()
    rows = torch.linspace(-1, 1, 16)
    slopes = torch.rand(8, 3, 1, 1) * 2 - 1
    pixels = (slopes * rows[:, None] + slopes.flip(1) * rows).clamp(-1, 1)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    errors = []
    for _ in range(40):
        output = tokenizer(pixels)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(output.losses["reconstruction"].item())
    assert errors[-1] < 0.35 * errors[0]
    assert len(output.tokens.ids.unique()) > 24


PATCHES = {
    **SETTINGS,
    "channel_multipliers": (1, 1, 1),
    "patches": True,
    "encoder_channels": 48,
    "code_channels": 48,
    "unit_codes": False,
}


def test_patches_start_as_the_identity(pixels: torch.Tensor) -> None:
    tokenizer = VQTokenizer(VQTokenizerConfig(**PATCHES)).eval()
    with torch.no_grad():
        features = tokenizer.encode_features(pixels)
        assert torch.equal(tokenizer.decode_features(features), pixels)
    first = pixels[0, :, :4, :4].flatten()
    assert torch.equal(features[0, :, 0, 0], first)


def test_a_patch_token_depends_on_its_own_square_alone(pixels: torch.Tensor) -> None:
    tokenizer = VQTokenizer(VQTokenizerConfig(**PATCHES)).eval()
    torch.nn.init.normal_(tokenizer.quantizer.codebook.weight)
    changed = pixels.clone()
    changed[:, :, 4:8, 8:12] = -changed[:, :, 4:8, 8:12]
    before, after = tokenizer.encode(pixels).ids, tokenizer.encode(changed).ids
    others = torch.arange(24) != 1 * 6 + 2
    assert torch.equal(before[:, others], after[:, others])
    whole = VQTokenizer(VQTokenizerConfig(**SETTINGS)).eval()
    with torch.no_grad():
        reached = (whole.encode_features(pixels) != whole.encode_features(changed)).any(1).flatten(1)
    assert reached[:, others].any()


@pytest.mark.parametrize(
    "options", [{"quantization_kernel_size": 3}, {"channel_multipliers": (1, 2, 2)}], ids=["kernel", "widths"]
)
def test_patches_that_would_look_at_their_neighbours_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="see nothing of their neighbours"):
        VQTokenizerConfig(**{**PATCHES, **options})


def test_codes_of_patches_become_the_squares_of_the_pictures_in_training() -> None:
    generator = torch.Generator().manual_seed(0)
    squares = torch.rand(6, 3, 4, 4, generator=generator) * 2 - 1
    tokenizer = VQTokenizer(
        VQTokenizerConfig(**{**PATCHES, "ema_decay": 0.8, "revive_after": 5, "initialize_from_data": True})
    ).train()
    for _ in range(30):
        chosen = squares[torch.randint(6, (4, 16), generator=generator)]
        pictures = chosen.view(4, 4, 4, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(4, 3, 16, 16)
        output = tokenizer(pictures)
    assert output.losses["reconstruction"] < 1e-4
