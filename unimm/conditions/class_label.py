"""A class label as a condition."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from ..checks import described, require_tensor
from ..configuration import UniMMConfig
from ..errors import ConfigError
from .base import Condition, Conditioner


class ClassConditionConfig(UniMMConfig):
    """A table of class embeddings, with one more row for the null class.

    Args:
        num_classes: number of classes; id `num_classes` is the null class.
        form: `prefix` puts the embedding before the tokens (LlamaGen), `vector` modulates the blocks and starts the
            first slot (VAR).
        prefix_length: slots of the prefix, all alike (MAR's buffer).
        drop_probability: share of training samples that get the null class instead of their own.

    Raises:
        ConfigError: a value out of range.
    """

    model_type = "unimm_class_condition"
    num_classes: int = 1000
    form: Literal["prefix", "vector"] = "prefix"
    prefix_length: int = 1
    drop_probability: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_classes < 1 or not 0 <= self.drop_probability <= 1:
            raise ConfigError(
                "a class condition needs num_classes of at least 1 and drop_probability in [0, 1], given "
                f"{self.num_classes} and {self.drop_probability}"
            )
        if self.prefix_length < 1 or (self.prefix_length > 1 and self.form == "vector"):
            raise ConfigError(
                f"prefix_length must be at least 1, and belongs to the form 'prefix', given {self.prefix_length} with the "
                f"form '{self.form}'"
            )

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of `Condition` that come out."""
        return (self.form,)

    def build(self, hidden_size: int) -> ClassCondition:
        return ClassCondition(self, hidden_size)


class ClassCondition(Conditioner):
    """An embedding per class, and one for the null class."""

    input_names = ("labels",)

    def __init__(self, config: ClassConditionConfig, hidden_size: int):
        super().__init__()
        self.form = config.form
        self.prefix_length = config.prefix_length
        self.num_classes = config.num_classes
        self.drop_probability = float(config.drop_probability)
        self.embedding = nn.Embedding(config.num_classes + 1, hidden_size)

    def forward(self, *, labels: torch.Tensor, dropped: torch.Tensor | None = None) -> Condition:  # type: ignore[override]
        """Looks the labels up.

        Args:
            labels: `(batch,)` int64 in `[0, num_classes]`.
            dropped: `(batch,)` bool, True where the null class stands in.
        """
        if dropped is not None:
            labels = torch.where(dropped, self.num_classes, labels)
        rows = self.embedding(labels)
        if self.form == "vector":
            return Condition(vector=rows)
        return Condition(prefix=rows[:, None].expand(-1, self.prefix_length, -1))

    def null(self, *, labels: torch.Tensor) -> Condition:  # type: ignore[override]
        return self(labels=torch.full_like(labels, self.num_classes))

    def batch_size(self, *, labels: torch.Tensor) -> int:  # type: ignore[override]
        return labels.shape[0]

    def check(self, *, labels: torch.Tensor) -> None:  # type: ignore[override]
        """Refuses labels outside of the table.

        Raises:
            ConfigError: no integers of shape (batch,), or with the range that was found.
        """
        require_tensor(labels, "labels", "(batch,)", 1, error=ConfigError)
        if labels.dtype not in (torch.int64, torch.int32):
            raise ConfigError(f"labels must be int64 of shape (batch,), given {described(labels)}")
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= self.num_classes:
            raise ConfigError(
                f"labels must lie in [0, {self.num_classes}] ({self.num_classes} is the null class), found "
                f"{int(labels.min())} to {int(labels.max())}"
            )
