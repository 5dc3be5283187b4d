"""A language model that reads and draws: text and images in one sequence, in any order and number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from ..checks import check_range, described, require_ids, require_tensor
from ..configuration import UniMMConfig, any_config, check_part, check_size
from ..errors import ConfigError, LayoutError
from ..hub.mixins import HubModelMixin
from ..objectives import mixed_likelihood
from ..tokens import TokenKind, TokenLayout, VisualTokens
from .adapters import AdapterMixin
from .image_generation import PART_KINDS, check_picture_size, init_part_weights
from .interleaving import InterleavedGenerationMixin
from .loading import UniMMPreTrainedModel

if TYPE_CHECKING:
    from ..tokenizers.base import VisualTokenizer


class UniMMConditionalConfig(UniMMConfig):
    """A causal language model with visual tokens, and optionally a vision encoder for the images that it reads.

    In the text, an image stands as `image_start_token`, placeholders, `image_end_token`. A discrete picture has one
    `visual_token` placeholder per visual token; a picture seen through the vision encoder has one `image_token`
    placeholder per feature.

    Args:
        text_config: any causal language model.
        vision_config: vision encoder for understanding (SigLIP, DINOv2, CLIP, …), None to read visual tokens instead.
        tokenizer_config: visual tokenizer with a codebook.
        plan_config: `raster`.
        head_config: distribution of a visual token.
        image_size: pixels, a side or `(height, width)`, of the visual tokenizer's pictures.
        image_token_id: placeholder of a vision-encoder feature.
        visual_token_id: placeholder of a visual token.
        image_start_token_id: opens an image; the model draws after it.
        image_end_token_id: closes an image.
        null_prompt_ids: the prompt of the unconditional context, without the image start.
        text_loss_weight: weight of the mean loss over text tokens.
        image_loss_weight: weight of the mean loss over visual tokens.
    """

    model_type = "unimm_conditional_generation"
    sub_configs_defaults = {
        "text_config": any_config("qwen3"),
        "vision_config": any_config("siglip_vision_model", optional=True),
        "tokenizer_config": any_config("unimm_vq_tokenizer"),
        "plan_config": any_config("unimm_raster_plan"),
        "head_config": any_config("unimm_categorical_head"),
    }
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    tokenizer_config: dict[str, Any] | PreTrainedConfig | None = None
    plan_config: dict[str, Any] | PreTrainedConfig | None = None
    head_config: dict[str, Any] | PreTrainedConfig | None = None
    image_size: int | list[int] | tuple[int, int] = 256
    image_token_id: int = 0
    visual_token_id: int = 1
    image_start_token_id: int = 2
    image_end_token_id: int = 3
    null_prompt_ids: list[int] | tuple[int, ...] = ()
    text_loss_weight: float | int = 1.0
    image_loss_weight: float | int = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_size(self)
        check_part(self, "text_config", "a causal language model", lambda one: type(one) in MODEL_FOR_CAUSAL_LM_MAPPING)
        check_part(
            self,
            "vision_config",
            "a vision encoder with image_size and patch_size, such as 'siglip_vision_model'",
            lambda one: hasattr(one, "image_size") and hasattr(one, "patch_size"),
        )
        for name, what, fits in PART_KINDS:
            if hasattr(self, name):
                check_part(self, name, what, fits)
        if min(self.text_loss_weight, self.image_loss_weight) < 0:
            raise ConfigError(
                "text_loss_weight and image_loss_weight must be at least 0, given "
                f"{self.text_loss_weight} and {self.image_loss_weight}"
            )
        if self.head_config.condition_form is not None:
            raise ConfigError(
                f"the head's norm '{self.head_config.norm}' is modulated by a condition vector, which a language model "
                "does not give: set head_config.norm to 'none'"
            )
        if self.plan_config.condition_form != "prefix" or not getattr(self.plan_config, "embeds_single_tokens", False):
            raise ConfigError(
                f"the plan '{self.plan_config.model_type}' does not make one slot of one token after a prefix, which text and "
                "pictures in one sequence need: use the raster plan"
            )
        special = [self.image_token_id, self.visual_token_id, self.image_start_token_id, self.image_end_token_id]
        vocabulary = self.text_config.vocab_size
        for token in self.null_prompt_ids:
            if not isinstance(token, int) or not 0 <= token < vocabulary:
                raise ConfigError(f"null_prompt_ids must lie below the vocabulary size {vocabulary}, found {token!r}")
        if len(set(special)) < len(special) or not all(0 <= token < vocabulary for token in special):
            raise ConfigError(
                "image_token_id, visual_token_id, image_start_token_id and image_end_token_id must be four different ids "
                f"below the vocabulary size {vocabulary}, given {special}"
            )

    @property
    def height_and_width(self) -> tuple[int, int]:
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def supported_sizes(self) -> tuple[tuple[int, int], ...]:
        """Sizes `(height, width)` in pixels of the pictures that the model draws."""
        return (self.height_and_width,)

    @property
    def context_length(self) -> int | None:
        """Tokens that the language model's positions reach, None where nothing limits them."""
        return getattr(self.text_config, "max_position_embeddings", None)


@dataclass
class ConditionalOutput(ModelOutput):
    """Result of a forward pass.

    Args:
        loss: weighted sum of the mean losses over text and over visual tokens, where labels were given.
        text_loss: mean cross-entropy over text targets.
        image_loss: mean cross-entropy over visual targets.
        logits: `(batch, kept, vocabulary)` text logits; None in training mode with labels.
        cache: keys and values.
        last_hidden_state: `(batch, sequence, hidden)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    image_loss: torch.Tensor | None = None
    cache: Cache | None = None
    last_hidden_state: torch.Tensor | None = None


class UniMMForConditionalGeneration(HubModelMixin, AdapterMixin, InterleavedGenerationMixin, UniMMPreTrainedModel):
    """Understanding, generation and editing with one causal language model."""

    config: UniMMConditionalConfig
    config_class = UniMMConditionalConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text", "image")
    output_modalities = ("text", "image")
    supports_gradient_checkpointing = True
    # The two losses are means over tokens of different kinds; the trainer must not divide them again.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flex_attn = True
    _adapted_module = "language_model"
    _full_precision_modules = ("tokenizer", "plan", "head", "projector")

    def __init__(self, config: UniMMConditionalConfig):
        super().__init__(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        hidden_size = config.text_config.hidden_size
        self.tokenizer: VisualTokenizer = AutoModel.from_config(config.tokenizer_config)
        self.kind: TokenKind = self.tokenizer.token_kind
        self.layout: TokenLayout = self.tokenizer.layout_for(*config.height_and_width)
        self.plan = config.plan_config.build(hidden_size, self.layout, self.kind)
        self.head = config.head_config.build(hidden_size, self.kind)
        self.vision_encoder: PreTrainedModel | None = None
        if config.vision_config is not None:
            self.vision_encoder = AutoModel.from_config(config.vision_config)
            width = config.vision_config.hidden_size
            self.projector = nn.Sequential(
                nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
            )
        self.post_init()
        self.train(self.training)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_part_weights(module, getattr(self.config.text_config, "initializer_range", 0.02))

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def train(self, mode: bool = True) -> UniMMForConditionalGeneration:
        """Training mode for all but the tokenizer, which stays frozen."""
        super().train(mode)
        # Loading a checkpoint makes new parameters, which forget that they were frozen.
        self.tokenizer.eval().requires_grad_(False)
        return self

    @property
    def num_image_features(self) -> int:
        """Placeholders that a picture takes when it is read through the vision encoder."""
        if self.config.vision_config is None:
            raise ConfigError("this model has no vision encoder: pictures are read as visual tokens")
        return (self.config.vision_config.image_size // self.config.vision_config.patch_size) ** 2

    @torch.no_grad()
    def encode_images(self, pixel_values: torch.Tensor) -> VisualTokens:
        """Visual tokens of `(pictures, 3, height, width)` pixels in [-1, 1].

        Raises:
            LayoutError: no pictures of that shape, or a size that the model was not built for.
            ImageError: values that are not finite, or far from [-1, 1].
        """
        check_picture_size(pixel_values, self.config.height_and_width)
        return self.tokenizer.encode(pixel_values)

    @torch.no_grad()
    def decode_image_tokens(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """Pixels `(pictures, 3, height, width)` in [-1, 1] of visual ids `(pictures, tokens)`, or latents.

        Raises:
            LayoutError: another number of tokens per picture.
            CodebookError: ids outside of the codebook.
        """
        return self.tokenizer.decode(self.as_tokens(image_tokens, "image_tokens"))

    def as_tokens(self, image_ids: torch.Tensor, name: str = "image_ids") -> VisualTokens:
        """Checked ids `(pictures, tokens[, codes])`, or latents, with this model's layout. Waits for the device.

        Raises:
            LayoutError: tokens of another kind, or another number of tokens per picture.
            CodebookError: ids outside of the codebook.
        """
        self.kind.check(image_ids, name)
        return VisualTokens.of(self.layout, image_ids)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Projected features `(pictures, features, hidden)` of the vision encoder, one per patch.

        Raises:
            ConfigError: this model has no vision encoder.
            LayoutError: no pictures of the vision encoder's size.
        """
        if self.vision_encoder is None:
            raise ConfigError("this model has no vision encoder: pictures are read as visual tokens")
        side, channels = self.config.vision_config.image_size, getattr(self.config.vision_config, "num_channels", 3)
        require_tensor(pixel_values, "pixel_values", f"(pictures, {channels}, {side}, {side})", 4)
        if tuple(pixel_values.shape[1:]) != (channels, side, side) or not pixel_values.is_floating_point():
            raise LayoutError(
                f"the vision encoder reads floating point pixels of shape (pictures, {channels}, {side}, {side}), given "
                f"{described(pixel_values)}"
            )
        features = self.vision_encoder(pixel_values).last_hidden_state[:, -self.num_image_features :]
        return self.projector(features)

    def embed_inputs(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings `(batch, sequence, hidden)` of text with its pictures put in.

        Args:
            input_ids: `(batch, sequence)`.
            pixel_values: `(pictures, 3, height, width)` for the `image_token` placeholders, in reading order.
            image_ids: `(pictures, tokens)` for the `visual_token` placeholders, in reading order.

        Raises:
            LayoutError: no integers, or a number of placeholders that is not that of the pictures given.
            CodebookError: ids outside of the vocabulary (on an accelerator that is checked by `generate`, not here), or
                visual ids outside of the codebook.
        """
        input_ids = require_ids(input_ids, "input_ids", "(batch, sequence)", 2)
        if 0 in input_ids.shape:
            raise LayoutError(f"input_ids hold no token: their shape is {tuple(input_ids.shape)}")
        if image_ids is not None:
            image_ids = self.as_tokens(image_ids).values
        try:
            embeddings = self.get_input_embeddings()(input_ids)
        except IndexError:
            self.check_text_ids(input_ids)
            raise
        for name, placeholder, given in (
            ("image_ids", self.config.visual_token_id, image_ids),
            ("pixel_values", self.config.image_token_id, pixel_values),
        ):
            where = input_ids == placeholder
            if given is None:
                if bool(where.any()):
                    raise LayoutError(f"the text has {int(where.sum())} picture placeholders but no {name} were given")
                continue
            parts = (
                self.plan.embed_tokens(given, self.tokenizer) if name == "image_ids" else self.get_image_features(given)
            )
            if int(where.sum()) != parts.shape[0] * parts.shape[1]:
                raise LayoutError(
                    f"{parts.shape[0]} pictures of {parts.shape[1]} slots were given as {name}, but the text has "
                    f"{int(where.sum())} placeholders for them"
                )
            embeddings = embeddings.masked_scatter(where[..., None], parts.to(embeddings.dtype))
        return embeddings

    def check_text_ids(self, ids: torch.Tensor, name: str = "input_ids") -> None:
        """Refuses ids that the language model has no embedding for. Waits for the device.

        Raises:
            CodebookError: with the range that was found.
        """
        table = self.get_input_embeddings().weight
        assert isinstance(table, torch.Tensor)
        check_range(ids, table.shape[0], name, "was another tokenizer used?")

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        visual_pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> ConditionalOutput:
        """Text logits and, with labels, the losses over text and visual tokens.

        Args:
            input_ids: `(batch, sequence)` with placeholders for pictures.
            attention_mask: `(batch, sequence)`, 0 for padding.
            position_ids: `(batch, sequence)`.
            pixel_values: `(pictures, 3, h, w)` for the vision encoder, or for the visual tokenizer in a model without one.
            image_ids: `(pictures, tokens)` visual ids; or give `visual_pixel_values`.
            visual_pixel_values: `(pictures, 3, height, width)` in [-1, 1], encoded here.
            labels: `(batch, sequence)`: a text id where that token is a target, `visual_token_id` where the visual token
                at this place is a target, -100 elsewhere.
            cache: keys and values of earlier slots.
            inputs_embeds: `(batch, sequence, hidden)` instead of `input_ids`.
            logits_to_keep: number of last positions whose text logits are wanted, 0 for all.

        Raises:
            ConfigError: neither ids nor embeddings, or pictures both as ids and as pixels.
            LayoutError: pictures and placeholders that do not match, labels or a mask of another shape, or a sequence
                that is longer than the context.
            CodebookError: ids or labels out of range.
        """
        if self.vision_encoder is None and pixel_values is not None:
            visual_pixel_values, pixel_values = pixel_values, None
        if visual_pixel_values is not None:
            if image_ids is not None:
                raise ConfigError("pictures are given as image_ids or as pixels, given both")
            image_ids = self.encode_images(visual_pixel_values).values
        self._check_sequence(input_ids, inputs_embeds, attention_mask, cache, logits_to_keep)
        if labels is not None:
            self._check_labels(labels, input_ids, image_ids, inputs_embeds)
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_inputs(input_ids, pixel_values, image_ids)
        outputs = self.language_model.get_decoder()(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
        )
        hidden_states = outputs.last_hidden_state
        result = ConditionalOutput(cache=outputs.cache, last_hidden_state=hidden_states)
        if labels is not None:
            result.text_loss, result.image_loss = mixed_likelihood(
                hidden_states,
                labels,
                input_ids,
                image_ids,
                self.config.visual_token_id,
                self.get_output_embeddings(),
                self.head,
            )
            result.loss = (
                float(self.config.text_loss_weight) * result.text_loss
                + float(self.config.image_loss_weight) * result.image_loss
            )
        if labels is None or not self.training:
            result.logits = self.get_output_embeddings()(hidden_states[:, -logits_to_keep:])
        return result

    def _check_sequence(
        self, input_ids: Any, inputs_embeds: Any, attention_mask: Any, cache: Any, logits_to_keep: Any
    ) -> None:
        """What can be told without waiting for the device: `forward` is a step of drawing and writing too."""
        if inputs_embeds is not None:
            width = self.config.text_config.hidden_size
            require_tensor(inputs_embeds, "inputs_embeds", f"(batch, sequence, {width})", 3)
            if inputs_embeds.shape[-1] != width:
                raise LayoutError(f"inputs_embeds must have {width} channels, given {described(inputs_embeds)}")
            shape = tuple(inputs_embeds.shape[:2])
        elif input_ids is None:
            raise ConfigError("give input_ids or inputs_embeds")
        else:
            shape = tuple(require_ids(input_ids, "input_ids", "(batch, sequence)", 2).shape)
        if not isinstance(cache, Cache | None):
            raise ConfigError(f"cache must be a transformers Cache, given {described(cache)}")
        if not isinstance(logits_to_keep, int) or logits_to_keep < 0:
            raise ConfigError(f"logits_to_keep must be a number of positions of at least 0, given {logits_to_keep!r}")
        if cache is not None:
            return
        if attention_mask is not None and not isinstance(attention_mask, dict):
            require_tensor(attention_mask, "attention_mask", "(batch, sequence)")
            if attention_mask.dim() == 2 and tuple(attention_mask.shape) != shape:
                raise LayoutError(
                    f"attention_mask must be {shape} like the sequence, given {described(attention_mask)}"
                )
        limit = self.config.context_length
        if limit is not None and shape[1] > limit:
            raise LayoutError(
                f"the sequence has {shape[1]} tokens, the language model's context (max_position_embeddings) ends at {limit}: "
                "shorten it"
            )

    def _check_labels(self, labels: Any, input_ids: Any, image_ids: Any, inputs_embeds: Any) -> None:
        shape = tuple((input_ids if input_ids is not None else inputs_embeds).shape[:2])
        labels = require_ids(labels, "labels", "(batch, sequence)", 2)
        if tuple(labels.shape) != shape:
            raise LayoutError(f"labels must be {shape} like the sequence, given {described(labels)}")
        if image_ids is not None and input_ids is None:
            raise ConfigError("labels of pictures need input_ids too: their placeholders say where the pictures stand")
        self.check_text_ids(torch.where(labels == -100, 0, labels), "labels other than -100")
        is_visual = labels == self.config.visual_token_id
        if input_ids is not None:
            is_visual = is_visual & (input_ids != self.config.visual_token_id)
        if bool(is_visual.any()):
            raise LayoutError(
                f"{int(is_visual.sum())} labels say visual_token_id ({self.config.visual_token_id}) where the text has no "
                "picture placeholder: visual tokens are targets at their own places only"
            )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs |= {"pixel_values": pixel_values, "image_ids": image_ids}
        return inputs
