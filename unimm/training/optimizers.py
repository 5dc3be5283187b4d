"""Muon for the matrices inside of the blocks, AdamW for everything else (https://huggingface.co/papers/2502.16982)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import RecipeError


class BatchedMuon(torch.optim.Muon):
    """torch's Muon, which makes all matrices of one shape orthogonal at once, in float32 on CPUs.

    torch's own goes from matrix to matrix in bfloat16, which most CPUs only emulate: there a step of a small model takes
    longer than its forward and backward pass.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[tuple[torch.Size, torch.device], list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    update = self._momentum(matrix, group)
                    by_shape.setdefault((matrix.shape, matrix.device), []).append((matrix, update))
            for (shape, _), pairs in by_shape.items():
                directions = orthogonalize(
                    torch.stack([update for _, update in pairs]),
                    group["ns_coefficients"],
                    group["ns_steps"],
                    group["eps"],
                )
                # The original rule of https://kellerjordan.github.io/posts/muon/.
                rate = group["lr"] * math.sqrt(max(1, shape[0] / shape[1]))
                for (matrix, _), direction in zip(pairs, directions, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(direction.to(matrix.dtype), alpha=-rate)
        return loss

    def _momentum(self, matrix: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        average = state["momentum_buffer"]
        average.lerp_(matrix.grad, 1 - group["momentum"])
        return matrix.grad.lerp(average, group["momentum"]) if group["nesterov"] else average


def orthogonalize(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float
) -> torch.Tensor:
    """Singular values of about 1 in place of a matrix's own, by Newton-Schulz steps.

    `X <- a X + (b A + c A A) X` with `A = X X^T`, from `X / |X|` (https://kellerjordan.github.io/posts/muon/).

    Args:
        matrices: `(number, rows, columns)`.
        coefficients: a, b and c.
        num_steps: of the iteration.
        eps: smallest length that a matrix is divided by.
    """
    first, second, third = coefficients
    result = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    is_tall = matrices.shape[1] > matrices.shape[2]
    if is_tall:
        result = result.mT
    result = result / torch.linalg.matrix_norm(result, keepdim=True).clamp(min=eps)
    for _ in range(num_steps):
        gram = result @ result.mT
        result = torch.baddbmm(result, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), result, beta=first)
    return result.mT if is_tall else result


class MuonWithAdamW(torch.optim.Optimizer):
    """Two of torch's optimizers that step, save and load as one.

    The weights of all linear layers inside of a model's blocks go to Muon, which makes each update orthogonal;
    embeddings, heads, norms and biases go to AdamW, with weight decay on matrices only.

    Args:
        model: blocks are its `GradientCheckpointingLayer`s.
        learning_rate: of AdamW.
        muon_learning_rate: of Muon; about ten times as large.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of both.

    Raises:
        RecipeError: a model without blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        muon_learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        matrices = {
            id(layer.weight): layer.weight
            for block in blocks
            for layer in block.modules()
            if isinstance(layer, nn.Linear) and layer.weight.requires_grad
        }
        if not matrices:
            raise RecipeError(
                f"muon_learning_rate: {type(model).__name__} has no blocks with trainable matrices to give to Muon"
            )
        others = [one for one in model.parameters() if one.requires_grad and id(one) not in matrices]
        super().__init__([*matrices.values(), *others], {})
        self.parts: dict[str, torch.optim.Optimizer] = {
            "muon": BatchedMuon(list(matrices.values()), lr=muon_learning_rate, weight_decay=weight_decay),
            "adamw": torch.optim.AdamW(
                [
                    {"params": [one for one in others if one.dim() > 1], "weight_decay": weight_decay},
                    {"params": [one for one in others if one.dim() < 2], "weight_decay": 0.0},
                ],
                lr=learning_rate,
                betas=betas,
                eps=eps,
            ),
        }
        self._share_groups()

    def _share_groups(self) -> None:
        # Schedules change the groups in place: they must be the parts' own.
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both parts."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._share_groups()
