"""The model card, one anatomy for trained and converted models.

What is not known, not stated or not measured is left out or said to be so; nothing is filled in.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..errors import ConfigError
from ..files import atomic_file
from .evaluations import Record, check_record, model_index, number_text, results_table
from .licenses import License
from .loading_code import loading_code
from .parts import count_parameters, parts_of, skeleton_of, weight_bytes

CARD = "README.md"
PICTURE = "samples.png"
#: Stands in the card's code until the model is pushed.
PLACE = "FOLDER_OR_HUB_ID"
_TEMPLATE = Path(__file__).parent / "card_template.md"
_SCORES, _LICENSES, _SPEED, _LOADING = "Scores", "Licences", "Memory and speed", "How to load"


@dataclass(frozen=True)
class Measurement:
    """Something that was measured.

    Args:
        what: of what, and how.
        value: with its unit.
        machine: where.
    """

    what: str
    value: str
    machine: str


@dataclass(kw_only=True)
class CardFacts:
    """What a card tells beside what the model itself shows.

    Args:
        title: first line; class and size when not given.
        description: a paragraph.
        license: of the weights.
        code_license: of the reference implementation, for converted weights.
        system: name of the published system, for tags and citation.
        system_title: its full name.
        paper: arXiv id of its paper.
        base_model: Hub ids of what the weights were made from.
        stage: the command that trained the model.
        tags: further tags.
        datasets: Hub ids, or names of data cards.
        records: evaluations, see `evaluations`.
        measurements: speed and memory, as measured.
        metrics: last values of the training's own metrics.
        recipe: the resolved recipe.
        picture: a PNG grid, copied beside the card.
    """

    title: str | None = None
    description: str | None = None
    license: License = field(default_factory=License)
    code_license: str | None = None
    system: str | None = None
    system_title: str | None = None
    paper: str | None = None
    base_model: Sequence[str] = ()
    stage: str | None = None
    tags: Sequence[str] = ()
    datasets: Sequence[str] = ()
    records: Sequence[Record] = ()
    measurements: Sequence[Measurement] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    picture: str | Path | None = None


def write_card(folder: str | Path, model: Any, facts: CardFacts) -> Path:
    """Writes `README.md` beside a saved model, atomically.

    Args:
        folder: of the saved model.
        model: the model, for its config and class.
        facts: all else.

    Raises:
        ConfigError: a rate without its n and interval.
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    text = str(build_card(model, facts, has_processor=(folder / "processor_config.json").is_file()))
    if facts.picture is not None:
        with atomic_file(folder / PICTURE, "wb") as file:
            file.write(Path(facts.picture).read_bytes())
    with atomic_file(folder / CARD) as file:
        file.write(text)
    return folder / CARD


def build_card(model: Any, facts: CardFacts, *, has_processor: bool = False) -> ModelCard:
    """The card of a model.

    Args:
        model: the model, for its config and class; its weights may be sharded, quantised or on the meta device.
        facts: what the model does not show.
        has_processor: a processor is saved beside it.

    Raises:
        ConfigError: a rate without its n and interval.
    """
    for record in facts.records:
        check_record(record)
    # Sharded and packed weights would be counted wrongly.
    skeleton = skeleton_of(model.config)
    kind, parameters = type(skeleton).__name__, count_parameters(skeleton)
    title = facts.title or f"{kind}, {_counted(parameters)} parameters"
    task = pipeline_tag(skeleton)
    tags = ["unimm", *filter(None, [facts.stage, facts.system]), *facts.tags]
    results = [result for record in facts.records for result in model_index(record, task or "image-generation")]
    data = ModelCardData(
        library_name="unimm",
        pipeline_tag=task,
        tags=tags,
        datasets=[one for one in facts.datasets if "/" in one] or None,
        base_model=list(facts.base_model) or None,
        model_name=title if results else None,
        eval_results=results or None,
        **facts.license.header,
    )
    description = facts.description or f"A `{kind}` with {parameters:,} parameters."
    if facts.datasets:
        description += f"\n\nTrained on: {', '.join(facts.datasets)}."
    sections = {
        "Parts": _parts_section(skeleton),
        _SPEED: _speed_section(skeleton, facts.measurements),
        _SCORES: scores_section(facts.records),
        "Training": _training_section(facts),
        _LOADING: _loading_section(skeleton, has_processor),
        _LICENSES: _licenses_section(facts.license, facts.code_license),
        "Citation": _citation_section(facts),
        "Recipe": _recipe_section(facts),
    }
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=title,
        description=description,
        picture=PICTURE if facts.picture is not None else None,
        sections=[(name, text) for name, text in sections.items() if text],
    )


def revise_card(
    card: ModelCard,
    *,
    license: License,
    place: str,
    records: Sequence[Record] = (),
    measurements: Sequence[Measurement] = (),
    skeleton: Any = None,
) -> ModelCard:
    """A card brought up to date for its place on the Hub: licence, scores, measurements, and the id in its code.

    Args:
        card: the card; one from elsewhere gets the header's licence and results, and sections for scores and measurements.
        license: of the weights.
        place: Hub id.
        records: evaluations, which replace those of the card; none leave them.
        measurements: replace those of the card; none leave them.
        skeleton: the model on the meta device, needed for measurements.
    """
    revised = ModelCard(str(card))
    for name, value in license.header.items():
        revised.data[name] = value
    line = _license_line(license)
    revised.text = re.sub(r"^- Weights: .*$", lambda found: line, revised.text, count=1, flags=re.MULTILINE)
    if records:
        task = revised.data.get("pipeline_tag") or "image-generation"
        revised.data["eval_results"] = [result for record in records for result in model_index(record, task)]
        heading = re.search(r"^# (.+)$", revised.text, flags=re.MULTILINE)
        revised.data["model_name"] = revised.data.get("model_name") or (heading[1] if heading else place)
        revised.text = _with_section(revised.text, _SCORES, scores_section(records))
    if measurements:
        revised.text = _with_section(revised.text, _SPEED, _speed_section(skeleton, measurements))
    revised.text = revised.text.replace(PLACE, place)
    return revised


def read_card(path: str | Path) -> ModelCard:
    """A card from a file.

    Raises:
        ConfigError: its header is no valid YAML.
    """
    try:
        return ModelCard(Path(path).read_text(encoding="utf-8"))
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"the header of the card '{path}' cannot be read: {error}") from error


def pipeline_tag(model: Any) -> str | None:
    """The Hub's name for what a model does; None for a part alone."""
    outputs = getattr(model, "output_modalities", None) or ()
    if "text" in outputs and "image" in outputs:
        return "any-to-any"
    if hasattr(model, "condition"):
        return "unconditional-image-generation" if "labels" in model.condition.input_names else "text-to-image"
    return "image-feature-extraction" if hasattr(model, "layout_for") else None


def scores_section(records: Sequence[Record]) -> str:
    """All records as Markdown."""
    return "\n\n".join(results_table(record) for record in records)


def _parts_section(model: Any) -> str:
    lines = ["| axis | choice | sizes | parameters |", "|---|---|---|---|"]
    parts = parts_of(model)
    for part in parts:
        count = f"{part.num_parameters:,}" if part.num_parameters else "none"
        lines.append(f"| {part.axis} | `{part.choice}` | {part.sizes} | {count} |")
    if len(parts) > 1:
        lines.append(f"| all | `{type(model).__name__}` | | {count_parameters(model):,} |")
    layout = getattr(model, "layout", None)
    if layout is not None:
        height, width = model.config.height_and_width
        lines.append(f"\n{layout.length} tokens per picture of {height}x{width} pixels ({layout}).")
    return "\n".join(lines)


def _speed_section(model: Any, measurements: Sequence[Measurement]) -> str:
    lines = ["| | | |", "|---|---|---|"]
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        lines.append(f"| weights in {name} | {size_text(weight_bytes(model, dtype))} | computed |")
    lines += [f"| {one.what} | {one.value} | measured: {one.machine} |" for one in measurements]
    return "\n".join(lines)


def _training_section(facts: CardFacts) -> str:
    if not facts.metrics:
        return ""
    lines = "\n".join(f"| {name} | {number_text(value)} |" for name, value in facts.metrics.items())
    return f"| last value of | |\n|---|---|\n{lines}"


def _loading_section(model: Any, has_processor: bool) -> str:
    return (
        f"```python\n{loading_code(model, has_processor, PLACE)}```\n\nWithout `import unimm`, pass `trust_remote_code=True` "
        "to `from_pretrained`: the classes then come from the installed package all the same (`pip install unimm`)."
    )


def _license_line(license: License) -> str:
    return f"- Weights: {license}"


def _licenses_section(license: License, code_license: str | None) -> str:
    lines = [_license_line(license), "- Code: unimm, Apache-2.0"]
    if code_license:
        lines.append(f"- Reference implementation, of which no code is used: {code_license}")
    return "\n".join(lines)


def _citation_section(facts: CardFacts) -> str:
    if not facts.paper:
        return ""
    name = facts.system_title or facts.system or facts.paper
    entry = (
        f"@misc{{{facts.system or 'paper'},\n  eprint = {{{facts.paper}}},\n  archivePrefix = {{arXiv}},\n"
        f"  url = {{https://arxiv.org/abs/{facts.paper}}}\n}}"
    )
    return f"[{name}](https://huggingface.co/papers/{facts.paper})\n\n```bibtex\n{entry}\n```"


def _recipe_section(facts: CardFacts) -> str:
    if facts.recipe is None:
        return ""
    dumped = yaml.safe_dump(dict(facts.recipe), sort_keys=False, allow_unicode=True, width=100)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch"))
    return f"`unimm {facts.stage} --config recipe.yaml` ({versions}) with\n\n```yaml\n{dumped}```"


def _with_section(text: str, name: str, body: str) -> str:
    """The card's text with the section replaced, or added before the loading code."""
    section = f"## {name}\n\n{body}\n\n"
    found = re.search(rf"^## {re.escape(name)}\n.*?(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    if found is not None:
        return text[: found.start()] + section + text[found.end() :]
    following = re.search(rf"^## {_LOADING}\n", text, flags=re.MULTILINE)
    position = following.start() if following else len(text)
    before = text[:position].rstrip("\n")
    return (before + "\n\n" if before else "") + section + text[position:]


def size_text(num_bytes: int) -> str:
    """Bytes for readers, in powers of a thousand as the Hub shows them."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"


def _counted(number: int) -> str:
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)
