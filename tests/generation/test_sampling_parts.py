import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from unimm.errors import ConfigError, UniMMError
from unimm.generation import (
    GeneratorRandomness,
    IntervalGuidance,
    LinearGuidance,
    ListedGuidance,
    Progress,
    RecordedRandomness,
    SoftCodes,
    token_filters,
)
from unimm.generation.guidance import Guide

CPU = torch.device("cpu")


def test_linear_guidance_leaves_the_first_step_alone_and_ends_at_its_last_value():
    schedule = LinearGuidance(1, 2.5)
    assert schedule.scales(Progress.plain(4)) == [1.0, 1.5, 2.0, 2.5]


def test_linear_guidance_may_count_levels_or_tokens():
    steps = [Progress(0, 3, level=0, num_levels=2, placed=0.2), Progress(1, 3, level=1, num_levels=2, placed=0.5)]
    assert LinearGuidance(1, 3, over="levels").scales(steps) == [1.0, 3.0]
    assert LinearGuidance(1, 3, over="tokens").scales(steps) == [1.4, 2.0]
    with pytest.raises(ConfigError, match=r"'steps', 'levels' or 'tokens', given 'pixels'"):
        LinearGuidance(1, 3, over="pixels")


def test_listed_guidance_has_a_scale_per_level_and_keeps_the_last():
    steps = [Progress(n, 4, level=n, num_levels=4) for n in range(4)]
    assert ListedGuidance((1, 3, 4)).scales(steps) == [1.0, 3.0, 4.0, 4.0]
    with pytest.raises(ConfigError, match=r"at least one level"):
        ListedGuidance(())


def test_interval_guidance_ends_with_its_interval():
    assert IntervalGuidance(3.0, start=1, stop=2).scales(Progress.plain(4)) == [1.0, 3.0, 3.0, 1.0]


def test_guidance_is_linear_between_the_contexts():
    conditional, unconditional = torch.randn(2, 3), torch.randn(2, 3)
    rows = torch.cat([conditional, unconditional])
    assert torch.equal(Guide(1.0, 2)(rows), conditional)
    assert torch.allclose(Guide(0.0, 2)(rows), unconditional)
    assert torch.allclose(Guide(3.0, 2)(rows), 3 * conditional - 2 * unconditional, atol=1e-5)
    assert torch.equal(Guide(3.0, 1)(conditional), conditional)


def test_what_is_shared_goes_to_every_context():
    samples = torch.randn(2, 3)
    assert torch.equal(Guide(3.0, 2).spread(samples), torch.cat([samples, samples]))
    assert Guide(1.0, 1).spread(samples) is samples


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(0, 2**31))
def test_top_k_keeps_k_ids_and_the_largest(k, seed):
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed))
    kept = token_filters(top_k=k)(torch.zeros(3, 0, dtype=torch.long), logits).isfinite()
    assert (kept.sum(1) == k).all()
    assert kept.gather(1, logits.argmax(1, keepdim=True)).all()


@settings(deadline=None, max_examples=25)
@given(st.floats(0.05, 0.99), st.integers(0, 2**31))
def test_top_p_keeps_the_smallest_set_that_exceeds_p(p, seed):
    logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(seed))
    kept = token_filters(top_p=p)(torch.zeros(1, 0, dtype=torch.long), logits)[0].isfinite()
    ordered, order = logits[0].softmax(-1).sort(descending=True)
    needed = int((ordered.cumsum(0) < p - 1e-6).sum()) + 1
    assert abs(int(kept.sum()) - needed) <= 1
    assert kept[order[: int(kept.sum())]].all()


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_filters_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        token_filters(**options)


def test_one_generator_per_sample_draws_what_each_draws_alone():
    probabilities = torch.rand(3, 5, 7).softmax(-1)
    together = GeneratorRandomness([torch.Generator().manual_seed(seed) for seed in (5, 6, 7)])
    batch = together.categorical(probabilities, "token")
    for row, seed in enumerate((5, 6, 7)):
        alone = GeneratorRandomness([torch.Generator().manual_seed(seed)])
        assert torch.equal(alone.categorical(probabilities[row : row + 1], "token")[0], batch[row])


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([0.1, 0.6, 0.3]).expand(20_000, 3)
    ids = GeneratorRandomness(torch.Generator().manual_seed(0)).categorical(probabilities, "token")
    shares = torch.bincount(ids, minlength=3) / len(ids)
    assert torch.allclose(shares, probabilities[0], atol=0.015)


def test_an_id_of_probability_zero_is_never_drawn():
    probabilities = torch.tensor([0.0, 1.0, 0.0]).expand(5_000, 3)
    assert (GeneratorRandomness(torch.Generator().manual_seed(0)).categorical(probabilities, "token") == 1).all()


def test_recorded_uniforms_pick_by_the_inverse_of_the_cumulative_distribution():
    randomness = RecordedRandomness({"token": torch.tensor([0.0, 0.25, 0.99])})
    probabilities = torch.tensor([[[0.25, 0.5, 0.25]] * 3])
    assert randomness.categorical(probabilities, "token").tolist() == [[0, 1, 2]]


def test_recorded_draws_that_run_out_or_are_missing_are_errors():
    randomness = RecordedRandomness({"token": torch.rand(2)})
    with pytest.raises(UniMMError, match=r"ran out"):
        randomness.uniform((3,), "token", CPU)
    with pytest.raises(UniMMError, match=r"no draws named 'other'"):
        randomness.uniform((1,), "other", CPU)


def test_a_number_of_generators_that_is_not_the_batch_size_is_refused():
    randomness = GeneratorRandomness([torch.Generator(), torch.Generator()])
    with pytest.raises(UniMMError, match=r"2 generators given for a batch of 3"):
        randomness.uniform((3,), "x", CPU)


def test_soft_codes_are_weights_that_sharpen_towards_the_last_step():
    logits = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0))
    weights = [
        SoftCodes()(logits, progress, GeneratorRandomness(torch.Generator().manual_seed(1))) for progress in (0.0, 1.0)
    ]
    for part in weights:
        assert torch.allclose(part.sum(-1), torch.ones(1, 4))
    assert weights[1].max(-1).values.mean() > weights[0].max(-1).values.mean()
