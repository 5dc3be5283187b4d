import itertools

import pytest
import torch
from factories import build, condition_inputs, random_ids

from unimm import SoftCodes, TokenKind
from unimm.errors import ConfigError
from unimm.generation.guidance import Guide
from unimm.generation.randomness import GeneratorRandomness
from unimm.heads import BitwiseHeadConfig, TokenSampling
from unimm.heads.base import NO_CONTEXT


def head(num_bits=3, hidden_size=8):
    torch.manual_seed(0)
    return BitwiseHeadConfig(bias=True).build(hidden_size, TokenKind(num_bits, 2, num_bits)).eval()


def test_parameters_grow_with_the_bits_and_not_with_what_they_count():
    large = head(32, 2048)
    assert sum(parameter.numel() for parameter in large.parameters()) == 64 * 2048 + 64


def test_the_probabilities_of_all_values_of_a_token_sum_to_one():
    hidden = torch.randn(1, 1, 8)
    values = torch.tensor(list(itertools.product((0, 1), repeat=3)))
    log_probs = head().log_prob(hidden.expand(8, 1, 8), values[:, None])
    assert log_probs.shape == (8, 1)
    assert log_probs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_the_loss_is_the_mean_negative_log_probability_of_the_bits():
    model, hidden, bits = head(), torch.randn(2, 5, 8), torch.randint(0, 2, (2, 5, 3))
    assert torch.allclose(model.loss(hidden, bits), -model.log_prob(hidden, bits) / 3, atol=1e-6)


def test_draws_follow_the_probabilities_and_confidence_is_the_tokens():
    model, hidden = head(), torch.randn(1, 1, 8).expand(1, 4000, 8)
    randomness = GeneratorRandomness(torch.Generator().manual_seed(0))
    sample = model.sample(hidden, NO_CONTEXT, Guide(), randomness, TokenSampling())
    expected = model.logits(hidden).softmax(-1)[0, 0, :, 1]
    assert torch.allclose(sample.values.float().mean((0, 1)), expected, atol=0.03)
    assert torch.allclose(sample.confidence.log(), model.log_prob(hidden, sample.values), atol=1e-5)


def test_soft_codes_are_refused():
    model = head()
    sampling = TokenSampling(soft_codes=SoftCodes())
    with pytest.raises(ConfigError, match=r"no such table"):
        model.sample(torch.randn(1, 2, 8), NO_CONTEXT, Guide(), GeneratorRandomness(), sampling)


@torch.no_grad()
def test_a_temperature_per_level_is_that_temperature_at_its_level():
    model = build("scale_bits")
    inputs = condition_inputs(model, 1)

    def drawn(temperature):
        generator = torch.Generator().manual_seed(0)
        return model.generate(**inputs, temperature=temperature, generator=generator).sequences

    first = model.layout.offsets[1]
    assert torch.equal(drawn([0.7, 0.7, 0.7]), drawn(0.7))
    cold = drawn([1e-4, 5.0])
    greedy = model.generate(**inputs, do_sample=False).sequences
    assert torch.equal(cold[:, :first], greedy[:, :first])
    assert not torch.equal(cold[:, first:], greedy[:, first:])
    with pytest.raises(ConfigError, match=r"positive"):
        drawn([1.0, 0.0])
    with pytest.raises(ConfigError, match=r"per level"):
        drawn([])


@torch.no_grad()
def test_guidance_of_hidden_states_is_refused_where_there_is_no_such_block_and_scale_one_changes_nothing():
    model = build("scale_bits")
    inputs = condition_inputs(model, 2)
    plain = model.generate(**inputs, do_sample=False, output_logits=True)
    one = model.generate(**inputs, do_sample=False, output_logits=True, guidance_scale=1.0, guidance_layer=-1)
    assert torch.equal(plain.logits, one.logits)
    logits = [
        model.generate(**inputs, do_sample=False, output_logits=True, guidance_scale=3.0, guidance_layer=layer).logits
        for layer in (None, -1, -2)
    ]
    for first, second in itertools.combinations(logits, 2):
        assert not torch.allclose(first[:, :1], second[:, :1], atol=1e-6)
    with pytest.raises(ConfigError, match=r"-2 to -1"):
        model.generate(**inputs, guidance_scale=3.0, guidance_layer=-3)
    llm = build("llm_raster")
    with pytest.raises(ConfigError, match=r"cannot mix"):
        llm.generate(**condition_inputs(llm, 1), guidance_scale=3.0, guidance_layer=-1)


@torch.no_grad()
def test_padding_of_a_prompt_changes_nothing_and_the_text_does():
    model = build("scale_bits")
    ids = random_ids(model, 1)
    text = torch.randn(1, 4, 12)
    alone = model(image_ids=ids, text_features=text).logits
    padded = torch.cat([text, torch.full((1, 3, 12), 7.0)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    assert torch.allclose(model(image_ids=ids, text_features=padded, text_mask=mask).logits, alone, atol=1e-5)
    assert not torch.allclose(model(image_ids=ids, text_features=padded).logits, alone, atol=1e-3)
    for wrong in (torch.randn(1, 9, 12), torch.randn(1, 4, 11), torch.zeros(1, 4, 12, dtype=torch.long)):
        with pytest.raises(ConfigError, match=r"1 to 8, 12"):
            model(image_ids=ids, text_features=wrong)
    with pytest.raises(ConfigError, match=r"without any position"):
        model(image_ids=ids, text_features=text, text_mask=torch.zeros(1, 4))


def test_a_dropped_prompt_is_the_null_prompt_and_trains_it():
    model = build("scale_bits")
    inputs = condition_inputs(model, 2)
    dropped = model.condition(**inputs, dropped=torch.tensor([True, False]))
    null, kept = model.condition.null(**inputs), model.condition(**inputs)
    assert torch.allclose(dropped.memory[0], null.memory[0])
    assert torch.allclose(dropped.vector[1], kept.vector[1])
    (gradient,) = torch.autograd.grad(dropped.vector[0].sum(), model.condition.null_features)
    assert gradient.abs().sum() > 0
