"""The diffusion head and its process."""

import numpy as np
import pytest
import torch

from unimm import TokenKind
from unimm.errors import ConfigError
from unimm.generation import GeneratorRandomness, Guide
from unimm.heads import DiffusionHeadConfig, HeadContext, TokenSampling
from unimm.heads.gaussian_diffusion import GaussianDiffusion, kept_steps


def head_of(channels=4, **fields):
    torch.manual_seed(0)
    head = DiffusionHeadConfig(hidden_size=16, num_layers=2, respacing="6", **fields).build(8, TokenKind(channels))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return head.eval()


@pytest.mark.parametrize(
    ("respacing", "expected"),
    [("1", [0]), ("2", [0, 999]), ("3,2,1", [0, 166, 333, 334, 666, 667]), ("ddim5", [0, 200, 400, 600, 800])],
)
def test_kept_steps(respacing, expected):
    assert kept_steps(1000, respacing) == expected


@pytest.mark.parametrize("respacing", ["", "0", "ddim", "1001", "a", "3,-1", "ddim999"])
def test_a_respacing_that_cannot_be_is_refused(respacing):
    with pytest.raises(ConfigError):
        kept_steps(1000, respacing)
    with pytest.raises(ConfigError):
        DiffusionHeadConfig(respacing=respacing)


@pytest.mark.needs("diffusers")
def test_the_training_tables_are_those_of_diffusers():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    assert np.allclose(GaussianDiffusion(1000).betas, scheduler.betas.double().numpy(), rtol=1e-5)


def test_keeping_every_step_changes_no_table():
    whole, kept = GaussianDiffusion(1000), GaussianDiffusion(1000, "1000")
    assert whole.timesteps == kept.timesteps
    assert np.allclose(whole.betas, kept.betas, rtol=1e-9)
    assert np.allclose(whole.posterior_log_variance_clipped, kept.posterior_log_variance_clipped, rtol=1e-9)


def test_the_true_noise_leads_back_to_the_clean_token_and_costs_no_bits():
    process, steps = GaussianDiffusion(1000), torch.tensor([1, 40, 500, 900])
    clean, noise = torch.randn(4, 3), torch.randn(4, 3)
    noisy = process.add_noise(clean, steps, noise)
    assert torch.allclose(process.clean(noisy, noise, steps), clean, atol=1e-3)
    error, bits = process.loss_terms(noise, torch.full((4, 3), -1.0), clean, noisy, noise, steps)
    assert error.abs().max() == 0
    assert bits.abs().max() < 1e-3


def test_sampling_with_the_exact_network_draws_the_distribution():
    # For tokens from N(0.5, 0.3 ** 2) the best prediction of the noise is known.
    process, mean, deviation = GaussianDiffusion(1000, "250"), 0.5, 0.3
    alphas = GaussianDiffusion(1000).alphas_cumprod

    def predict(noisy, times):
        kept = float(alphas[int(times[0])])
        spread = kept * deviation**2 + 1 - kept
        noise = (1 - kept) ** 0.5 * (noisy - kept**0.5 * mean) / spread
        return noise, torch.full_like(noisy, -1.0)

    torch.manual_seed(0)
    drawn = process.reverse(predict, torch.randn(20000, 1), lambda: torch.randn(20000, 1))
    assert drawn.mean() == pytest.approx(mean, abs=0.01)
    assert drawn.std() == pytest.approx(deviation, abs=0.015)


def test_the_variational_term_trains_the_variance_alone():
    head = head_of(num_noise_draws=3)
    states, targets = torch.randn(2, 5, 8), torch.randn(2, 5, 4)
    times, noise = torch.randint(0, 1000, (2, 3, 5)), torch.randn(2, 3, 5, 4)
    error, bits = head.loss_terms(states, targets, times, noise)
    assert error.shape == bits.shape == (2, 3, 5)
    for term, silent in ((error, slice(4, 8)), (bits, slice(0, 4))):
        gradient = torch.autograd.grad(term.sum(), head.network.output.weight, retain_graph=True)[0]
        assert gradient[silent].abs().max() == 0
        assert gradient.abs().max() > 0


def test_a_token_is_drawn_by_itself():
    head, states = head_of(), torch.randn(3, 5, 8)
    start, noises = torch.randn(3, 5, 4), torch.randn(6, 3, 5, 4)
    everything = head.denoise(states, Guide(), start, iter(noises).__next__)
    some = head.denoise(states[1:, 2:4], Guide(), start[1:, 2:4], iter(noises[:, 1:, 2:4]).__next__)
    assert torch.allclose(some, everything[1:, 2:4], atol=1e-5)


def test_guidance_one_is_no_guidance_and_another_scale_moves_the_sample():
    head, states, other = head_of(), torch.randn(2, 3, 8), torch.randn(2, 3, 8)

    def draw(rows, guide):
        randomness = GeneratorRandomness(torch.Generator().manual_seed(4))
        return head.sample(rows, HeadContext(), guide, randomness, TokenSampling()).values

    alone, both = draw(states, Guide()), torch.cat([states, other])
    assert torch.allclose(draw(both, Guide(1.0, 2)), alone, atol=1e-5)
    assert not torch.allclose(draw(both, Guide(3.0, 2)), alone, atol=1e-2)
    assert draw(both, Guide(3.0, 2)).shape == alone.shape


def test_temperature_zero_and_no_drawing_leave_the_noise_out():
    head, states = head_of(), torch.randn(1, 2, 8)

    def draw(**options):
        randomness = GeneratorRandomness(torch.Generator().manual_seed(4))
        return head.sample(states, HeadContext(), Guide(), randomness, TokenSampling(**options)).values

    assert torch.equal(draw(do_sample=False), draw(temperature=0.0))
    assert not torch.equal(draw(), draw(temperature=0.5))
    assert draw(num_inference_steps=1).isfinite().all()


def test_a_likelihood_is_refused():
    with pytest.raises(ConfigError, match=r"no likelihood in closed form"):
        head_of().log_prob(torch.zeros(1, 1, 8), torch.zeros(1, 1, 4))
