import pytest
import torch

from unimm.errors import LayoutError
from unimm.generation.caches import ExactStaticCache, make_cache


def filled(lengths, batch=3, max_len=10):
    torch.manual_seed(0)
    cache = ExactStaticCache(num_layers=1, max_cache_len=max_len)
    written = []
    for length in lengths:
        states = torch.randn(batch, 2, length, 4)
        written.append(states)
        keys, values = cache.update(states, -states, 0)
    return cache, torch.cat(written, dim=2), keys, values


def test_reads_are_exactly_what_was_written():
    cache, written, keys, values = filled([1, 3, 2])
    assert torch.equal(keys, written)
    assert torch.equal(values, -written)
    assert cache.get_seq_length() == 6


def test_cropping_forgets_the_last_slots_and_the_next_write_takes_their_place():
    cache, written, *_ = filled([5])
    cache.crop(-2)
    new = torch.ones(3, 2, 1, 4)
    keys, _ = cache.update(new, new, 0)
    assert torch.equal(keys, torch.cat([written[:, :, :3], new], dim=2))


def test_gathering_keeps_the_chosen_slots_in_their_order():
    cache, written, *_ = filled([6])
    slots = torch.tensor([0, 4, 5])
    cache.gather_slots(slots)
    new = torch.zeros(3, 2, 1, 4)
    keys, values = cache.update(new, new, 0)
    assert torch.equal(keys[:, :, :3], written[:, :, slots])
    assert torch.equal(values[:, :, :3], -written[:, :, slots])


def test_rows_can_be_selected_and_repeated():
    cache, written, *_ = filled([2])
    cache.batch_select_indices(torch.tensor([2, 0]))
    new = torch.zeros(2, 2, 1, 4)
    keys, _ = cache.update(new, new, 0)
    assert torch.equal(keys[:, :, :2], written[[2, 0]])
    cache.batch_repeat_interleave(2)
    keys, _ = cache.update(torch.zeros(4, 2, 1, 4), torch.zeros(4, 2, 1, 4), 0)
    assert torch.equal(keys[:, :, :2], written[[2, 2, 0, 0]])


def test_a_full_cache_refuses_more():
    cache, *_ = filled([10])
    with pytest.raises(LayoutError, match=r"holds 10 slots"):
        cache.update(torch.zeros(3, 2, 1, 4), torch.zeros(3, 2, 1, 4), 0)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(LayoutError, match=r"'static' or 'dynamic'"):
        make_cache("paged", 1, 1)
