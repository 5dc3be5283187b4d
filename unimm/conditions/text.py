"""Features of a frozen text encoder as a condition prefix."""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from ..configuration import UniMMConfig
from ..errors import ConfigError
from .base import Condition, Conditioner


class TextConditionConfig(UniMMConfig):
    """Text features through a two-layer perceptron, as a prefix of fixed length (LlamaGen t2i).

    Args:
        feature_size: channels of the text encoder's features.
        length: number of text positions; shorter prompts are padded on the left.
        drop_probability: share of training samples whose features are replaced by the null features.
    """

    model_type = "unimm_text_condition"
    feature_size: int = 2048
    length: int = 120
    drop_probability: float | int = 0.1

    @property
    def form(self) -> str:
        return "prefix"

    def build(self, hidden_size: int) -> TextCondition:
        return TextCondition(self, hidden_size)


class TextCondition(Conditioner):
    """The null condition is a table of random features that is never trained."""

    input_names = ("text_features", "text_mask")
    null_features: torch.Tensor

    def __init__(self, config: TextConditionConfig, hidden_size: int):
        super().__init__()
        self.drop_probability = float(config.drop_probability)
        self.length = config.length
        self.feature_size = config.feature_size
        self.fc1 = nn.Linear(config.feature_size, hidden_size, bias=False)
        self.activation = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden_size, hidden_size, bias=False)
        self.register_buffer("null_features", torch.empty(config.length, config.feature_size))

    def forward(  # type: ignore[override]
        self,
        *,
        text_features: torch.Tensor,
        text_mask: torch.Tensor | None = None,
        dropped: torch.Tensor | None = None,
    ) -> Condition:
        """Projects the features.

        Args:
            text_features: `(batch, length, feature_size)`, padded on the left.
            text_mask: `(batch, length)`, nonzero for real text.
            dropped: `(batch,)` bool, True where the null features stand in.
        """
        if dropped is not None:
            text_features = torch.where(dropped[:, None, None], self.null_features.to(text_features), text_features)
        prefix = self.fc2(self.activation(self.fc1(text_features)))
        return Condition(prefix=prefix, prefix_mask=None if text_mask is None else text_mask.bool())

    def null(self, *, text_features: torch.Tensor, text_mask: torch.Tensor | None = None) -> Condition:  # type: ignore[override]
        """The null features under the prompt's own mask, as the published models are sampled."""
        return self(text_features=self.null_features.to(text_features).expand_as(text_features), text_mask=text_mask)

    def batch_size(self, *, text_features: torch.Tensor, text_mask: torch.Tensor | None = None) -> int:  # type: ignore[override]
        return text_features.shape[0]

    def init_own_weights(self, std: float) -> None:
        """The null features are random directions of about unit length."""
        init.copy_(self.null_features, torch.randn_like(self.null_features) / self.feature_size**0.5)

    def check(  # type: ignore[override]
        self, *, text_features: torch.Tensor, text_mask: torch.Tensor | None = None
    ) -> None:
        """Refuses features of another shape.

        Raises:
            ConfigError: with the shape that was expected.
        """
        expected = (self.length, self.feature_size)
        if text_features.dim() != 3 or tuple(text_features.shape[1:]) != expected:
            raise ConfigError(
                f"text features must be (batch, {self.length}, {self.feature_size}), given {tuple(text_features.shape)}"
            )
        if text_mask is not None and text_mask.shape != text_features.shape[:2]:
            raise ConfigError(
                f"the text mask must be {tuple(text_features.shape[:2])} like the features, given {tuple(text_mask.shape)}"
            )
