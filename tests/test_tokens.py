import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from unimm.errors import CodebookError, LayoutError
from unimm.tokens import TokenLayout, VisualTokens, check_ids

sides = st.integers(1, 5)
layouts = st.integers(1, 3).flatmap(
    lambda dimensions: st.lists(st.tuples(*[sides] * dimensions), min_size=1, max_size=4).map(
        lambda levels: TokenLayout(tuple(levels))
    )
)


@settings(deadline=None, max_examples=50)
@given(layouts)
def test_levels_tile_the_sequence_without_gaps(layout):
    ids = torch.arange(layout.length)
    pieces = [ids[layout.level_slice(level)] for level in range(layout.num_levels)]
    assert torch.equal(torch.cat(pieces), ids)
    assert [len(piece) for piece in pieces] == [math.prod(level) for level in layout.levels]


@settings(deadline=None, max_examples=50)
@given(layouts)
def test_coordinates_are_the_raster_positions_of_each_level(layout):
    coordinates = layout.coordinates()
    for level, shape in enumerate(layout.levels):
        part = coordinates[layout.level_slice(level)]
        raveled = torch.zeros(len(part), dtype=torch.long)
        for axis, side in enumerate(shape):
            raveled = raveled * side + part[:, axis]
        assert torch.equal(raveled, torch.arange(math.prod(shape)))


@settings(deadline=None, max_examples=50)
@given(layouts)
def test_level_ids_count_every_level_and_never_fall(layout):
    ids = layout.level_ids()
    assert (ids.diff() >= 0).all()
    assert torch.bincount(ids, minlength=layout.num_levels).tolist() == list(layout.level_lengths)


def test_named_constructors_give_the_arrangements_of_the_field():
    assert TokenLayout.grid(4).levels == ((4, 4),)
    assert TokenLayout.pyramid([1, 2, (2, 3)]).levels == ((1, 1), (2, 2), (2, 3))
    assert TokenLayout.sequence(128).length == 128
    assert TokenLayout.video(8, 16, 16).length == 2048


@pytest.mark.parametrize("levels", [(), ((0, 2),), ((2, 2), (3,)), ((1, 1, 1, 1),)])
def test_layouts_that_make_no_sense_are_refused(levels):
    with pytest.raises(LayoutError):
        TokenLayout(levels)


def test_tokens_must_be_ids_or_latents_of_the_layouts_length():
    layout = TokenLayout.grid(2)
    with pytest.raises(LayoutError, match=r"exactly one"):
        VisualTokens(layout)
    with pytest.raises(LayoutError, match=r"4 tokens, given 5"):
        VisualTokens(layout, ids=torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(LayoutError, match=r"integers"):
        VisualTokens(layout, ids=torch.zeros(1, 4))
    assert VisualTokens(layout, latents=torch.zeros(1, 4, 8)).batch_size == 1


def test_the_first_levels_of_tokens_are_a_prefix():
    layout = TokenLayout.pyramid([1, 2, 3])
    tokens = VisualTokens(layout, ids=torch.arange(14)[None])
    assert tokens.first_levels(2).values.tolist() == [[0, 1, 2, 3, 4]]
    assert tokens.level(1).tolist() == [[1, 2, 3, 4]]
    with pytest.raises(LayoutError):
        tokens.first_levels(4)


def test_ids_outside_of_the_codebook_are_refused_with_their_range():
    with pytest.raises(CodebookError, match=r"\[0, 7\].*from -1 to 9"):
        check_ids(torch.tensor([[-1, 9]]), 8)
    check_ids(torch.tensor([[0, 7]]), 8)
