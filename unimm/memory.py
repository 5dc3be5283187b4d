"""What a model takes in memory, told on the meta device: weights in several precisions, and what sampling adds to them."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.quantizers.quantizers_utils import should_convert_module

from .conditions.base import Condition, stack_conditions
from .errors import ConfigError
from .generation.caches import make_cache
from .generation.guidance import Guide
from .generation.loop import gather_states
from .generation.randomness import GeneratorRandomness
from .heads.base import HeadContext, TokenSampling
from .models.loading import full_precision_modules
from .tokenizers.base import VisualTokenizer
from .tokens import VisualTokens

PRECISIONS = ("float32", "bfloat16", "int8", "nf4")
#: Prompt of a language model in the figures, in tokens.
PROMPT_LENGTH = 64
#: Side of the picture of a tokenizer that has no size of its own, in pixels.
IMAGE_SIZE = 256
# bitsandbytes' 4-bit weights have one scale of four bytes per so many weights.
_BLOCK = 64


@dataclass(frozen=True)
class GenerationMemory:
    """Bytes for drawing one picture with guidance, so two rows.

    Args:
        num_parameters: all of them, shared ones once.
        num_quantized: those in the layers that 8- and 4-bit loading changes.
        weights: parameters and buffers by precision, scales included; what is not quantized is in bfloat16 then.
        cache: keys and values.
        step: largest sum of what a sampling step holds at once, beside weights and cache, with fused attention.
        decoding: the same for decoding the picture.
        dtype: of cache, step and decoding.
    """

    num_parameters: int
    num_quantized: int
    weights: Mapping[str, int]
    cache: int
    step: int
    decoding: int
    dtype: torch.dtype

    def total(self, precision: str) -> int:
        """Weights, cache and the larger of step and decoding."""
        return self.weights[precision] + self.cache + max(self.step, self.decoding)

    def table(self) -> Table:
        """The figures as a rich table."""
        kind = str(self.dtype).removeprefix("torch.")
        table = Table("memory", "MB")
        for precision, size in self.weights.items():
            table.add_row(f"weights in {precision}", megabytes(size))
        table.add_section()
        for name, size in (("cache", self.cache), ("sampling step", self.step), ("decoding", self.decoding)):
            table.add_row(f"{name}, one guided picture in {kind}", megabytes(size))
        return table


def describe_generation(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> GenerationMemory:
    """The figures of a model or a visual tokenizer, without its weights.

    Args:
        config: of an image generator, a conditional model (whose prompt counts `PROMPT_LENGTH` tokens) or a visual
            tokenizer (which decodes a picture of `IMAGE_SIZE` pixels, or of its own size where it has one).
        dtype: of the activations.

    Raises:
        ConfigError: a config of something else.
    """
    with torch.device("meta"):
        model = AutoModel.from_config(config).eval()
    if not isinstance(model, VisualTokenizer) and not hasattr(model, "plan"):
        raise ConfigError(
            f"a {type(model).__name__} draws no pictures: memory is told of image generators, conditional models and visual "
            "tokenizers"
        )
    weights = {precision: weight_bytes(model, precision) for precision in PRECISIONS}
    num_quantized = sum(layer.weight.numel() for layer in quantized_layers(model).values())
    num_parameters = sum(tensor.numel() for tensor in model.parameters())
    model = model.to(dtype)
    cache = step = 0
    if hasattr(model, "plan"):
        cache, step = _sampling_bytes(model, dtype)
    tokenizer = getattr(model, "tokenizer", None if hasattr(model, "plan") else model)
    decoding = 0
    if tokenizer is not None:
        latent_size = model.layout.final if hasattr(model, "layout") else _latent_size(tokenizer)
        decoding = _decoding_bytes(tokenizer, latent_size, dtype)
    return GenerationMemory(num_parameters, num_quantized, weights, cache, step, decoding, dtype)


def quantized_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The layers that 8- and 4-bit loading changes by default, by name."""
    kept = full_precision_modules(model)
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, kept)
    }


def weight_bytes(model: PreTrainedModel, precision: str) -> int:
    """Bytes of parameters and buffers when the model is loaded in a precision.

    Args:
        model: in full precision, on any device.
        precision: one of `PRECISIONS`; in `int8` and `nf4` all but the quantized layers is in bfloat16.
    """
    strict = re.compile("|".join(model._keep_in_fp32_modules_strict or ()) or r"(?!)")
    layers = quantized_layers(model) if precision in ("int8", "nf4") else {}
    own = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    total = 0
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        layer = layers.get(name.removesuffix(".weight"))
        if layer is not None and precision == "int8":
            total += tensor.numel() + 4 * layer.out_features
        elif layer is not None:
            total += tensor.numel() // 2 + 4 * -(-tensor.numel() // _BLOCK)
        elif precision == "float32" or name in own or strict.search(name) or not tensor.is_floating_point():
            # Buffers that no checkpoint holds are computed in full precision.
            total += tensor_bytes([tensor])
        else:
            total += 2 * tensor.numel()
    return total


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of some tensors, each counted as if it had memory of its own."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def megabytes(size: int) -> str:
    """Bytes in units of 10^6, with three digits."""
    return f"{size / 1e6:,.0f}" if size >= 1e8 else f"{size / 1e6:.3g}"


def measure_peak(function: Callable[[], Any]) -> int:
    """Largest number of bytes that tensors made by a function take at once; tensors on the meta device count, too.

    Attention counts as fused: what comes out of it, and no matrix of weights.
    """
    with torch.no_grad(), _FusedAttention(), _LiveBytes() as live:
        function()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Sums the storages that operations make, until nothing refers to them any more."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for leaf in _tensors(result):
            storage = leaf.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.storages:
                self._add(storage, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _add(self, storage: torch.UntypedStorage, key: int, size: int) -> None:
        def forget(_: Any) -> None:
            self.live -= size
            del self.storages[key]

        self.live += size
        self.storages[key] = weakref.ref(storage, forget)


class _FusedAttention(TorchFunctionMode):
    """torch's attention without its matrix, which the meta device would go through."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _sampling_bytes(model: Any, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the whole cache, and the peak of the step with most slots, the last of several.

    Raises:
        ConfigError: a plan whose steps this does not measure.
    """
    if model.plan.denoises or "known" in getattr(model.config.plan_config, "needs", ()):
        raise ConfigError(
            f"the memory of a sampling step is not told for the plan '{model.config.plan_config.model_type}', whose steps ask "
            "the backbone for more than hidden states of new slots: measure it with a picture"
        )
    backbone = model.backbone if hasattr(model, "backbone") else _language_backbone(model)
    condition = _guided_condition(model, dtype)
    steps = model.plan.steps(model.layout, condition.prefix_length)
    step = max(steps, key=lambda one: (one.slots.stop - one.slots.start, one.index))
    hidden_size = (condition.vector if condition.vector is not None else condition.prefix).shape[-1]
    slots = torch.empty(condition.num_rows, steps[-1].slots.stop, hidden_size, dtype=dtype, device="meta")
    positions = backbone.encode_positions(model.plan.positions(model.layout, condition))
    rule = model.plan.rule(model.layout, condition)
    cache = make_cache("static", backbone.config.num_hidden_layers, steps[-1].slots.stop)

    def run(where: slice) -> Any:
        return backbone(
            inputs_embeds=slots[:, where],
            positions=positions[where],
            rule=rule,
            condition=backbone.encode_condition(condition),
            cache=cache,
            start=where.start,
        )

    def sample() -> None:
        hidden_states, spoken = gather_states(run(step.slots), step.predicting)
        context = HeadContext(condition.vector, spoken, model.plan.groups(model.layout, step), step.phase)
        model.head.sample(hidden_states, context, Guide(2.0, 2), GeneratorRandomness(), TokenSampling())

    # What the cache holds before the step, or one slot of it; either way its memory is taken.
    with torch.no_grad(), _FusedAttention():
        run(slice(0, max(1, step.slots.start)))
    held = tensor_bytes(states for layer in cache.layers for states in (layer.keys, layer.values))
    if step.slots.start == 0:
        cache.reset()
    return held, measure_peak(sample)


def _language_backbone(model: Any) -> Any:
    from .backbones.llm import LLMAdapter

    return LLMAdapter(model.language_model.get_decoder())


def _guided_condition(model: Any, dtype: torch.dtype) -> Condition:
    """A conditional and an unconditional row of the shape that the model's condition gives."""
    if hasattr(model, "language_model"):
        width, length = model.config.text_config.hidden_size, PROMPT_LENGTH
        row = torch.empty(1, length, width, dtype=dtype, device="meta")
        return stack_conditions([Condition(prefix=row)] * 2)
    settings, backbone = model.config.condition_config, model.config.backbone_config
    length = getattr(settings, "length", getattr(settings, "prefix_length", 1))
    parts: dict[str, torch.Tensor] = {}
    if "vector" in settings.forms:
        parts["vector"] = torch.empty(1, backbone.hidden_size, dtype=dtype, device="meta")
    if "prefix" in settings.forms:
        parts["prefix"] = torch.empty(1, length, backbone.hidden_size, dtype=dtype, device="meta")
    if "memory" in settings.forms:
        parts["memory"] = torch.empty(1, length, backbone.memory_size, dtype=dtype, device="meta")
    return stack_conditions([Condition(**parts)] * 2)


def _latent_size(tokenizer: Any) -> tuple[int, ...]:
    levels = getattr(tokenizer.config, "layout", None)
    return tokenizer.latent_size(IMAGE_SIZE, IMAGE_SIZE) if levels is None else levels.final


def _decoding_bytes(tokenizer: Any, latent_size: tuple[int, ...], dtype: torch.dtype) -> int:
    """Peak of decoding one picture."""
    height, width = latent_size
    latents = torch.empty(1, height * width, tokenizer.latent_channels, dtype=dtype, device="meta")
    if hasattr(tokenizer, "decode_canvas"):
        layout = tokenizer.layout_for(height * tokenizer.stride, width * tokenizer.stride)
        canvas = tokenizer.initial_canvas(1, layout, torch.device("meta")).to(dtype)
        return measure_peak(lambda: tokenizer.decode_canvas(canvas))
    stride = tokenizer.stride
    tokens = VisualTokens(tokenizer.layout_for(height * stride, width * stride), latents=latents)
    return measure_peak(lambda: tokenizer.decode(tokens))
