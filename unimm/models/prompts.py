"""From what a user gives (prompts, their features, labels) to what a model's condition takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from ..checks import described, require_tensor
from ..conditions.base import Condition, Conditioner
from ..conditions.text_encoder import TextEncoder, TextFeatures, as_prompts
from ..errors import ConfigError

logger = logging.getLogger(__name__)

Prompts = str | Sequence[str]
Embeddings = torch.Tensor | TextFeatures
ConditionInputs = dict[str, torch.Tensor]


class TextConditioned:
    """The part of an image generator that knows its text encoder; without effect under other conditions."""

    config: Any
    condition: Conditioner
    device: torch.device
    _text_encoder: TextEncoder | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "text_encoder":
            # A module would be registered as a part of the model, past the property.
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def text_encoder(self) -> TextEncoder:
        """Reads the prompts: the one that was set, otherwise the one that the config names, loaded at its first use.

        It is no part of the model: neither trained with it, nor saved, nor moved.

        Raises:
            ConfigError: the model takes no text, there is no encoder, or it cannot be loaded.
        """
        if self._text_encoder is None:
            config = getattr(self.config.condition_config, "text_encoder", None)
            if not self.condition.takes_text:
                raise ConfigError(self._takes_no_text())
            if config is None or not (config.path or config.encoder_config):
                raise ConfigError(
                    f"this model takes {self.condition.described_inputs}, and its config names no text encoder: give "
                    "prompt_embeds, or a text encoder (model.text_encoder = TextEncoder(...))"
                )
            self.text_encoder = TextEncoder(config).to(self.device)
        assert self._text_encoder is not None
        return self._text_encoder

    @text_encoder.setter
    def text_encoder(self, encoder: TextEncoder) -> None:
        if not self.condition.takes_text:
            raise ConfigError(self._takes_no_text())
        if not isinstance(encoder, TextEncoder):
            raise ConfigError(
                f"text_encoder must be a unimm.conditions.TextEncoder, given {type(encoder).__name__}: wrap the model and "
                "its tokenizer in one"
            )
        self.config.condition_config.check_text_encoder(encoder.config, encoder.feature_size)
        self._text_encoder = encoder

    def resolve_prompts(
        self,
        *,
        prompt: Prompts | None = None,
        negative_prompt: Prompts | None = None,
        prompt_embeds: Embeddings | None = None,
        negative_prompt_embeds: Embeddings | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        is_guided: bool = True,
        **inputs: torch.Tensor | None,
    ) -> tuple[ConditionInputs, ConditionInputs | None]:
        """Inputs of the condition, and those of the negative condition where one was given.

        Args:
            prompt: one or several texts.
            negative_prompt: one for all, or one per prompt.
            prompt_embeds: `(batch, length, channels)`, or what a text encoder's `encode` gives.
            negative_prompt_embeds: the same, with one row for all or one per prompt.
            prompt_attention_mask: `(batch, length)`, nonzero for real text.
            negative_prompt_attention_mask: of the negative features.
            is_guided: whether the null or negative condition will be used at all.
            inputs: inputs of the condition under its own names; those that are None count as not given.

        Raises:
            ConfigError: inputs that the condition does not take, that exclude each other, or that differ in number.
        """
        given = {
            name: require_tensor(value, name, "(batch, …)", error=ConfigError).to(self.device)
            for name, value in inputs.items()
            if value is not None
        }
        negative = None
        texts = (prompt, prompt_embeds, negative_prompt, negative_prompt_embeds)
        if any(one is not None for one in texts) and not self.condition.takes_text:
            raise ConfigError(self._takes_no_text())
        if prompt is not None and prompt_embeds is not None:
            raise ConfigError("give either prompt or prompt_embeds, given both")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ConfigError("give either negative_prompt or negative_prompt_embeds, given both")
        if given and (prompt is not None or prompt_embeds is not None):
            raise ConfigError(f"give either a prompt or {' and '.join(sorted(given))}, given both")
        positive = self._features(prompt, prompt_embeds, prompt_attention_mask, "prompt")
        if positive is not None:
            given = self._as_inputs(positive)
        given = self._condition_inputs(**given)
        for name, value in given.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise ConfigError(f"{name} hold values that are not finite: encode the prompt anew")
        batch_size = self.condition.batch_size(**given)
        features = self._features(
            negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask, "negative_prompt"
        )
        if features is not None:
            negative = self._condition_inputs(**_one_per_prompt(self._as_inputs(features), batch_size))
            if not is_guided:
                logger.warning("a negative prompt has no effect without guidance: give a guidance_scale other than 1")
        elif is_guided and self.condition.needs_empty_prompt:
            self.condition.learn_null(self.text_encoder)
        return given, negative

    def unconditional(self, inputs: ConditionInputs, negative: ConditionInputs | None) -> Condition:
        """What guidance leads away from: the negative condition, or the null condition of `inputs`."""
        return self.condition.null(**inputs) if negative is None else self.condition(**negative)

    def _features(
        self, prompt: Prompts | None, embeds: Embeddings | None, mask: torch.Tensor | None, name: str
    ) -> TextFeatures | None:
        if mask is not None and not isinstance(embeds, torch.Tensor):
            raise ConfigError(
                f"{name}_attention_mask belongs to {name}_embeds, a tensor of features; given without them"
            )
        if prompt is not None:
            return self.text_encoder.encode(as_prompts(prompt, name))
        if isinstance(embeds, torch.Tensor):
            if mask is None:
                mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            require_tensor(mask, f"{name}_attention_mask", "(batch, length)", error=ConfigError)
            return TextFeatures(embeds, mask)
        if not isinstance(embeds, TextFeatures | None):
            raise ConfigError(
                f"{name}_embeds must be a tensor (batch, length, channels) or what a text encoder's encode gives, given "
                f"{described(embeds)}"
            )
        return embeds

    def _as_inputs(self, features: TextFeatures) -> ConditionInputs:
        features = features.to(self.device)
        values = {"text_features": features.features, "text_mask": features.mask}
        if features.pooled is not None:
            values["text_pooled"] = features.pooled
        return {name: values[name] for name in self.condition.input_names if name in values}

    def _condition_inputs(self, **given: torch.Tensor | None) -> ConditionInputs:
        inputs = {name: value for name, value in given.items() if value is not None}
        takes = self.condition.input_names
        if not inputs or not set(inputs) <= set(takes) or takes[0] not in inputs:
            also = " (or a prompt)" if self.condition.takes_text else ""
            raise ConfigError(
                f"a condition '{self.config.condition_config.model_type}' takes {' and '.join(takes)}{also}, given "
                f"{' and '.join(sorted(inputs)) or 'nothing'}"
            )
        self.condition.check(**inputs)
        return inputs

    def _takes_no_text(self) -> str:
        return (
            f"this model's condition is '{self.config.condition_config.model_type}', which takes no prompts: give "
            f"{self.condition.described_inputs}"
        )


def _one_per_prompt(inputs: ConditionInputs, batch_size: int) -> ConditionInputs:
    for name, value in inputs.items():
        if len(value) not in (1, batch_size):
            raise ConfigError(
                f"{len(value)} negative prompts (or rows of {name}) for a batch of {batch_size}: give one for all of them, "
                "or one per prompt"
            )
    return {name: value.expand(batch_size, *value.shape[1:]) for name, value in inputs.items()}
