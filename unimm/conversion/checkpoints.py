"""Released files in, `from_pretrained` folders out, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..errors import CheckpointError, ConfigError
from ..files import atomic_file, atomic_folder, check_output
from ..hub.cards import CardFacts, write_card
from ..hub.licenses import License
from ..models.building import replace_fields
from .base import Converter, System, compare_keys, load_released

_EXPORTED = (".safetensors", ".pt", ".pth")


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Tensors (and whatever wraps them) of a released file or folder.

    Args:
        path: a `.safetensors`, `.pt`, `.pth` or `.bin` file, an index of shards (`*.index.json`), or a folder with one
            of these. Pickled files are read with `weights_only=True`: nothing in them is executed.

    Raises:
        CheckpointError: no such file, another format, or a file that holds more than weights.
    """
    path = Path(path)
    if path.is_dir():
        candidates = sorted(path.glob("*.index.json")) or sorted(path.glob("*.safetensors"))
        candidates = candidates or sorted(path.glob("*.pt")) + sorted(path.glob("*.pth")) + sorted(path.glob("*.bin"))
        if len(candidates) != 1:
            raise CheckpointError(
                f"'{path}' should hold one checkpoint, found {[file.name for file in candidates] or 'none'}: name the file"
            )
        path = candidates[0]
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at '{path}'")
    if path.name.endswith(".index.json"):
        try:
            shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"'{path}' is no index of shards: it needs a weight_map of keys to files") from error
        merged: dict[str, Any] = {}
        for shard in shards:
            merged |= read_checkpoint(path.parent / shard)
        return merged
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:
            raise CheckpointError(f"'{path}' is no valid safetensors file: {error}") from error
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise CheckpointError(
                f"'{path}' cannot be read with weights_only=True ({str(error).splitlines()[0]}); files that need arbitrary "
                "code to load are refused: save the bare state dict, best as safetensors"
            ) from error
    raise CheckpointError(
        f"'{path}' has the ending '{path.suffix}', expected .safetensors, .pt, .pth, .bin or an index"
    )


def infer_preset(system: System, state: Mapping[str, torch.Tensor], wanted: str | None = None) -> str:
    """The preset whose shapes are those of a released state dict.

    Raises:
        CheckpointError: none fits; the message says how the nearest one differs.
    """
    if wanted is not None:
        system.preset(wanted)
        return wanted
    nearest_preset, fewest, problems = "", float("inf"), [""]
    for name, preset in system.presets.items():
        config = preset.config()
        converter = system.converter(config)
        try:
            ours = {key: tensor.shape for key, tensor in converter.to_ours(state).items()}
        except CheckpointError as error:
            nearest_preset, problems = nearest_preset or name, [str(error)] if fewest == float("inf") else problems
            continue
        with torch.device("meta"):
            expected = {key: tensor.shape for key, tensor in AutoModel.from_config(config).state_dict().items()}
        # A tokenizer in a file of its own is no difference here.
        expected = {
            key: shape
            for key, shape in expected.items()
            if not key.startswith("tokenizer.") or any(given.startswith("tokenizer.") for given in ours)
        }
        differing = sum(expected.get(key) != ours.get(key) for key in expected.keys() | ours.keys())
        if differing == 0:
            return name
        if differing < fewest:
            nearest_preset, fewest, problems = name, differing, compare_keys(expected, ours, converter)
    raise CheckpointError(
        f"no preset of {system.name} has the shapes of this checkpoint; the nearest is '{nearest_preset}': "
        + "; ".join(problems)
    )


def convert(
    system: System,
    checkpoint: str | Path,
    output: str | Path,
    *,
    tokenizer: str | Path | None = None,
    preset: str | None = None,
    config: PreTrainedConfig | None = None,
    license: License | None = None,
) -> PreTrainedModel:
    """Writes a folder that `from_pretrained` loads.

    Args:
        checkpoint: released file of a generator or a tokenizer.
        output: folder to write; an existing model's is replaced once the conversion has succeeded, another one refused.
        tokenizer: released file of the visual tokenizer, where it is apart from the generator's.
        preset: named size; by default the one whose shapes fit.
        config: a config instead of a preset, for checkpoints of other sizes.
        license: of the weights; what the system's file says of its release when not given.

    Raises:
        CheckpointError: files that do not fit.
        OutputError: the folder cannot be written.
    """
    check_output(Path(output) / "config.json")
    state = _unwrapped(system, read_checkpoint(checkpoint), config)
    sampling: Mapping[str, Any] = {}
    sources: list[str] = []
    if config is None:
        chosen = system.preset(infer_preset(system, state, preset))
        config, sampling = chosen.config(), chosen.sampling
        sources.append(chosen.hub_id)
    if tokenizer is not None:
        tokenizer_state = _unwrapped(system, read_checkpoint(tokenizer), None)
        chosen = system.preset(infer_preset(system, tokenizer_state))
        tokenizer_config = chosen.config()
        sources.append(chosen.hub_id)
        config = _with_tokenizer(config, tokenizer_config)
        prefixed = {f"{system.tokenizer_prefix}{name}": tensor for name, tensor in tokenizer_state.items()}
        state = {**state, **prefixed}
    elif getattr(config, "tokenizer_config", None) is not None and not any(
        name.startswith(system.tokenizer_prefix) for name in state
    ):
        raise CheckpointError(
            f"{system.name} keeps its visual tokenizer in a file of its own and this model cannot work without it: give "
            "that file with --tokenizer"
        )
    model = load_released(system, config, state)
    if sampling:
        model.set_image_sampling(**sampling)
    with atomic_folder(output, mark="config.json") as folder:
        model.save_pretrained(folder)
        write_card(folder, model, card_facts(system, sources, license))
    return model


def _unwrapped(
    system: System, checkpoint: Mapping[str, Any], config: PreTrainedConfig | None
) -> Mapping[str, torch.Tensor]:
    config = config or next(iter(system.presets.values())).config()
    return system.converter(config).unwrap(checkpoint)


def _with_tokenizer(config: PreTrainedConfig, tokenizer_config: PreTrainedConfig) -> PreTrainedConfig:
    if not hasattr(config, "tokenizer_config"):
        raise ConfigError("--tokenizer goes with a generator's checkpoint; this one is a tokenizer itself")
    own_tokens = {"token_layout": None, "codebook_size": None, "latent_channels": None}
    return replace_fields(config, tokenizer_config=tokenizer_config.to_dict(), **own_tokens)


def export(
    system: System, model: PreTrainedModel, output: str | Path, *, tokenizer_output: str | Path | None = None
) -> None:
    """Writes a model's weights under the released names, bit for bit, without the keys that the converter ignores.

    Args:
        output: a `.safetensors`, `.pt` or `.pth` file.
        tokenizer_output: file for the visual tokenizer's keys, as released; without it they stay in `output` under
            their prefix.

    Raises:
        CheckpointError: a model of another system, or another file ending.
        ConfigError: one file for both.
        OutputError: a file cannot be written.
    """
    for path in (output, *(() if tokenizer_output is None else (tokenizer_output,))):
        if Path(path).suffix not in _EXPORTED:
            raise CheckpointError(f"'{path}' must end in {', '.join(_EXPORTED[:-1])} or {_EXPORTED[-1]}")
        check_output(path)
    if tokenizer_output is not None and Path(tokenizer_output).absolute() == Path(output).absolute():
        raise ConfigError(f"the model and its tokenizer go into two files, given '{output}' for both")
    try:
        released = system.converter(model.config).to_released(model.state_dict())
    except AttributeError as error:
        # A converter reads the fields of its own system's configs.
        raise CheckpointError(
            f"a {type(model).__name__} with these parts is no model of {system.name}: {error}"
        ) from error
    prefix = system.tokenizer_prefix
    if tokenizer_output is not None:
        own = {name.removeprefix(prefix): tensor for name, tensor in released.items() if name.startswith(prefix)}
        if not own:
            raise CheckpointError(f"the model has no visual tokenizer to write to '{tokenizer_output}'")
        _write(own, tokenizer_output)
        released = {name: tensor for name, tensor in released.items() if not name.startswith(prefix)}
    _write(released, output)


def _write(state: Mapping[str, torch.Tensor], output: str | Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    with atomic_file(output, "wb") as file:
        if Path(output).suffix == ".safetensors":
            save_file(state, file.name)
        else:
            torch.save(dict(state), file)


def card_facts(system: System, sources: Sequence[str] = (), license: License | None = None) -> CardFacts:
    """What the card of converted weights tells: whose they are, and under which licences.

    Args:
        system: the system.
        sources: Hub ids of the released files.
        license: of the weights; what the system's file says of its release when not given.
    """
    return CardFacts(
        title=f"{system.title}, converted for unimm",
        description=f"Weights of [{system.title}](https://huggingface.co/papers/{system.paper}), renamed and not otherwise "
        "changed.",
        license=license or License.released(system.weights_license),
        code_license=system.code_license,
        system=system.name,
        system_title=system.title,
        paper=system.paper,
        base_model=sorted({one for one in sources if one}),
    )


__all__ = ["Converter", "convert", "export", "infer_preset", "read_checkpoint"]
