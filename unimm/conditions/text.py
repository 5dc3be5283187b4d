"""Features of a frozen text encoder as a condition prefix."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from ..checks import described, require_tensor
from ..configuration import UniMMConfig, any_config
from ..errors import ConfigError
from .base import Condition, Conditioner
from .text_encoder import TextEncoder, TextEncoderConfig, TextFeatures


class TextConditionConfig(UniMMConfig):
    """Text features through a two-layer perceptron, as a prefix of fixed length (LlamaGen t2i).

    Args:
        feature_size: channels of the text encoder's features.
        length: number of text positions; shorter prompts are padded on the left.
        drop_probability: share of training samples whose features are replaced by the null features.
        null: what guidance takes for no prompt: a `table` of random features, kept with the weights and never trained,
            under the prompt's own mask; or the features of the `empty_prompt`, under the mask of that.
        text_encoder: where the features come from (`TextEncoderConfig`); None leaves them to the user. Its length and
            padding follow from the condition where they are not given.

    Raises:
        ConfigError: a value out of range, or a text encoder that gives features of another form.
    """

    model_type = "unimm_text_condition"
    sub_configs_defaults = {"text_encoder": any_config("unimm_text_encoder", optional=True)}
    feature_size: int = 2048
    length: int = 120
    drop_probability: float | int = 0.1
    null: Literal["table", "empty_prompt"] = "table"
    text_encoder: dict[str, Any] | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_encoder, dict):
            self.text_encoder = {"max_length": self.length, "padding_side": "left", **self.text_encoder}
        super().__post_init__(**kwargs)
        if self.feature_size < 1 or self.length < 1 or not 0 <= self.drop_probability <= 1:
            raise ConfigError(
                "a text condition needs feature_size and length of at least 1 and drop_probability in [0, 1], given "
                f"{self.feature_size}, {self.length} and {self.drop_probability}"
            )
        if self.text_encoder is not None:
            self.check_text_encoder(self.text_encoder)

    @property
    def form(self) -> str:
        return "prefix"

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of `Condition` that come out."""
        return (self.form,)

    def build(self, hidden_size: int) -> TextCondition:
        return TextCondition(self, hidden_size)

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
        # The last position predicts the first token, so the prompt has to end there.
        needed = {"max_length": self.length, "padding": "max_length", "padding_side": "left", "pooled": None}
        for name, value in needed.items():
            if getattr(encoder, name) != value:
                raise ConfigError(
                    f"this text condition takes {self.length} positions, padded on the left, and no pooled vector: "
                    f"text_encoder.{name} must be {value!r}, given {getattr(encoder, name)!r}"
                )
        if feature_size is None and encoder.encoder_config is not None:
            feature_size = encoder.encoder_config.hidden_size
        if feature_size is not None and feature_size != self.feature_size:
            raise ConfigError(
                f"this text condition takes features of {self.feature_size} channels, the text encoder gives {feature_size}"
            )


class TextCondition(Conditioner):
    """Text features as a prefix, with a null condition that is kept beside the weights."""

    input_names = ("text_features", "text_mask")
    null_features: torch.Tensor
    null_mask: torch.Tensor | None

    def __init__(self, config: TextConditionConfig, hidden_size: int):
        super().__init__()
        self.drop_probability = float(config.drop_probability)
        self.length = config.length
        self.feature_size = config.feature_size
        self.fc1 = nn.Linear(config.feature_size, hidden_size, bias=False)
        self.activation = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden_size, hidden_size, bias=False)
        self.register_buffer("null_features", torch.empty(config.length, config.feature_size))
        # All False until the empty prompt's features are known.
        is_prompt = config.null == "empty_prompt"
        self.register_buffer("null_mask", torch.zeros(config.length, dtype=torch.bool) if is_prompt else None)
        self._is_null_known = not is_prompt

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

        Raises:
            ConfigError: the null features are not known yet.
        """
        mask = None if text_mask is None else text_mask.bool()
        text_features = text_features.to(self.null_features.dtype)
        if dropped is not None:
            null, null_mask = self._null(mask, len(text_features))
            text_features = torch.where(dropped[:, None, None], null, text_features)
            if null_mask is not mask:
                assert null_mask is not None
                mask = torch.where(dropped[:, None], null_mask, torch.ones_like(null_mask) if mask is None else mask)
        return Condition(prefix=self.fc2(self.activation(self.fc1(text_features))), prefix_mask=mask)

    def null(self, *, text_features: torch.Tensor, text_mask: torch.Tensor | None = None) -> Condition:  # type: ignore[override]
        """The null features; those of a table under the prompt's own mask, as the published models are sampled.

        Raises:
            ConfigError: the null features are not known yet.
        """
        null, mask = self._null(text_mask, len(text_features))
        return self(text_features=null.expand(len(text_features), -1, -1), text_mask=mask)

    def batch_size(self, *, text_features: torch.Tensor, text_mask: torch.Tensor | None = None) -> int:  # type: ignore[override]
        return text_features.shape[0]

    @property
    def described_inputs(self) -> str:
        return f"text features (batch, {self.length}, {self.feature_size}) with a mask"

    def learn_null(self, encoder: TextEncoder) -> None:
        if self.needs_empty_prompt:
            assert self.null_mask is not None
            empty: TextFeatures = encoder.encode([""])
            self.null_features.copy_(empty.features[0])
            self.null_mask.copy_(empty.mask[0])

    @property
    def needs_empty_prompt(self) -> bool:
        if not self._is_null_known:
            # Asked again only while the answer is no: it waits for the device.
            assert self.null_mask is not None
            self._is_null_known = bool(self.null_mask.any())
        return not self._is_null_known

    def init_own_weights(self, std: float) -> None:
        """A table's null features are random directions of about unit length."""
        random = torch.randn_like(self.null_features) / self.feature_size**0.5
        init.copy_(self.null_features, random if self.null_mask is None else torch.zeros_like(random))
        if self.null_mask is not None:
            init.copy_(self.null_mask, torch.zeros_like(self.null_mask))

    def check(  # type: ignore[override]
        self, *, text_features: torch.Tensor, text_mask: torch.Tensor | None = None
    ) -> None:
        """Refuses features of another shape.

        Raises:
            ConfigError: with the shape that was expected.
        """
        expected = (self.length, self.feature_size)
        require_tensor(text_features, "text features", "(batch, length, channels)", error=ConfigError)
        if text_features.dim() != 3 or tuple(text_features.shape[1:]) != expected:
            raise ConfigError(
                f"text features must be (batch, {self.length}, {self.feature_size}), given {tuple(text_features.shape)}"
            )
        if not text_features.is_floating_point():
            raise ConfigError(f"text features must be floating point, given {described(text_features)}")
        if text_mask is not None:
            require_tensor(text_mask, "the text mask", "(batch, length)", error=ConfigError)
        if text_mask is not None and text_mask.shape != text_features.shape[:2]:
            raise ConfigError(
                f"the text mask must be {tuple(text_features.shape[:2])} like the features, given {tuple(text_mask.shape)}"
            )

    def _null(self, mask: torch.Tensor | None, batch_size: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.needs_empty_prompt:
            raise ConfigError(
                "the null condition is the empty prompt, whose features this model does not have yet: give it a text "
                "encoder and call model.condition.learn_null(model.text_encoder), or give a negative prompt"
            )
        if self.null_mask is None:
            return self.null_features, mask
        return self.null_features, self.null_mask.expand(batch_size, -1)
