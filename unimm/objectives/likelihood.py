"""Negative log-likelihood of visual tokens under a plan, and of text beside them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..heads.base import HeadContext, PredictionHead


def token_likelihood(
    losses: torch.Tensor, valid: torch.Tensor | None = None, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean over a sample's tokens, then over the samples that count.

    Args:
        losses: `(batch, tokens)`, from a head.
        valid: `(batch,)`, 0 leaves a sample out; None counts all.
        num_items: divisor instead of the number of samples that count (accumulated batches).
    """
    weights = torch.ones_like(losses[:, 0]) if valid is None else valid.to(losses.dtype)
    total = (losses.mean(1) * weights).sum()
    return total / (weights.sum().clamp(min=1) if num_items is None else num_items)


def mixed_likelihood(
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    input_ids: torch.Tensor | None,
    visual_tokens: torch.Tensor | None,
    visual_token_id: int,
    text_head: nn.Module,
    visual_head: PredictionHead,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean losses over the text targets and over the visual targets of a mixed sequence.

    The hidden state at one place predicts what stands at the next.

    Args:
        hidden_states: `(batch, sequence, hidden)`.
        labels: `(batch, sequence)`: a text id, `visual_token_id` where a visual token is the target, -100 elsewhere.
        input_ids: `(batch, sequence)`, `visual_token_id` where a visual token stands; needed with visual tokens.
        visual_tokens: `(pictures, tokens, …)` of these places in reading order; None for text alone.
        visual_token_id: the placeholder.
        text_head: hidden states to text logits.
        visual_head: distribution of visual tokens.

    Returns:
        The text and the image loss; one without targets is 0.
    """
    predicting, targets = hidden_states[:, :-1], labels[:, 1:]
    is_visual = targets == visual_token_id
    is_text = (targets != -100) & ~is_visual
    # Only the places with a target go through the heads: their logits are the largest tensors of a step.
    logits = text_head(predicting[is_text]).float()
    text_loss = F.cross_entropy(logits, targets[is_text], reduction="sum") / is_text.sum().clamp(min=1)
    if visual_tokens is None:
        return text_loss, text_loss.new_zeros(())
    assert input_ids is not None
    number = (input_ids == visual_token_id).flatten().cumsum(0).view(input_ids.shape) - 1
    wanted = visual_tokens.flatten(0, 1)[number[:, 1:][is_visual]]
    losses = visual_head.loss(predicting[is_visual][None], wanted[None], HeadContext())
    return text_loss, losses.sum() / is_visual.sum().clamp(min=1)
