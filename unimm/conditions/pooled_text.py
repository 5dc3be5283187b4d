"""Features of a frozen text encoder as a set to attend to, and as one vector pooled from it by attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ..checks import described, require_tensor
from ..configuration import UniMMConfig, any_config
from ..errors import ConfigError
from .base import Condition, Conditioner
from .text_encoder import TextEncoderConfig


class PooledTextConditionConfig(UniMMConfig):
    """Text features for blocks with cross-attention, and their summary for AdaLN (https://huggingface.co/papers/2412.04431).

    Args:
        feature_size: channels of the text encoder's features.
        length: text positions at most; shorter prompts are padded on the right.
        num_pooling_heads: heads, each with one learned query, of the attention that pools the text into a vector.
        norm_eps: of the RMS norm over the features.
        drop_probability: share of training samples whose features are replaced by the null features.
        text_encoder: where the features come from (`TextEncoderConfig`); None leaves them to the user. Its length and
            padding follow from the condition where they are not given.

    Raises:
        ConfigError: a value out of range, or a text encoder that gives features of another form.
    """

    model_type = "unimm_pooled_text_condition"
    sub_configs_defaults = {"text_encoder": any_config("unimm_text_encoder", optional=True)}
    feature_size: int = 2048
    length: int = 512
    num_pooling_heads: int = 16
    norm_eps: float = 1e-6
    drop_probability: float | int = 0.1
    text_encoder: dict[str, Any] | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_encoder, dict):
            fields = {"max_length": self.length, "padding_side": "right", "padding": "longest"}
            self.text_encoder = {**fields, **self.text_encoder}
        super().__post_init__(**kwargs)
        if min(self.feature_size, self.length, self.num_pooling_heads) < 1 or not 0 <= self.drop_probability <= 1:
            raise ConfigError(
                "a pooled text condition needs feature_size, length and num_pooling_heads of at least 1 and "
                f"drop_probability in [0, 1], given {self.feature_size}, {self.length}, {self.num_pooling_heads} and "
                f"{self.drop_probability}"
            )
        if self.text_encoder is not None:
            self.check_text_encoder(self.text_encoder)

    @property
    def form(self) -> str:
        return "memory"

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of `Condition` that come out."""
        return ("vector", "memory")

    def build(self, hidden_size: int) -> PooledTextCondition:
        if hidden_size % self.num_pooling_heads:
            raise ConfigError(
                f"num_pooling_heads ({self.num_pooling_heads}) must divide the backbone's hidden_size ({hidden_size})"
            )
        return PooledTextCondition(self, hidden_size)

    def check_text_encoder(self, encoder: PreTrainedConfig, feature_size: int | None = None) -> None:
        """Refuses a text encoder that gives features of another form.

        Args:
            encoder: its config.
            feature_size: its channels, where they are known.

        Raises:
            ConfigError: says which field differs.
        """
        if not isinstance(encoder, TextEncoderConfig):
            raise ConfigError(f"text_encoder must be a 'unimm_text_encoder', given a '{encoder.model_type}'")
        if encoder.max_length > self.length or encoder.padding_side != "right" or encoder.pooled is not None:
            raise ConfigError(
                f"this text condition takes up to {self.length} positions, padded on the right, and pools them itself: "
                f"text_encoder has max_length={encoder.max_length}, padding_side={encoder.padding_side!r} and "
                f"pooled={encoder.pooled!r}"
            )
        if feature_size is None and encoder.encoder_config is not None:
            feature_size = encoder.encoder_config.hidden_size
        if feature_size is not None and feature_size != self.feature_size:
            raise ConfigError(
                f"this text condition takes features of {self.feature_size} channels, the text encoder gives {feature_size}"
            )


class AttentionPooling(nn.Module):
    """One vector from a set: every head has a learned query, keys have no bias, values have one."""

    def __init__(self, feature_size: int, hidden_size: int, num_heads: int):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(num_heads, hidden_size // num_heads))
        self.key_value = nn.Linear(feature_size, 2 * hidden_size, bias=False)
        self.value_bias = nn.Parameter(torch.zeros(hidden_size))
        self.proj = nn.Linear(hidden_size, hidden_size)

    def init_own_weights(self, std: float) -> None:
        """Random queries, no bias on the values."""
        init.trunc_normal_(self.queries, std=std)
        init.zeros_(self.value_bias)

    def forward(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch, length, channels)` and a bool mask `(batch, length)` to `(batch, hidden)`."""
        keys, values = self.key_value(features).chunk(2, dim=-1)
        values = values + self.value_bias.to(values.dtype)
        keys, values = (part.unflatten(-1, self.queries.shape).transpose(1, 2) for part in (keys, values))
        queries = self.queries[None, :, None].expand(len(features), -1, -1, -1).to(keys.dtype)
        pooled = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=None if mask is None else mask[:, None, None]
        )
        return self.proj(pooled.flatten(1))


class PooledTextCondition(Conditioner):
    """`vector = pool(norm(text))` and `memory = fc2(gelu(fc1(norm(text))))`, with learned null features."""

    input_names = ("text_features", "text_mask")

    def __init__(self, config: PooledTextConditionConfig, hidden_size: int):
        super().__init__()
        self.drop_probability = float(config.drop_probability)
        self.length = config.length
        self.feature_size = config.feature_size
        self.null_features = nn.Parameter(torch.empty(config.length, config.feature_size))
        self.norm = LlamaRMSNorm(config.feature_size, eps=config.norm_eps)
        self.pooling = AttentionPooling(config.feature_size, hidden_size, config.num_pooling_heads)
        self.fc1 = nn.Linear(config.feature_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def init_own_weights(self, std: float) -> None:
        """Null features of random directions and about unit length."""
        init.ones_(self.norm.weight)
        init.copy_(self.null_features, torch.randn_like(self.null_features) / self.feature_size**0.5)

    def forward(  # type: ignore[override]
        self,
        *,
        text_features: torch.Tensor,
        text_mask: torch.Tensor | None = None,
        dropped: torch.Tensor | None = None,
    ) -> Condition:
        """Pools and projects the features.

        Args:
            text_features: `(batch, positions, feature_size)`, padded on the right.
            text_mask: `(batch, positions)`, nonzero for real text.
            dropped: `(batch,)` bool, True where the null features of the prompt's length stand in.
        """
        mask = None if text_mask is None else text_mask.bool()
        features = text_features.to(self.null_features.dtype)
        if dropped is not None:
            features = torch.where(dropped[:, None, None], self.null_features[: features.shape[1]], features)
        features = self.norm(features)
        memory = self.fc2(F.gelu(self.fc1(features), approximate="tanh"))
        return Condition(vector=self.pooling(features, mask), memory=memory, memory_mask=mask)

    def null(self, *, text_features: torch.Tensor, text_mask: torch.Tensor | None = None) -> Condition:  # type: ignore[override]
        """The null features of the prompts' lengths."""
        # Through `forward`, for which offloaded features are brought to the device.
        dropped = torch.ones(len(text_features), dtype=torch.bool, device=text_features.device)
        return self(text_features=text_features, text_mask=text_mask, dropped=dropped)

    def batch_size(self, *, text_features: torch.Tensor, text_mask: torch.Tensor | None = None) -> int:  # type: ignore[override]
        return text_features.shape[0]

    @property
    def described_inputs(self) -> str:
        return f"text features (batch, up to {self.length}, {self.feature_size}) with a mask"

    def check(  # type: ignore[override]
        self, *, text_features: torch.Tensor, text_mask: torch.Tensor | None = None
    ) -> None:
        """Refuses features of another shape, and (on the CPU) prompts without a single position.

        Raises:
            ConfigError: with the shape that was expected.
        """
        require_tensor(text_features, "text features", "(batch, length, channels)", error=ConfigError)
        fits = text_features.dim() == 3 and 1 <= text_features.shape[1] <= self.length
        if not fits or text_features.shape[2] != self.feature_size or not text_features.is_floating_point():
            raise ConfigError(
                f"text features must be floating point (batch, 1 to {self.length}, {self.feature_size}), given "
                f"{described(text_features)}"
            )
        if text_mask is None:
            return
        require_tensor(text_mask, "the text mask", "(batch, length)", error=ConfigError)
        if text_mask.shape != text_features.shape[:2]:
            raise ConfigError(
                f"the text mask must be {tuple(text_features.shape[:2])} like the features, given {tuple(text_mask.shape)}"
            )
        if text_mask.device.type == "cpu" and not bool(text_mask.bool().any(1).all()):
            raise ConfigError("the text mask leaves a prompt without any position: give at least its end token")
