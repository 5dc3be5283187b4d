"""Class- and text-conditional image generation without a language model: a tokenizer, a plan, a backbone and a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import MODEL_MAPPING, AutoModel, GenerationConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..checks import described, require_tensor
from ..configuration import UniMMConfig, any_config, check_part, check_size
from ..errors import ConfigError, LayoutError
from ..generation.loop import gather_states
from ..generation.randomness import GeneratorRandomness, Randomness
from ..heads.base import HeadContext
from ..hub.mixins import HubModelMixin
from ..objectives import token_likelihood
from ..tokens import TokenKind, TokenLayout, VisualTokens
from .adapters import AdapterMixin
from .image_sampling import GenerateImageOutput, ImageGenerationMixin, evaluating
from .loading import UniMMPreTrainedModel
from .prompts import Embeddings, Prompts, TextConditioned

if TYPE_CHECKING:
    from ..conditions.text_encoder import TextEncoder
    from ..tokenizers.base import VisualTokenizer


def builds_tokenizer(config: Any) -> bool:
    """Whether a config is that of a visual tokenizer."""
    from ..tokenizers.base import VisualTokenizer

    model = MODEL_MAPPING.get(type(config), None)
    return isinstance(model, type) and issubclass(model, VisualTokenizer)


#: What distinguishes the kinds of parts: field, words, and the test.
PART_KINDS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("tokenizer_config", "a visual tokenizer such as 'unimm_vq_tokenizer'", builds_tokenizer),
    ("condition_config", "a condition such as 'unimm_class_condition'", lambda one: hasattr(one, "forms")),
    ("plan_config", "a plan such as 'unimm_raster_plan'", lambda one: hasattr(one, "needs_tokenizer")),
    (
        "backbone_config",
        "a backbone: 'unimm_visual_transformer' or 'unimm_llm_backbone'",
        lambda one: hasattr(one, "condition_form") and not hasattr(one, "build"),
    ),
    (
        "head_config",
        "a head such as 'unimm_categorical_head'",
        lambda one: hasattr(one, "condition_form") and hasattr(one, "build") and not hasattr(one, "needs_tokenizer"),
    ),
)


class UniMMImageGenerationConfig(UniMMConfig):
    """One choice per axis; each part is a typed config of its own and builds its module.

    Args:
        tokenizer_config: the visual tokenizer; None for a generator of tokens alone, which then needs `token_layout`, and
            `codebook_size` or `latent_channels`.
        condition_config: what steers the generation.
        plan_config: which tokens are predicted together.
        backbone_config: what turns slots into hidden states.
        head_config: the distribution of a token.
        image_size: pixels, a side or `(height, width)`.
        token_layout: levels of the token layout, for a generator without a tokenizer.
        codebook_size: number of ids, for a generator without a tokenizer.
        num_codes: ids per token, for a generator without a tokenizer.
        latent_channels: channels of a token, for a generator of continuous latents without a tokenizer.

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
    num_codes: int = 1
    latent_channels: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_size(self)
        for name, what, fits in PART_KINDS:
            if hasattr(self, name):
                check_part(self, name, what, fits)
        for name in ("codebook_size", "num_codes", "latent_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, given {value}")
        if self.token_layout is not None:
            try:
                TokenLayout(tuple(tuple(level) for level in self.token_layout))
            except LayoutError as error:
                raise ConfigError(f"token_layout: {error}") from None
        has_kind = (self.codebook_size is not None) != (self.latent_channels is not None)
        without_tokenizer = self.token_layout is not None and has_kind
        if (self.tokenizer_config is None) != without_tokenizer:
            raise ConfigError(
                "give either tokenizer_config, or token_layout with codebook_size or latent_channels (a generator of tokens "
                "without a tokenizer)"
            )
        if without_tokenizer and self.plan_config.needs_tokenizer:
            raise ConfigError(
                f"the plan '{self.plan_config.model_type}' starts its slots from the tokenizer's reconstruction and does "
                "not fit a generator without a tokenizer: give tokenizer_config"
            )
        given = self.condition_config.forms
        for part in (self.plan_config, self.backbone_config, self.head_config):
            forms = getattr(part, "condition_forms", (part.condition_form,))
            needed = next((form for form in forms if form is not None and form not in given), None)
            if needed is not None:
                raise ConfigError(
                    f"'{part.model_type}' and '{self.condition_config.model_type}' do not fit as configured: the former "
                    f"takes a condition of form '{needed}', the latter gives {' and '.join(map(repr, given))}; choose a "
                    f"condition of form '{needed}' or another part"
                )
        check_parts(self.plan_config, self.backbone_config, self.head_config)
        check_tokenizer(self.plan_config, self.tokenizer_config)

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
        """Slots that the backbone's positions reach, None where nothing limits them."""
        return getattr(getattr(self.backbone_config, "text_config", None), "max_position_embeddings", None)


def check_parts(plan: Any, backbone: Any, head: Any) -> None:
    """Refuses parts of which one needs what another does not have.

    A plan names what its backbone must be able to do in `needs`, a backbone what it can do in `abilities` (`known`:
    leaves out slots whose tokens are hidden; `phases`: has several branches; `taps`: gives hidden states of several depths;
    `slot_conditions`: takes a condition per slot), and in `requires` what it is of no use
    without. A plan that `denoises` needs a head that `denoises`, and the other way round.

    Raises:
        ConfigError: in one sentence that names both parts.
    """
    missing = set(getattr(plan, "needs", ())) - set(getattr(backbone, "abilities", ()))
    if missing:
        raise ConfigError(
            f"the plan '{plan.model_type}' needs a backbone that can do {', '.join(sorted(missing))}, "
            f"'{backbone.model_type}' cannot: choose another backbone or plan"
        )
    num_read = getattr(head, "num_taps", None)
    if (num_read is not None) != ("taps" in getattr(plan, "needs", ())):
        owner, other = (plan, head) if num_read is None else (head, plan)
        raise ConfigError(
            f"'{owner.model_type}' takes a token's hidden states of several depths, '{other.model_type}' one hidden state: "
            "choose a head and a plan that both take several, or neither"
        )
    if "taps" in getattr(backbone, "abilities", ()) and backbone.num_taps != (num_read or 0):
        raise ConfigError(
            f"'{backbone.model_type}' gives hidden states of {backbone.num_taps} depths (tap_depths), "
            f"'{head.model_type}' reads {'one' if num_read is None else num_read}: change tap_depths, or choose another head"
        )
    unused = set(getattr(backbone, "requires", ())) - set(getattr(plan, "needs", ()))
    if unused:
        raise ConfigError(
            f"the backbone '{backbone.model_type}' is made for plans that need {', '.join(sorted(unused))}, "
            f"'{plan.model_type}' as configured does not: choose another backbone or plan"
        )
    if getattr(plan, "denoises", False) != getattr(head, "denoises", False):
        owner, other = (plan, head) if getattr(plan, "denoises", False) else (head, plan)
        raise ConfigError(
            f"'{owner.model_type}' makes the backbone itself denoise tokens, '{other.model_type}' does not take part in "
            "that: choose a head and a plan that both do, or neither"
        )


def check_tokenizer(plan: Any, tokenizer: Any) -> None:
    """Refuses a tokenizer that cannot do what a plan needs of it.

    A plan names that in `tokenizer_needs`, a tokenizer what it can do in `abilities` (`whole_levels`: a level's tokens do
    not depend on which other levels there are; `self_correction`: it can flip bits and quantize what they leave over).

    Raises:
        ConfigError: in one sentence that names both parts.
    """
    missing = set(getattr(plan, "tokenizer_needs", ())) - set(getattr(tokenizer, "abilities", ()))
    if missing and tokenizer is not None:
        raise ConfigError(
            f"the plan '{plan.model_type}' as configured needs a tokenizer that can do {', '.join(sorted(missing))}, "
            f"'{tokenizer.model_type}' as configured cannot: choose another tokenizer or plan"
        )


def check_taps(plan: Any, head: Any) -> None:
    """Refuses a plan whose layout has another number of axes than the head reads hidden states per token.

    Raises:
        ConfigError: with both numbers.
    """
    spoken, read = getattr(plan, "num_taps", None), getattr(head, "num_taps", None)
    if spoken != read:
        raise ConfigError(
            f"the plan predicts a token of the layout {plan.layout} from {spoken} hidden states, '{head.model_type}' reads "
            f"{read}: set num_taps and the backbone's tap_depths to that number"
        )


@dataclass
class ImageGenerationOutput(ModelOutput):
    """Result of a teacher-forced pass.

    Args:
        loss: mean loss per token, where tokens were given.
        logits: `(batch, tokens, …)`, prediction of every token; None in training, and for heads without logits.
        predicting_states: `(batch, tokens[, taps], hidden)`, what the head read, in the order of the targets.
        slots: `(batch, slots, hidden)`, what the backbone read (in the last pass, where a plan has several).
        last_hidden_state: `(batch, slots, hidden)`.
        hidden_states: inputs of all blocks and the last block's output.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    predicting_states: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class UniMMForImageGeneration(HubModelMixin, AdapterMixin, TextConditioned, ImageGenerationMixin, UniMMPreTrainedModel):
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
    _adapted_module = "backbone"
    _full_precision_modules = ("tokenizer", "condition", "plan", "head")

    def __init__(self, config: UniMMImageGenerationConfig, text_encoder: TextEncoder | None = None):
        super().__init__(config)
        hidden_size = config.backbone_config.hidden_size
        self.tokenizer: VisualTokenizer | None = None
        if config.tokenizer_config is None:
            self.layout = TokenLayout(tuple(tuple(level) for level in config.token_layout or ()))
            self.kind = TokenKind(config.latent_channels or 0, config.codebook_size, config.num_codes)
        else:
            self.tokenizer = AutoModel.from_config(config.tokenizer_config)
            self.layout = self.tokenizer.layout_for(*config.height_and_width)
            self.kind = self.tokenizer.token_kind
        self.condition = config.condition_config.build(hidden_size)
        self.plan = config.plan_config.build(hidden_size, self.layout, self.kind)
        self.backbone = AutoModel.from_config(config.backbone_config)
        self.head = config.head_config.build(getattr(config.backbone_config, "output_size", hidden_size), self.kind)
        check_taps(self.plan, config.head_config)
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
    def encode_images(self, pixel_values: torch.Tensor, layout: TokenLayout | None = None) -> VisualTokens:
        """Tokens of `(batch, 3, height, width)` pixels in [-1, 1].

        Args:
            layout: another pyramid than the model's own, which fits another size of picture.

        Raises:
            LayoutError: no pictures of that shape, or a size that the model was not built for.
            ImageError: values that are not finite, or far from [-1, 1].
            ConfigError: this generator has no tokenizer.
        """
        if self.tokenizer is None:
            raise ConfigError("this generator was saved without a visual tokenizer: give image_ids instead of pixels")
        if layout is None or layout == self.layout:
            check_picture_size(pixel_values, self.config.height_and_width)
            return self.tokenizer.encode(pixel_values)
        if not self.tokenizer.takes_levels:
            raise LayoutError(
                f"pictures can be encoded with another layout than the model's {self.layout} by tokenizers that take levels, "
                f"not by this model's {type(self.tokenizer).__name__}"
            )
        return self.tokenizer.encode(pixel_values, levels=layout.levels)  # type: ignore[call-arg]

    def _features_and_tokens(
        self, pixel_values: torch.Tensor | None, image_ids: torch.Tensor | None, layout: TokenLayout | None
    ) -> tuple[torch.Tensor | None, VisualTokens]:
        """Tokens, and where the plan asks for them the features `(batch, channels, h, w)` that they stand for."""
        # Plans that ask for features have been refused all tokenizers but pyramids.
        tokenizer: Any = self.tokenizer
        if image_ids is not None:
            tokens = self.as_tokens(image_ids, layout)
            if not self.plan.takes_features:
                return None, tokens
            # The sum of the given codes is the best that is known of the picture.
            with torch.no_grad():
                return tokenizer.running_reconstruction(tokens, layout=tokens.layout), tokens
        assert pixel_values is not None
        if not self.plan.takes_features:
            return None, self.encode_images(pixel_values, layout)
        if layout is None:
            check_picture_size(pixel_values, self.config.height_and_width)
        with torch.no_grad():
            features = tokenizer.encode_features(pixel_values)
            return features, tokenizer.quantized_tokens(features, self.layout if layout is None else layout)

    def as_tokens(self, image_ids: torch.Tensor, layout: TokenLayout | None = None) -> VisualTokens:
        """Checked ids `(batch, tokens[, codes])`, or latents `(batch, tokens, channels)`, with this model's layout.

        Raises:
            LayoutError: tokens of another kind, no picture, or another number of tokens.
            CodebookError: ids outside of the codebook.
        """
        self.kind.check(image_ids, "image_ids")
        tokens = VisualTokens.of(self.layout if layout is None else layout, image_ids)
        if tokens.batch_size == 0:
            raise LayoutError(f"image_ids hold no picture: their shape is {tuple(image_ids.shape)}")
        return tokens

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        layout: TokenLayout | None = None,
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
            image_ids: `(batch, tokens[, codes])` int64, or `(batch, tokens, channels)` latents.
            layout: of the tokens given, where the plan takes others than the model's own.
            labels: `(batch,)` class labels, for a class condition.
            text_features: `(batch, length, channels)`, for a text condition.
            text_mask: `(batch, length)`, nonzero for real text.
            valid: `(batch,)`, 0 leaves a sample out of the loss.
            drop_condition: replace a share of the conditions by the null condition; in training mode by default.
            randomness: source of the draws `condition_drop`.
            feed_every_token: give the last token a slot too (features of all tokens).
            num_items_in_batch: samples of all accumulated batches, from the trainer; the loss is divided by it.

        Raises:
            ConfigError: neither pixels nor ids, an input that the condition does not take, or of another length.
            LayoutError: another size or number of tokens than the model was built for.
            CodebookError: ids outside of the codebook.
        """
        if (pixel_values is None) == (image_ids is None):
            raise ConfigError("give either pixel_values or image_ids (exactly one of them)")
        features, tokens = self._features_and_tokens(pixel_values, image_ids, layout)
        self._check_training_inputs(tokens, valid, randomness)
        inputs = self._condition_inputs(labels=labels, text_features=text_features, text_mask=text_mask)
        if self.condition.batch_size(**inputs) != tokens.batch_size:
            raise ConfigError(
                f"{tokens.batch_size} pictures but {self.condition.batch_size(**inputs)} conditions given"
            )
        randomness = randomness or GeneratorRandomness()
        dropped = None
        if self.training if drop_condition is None else drop_condition:
            uniform = randomness.uniform((tokens.batch_size,), "condition_drop", tokens.device)
            dropped = uniform < self.condition.drop_probability
        condition = self.condition(**inputs, dropped=dropped)
        passes = self.plan.training_passes(
            tokens,
            condition,
            self.tokenizer,
            randomness=randomness,
            feed_every_token=feed_every_token,
            **({"corrupt": self.head.corrupt} if self.plan.denoises else {}),
            **({} if features is None else {"features": features}),
        )
        losses: list[torch.Tensor] = []
        logits: torch.Tensor | None = None
        given = next(passes)
        while True:
            steering = condition if given.condition is None else given.condition
            output = self.backbone(
                inputs_embeds=given.embeddings,
                positions=self.backbone.encode_positions(given.positions),
                rule=given.rule,
                condition=self.backbone.encode_condition(steering),
                output_hidden_states=output_hidden_states,
                **given.backbone_options,
            )
            predicting, spoken = gather_states(output, given.predicting)
            context = HeadContext(condition.vector, spoken, given.groups, given.phase)
            each = self.head.loss(predicting, given.targets, context, randomness)
            losses.append(each if given.loss_weights is None else each * given.loss_weights)
            if not self.training:
                logits = self.head.logits(predicting, context)
            try:
                given = passes.send(predicting)
            except StopIteration:
                break
        loss = token_likelihood(torch.cat(losses, dim=1), valid, num_items_in_batch)
        return ImageGenerationOutput(
            loss=loss,
            logits=logits,
            predicting_states=predicting,
            slots=given.embeddings,
            last_hidden_state=output.last_hidden_state,
            hidden_states=output.hidden_states,
        )

    def _check_training_inputs(self, tokens: VisualTokens, valid: Any, randomness: Any) -> None:
        if valid is not None:
            require_tensor(valid, "valid", "(batch,)", 1, error=ConfigError)
            if len(valid) != tokens.batch_size:
                raise ConfigError(f"valid has {len(valid)} entries for {tokens.batch_size} pictures")
        if not isinstance(randomness, Randomness | None):
            raise ConfigError(
                f"randomness must be a unimm.generation.Randomness such as GeneratorRandomness(generator), given "
                f"{described(randomness)}"
            )

    @torch.no_grad()
    def generate(
        self,
        labels: torch.Tensor | Sequence[int] | int | None = None,
        text_features: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        *,
        prompt: Prompts | None = None,
        negative_prompt: Prompts | None = None,
        prompt_embeds: Embeddings | None = None,
        negative_prompt_embeds: Embeddings | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> GenerateImageOutput:
        """Draws one picture per label or text, or several.

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
            generation_config: defaults that come before those of `self.generation_config`.
            options: fields of `unimm.ImageOptions` (guidance_scale, top_k, generator, output_type, streamer, …).

        Raises:
            ConfigError: options that are unknown or out of range, or inputs that the condition does not take.
            LayoutError: a size that the model does not draw.
        """
        drawing = self.image_options(options, generation_config)
        is_guided = self.is_guided(drawing)
        inputs, negative = self.resolve_prompts(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            is_guided=is_guided,
            labels=self._as_labels(labels),
            text_features=text_features,
            text_mask=text_mask,
        )
        with evaluating(self):
            return self._draw(
                drawing,
                condition=self.condition(**inputs),
                unconditional=self.unconditional(inputs, negative) if is_guided else None,
                backbone=self.backbone,
                context_length=self.config.context_length,
            )

    def _as_labels(self, labels: Any) -> torch.Tensor | None:
        """Labels as a tensor, a single one as a batch of one."""
        if labels is None:
            return None
        try:
            tensor = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"labels must be integers (one, a list or a tensor), given {labels!r}") from error
        if tensor.numel() == 0:
            raise ConfigError("there is nothing to draw: labels is empty, give at least one")
        if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
            raise ConfigError(f"labels must be integers (one, a list or a tensor), given {labels!r}")
        return tensor.reshape(1 if tensor.dim() == 0 else tensor.shape).to(self.device, torch.long)


def check_picture_size(pixel_values: Any, height_and_width: tuple[int, int]) -> None:
    """Refuses pixels of another size than a model was built for.

    Raises:
        LayoutError: no tensor of pictures, or another size.
    """
    require_tensor(pixel_values, "pixel_values", "(pictures, 3, height, width)", 4)
    if tuple(pixel_values.shape[-2:]) != height_and_width:
        raise LayoutError(
            f"this model was built for images of {height_and_width} pixels (height, width), given "
            f"{tuple(pixel_values.shape[-2:])}: resize them first"
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
    elif isinstance(module, torch.nn.LayerNorm):
        if module.elementwise_affine:
            init.ones_(module.weight)
            init.zeros_(module.bias)
    elif hasattr(module, "init_own_weights") and all(one.is_floating_point() for one in module.parameters()):
        # Quantized weights are always loaded ones.
        module.init_own_weights(std)  # type: ignore[operator]
