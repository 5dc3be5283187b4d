"""What a system file declares: presets, the names of its released checkpoints, and how both become a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..errors import CheckpointError, ConfigError, nearest

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_PATTERNS = {"p": "(?:weight|bias)"}


@dataclass(frozen=True)
class Rename:
    """One rule between a released name and ours; both sides are templates with the same placeholders.

    `{p}` stands for `weight` or `bias`, any other placeholder for a number; `{a|b}` style choices are written as two
    rules. A released tensor may carry leading axes of length one that ours lacks.

    Args:
        released: template of the released name.
        ours: template of our name.
        leading_ones: number of leading axes of length one in the released tensor that ours lacks.
        trailing_ones: the same at its end (a 1x1 convolution that is a linear layer of ours).
    """

    released: str
    ours: str
    leading_ones: int = 0
    trailing_ones: int = 0

    def to_ours(self, name: str) -> str | None:
        """Our name for a released one, None when the rule does not speak of it."""
        return _translate(self.released, self.ours, name)

    def to_released(self, name: str) -> str | None:
        """The released name for one of ours, None when the rule does not speak of it."""
        return _translate(self.ours, self.released, name)


@dataclass(frozen=True)
class Join:
    """Several released tensors that are one of ours, their rows under each other.

    Args:
        released: templates of the released names, in the order of the rows, with the same placeholders.
        ours: template of our name.
        rows: number of rows of each released tensor; None for one that has the others' remainder.
    """

    released: tuple[str, ...]
    ours: str
    rows: tuple[int | None, ...]

    def parts(self, name: str) -> tuple[str, ...]:
        """The released names of one of ours, none when the join does not speak of it."""
        found = [_translate(self.ours, template, name) for template in self.released]
        return tuple(one for one in found if one is not None)

    def split(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One of our tensors as the released ones."""
        remainder = len(tensor) - sum(number for number in self.rows if number is not None)
        parts = tensor.split([remainder if number is None else number for number in self.rows])
        # Files refuse tensors that share their memory.
        return tuple(part.clone() for part in parts)


@cache
def _pattern(source: str) -> re.Pattern[str]:
    pieces, last = [], 0
    for found in _PLACEHOLDER.finditer(source):
        pieces.append(re.escape(source[last : found.start()]))
        pieces.append(f"(?P<{found[1]}>{_PATTERNS.get(found[1], '[0-9]+')})")
        last = found.end()
    pieces.append(re.escape(source[last:]))
    return re.compile("".join(pieces))


def _translate(source: str, target: str, name: str) -> str | None:
    match = _pattern(source).fullmatch(name)
    return None if match is None else _PLACEHOLDER.sub(lambda found: match[found[1]], target)


@dataclass(frozen=True)
class Converter:
    """A reversible map between a released state dict and ours: renamings and dropped leading axes, nothing lossy.

    Args:
        rules: the renamings.
        ignored: regular expressions of released keys that hold no weights (statistics, masks, rotary tables).
        wrappers: keys (dots for nesting) under which released files keep the state dict.
        joins: released tensors that are one of ours; their parts are named by no rule.
    """

    rules: tuple[Rename, ...]
    ignored: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()
    joins: tuple[Join, ...] = ()

    def is_ignored(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)

    def unwrap(self, checkpoint: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """The state dict inside of a released file's wrappers.

        Raises:
            CheckpointError: no tensors where they should be.
        """
        if not isinstance(checkpoint, Mapping):
            raise CheckpointError(
                f"a checkpoint is a mapping of names to tensors, bare or under one of "
                f"{', '.join(self.wrappers) or 'no wrapper'}; this one is a {type(checkpoint).__name__}"
            )
        for wrapper in self.wrappers:
            inner: Any = checkpoint
            for part in wrapper.split("."):
                inner = inner.get(part) if isinstance(inner, Mapping) else None
            if (
                isinstance(inner, Mapping)
                and inner
                and all(isinstance(value, torch.Tensor) for value in inner.values())
            ):
                checkpoint = inner
                break
        tensors = {
            str(name).removeprefix("module."): value
            for name, value in checkpoint.items()
            if isinstance(value, torch.Tensor)
        }
        if not tensors:
            raise CheckpointError(
                f"no tensors in the checkpoint: found the keys {sorted(map(str, checkpoint))[:8]}, expected a state dict, "
                f"bare or under one of {', '.join(self.wrappers) or 'no wrapper'}"
            )
        return tensors

    def to_ours(self, released: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Our state dict.

        Raises:
            CheckpointError: a key that no rule knows, naming all of them.
        """
        ours, unknown = {}, []
        joined = self._joined(released)
        used = {part for _, parts in joined.values() for part in parts}
        for joined_name, (_, parts) in joined.items():
            ours[joined_name] = torch.cat([released[part] for part in parts])
        for name, tensor in released.items():
            if self.is_ignored(name) or name in used:
                continue
            for rule in self.rules:
                target = rule.to_ours(name)
                if target is not None:
                    ours[target] = tensor.reshape(tensor.shape[rule.leading_ones : tensor.dim() - rule.trailing_ones])
                    break
            else:
                unknown.append(name)
        if unknown:
            raise CheckpointError(
                f"{len(unknown)} keys of the checkpoint are unknown to this system's converter: {', '.join(unknown[:8])}"
                f"{', …' if len(unknown) > 8 else ''}. Is it a checkpoint of another system?"
            )
        return ours

    def _joined(self, released: Mapping[str, torch.Tensor]) -> dict[str, tuple[Join, tuple[str, ...]]]:
        """Our names that come from several released ones, all of which are there."""
        found = {}
        for join in self.joins:
            for name in released:
                target = _translate(join.released[0], join.ours, name)
                if target is not None and all(part in released for part in join.parts(target)):
                    found[target] = (join, join.parts(target))
        return found

    def to_released(self, ours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The released state dict, without the ignored keys.

        Raises:
            CheckpointError: one of our keys that no rule knows.
        """
        released: dict[str, torch.Tensor] = {}
        for name, tensor in ours.items():
            join = next((one for one in self.joins if one.parts(name)), None)
            if join is not None:
                released.update(zip(join.parts(name), join.split(tensor), strict=True))
                continue
            for rule in self.rules:
                target = rule.to_released(name)
                if target is not None:
                    ones = (1,) * rule.leading_ones, (1,) * rule.trailing_ones
                    released[target] = tensor.reshape(ones[0] + tuple(tensor.shape) + ones[1])
                    break
            else:
                raise CheckpointError(f"'{name}' has no released name: the model has parts that the release lacks")
        return released


@dataclass(frozen=True)
class Preset:
    """A named size of a system.

    Args:
        config: builds the config.
        parameters: released number of parameters of the generator (or of the tokenizer), in millions.
        released_file: name of the released file that this preset loads.
        hub_id: Hub repository of the released file.
        sampling: published sampling defaults (guidance_scale, top_k, top_p, …), which `convert` writes into
            `generation_config.json`.
    """

    config: Callable[[], PreTrainedConfig]
    parameters: float
    released_file: str = ""
    hub_id: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """A published system as a point on the axes.

    Args:
        name: short lower-case name.
        title: full name.
        paper: arXiv id.
        code_license: licence of the reference code.
        weights_license: licence of the released weights, `unknown` where it is not stated.
        presets: name to size.
        converter: released names to ours, for a config.
        config_from_reference: the config for the reference's own constructor arguments, for verification.
        tokenizer_prefix: prefix that a separate tokenizer file's keys get when both files become one model.
        axes: the choice on each axis, for the table of systems.
    """

    name: str
    title: str
    paper: str
    code_license: str
    weights_license: str
    presets: Mapping[str, Preset]
    converter: Callable[[PreTrainedConfig], Converter]
    config_from_reference: Callable[[Mapping[str, Any]], PreTrainedConfig]
    tokenizer_prefix: str = "tokenizer."
    axes: Mapping[str, str] = field(default_factory=dict)

    def preset(self, name: str) -> Preset:
        """The preset of that name.

        Raises:
            ConfigError: with the nearest known name.
        """
        if name not in self.presets:
            raise ConfigError(f"{self.name} has no preset '{name}'{nearest(name, self.presets)}")
        return self.presets[name]


def load_released(system: System, config: PreTrainedConfig, released: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """A model with a released state dict's weights; nothing may be missing or left over.

    Raises:
        CheckpointError: missing, unknown or misshapen keys, all of them named.
    """
    converter = system.converter(config)
    ours = converter.to_ours(converter.unwrap(released))
    with torch.device("meta"):
        skeleton = AutoModel.from_config(config)
    expected = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    problems = compare_keys(expected, {name: tensor.shape for name, tensor in ours.items()}, converter)
    if problems:
        raise CheckpointError(f"the checkpoint does not fit {system.name}: " + "; ".join(problems))
    # The skeleton takes the checkpoint's own tensors: no second copy, no initialisation that is overwritten at once.
    skeleton.load_state_dict(ours, strict=True, assign=True)
    return skeleton.eval()


def compare_keys(
    expected: Mapping[str, torch.Size], given: Mapping[str, torch.Size], converter: Converter
) -> list[str]:
    """What is missing, left over or of another shape, in the released names where they exist."""

    def listing(names: Iterable[str]) -> str:
        names = sorted(names)
        return ", ".join(names[:6]) + (f", … ({len(names)} in all)" if len(names) > 6 else "")

    def released_name(name: str) -> str:
        return next((target for rule in converter.rules if (target := rule.to_released(name))), name)

    problems = []
    if missing := expected.keys() - given.keys():
        problems.append(f"missing {listing(map(released_name, missing))}")
    if extra := given.keys() - expected.keys():
        problems.append(f"left over {listing(map(released_name, extra))}")
    shapes = [
        f"{released_name(name)} is {tuple(given[name])}, expected {tuple(expected[name])}"
        for name in sorted(expected.keys() & given.keys())
        if expected[name] != given[name]
    ]
    if shapes:
        problems.append("; ".join(shapes[:6]))
    return problems
