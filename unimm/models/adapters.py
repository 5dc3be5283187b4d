"""Adapters of peft, with the layers that they are put on where a config names none."""

from __future__ import annotations

import copy
import re
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError


class AdapterMixin:
    """Put before `PreTrainedModel` among a model's bases; `_adapted_module` names the part that adapters go on."""

    _adapted_module: ClassVar[str]

    @property
    def default_adapter_targets(self) -> str:
        """A pattern of the backbone's attention and feed-forward layers, for `LoraConfig(target_modules=…)`.

        The visual tokenizer, modulations, embeddings and heads stay as they are.
        """
        assert isinstance(self, PreTrainedModel)
        layers = self.get_submodule(self._adapted_module)
        heads = {id(module) for module in (self.get_output_embeddings(),) if module is not None}
        names = {
            name.rpartition(".")[2]
            for name, module in layers.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and id(module) not in heads and "modulation" not in name
        }
        prefix = re.escape(self._adapted_module)
        return rf"{prefix}\..*\.({'|'.join(sorted(names))})"

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
        super().add_adapter(adapter_config, adapter_name)  # type: ignore[misc]
