"""Frozen text encoders of transformers (T5, CLIP, …) behind one class."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import torch
from transformers import (
    AutoConfig,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..configuration import UniMMConfig, any_config
from ..errors import ConfigError

logger = logging.getLogger(__name__)

#: So many warnings about cut prompts are given by one encoder: a data set of long captions would fill the log.
_MAXIMUM_WARNINGS = 10


class TextEncoderConfig(UniMMConfig):
    """Which encoder reads the prompts, and what its features look like.

    The encoder itself is never part of a model: a config holds a reference (`path`), or what builds a small one with
    random weights (`encoder_config`, `words`, `seed`), a stand-in where no trained encoder is at hand.

    Args:
        path: folder or Hub id of a text encoder of transformers with its tokenizer.
        revision: commit, tag or branch on the Hub.
        encoder_config: instead of `path`, the config (with its `model_type`, `t5` or `clip_text_model`) of an encoder
            with random weights; its vocabulary follows from `words`.
        words: vocabulary of that encoder, one token per word.
        seed: of its weights.
        max_length: tokens of a prompt at most; longer prompts are cut off, with a warning.
        padding: `max_length` gives every batch that length, `longest` that of its longest prompt.
        padding_side: where the padded positions stand.
        zero_padding: padded positions are zeros; otherwise what the encoder gives for padding tokens.
        layer: which of transformers' `hidden_states`; -1 is the encoder's result, after its final norm.
        pooled: also give one vector per prompt: the encoder's own (CLIP), or the mean over the prompt's tokens.
        precision: type of the encoder's weights and of the features.

    Raises:
        ConfigError: fields that do not go together.
    """

    model_type = "unimm_text_encoder"
    sub_configs_defaults = {"encoder_config": any_config("t5", optional=True)}
    path: str | None = None
    revision: str | None = None
    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    words: list[str] | tuple[str, ...] | None = None
    seed: int = 0
    max_length: int = 120
    padding: Literal["max_length", "longest"] = "max_length"
    padding_side: Literal["left", "right"] = "right"
    zero_padding: bool = True
    layer: int = -1
    pooled: Literal["encoder", "mean"] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.path is not None and self.encoder_config is not None:
            raise ConfigError("a text encoder has either a path or an encoder_config (random weights), given both")
        if (self.encoder_config is None) != (self.words is None):
            raise ConfigError(
                "encoder_config (random weights) and words (its vocabulary) belong together, given only "
                f"{'words' if self.encoder_config is None else 'encoder_config'}"
            )
        if self.revision is not None and self.path is None:
            raise ConfigError(f"revision '{self.revision}' has no effect without a path")
        if self.max_length < 1:
            raise ConfigError(f"max_length must be at least 1, given {self.max_length}")
        if not self.zero_padding and self.padding == "longest":
            raise ConfigError(
                "padded positions can keep the encoder's features only where their number is fixed: set padding to "
                "'max_length', or zero_padding"
            )


@dataclass(frozen=True)
class TextFeatures:
    """Features of a batch of prompts.

    Args:
        features: `(batch, length, channels)`.
        mask: `(batch, length)` bool, True for tokens of the prompt, False for padding.
        pooled: `(batch, pooled channels)`, where the encoder's config asks for it.
    """

    features: torch.Tensor
    mask: torch.Tensor
    pooled: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> TextFeatures:
        """The same on another device."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return TextFeatures(self.features.to(device), self.mask.to(device), pooled)


@dataclass(frozen=True)
class PromptFeatures:
    """Features of one prompt, as they are cached.

    Args:
        features: `(positions, channels)`, the prompt's tokens first; padded positions only where they are kept.
        num_tokens: tokens of the prompt.
        pooled: `(pooled channels,)`.
    """

    features: torch.Tensor
    num_tokens: int
    pooled: torch.Tensor | None = None


class TextEncoder:
    """Prompts to features; a prompt in a batch has the features that it has alone.

    A plain object rather than a module, so that a model that holds one neither trains nor saves it.

    Args:
        config: what the features look like, and where the encoder comes from.
        model: an encoder to use instead of the one that the config names.
        tokenizer: of that encoder.

    Raises:
        ConfigError: the encoder cannot be loaded, or does not give what the config asks for.
    """

    def __init__(
        self,
        config: TextEncoderConfig,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        if model is None or tokenizer is None:
            if model is not None or tokenizer is not None:
                raise ConfigError("a text encoder takes a model and its tokenizer, given only one of them")
            model, tokenizer = _load(config)
        self.config = config
        dtype = getattr(torch, config.precision)
        # A quantised encoder of that precision must not be cast at all.
        self.model = (model if model.dtype == dtype else model.to(dtype)).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._num_warnings = 0
        self._check()

    @property
    def feature_size(self) -> int:
        """Channels of the features."""
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the encoder runs; features are given on the same device."""
        return self.model.device

    def to(self, device: torch.device | str) -> Self:
        """Moves the encoder."""
        self.model.to(device)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Nothing changes a frozen encoder: copies of a model share it.
        return self

    def encode(self, prompts: str | Sequence[str]) -> TextFeatures:
        """Features of a batch of prompts.

        Args:
            prompts: one or several; equal ones are encoded once.

        Raises:
            ConfigError: no prompts, something else than texts, or a prompt without any token.
        """
        texts = as_prompts(prompts)
        distinct = list(dict.fromkeys(texts))
        rows = dict(zip(distinct, self.encode_each(distinct), strict=True))
        return self._arrange([rows[text] for text in texts])

    @torch.no_grad()
    def encode_each(self, prompts: Sequence[str]) -> list[PromptFeatures]:
        """Features prompt by prompt, before they are arranged as a batch."""
        inputs = self.tokenizer(
            list(prompts),
            padding=True if self.config.zero_padding else "max_length",
            # Whatever the features' padding side: absolute positions have to start at the first token.
            padding_side="right",
            truncation=True,
            max_length=self.config.max_length,
            return_tensors="pt",
        )
        counts = inputs["attention_mask"].sum(1).tolist()
        if 0 in counts:
            raise ConfigError(
                f"the prompt {prompts[counts.index(0)]!r} has no tokens with this tokenizer, which adds none at the end: "
                "give a text, or a tokenizer with an end token"
            )
        full = [prompt for prompt, count in zip(prompts, counts, strict=True) if count == self.config.max_length]
        if full:
            self._warn_of_cut_prompts(full)
        output = self.model(
            input_ids=inputs["input_ids"].to(self.device),
            attention_mask=inputs["attention_mask"].to(self.device),
            output_hidden_states=self.config.layer != -1,
        )
        features = output.last_hidden_state if self.config.layer == -1 else output.hidden_states[self.config.layer]
        pooled: Sequence[torch.Tensor | None] = [None] * len(counts)
        if self.config.pooled == "encoder":
            if getattr(output, "pooler_output", None) is None:
                raise ConfigError(
                    f"a text encoder of type '{self.model.config.model_type}' has no pooled output of its own: set pooled "
                    "to 'mean'"
                )
            pooled = list(output.pooler_output)
        elif self.config.pooled == "mean":
            pooled = [row[:count].mean(0) for row, count in zip(features, counts, strict=True)]
        return [
            PromptFeatures(row[:count] if self.config.zero_padding else row, count, vector)
            for row, count, vector in zip(features, counts, pooled, strict=True)
        ]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all that a prompt's features depend on: weights, tokenizer, and the config's choices."""
        config = self.config
        architecture = {
            key: value
            for key, value in self.model.config.to_dict().items()
            if key not in ("_name_or_path", "transformers_version", "architectures", "dtype")
        }
        choices = (config.max_length, config.zero_padding, config.layer, config.pooled, config.precision)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(
            json.dumps([type(self.model).__name__, architecture, choices], sort_keys=True, default=str).encode()
        )
        digest.update(_tokenizer_identity(self.tokenizer))
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def _arrange(self, rows: Sequence[PromptFeatures]) -> TextFeatures:
        config = self.config
        longest = max(row.num_tokens for row in rows)
        length = config.max_length if config.padding == "max_length" else longest
        features, masks = [], []
        for row in rows:
            tokens, padding = row.features[: row.num_tokens], row.features[row.num_tokens :]
            if config.zero_padding:
                padding = tokens.new_zeros(length - row.num_tokens, tokens.shape[1])
            is_left = config.padding_side == "left"
            features.append(torch.cat([padding, tokens] if is_left else [tokens, padding]))
            places = torch.arange(length, device=tokens.device)
            masks.append(places >= length - row.num_tokens if is_left else places < row.num_tokens)
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return TextFeatures(torch.stack(features), torch.stack(masks), torch.stack(pooled) if pooled else None)

    def _warn_of_cut_prompts(self, prompts: Sequence[str]) -> None:
        kept = self.config.max_length - self.tokenizer.num_special_tokens_to_add()
        contents = self.tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"]
        cut = [self.tokenizer.decode(ids[kept:]) for ids in contents if len(ids) > kept]
        if not cut or self._num_warnings >= _MAXIMUM_WARNINGS:
            return
        self._num_warnings += 1
        last = " (no further warnings of this kind)" if self._num_warnings == _MAXIMUM_WARNINGS else ""
        logger.warning(
            "%d of the prompts longer than %d tokens (max_length); what was cut off has no effect: %s%s",
            len(cut), self.config.max_length, "; ".join(repr(text) for text in cut[:4]), last,
        )  # fmt: skip

    def _check(self) -> None:
        config, own = self.config, self.model.config
        positions = getattr(own, "max_position_embeddings", None)
        if positions is not None and config.max_length > positions:
            raise ConfigError(f"max_length is {config.max_length}, but the text encoder has {positions} positions")
        num_special = self.tokenizer.num_special_tokens_to_add()
        if config.max_length <= num_special:
            raise ConfigError(
                f"max_length is {config.max_length}, but the tokenizer adds {num_special} tokens: no word would be left"
            )
        if not -own.num_hidden_layers - 1 <= config.layer <= own.num_hidden_layers:
            raise ConfigError(
                f"layer is {config.layer}, but the text encoder has {own.num_hidden_layers} layers: give a layer from "
                f"{-own.num_hidden_layers - 1} to {own.num_hidden_layers}"
            )


def as_prompts(prompts: Any, name: str = "prompt") -> list[str]:
    """A list of texts from one or several.

    Args:
        prompts: what the user gave.
        name: what the error calls it.

    Raises:
        ConfigError: no prompts, or something else than texts.
    """
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise ConfigError(f"{name} must be a text or a list of texts, given {type(prompts).__name__}")
    if not len(prompts):
        raise ConfigError(f"{name} is an empty list: give at least one text")
    for number, text in enumerate(prompts):
        if not isinstance(text, str):
            raise ConfigError(f"{name} must hold texts, but entry {number} is a {type(text).__name__}: {text!r}")
    return list(prompts)


def _load(config: TextEncoderConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if config.encoder_config is not None:
        return _random_encoder(config)
    if config.path is None:
        raise ConfigError("this text encoder's config names none: give it a path, or a model with its tokenizer")
    logger.info("loading the text encoder '%s'", config.path)
    try:
        own = AutoConfig.from_pretrained(config.path, revision=config.revision)
        if type(own) not in AutoModelForTextEncoding._model_mapping:
            # A whole CLIP: its text tower alone.
            own = own.get_text_config()
        model = AutoModelForTextEncoding.from_pretrained(
            config.path, revision=config.revision, config=own, dtype=getattr(torch, config.precision)
        )
        return model, AutoTokenizer.from_pretrained(config.path, revision=config.revision)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the text encoder '{config.path}' cannot be loaded: {error}") from error


def _random_encoder(config: TextEncoderConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The stand-in: random weights that follow from the seed, and one token per word."""
    from tokenizers.processors import TemplateProcessing

    from ..models.processing import word_tokenizer

    tokenizer = word_tokenizer(config.words or ())
    end = tokenizer.eos_token
    # An end token gives the empty prompt a position, and CLIP its pooled output.
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    own = copy.deepcopy(config.encoder_config)
    own.vocab_size = len(tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(own, name, getattr(tokenizer, name))
    with torch.random.fork_rng(devices=()), torch.device("cpu"):
        torch.default_generator.manual_seed(config.seed)
        return AutoModelForTextEncoding.from_config(own), tokenizer


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> bytes:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]).encode()
    # Padding and truncation are left behind by the last call and say nothing about the tokenizer.
    parts = json.loads(backend.to_str())
    return json.dumps({key: value for key, value in parts.items() if key not in ("padding", "truncation")}).encode()
