"""The encoder-decoder: what the encoder is given, and what it costs."""

import pytest
import torch
from factories import build

from unimm.backbones.encoder_decoder import known_places
from unimm.backbones.positions import EncodedPositions
from unimm.errors import ConfigError, LayoutError
from unimm.plans import AttentionRule

POSITIONS = EncodedPositions(None, torch.arange(19)[None])
EVERYTHING = AttentionRule((0,) * 19)


def known_slots(*hidden):
    known = torch.ones(len(hidden), 19, dtype=torch.bool)
    for row, places in enumerate(hidden):
        known[row, list(places)] = False
    return known


@torch.no_grad()
def test_the_encoder_runs_over_known_slots_alone():
    model, lengths = build("backbone_encoder_decoder"), []
    for layers in (model.encoder_layers, model.decoder_layers):
        layers[0].register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    output = model(
        inputs_embeds=torch.randn(2, 19, 32),
        positions=POSITIONS,
        rule=EVERYTHING,
        known=known_slots((3, 4, 5, 6), (7, 9, 11, 18)),
    )
    assert lengths == [15, 19]
    assert output.last_hidden_state.shape == (2, 19, 24)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_of_the_prefix_is_seen_by_nobody(implementation):
    model = build("backbone_encoder_decoder")
    model.set_attn_implementation(implementation)
    slots, known = torch.randn(1, 19, 32), known_slots((8, 12))
    mask = torch.ones(1, 19, dtype=torch.bool)
    mask[0, 0] = False
    changed = slots.clone()
    changed[0, 0] = torch.randn(32)

    def run(slots, rule):
        return model(inputs_embeds=slots, positions=POSITIONS, rule=rule, known=known).last_hidden_state[:, 1:]

    padded = AttentionRule((0,) * 19, mask)
    assert torch.allclose(run(slots, padded), run(changed, padded), atol=1e-6)
    assert not torch.allclose(run(slots, EVERYTHING), run(changed, EVERYTHING), atol=1e-4)


def test_known_places_keep_their_order_and_their_number():
    known = known_slots((0, 5), (17, 18))
    assert known_places(known)[0].tolist() == [n for n in range(19) if n not in (0, 5)]
    assert torch.equal(known_places(known), known_places(known, 17))
    with pytest.raises(LayoutError, match=r"same number of known slots, given \[17, 18\]"):
        known_places(known_slots((0, 5), (17,)))


def test_other_lengths_and_caches_are_refused():
    model = build("backbone_encoder_decoder")
    with pytest.raises(LayoutError, match=r"19 slots, given 5"):
        model(inputs_embeds=torch.zeros(1, 5, 32), positions=POSITIONS, rule=AttentionRule((0,) * 5))
    with pytest.raises(ConfigError, match=r"keeps no cache"):
        model(inputs_embeds=torch.zeros(1, 19, 32), positions=POSITIONS, rule=EVERYTHING, start=3)
