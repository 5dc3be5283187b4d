"""Muon by shape: the same updates as torch's own, and orthogonal ones."""

import pytest
import torch

from unimm.training.optimizers import BatchedMuon, orthogonalize

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_singular_values_become_about_one(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalize(matrices, COEFFICIENTS, 5, 1e-7))
    assert singular.min() > 0.3
    assert singular.max() < 1.3


def test_a_matrix_is_treated_alone():
    matrices = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(1))
    together = orthogonalize(matrices, COEFFICIENTS, 5, 1e-7)
    alone = torch.cat([orthogonalize(one[None], COEFFICIENTS, 5, 1e-7) for one in matrices])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"weight_decay": 0.1}])
def test_steps_are_those_of_torch_up_to_its_precision(options):
    generator = torch.Generator().manual_seed(2)
    start = [torch.randn(shape, generator=generator) for shape in [(6, 9), (9, 6), (6, 9), (5, 5)]]
    gradients = [[torch.randn(one.shape, generator=generator) for one in start] for _ in range(3)]
    results = []
    for kind in (torch.optim.Muon, BatchedMuon):
        weights = [torch.nn.Parameter(one.clone()) for one in start]
        optimizer = kind(weights, lr=0.02, **options)
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        results.append(weights)
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-3)
        assert not torch.equal(ours, theirs)
