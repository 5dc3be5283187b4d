import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from unimm.errors import ConfigError
from unimm.plans import NEVER, AttentionRule

block_lists = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(
    lambda steps: tuple(torch.tensor(steps).cumsum(0).tolist())
)


@settings(deadline=None, max_examples=50)
@given(block_lists, st.integers(0, 4))
def test_the_mask_mod_evaluated_is_the_dense_mask(blocks, padding):
    padding = min(padding, len(blocks) - 1)
    key_mask = torch.ones(2, len(blocks), dtype=torch.bool)
    key_mask[0, :padding] = False
    rule = AttentionRule(blocks, key_mask)
    dense = rule.dense(batch_size=2)
    for batch in range(2):
        for query in range(len(blocks)):
            for key in range(len(blocks)):
                index = [torch.tensor(value) for value in (batch, 0, query, key)]
                expected = blocks[key] <= blocks[query] and (bool(key_mask[batch, key]) or key == query)
                assert bool(dense[batch, query, key]) == expected == bool(rule(*index))


@settings(deadline=None, max_examples=50)
@given(block_lists, st.data())
def test_the_mask_of_a_range_of_queries_is_that_part_of_the_dense_mask(blocks, data):
    start = data.draw(st.integers(0, len(blocks) - 1))
    stop = data.draw(st.integers(start + 1, len(blocks)))
    rule = AttentionRule(blocks)
    mask, is_causal = rule.mask("sdpa", start, stop, 1, torch.device("cpu"), torch.float32)
    expected = rule.dense()[0, start:stop, :stop]
    if mask is None:
        triangle = torch.ones(stop - start, stop, dtype=torch.bool)
        assert torch.equal(expected, triangle.tril() if is_causal else triangle)
    else:
        assert torch.equal(mask[0, 0], expected)


def test_keys_of_a_full_length_cache_that_are_not_written_are_hidden():
    rule = AttentionRule.causal(6)
    mask, _ = rule.mask("sdpa", 2, 3, 1, torch.device("cpu"), torch.float32, key_length=6)
    assert mask[0, 0].tolist() == [[True, True, True, False, False, False]]


def test_plain_causality_and_full_visibility_need_no_mask():
    rule = AttentionRule.causal(5)
    cpu = torch.device("cpu")
    assert rule.mask("sdpa", 0, 5, 1, cpu, torch.float32) == (None, True)
    assert rule.mask("sdpa", 4, 5, 1, cpu, torch.float32) == (None, False)
    assert AttentionRule((0, 0, 0)).mask("eager", 0, 3, 1, cpu, torch.float32) == (None, False)


def test_an_attention_implementation_that_cannot_express_the_rule_is_refused():
    with pytest.raises(ConfigError, match="flash_attention_2"):
        AttentionRule((0, 1, 1)).mask("flash_attention_2", 0, 3, 1, torch.device("cpu"), torch.float32)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_slot_opens_to_the_blocks_that_its_rule_says(data):
    number = data.draw(st.integers(1, 8))
    blocks = tuple(data.draw(st.lists(st.integers(0, 4), min_size=number, max_size=number)))
    opens = tuple(data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, NEVER]), min_size=number, max_size=number)))
    rule = AttentionRule(blocks, opens=opens)
    expected = [[blocks[k] == blocks[q] or opens[k] <= blocks[q] for k in range(number)] for q in range(number)]
    assert rule.dense()[0].tolist() == expected
    start = data.draw(st.integers(0, number - 1))
    stop = data.draw(st.integers(start + 1, number))
    seen = torch.tensor(expected)[start:stop, :stop]
    if rule.everything_visible(start, stop):
        assert seen.all()
    if len(set(blocks[start:stop])) == 1:
        assert rule.everything_visible(start, stop) == bool(seen.all())


def test_slots_within_their_block_see_no_other():
    rule = AttentionRule.within((0, 1, 1, 2))
    assert rule.dense()[0].tolist() == [
        [True, False, False, False],
        [False, True, True, False],
        [False, True, True, False],
        [False, False, False, True],
    ]
    assert not rule.is_plain_causal
    assert rule.part(slice(1, 3)).dense()[0].all()


def test_clean_and_noised_copies_see_what_blockwise_diffusion_needs():
    # https://huggingface.co/papers/2412.07720: clean block i is block 2i + 1, its noised copy block 2i, which nobody else sees.
    rule = AttentionRule((1, 3, 5, 0, 2, 4), opens=(1, 3, 5, NEVER, NEVER, NEVER))
    clean = torch.ones(3, 3, dtype=torch.bool).tril()
    assert torch.equal(rule.dense()[0, :3, :3], clean)
    assert not rule.dense()[0, :3, 3:].any()
    assert torch.equal(rule.dense()[0, 3:, :3], clean.tril(-1))
    assert torch.equal(rule.dense()[0, 3:, 3:], torch.eye(3, dtype=torch.bool))
