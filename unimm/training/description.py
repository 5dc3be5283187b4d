"""What a run would take, told before it is started: parameters, tokens per sample, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from ..memory import tensor_bytes

_GIBIBYTE = 2**30
# Bytes per token, channel and layer that a transformer block keeps for its backward pass at two bytes per value, without
# the attention matrix, which fused kernels do not keep (https://huggingface.co/papers/2205.05198, equation 2).
_BLOCK_BYTES = 34


@dataclass(frozen=True)
class PartDescription:
    """A part of a model.

    Args:
        name: of the attribute.
        kind: class name.
        num_parameters: all of them.
        num_trainable: those that get a gradient.
    """

    name: str
    kind: str
    num_parameters: int
    num_trainable: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device during training, roughly.

    Args:
        weights: parameters and buffers.
        gradients: of the trainable parameters.
        optimizer: two moments per trainable parameter, as Adam keeps them.
        activations: what the backward pass needs of the forward pass of one micro-batch.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class ModelDescription:
    """A model's figures.

    Args:
        kind: class name.
        parts: its children.
        num_parameters: all of them, shared ones once.
        num_trainable: those that get a gradient.
        tokens_per_sample: length of the sequence that the backbone reads, None where it is not known.
        batch_size: samples of a micro-batch.
        memory: the estimate.
    """

    kind: str
    parts: tuple[PartDescription, ...]
    num_parameters: int
    num_trainable: int
    tokens_per_sample: int | None
    batch_size: int
    memory: MemoryEstimate

    def table(self) -> Table:
        """The figures as a rich table."""
        table = Table("part", "class", "parameters", "trainable", title=self.kind)
        for part in self.parts:
            table.add_row(part.name, part.kind, f"{part.num_parameters:,}", f"{part.num_trainable:,}")
        table.add_row("all", self.kind, f"{self.num_parameters:,}", f"{self.num_trainable:,}", end_section=True)
        tokens = "not known without data" if self.tokens_per_sample is None else f"{self.tokens_per_sample:,}"
        table.add_row("tokens per sample", "", tokens, "", end_section=True)
        memory = self.memory
        for name in ("weights", "gradients", "optimizer", "activations", "total"):
            label = f"memory: {name}" + (f" (about, batch of {self.batch_size})" if name == "activations" else "")
            table.add_row(label, "", f"{getattr(memory, name) / _GIBIBYTE:.3f} GiB", "")
        return table


def describe_model(
    model: nn.Module,
    *,
    batch_size: int = 1,
    tokens_per_sample: int | None = None,
    half_precision: bool = False,
    checkpointing: bool = False,
) -> ModelDescription:
    """The figures of a model, which may be on the meta device.

    Gradients and Adam's moments have the parameters' own type. Activations are an estimate: of every transformer stack
    in the model 34 bytes per token, channel and layer (twice that in full precision; with activation checkpointing only
    each block's input, and one whole block), and the logits three times (values, softmax, gradient) in full precision.
    Other modules are left out: a visual tokenizer's own training is described by `describe_tokenizer`.

    Args:
        model: the model.
        batch_size: samples of a micro-batch.
        tokens_per_sample: length of the sequence; by default the tokens of one picture, where the model has a layout.
        half_precision: train under autocast to two bytes per value.
        checkpointing: with activation checkpointing.
    """
    parameters = list(model.parameters())
    trainable = [one for one in parameters if one.requires_grad]
    layout: Any = getattr(model, "layout", None)
    if tokens_per_sample is None and layout is not None:
        tokens_per_sample = layout.length
    weights = tensor_bytes(parameters) + tensor_bytes(model.buffers())
    activations = _stack_activations(model, tokens_per_sample or 0, half_precision, checkpointing) * batch_size
    return ModelDescription(
        kind=type(model).__name__,
        parts=tuple(
            PartDescription(
                name,
                type(child).__name__,
                sum(one.numel() for one in child.parameters()),
                sum(one.numel() for one in child.parameters() if one.requires_grad),
            )
            for name, child in model.named_children()
        ),
        num_parameters=sum(one.numel() for one in parameters),
        num_trainable=sum(one.numel() for one in trainable),
        tokens_per_sample=tokens_per_sample,
        batch_size=batch_size,
        memory=MemoryEstimate(weights, tensor_bytes(trainable), 2 * tensor_bytes(trainable), activations),
    )


def describe_tokenizer(tokenizer: Any, height: int, width: int, *, batch_size: int = 1) -> ModelDescription:
    """The figures of a visual tokenizer's own training; its activations are measured by a forward pass on the meta device.

    Args:
        tokenizer: on the meta device.
        height: pixels.
        width: pixels.
        batch_size: pictures of a micro-batch.
    """
    described = describe_model(
        tokenizer, batch_size=batch_size, tokens_per_sample=tokenizer.layout_for(height, width).length
    )
    memory = described.memory
    pixels = torch.empty(batch_size, 3, height, width, device="meta")
    if hasattr(tokenizer, "decode_features"):
        measured = measure_activations(lambda: tokenizer.decode_features(tokenizer.encode_features(pixels)))
    else:
        measured = measure_activations(lambda: tokenizer(pixels).reconstruction)
    memory = MemoryEstimate(memory.weights, memory.gradients, memory.optimizer, measured)
    return ModelDescription(
        described.kind,
        described.parts,
        described.num_parameters,
        described.num_trainable,
        described.tokens_per_sample,
        batch_size,
        memory,
    )


def measure_activations(forward: Any) -> int:
    """Bytes of the tensors that a forward pass keeps for its backward pass, leaves left out."""
    kept: dict[tuple[int, torch.Size], int] = {}
    alive: list[torch.Tensor] = []

    def pack(value: torch.Tensor) -> torch.Tensor:
        if not (value.is_leaf and value.requires_grad):
            # Kept alive so that no other tensor takes over its identity.
            alive.append(value)
            kept[id(value._base if value._base is not None else value), value.shape] = tensor_bytes([value])
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        forward()
    return sum(kept.values())


def _stack_activations(model: nn.Module, tokens: int, half_precision: bool, checkpointing: bool) -> int:
    """Bytes per sample of the transformer stacks that train, and of the logits."""
    scale = 1 if half_precision else 2
    total = 0
    for stack in _stacks(model):
        width, layers = stack.config.hidden_size, stack.config.num_hidden_layers
        block = _BLOCK_BYTES * scale * tokens * width
        total += (2 * scale * tokens * width * layers + block) if checkpointing else block * layers
    logits = getattr(model, "codebook_size", None) or getattr(getattr(model, "config", None), "vocab_size", None) or 0
    return total + 3 * 4 * tokens * logits


def _stacks(module: nn.Module) -> list[Any]:
    """The outermost modules whose config describes a transformer stack with trainable weights."""
    config = getattr(module, "config", None)
    if all(isinstance(getattr(config, name, None), int) for name in ("hidden_size", "num_hidden_layers")):
        return [module] if any(one.requires_grad for one in module.parameters()) else []
    return [stack for child in module.children() for stack in _stacks(child)]
