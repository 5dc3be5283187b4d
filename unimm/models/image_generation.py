"""Class- and text-conditional image generation without a language model: a tokenizer, a plan, a backbone and a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoModel, LogitsProcessorList, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..configuration import UniMMConfig, any_config
from ..errors import ConfigError, LayoutError
from ..generation.filters import SoftCodes, token_filters
from ..generation.guidance import GuidanceSchedule, as_schedule
from ..generation.loop import Inpainting, generate_tokens
from ..generation.randomness import GeneratorRandomness, Randomness, RecordedRandomness
from ..objectives import token_likelihood
from ..plans.base import Canvas, PlanStep
from ..tokens import TokenLayout, VisualTokens, check_ids
from .prompts import Embeddings, Prompts, TextConditioned

if TYPE_CHECKING:
    from ..conditions.text_encoder import TextEncoder
    from ..tokenizers.base import VisualTokenizer


class UniMMImageGenerationConfig(UniMMConfig):
    """One choice per axis; each part is a typed config of its own and builds its module.

    Args:
        tokenizer_config: the visual tokenizer; None for a generator of ids alone, which then needs `token_layout` and
            `codebook_size`.
        condition_config: what steers the generation.
        plan_config: which tokens are predicted together.
        backbone_config: what turns slots into hidden states.
        head_config: the distribution of a token.
        image_size: pixels, a side or `(height, width)`.
        token_layout: levels of the token layout, for a generator without a tokenizer.
        codebook_size: number of ids, for a generator without a tokenizer.

    Raises:
        ConfigError: parts that do not fit each other; the message names the two and says why.
    """

    model_type = "unimm_image_generation"
    sub_configs_defaults = {
        "tokenizer_config": any_config("unimm_vq_tokenizer", optional=True),
        "condition_config": any_config("unimm_class_condition"),
        "plan_config": any_config("unimm_raster_plan"),
        "backbone_config": any_config("unimm_visual_transformer"),
        "head_config": any_config("unimm_categorical_head"),
    }
    tokenizer_config: dict[str, Any] | PreTrainedConfig | None = None
    condition_config: dict[str, Any] | PreTrainedConfig | None = None
    plan_config: dict[str, Any] | PreTrainedConfig | None = None
    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    head_config: dict[str, Any] | PreTrainedConfig | None = None
    image_size: int | list[int] | tuple[int, int] = 256
    token_layout: list[list[int]] | tuple[tuple[int, ...], ...] | None = None
    codebook_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        without_tokenizer = self.token_layout is not None and self.codebook_size is not None
        if (self.tokenizer_config is None) != without_tokenizer:
            raise ConfigError(
                "give either tokenizer_config, or token_layout and codebook_size (a generator of ids without a tokenizer)"
            )
        if without_tokenizer and self.plan_config.needs_tokenizer:
            raise ConfigError(
                f"the plan '{self.plan_config.model_type}' starts its slots from the tokenizer's reconstruction and does "
                "not fit a generator without a tokenizer: give tokenizer_config"
            )
        given = self.condition_config.form
        for part in (self.plan_config, self.backbone_config, self.head_config):
            needed = part.condition_form
            if needed is not None and needed != given:
                raise ConfigError(
                    f"'{part.model_type}' and '{self.condition_config.model_type}' do not fit as configured: the former "
                    f"takes a condition of form '{needed}', the latter gives the form '{given}'; choose a condition of "
                    f"form '{needed}' or another part"
                )

    @property
    def height_and_width(self) -> tuple[int, int]:
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass
class ImageGenerationOutput(ModelOutput):
    """Result of a teacher-forced pass.

    Args:
        loss: mean loss per token, where tokens were given.
        logits: `(batch, tokens, codebook)`, prediction of every token.
        slots: `(batch, slots, hidden)`, what the backbone read.
        last_hidden_state: `(batch, slots, hidden)`.
        hidden_states: inputs of all blocks and the last block's output.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class GenerateImageOutput(ModelOutput):
    """Result of `generate`.

    Args:
        images: `(batch, 3, height, width)` in [-1, 1]; None for a generator without a tokenizer.
        sequences: `(batch, tokens)` ids of the pictures.
        drawn: `(batch, tokens)` ids as drawn, before in-painting put the known tokens back.
        logits: `(batch, tokens, codebook)` after guidance, before filters, where asked for.
        num_backbone_calls: how often the backbone ran.
    """

    images: torch.Tensor | None = None
    sequences: torch.Tensor | None = None
    drawn: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    num_backbone_calls: int | None = None


class UniMMForImageGeneration(TextConditioned, PreTrainedModel):
    """Generates images from a class or a text, by any plan, backbone and head that fit each other.

    Args:
        config: one choice per axis.
        text_encoder: reads the prompts instead of the encoder that the config names.
    """

    config: UniMMImageGenerationConfig
    config_class = UniMMImageGenerationConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    output_modalities = ("image",)
    # The loss is divided by the number of samples that the trainer counts over all accumulated batches.
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True

    def __init__(self, config: UniMMImageGenerationConfig, text_encoder: TextEncoder | None = None):
        super().__init__(config)
        hidden_size = config.backbone_config.hidden_size
        self.tokenizer: VisualTokenizer | None = None
        codebook_size, latent_channels = config.codebook_size, 0
        if config.tokenizer_config is None:
            self.layout = TokenLayout(tuple(tuple(level) for level in config.token_layout or ()))
        else:
            self.tokenizer = AutoModel.from_config(config.tokenizer_config)
            self.layout = self.tokenizer.layout_for(*config.height_and_width)
            codebook_size, latent_channels = self.tokenizer.codebook_size, self.tokenizer.latent_channels
        if codebook_size is None:
            raise ConfigError(
                f"the head '{config.head_config.model_type}' predicts ids, the tokenizer "
                f"'{config.tokenizer_config.model_type}' gives continuous latents: choose a tokenizer with a codebook"
            )
        self.codebook_size: int = codebook_size
        self.condition = config.condition_config.build(hidden_size)
        self.plan = config.plan_config.build(hidden_size, self.layout, codebook_size, latent_channels)
        self.backbone = AutoModel.from_config(config.backbone_config)
        self.head = config.head_config.build(hidden_size, codebook_size)
        if text_encoder is not None:
            self.text_encoder = text_encoder
        self.post_init()
        self.train(self.training)

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        std = getattr(self.config.backbone_config, "initializer_range", 0.02)
        std = (3 * self.config.backbone_config.hidden_size) ** -0.5 if std is None else float(std)
        init_part_weights(module, std)

    def train(self, mode: bool = True) -> UniMMForImageGeneration:
        """Training mode for all but the tokenizer, which stays frozen."""
        super().train(mode)
        if self.tokenizer is not None:
            # Loading a checkpoint makes new parameters, which forget that they were frozen.
            self.tokenizer.eval().requires_grad_(False)
        return self

    @torch.no_grad()
    def encode_images(self, pixel_values: torch.Tensor | None) -> VisualTokens:
        """Tokens of `(batch, 3, height, width)` pixels in [-1, 1].

        Raises:
            LayoutError: a size that the model was not built for.
            ConfigError: this generator has no tokenizer.
        """
        assert pixel_values is not None
        if self.tokenizer is None:
            raise ConfigError("this generator was saved without a visual tokenizer: give image_ids instead of pixels")
        if tuple(pixel_values.shape[-2:]) != self.config.height_and_width:
            raise LayoutError(
                f"this model was built for images of {self.config.height_and_width} pixels (height, width), given "
                f"{tuple(pixel_values.shape[-2:])}: resize them first"
            )
        return self.tokenizer.encode(pixel_values)

    def as_tokens(self, image_ids: torch.Tensor) -> VisualTokens:
        """Checked ids `(batch, tokens)` with this model's layout.

        Raises:
            LayoutError: another number of tokens.
            CodebookError: ids outside of the codebook.
        """
        tokens = VisualTokens(self.layout, ids=image_ids)
        check_ids(image_ids, self.codebook_size)
        return tokens

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
        drop_condition: bool | None = None,
        randomness: Randomness | None = None,
        feed_every_token: bool = False,
        output_hidden_states: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> ImageGenerationOutput:
        """One teacher-forced pass: the prediction and the loss of every token.

        Args:
            pixel_values: `(batch, 3, height, width)` in [-1, 1]; or give `image_ids`.
            image_ids: `(batch, tokens)` int64.
            labels: `(batch,)` class labels, for a class condition.
            text_features: `(batch, length, channels)`, for a text condition.
            text_mask: `(batch, length)`, nonzero for real text.
            valid: `(batch,)`, 0 leaves a sample out of the loss.
            drop_condition: replace a share of the conditions by the null condition; in training mode by default.
            randomness: source of the draws `condition_drop`.
            feed_every_token: give the last token a slot too (features of all tokens).
            num_items_in_batch: samples of all accumulated batches, from the trainer; the loss is divided by it.

        Raises:
            ConfigError: neither pixels nor ids, or an input that the condition does not take.
            LayoutError: another size or number of tokens than the model was built for.
            CodebookError: ids outside of the codebook.
        """
        if (pixel_values is None) == (image_ids is None):
            raise ConfigError("give either pixel_values or image_ids (exactly one of them)")
        tokens = self.as_tokens(image_ids) if image_ids is not None else self.encode_images(pixel_values)
        inputs = self._condition_inputs(labels=labels, text_features=text_features, text_mask=text_mask)
        if self.condition.batch_size(**inputs) != tokens.batch_size:
            raise ConfigError(
                f"{tokens.batch_size} pictures but {self.condition.batch_size(**inputs)} conditions given"
            )
        dropped = None
        if self.training if drop_condition is None else drop_condition:
            randomness = randomness or GeneratorRandomness()
            uniform = randomness.uniform((tokens.batch_size,), "condition_drop", tokens.device)
            dropped = uniform < self.condition.drop_probability
        condition = self.condition(**inputs, dropped=dropped)
        plan_inputs = self.plan.training_inputs(tokens, condition, self.tokenizer, feed_every_token)
        output = self.backbone(
            inputs_embeds=plan_inputs.embeddings,
            positions=self.backbone.encode_positions(plan_inputs.positions),
            rule=plan_inputs.rule,
            modulations=self.backbone.encode_condition(condition.vector),
            output_hidden_states=output_hidden_states,
        )
        predicting = output.last_hidden_state[:, plan_inputs.predicting]
        losses = self.head.loss(predicting, plan_inputs.targets, condition.vector, plan_inputs.loss_weights)
        loss = token_likelihood(losses, valid, num_items_in_batch)
        return ImageGenerationOutput(
            loss=loss,
            logits=None if self.training else self.head.logits(predicting, condition.vector),
            slots=plan_inputs.embeddings,
            last_hidden_state=output.last_hidden_state,
            hidden_states=output.hidden_states,
        )

    @torch.no_grad()
    def generate(
        self,
        labels: torch.Tensor | Sequence[int] | None = None,
        text_features: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        *,
        prompt: Prompts | None = None,
        negative_prompt: Prompts | None = None,
        prompt_embeds: Embeddings | None = None,
        negative_prompt_embeds: Embeddings | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        guidance_scale: float | GuidanceSchedule = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        do_sample: bool = True,
        logits_processor: LogitsProcessorList | None = None,
        soft_codes: SoftCodes | None = None,
        inpainting: Inpainting | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        randomness: Randomness | Mapping[str, torch.Tensor] | None = None,
        use_cache: bool = True,
        cache_implementation: Literal["static", "dynamic"] = "static",
        output_logits: bool = False,
        callback: Callable[[PlanStep, Canvas], None] | None = None,
    ) -> GenerateImageOutput:
        """Draws one picture per label or text.

        Args:
            labels: `(batch,)` class labels.
            text_features: `(batch, length, channels)` features of the text encoder that the model was trained with.
            text_mask: `(batch, length)`, nonzero for real text.
            prompt: one or several texts, for the model's text encoder.
            negative_prompt: what guidance leads away from, instead of the null condition: one for all, or one per prompt.
            prompt_embeds: text features by their name in diffusers, or what `model.text_encoder.encode` gives.
            negative_prompt_embeds: the same for the negative prompt, one row for all or one per prompt.
            prompt_attention_mask: `(batch, length)`, nonzero for real text, where `prompt_embeds` is a tensor.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            guidance_scale: scale of classifier-free guidance (1 is none), or a schedule over steps.
            temperature: of the softmax.
            top_k: keep the k likeliest ids, 0 for all.
            top_p: keep the likeliest ids up to this probability.
            do_sample: draw ids; otherwise take the likeliest.
            logits_processor: transformers' processors that run before temperature, top-k and top-p.
            soft_codes: mix codebook rows instead of choosing one (plans that start from a reconstruction).
            inpainting: given tokens and where they are kept.
            generator: one for the batch, or one per sample, so that the batch equals its samples one by one.
            randomness: another source of draws, or recorded ones by name.
            use_cache: keep keys and values between steps.
            cache_implementation: `static` allocates once, `dynamic` grows.
            output_logits: also return the guided logits.
            callback: called with every step and the canvas after it.

        Raises:
            ConfigError: options out of range, or inputs that the condition does not take.
        """
        if labels is not None and not isinstance(labels, torch.Tensor):
            labels = torch.tensor(list(labels), dtype=torch.long)
        schedule = as_schedule(guidance_scale)
        is_guided = schedule.last_guided_step(self.layout.length) >= 0
        inputs, negative = self.resolve_prompts(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            is_guided=is_guided,
            labels=labels,
            text_features=text_features,
            text_mask=text_mask,
        )
        if soft_codes is not None and not self.plan.starts_from_reconstruction:
            raise ConfigError(
                "soft codes need a plan whose slots start from a reconstruction; those of "
                f"'{self.config.plan_config.model_type}' do not"
            )
        if isinstance(randomness, Mapping):
            randomness = RecordedRandomness(randomness)
        was_training = self.training
        self.eval()
        try:
            processors = LogitsProcessorList(logits_processor or [])
            processors.extend(token_filters(temperature, min(top_k, self.codebook_size), top_p))
            generated = generate_tokens(
                plan=self.plan,
                backbone=self.backbone,
                head=self.head,
                layout=self.layout,
                condition=self.condition(**inputs),
                unconditional=self.unconditional(inputs, negative) if is_guided else None,
                guidance=schedule,
                randomness=randomness or GeneratorRandomness(generator),
                processors=processors,
                tokenizer=self.tokenizer,
                do_sample=do_sample,
                soft_codes=soft_codes,
                inpainting=inpainting,
                use_cache=use_cache,
                cache_implementation=cache_implementation,
                output_logits=output_logits,
                callback=callback,
            )
            images = None
            if self.tokenizer is not None and generated.canvas.state is not None:
                images = self.tokenizer.decode_canvas(generated.canvas.state)
            elif self.tokenizer is not None:
                images = self.tokenizer.decode(generated.canvas.tokens)
        finally:
            self.train(was_training)
        return GenerateImageOutput(
            images=images,
            sequences=generated.canvas.ids,
            drawn=generated.drawn,
            logits=generated.logits,
            num_backbone_calls=generated.num_backbone_calls,
        )


def init_part_weights(module: torch.nn.Module, std: float) -> None:
    """Initial weights of the parts that are no models of their own: conditions, plans and heads.

    A part that wants something else than truncated normal weights and zero biases has a method
    `init_own_weights(std)`, called after its layers have been initialised.
    """
    if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
        init.trunc_normal_(module.weight, std=std)
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)
    elif hasattr(module, "init_own_weights"):
        module.init_own_weights(std)  # type: ignore[operator]
