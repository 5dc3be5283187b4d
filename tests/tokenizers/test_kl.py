"""diffusers' KL autoencoders as visual tokenizers."""

from __future__ import annotations

import pytest
import torch

from unimm.errors import ConfigError, LayoutError
from unimm.tokenizers import KLTokenizer, KLTokenizerConfig
from unimm.tokens import TokenLayout, VisualTokens

pytestmark = pytest.mark.needs("diffusers")

AUTOENCODER = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
    "shift_factor": 0.1,
}


@pytest.fixture(scope="module")
def tokenizer() -> KLTokenizer:
    torch.manual_seed(0)
    return KLTokenizer(KLTokenizerConfig(autoencoder=AUTOENCODER)).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 8, 12) * 2 - 1


def test_tokens_are_the_scaled_posterior_means(tokenizer: KLTokenizer, pixels: torch.Tensor) -> None:
    tokens = tokenizer.encode(pixels)
    with torch.no_grad():
        mean = tokenizer.autoencoder.encode(pixels).latent_dist.mean
    assert tokens.layout == TokenLayout.grid(4, 6)
    assert torch.allclose(tokens.latents, ((mean - 0.1) * 0.5).flatten(2).transpose(1, 2))
    assert tokenizer.codebook_size is None
    assert (tokenizer.latent_channels, tokenizer.stride) == (4, 2)


def test_a_generator_draws_from_the_posterior(tokenizer: KLTokenizer, pixels: torch.Tensor) -> None:
    drawn = [tokenizer.encode(pixels, generator=torch.Generator().manual_seed(seed)).latents for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], tokenizer.encode(pixels).latents)


def test_decoding_the_tokens_is_the_reconstruction(tokenizer: KLTokenizer, pixels: torch.Tensor) -> None:
    with torch.no_grad():
        output = tokenizer(pixels)
        decoded = tokenizer.decode(tokenizer.encode(pixels), clamp=False)
    assert torch.allclose(decoded, output.reconstruction, atol=1e-5)
    assert output.codebook_usage is None
    assert set(output.losses) == {"reconstruction", "kl"}


def test_in_training_the_latents_are_drawn_and_losses_reach_the_encoder(pixels: torch.Tensor) -> None:
    model = KLTokenizer(KLTokenizerConfig(autoencoder=AUTOENCODER, kl_weight=0.5)).train()
    output = model(pixels, generator=torch.Generator().manual_seed(0))
    again = model(pixels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(output.reconstruction, again.reconstruction)
    posterior = model.autoencoder.encode(pixels).latent_dist
    assert torch.allclose(output.losses["kl"], 0.5 * posterior.kl().mean())
    output.loss.backward()
    assert model.autoencoder.encoder.conv_in.weight.grad.abs().sum() > 0


def test_saving_and_loading_changes_nothing(tokenizer: KLTokenizer, pixels: torch.Tensor, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = KLTokenizer.from_pretrained(tmp_path)
    before, after = tokenizer.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(loaded.encode(pixels).latents, tokenizer.encode(pixels).latents)


def test_a_diffusers_folder_loads_with_its_scaling(tokenizer: KLTokenizer, pixels: torch.Tensor, tmp_path) -> None:
    tokenizer.autoencoder.save_pretrained(tmp_path)
    loaded = KLTokenizer.from_diffusers(str(tmp_path))
    assert torch.equal(loaded.encode(pixels).latents, tokenizer.encode(pixels).latents)


def test_ids_bad_sizes_and_unknown_arguments_are_refused(tokenizer: KLTokenizer) -> None:
    with pytest.raises(LayoutError, match="decodes latents, given ids"):
        tokenizer.decode(VisualTokens(TokenLayout.grid(2, 2), ids=torch.zeros(1, 4, dtype=torch.long)))
    with pytest.raises(LayoutError, match="stride of 2"):
        tokenizer.encode(torch.zeros(1, 3, 8, 9))
    with pytest.raises(ConfigError, match="continuous latents and no codebook"):
        tokenizer.embed(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ConfigError, match="did you mean 'latent_channels'"):
        KLTokenizerConfig(autoencoder={"latent_channel": 4})
