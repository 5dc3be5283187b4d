"""Any Hugging Face causal language model as a backbone over visual slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, Cache, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..conditions.base import Condition
from ..configuration import UniMMConfig, any_config
from ..hub.mixins import HubModelMixin
from ..plans.base import AttentionRule, SlotPositions
from .condition import EncodedCondition
from .positions import EncodedPositions


class LLMBackboneConfig(UniMMConfig):
    """A language model without its vocabulary head.

    Args:
        text_config: config of any model that `AutoModel` builds and that takes `inputs_embeds`.
    """

    model_type = "unimm_llm_backbone"
    sub_configs_defaults = {"text_config": any_config("qwen3")}
    text_config: dict[str, Any] | PreTrainedConfig | None = None

    @property
    def condition_form(self) -> str | None:
        return None

    @property
    def hidden_size(self) -> int:
        return self.text_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.text_config.num_hidden_layers


class LLMAdapter:
    """Gives a decoder of transformers the contract of a backbone, without owning its weights.

    Positions are the running index of the sequence (padding not counted); grid coordinates are left to the slots.

    Args:
        decoder: a model that takes `inputs_embeds`, `attention_mask`, `position_ids` and `cache`.
    """

    def __init__(self, decoder: PreTrainedModel):
        self.decoder = decoder
        self.config = decoder.config

    def encode_positions(self, positions: SlotPositions) -> EncodedPositions:
        return EncodedPositions(None, positions.position_ids)

    def encode_condition(self, condition: Condition | None) -> EncodedCondition:
        return EncodedCondition()

    def __call__(
        self,
        inputs_embeds: torch.Tensor,
        positions: EncodedPositions,
        rule: AttentionRule,
        condition: EncodedCondition | None = None,
        cache: Cache | None = None,
        start: int = 0,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPast:
        """Runs the decoder over new slots; arguments as `VisualTransformer.forward`."""
        batch, length, _ = inputs_embeds.shape
        key_length = start + length
        if cache is not None and cache.is_compileable:
            key_length = cache.get_mask_sizes(length, 0)[0]
        mask, is_causal = rule.mask(
            self.config._attn_implementation or "eager",
            start,
            start + length,
            batch,
            inputs_embeds.device,
            inputs_embeds.dtype,
            key_length,
        )
        if mask is None and not is_causal and length > 1:
            mask = torch.ones(batch, 1, length, key_length, dtype=torch.bool, device=inputs_embeds.device)
        return self.decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=mask,
            position_ids=positions.position_ids.expand(batch, -1),
            cache=cache,
            use_cache=cache is not None,
            output_hidden_states=output_hidden_states,
        )


class LLMBackbone(HubModelMixin, PreTrainedModel):
    """A language model's decoder as the backbone of an image generator."""

    config: LLMBackboneConfig
    config_class = LLMBackboneConfig
    base_model_prefix = "backbone"
    main_input_name = "inputs_embeds"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True

    def __init__(self, config: LLMBackboneConfig):
        super().__init__(config)
        self.decoder = AutoModel.from_config(config.text_config)
        # Slots come as embeddings; the table of words would only be dead weight.
        self.decoder.set_input_embeddings(nn.Identity())
        self.post_init()

    @property
    def adapter(self) -> LLMAdapter:
        return LLMAdapter(self.decoder)

    def encode_positions(self, positions: SlotPositions) -> EncodedPositions:
        return self.adapter.encode_positions(positions)

    def encode_condition(self, condition: Condition | None) -> EncodedCondition:
        return self.adapter.encode_condition(condition)

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        """Runs the decoder over new slots; arguments as `VisualTransformer.forward`."""
        return self.adapter(*args, **kwargs)
