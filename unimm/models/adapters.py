"""Adapters of peft, with the layers that they are put on where a config names none."""

from __future__ import annotations

import contextlib
import copy
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError

#: transformers 5.24 asks for peft 0.22, which is not out. What its adapter methods use is there from this version on, as the
#: tests of this module show; with a peft that transformers accepts by itself nothing is changed.
TESTED_PEFT_VERSION = "0.21.0"
_ADAPTER_METHODS = (
    "active_adapters",
    "delete_adapter",
    "disable_adapters",
    "enable_adapters",
    "get_adapter_state_dict",
    "load_adapter",
    "set_adapter",
)


class AdapterMixin:
    """Put before `PreTrainedModel` among a model's bases; `_adapted_module` names the part that adapters go on."""

    _adapted_module: ClassVar[str]

    @property
    def default_adapter_targets(self) -> str:
        """A pattern of the backbone's attention and feed-forward layers, for `LoraConfig(target_modules=…)`.

        The visual tokenizer, modulations, embeddings and heads stay as they are.
        """
        assert isinstance(self, PreTrainedModel)
        output = self.get_output_embeddings()
        names = {
            name.rpartition(".")[2]
            for name, module in self.get_submodule(self._adapted_module).named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not output and "modulation" not in name
        }
        return rf"{re.escape(self._adapted_module)}\..*\.({'|'.join(sorted(names))})"

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """As transformers' `add_adapter`; a config without `target_modules` gets `default_adapter_targets`.

        Raises:
            ConfigError: no config of peft.
        """
        from peft import PeftConfig

        if not isinstance(adapter_config, PeftConfig):
            raise ConfigError(f"an adapter needs a config of peft, such as LoraConfig(), given {adapter_config!r}")
        if getattr(adapter_config, "target_modules", "") is None:
            adapter_config = copy.deepcopy(adapter_config)
            adapter_config.target_modules = self.default_adapter_targets
        with _accepting_tested_peft():
            super().add_adapter(adapter_config, adapter_name)  # type: ignore[misc]


def _accepting(name: str) -> Callable[..., Any]:
    """transformers' method of that name, with the peft that it was tested with here."""

    @functools.wraps(getattr(PreTrainedModel, name))
    def method(self: AdapterMixin, *args: Any, **kwargs: Any) -> Any:
        with _accepting_tested_peft():
            return getattr(super(AdapterMixin, self), name)(*args, **kwargs)

    return method


for _name in _ADAPTER_METHODS:
    setattr(AdapterMixin, _name, _accepting(_name))


@contextlib.contextmanager
def _accepting_tested_peft() -> Iterator[None]:
    from transformers.integrations import peft as integration

    required = integration.MIN_PEFT_VERSION
    integration.MIN_PEFT_VERSION = min(required, TESTED_PEFT_VERSION, key=_numbers)
    try:
        yield
    finally:
        integration.MIN_PEFT_VERSION = required


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
