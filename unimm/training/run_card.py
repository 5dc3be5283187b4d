"""The model card of a run: what it is, what was measured, how it was made, how to load it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from ..errors import ConfigError
from ..files import atomic_file

_PIPELINES = {
    "UniMMForConditionalGeneration": "any-to-any",
    "UniMMForImageGeneration": "unconditional-image-generation",
}
_PICTURE = "samples.png"


def write_run_card(
    folder: str | Path,
    model: Any,
    recipe: Mapping[str, Any],
    *,
    stage: str,
    title: str | None = None,
    license: str = "apache-2.0",
    tags: Sequence[str] = (),
    datasets: Sequence[str] = (),
    description: str | None = None,
    results: Mapping[str, Mapping[str, Any]] | None = None,
    metrics: Mapping[str, float] | None = None,
    picture: str | Path | None = None,
) -> Path:
    """Writes `README.md` beside a saved model, atomically.

    Args:
        folder: of the saved model.
        model: the model, for its class and size.
        recipe: the resolved recipe.
        stage: the command that ran it.
        title: first line.
        license: of the weights, as the Hub spells it.
        tags: further tags.
        datasets: Hub ids or names of data cards.
        description: a paragraph.
        results: measured rates by name, each `{"right" or "value", "n", "interval": (low, high)}`.
        metrics: last values of the training's own metrics.
        picture: a PNG grid, copied beside the card.

    Raises:
        ConfigError: a rate without its n and interval.
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    kind = type(model).__name__
    takes_text = getattr(getattr(model, "condition", None), "takes_text", False)
    header = ModelCardData(
        library_name="unimm",
        license=license,
        pipeline_tag="text-to-image" if takes_text else _PIPELINES.get(kind, "image-feature-extraction"),
        tags=["unimm", stage, *(tag for tag in tags if tag not in ("unimm", stage))],
        datasets=[one for one in datasets if "/" in one] or None,
    ).to_yaml(line_break="\n")
    parameters = sum(one.numel() for one in model.parameters())
    name = title or f"{kind}, {_counted(parameters)} parameters"
    sections = [
        f"---\n{header}\n---\n",
        f"# {name}\n",
        f"{description or f'A `{kind}` with {parameters:,} parameters, trained with `unimm {stage}`.'}\n",
    ]
    if datasets:
        sections.append(f"Trained on: {', '.join(datasets)}.\n")
    if picture is not None:
        with atomic_file(folder / _PICTURE, "wb") as file:
            file.write(Path(picture).read_bytes())
        sections.append(f"![pictures drawn at the end of the training]({_PICTURE})\n")
    if results:
        sections.append(f"## Measured\n\n{results_table(results)}\n")
    if metrics:
        lines = "\n".join(f"| {key} | {_number(value)} |" for key, value in metrics.items())
        sections.append(f"## Training\n\n| last value of | |\n|---|---|\n{lines}\n")
    sections.append(f"## Load it\n\n```python\n{_loading(kind, takes_text)}```\n")
    dumped = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100)
    sections.append(f"## Recipe\n\n`unimm {stage} --config recipe.yaml` with\n\n```yaml\n{dumped}```\n")
    with atomic_file(folder / "README.md") as file:
        file.write("\n".join(sections))
    return folder / "README.md"


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Measured rates as a Markdown table; every one with its n and 95 % interval.

    Raises:
        ConfigError: a rate without its n and interval.
    """
    lines = ["| what | measured | 95 % interval | n |", "|---|---|---|---|"]
    for name, result in results.items():
        value = result.get("right", result.get("value"))
        if value is None or "n" not in result or "interval" not in result:
            raise ConfigError(
                f"the result '{name}' needs 'right' (a rate) or 'value', 'n' and 'interval', given {sorted(result)}"
            )
        low, high = result["interval"]
        show = (lambda number: f"{number:.1%}") if "right" in result else _number
        lines.append(f"| {name} | {show(value)} | {show(low)} to {show(high)} | {result['n']:,} |")
    return "\n".join(lines)


def _loading(kind: str, takes_text: bool) -> str:
    start = "import unimm  # registers the classes\nfrom transformers import AutoModel"
    load = 'model = AutoModel.from_pretrained("FOLDER_OR_HUB_ID")'
    if kind == "UniMMForConditionalGeneration":
        return f'{start}, AutoProcessor\n\n{load}\nprocessor = AutoProcessor.from_pretrained("FOLDER_OR_HUB_ID")\n'
    if kind == "UniMMForImageGeneration":
        given = 'prompt=["a red circle"]' if takes_text else "labels=[0, 1]"
        return f"{start}\n\n{load}\npixels = model.generate({given}).images\n"
    return f"{start}\n\n{load}\ntokens = model.encode(pixel_values)\npixels = model.decode(tokens)\n"


def _counted(number: int) -> str:
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
