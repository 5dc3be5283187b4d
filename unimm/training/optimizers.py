"""Muon for the matrices inside of the blocks, AdamW for everything else (https://huggingface.co/papers/2502.16982)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import RecipeError


class MuonWithAdamW(torch.optim.Optimizer):
    """Two of torch's optimizers that step, save and load as one.

    The weights of all linear layers inside of a model's blocks go to `torch.optim.Muon`, which makes each update
    orthogonal; embeddings, heads, norms and biases go to AdamW, with weight decay on matrices only.

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
            "muon": torch.optim.Muon(
                list(matrices.values()), lr=muon_learning_rate, weight_decay=weight_decay, adjust_lr_fn="original"
            ),
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
