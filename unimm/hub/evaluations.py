"""Judged rates for readers and for machines: the card's table, its `model-index`, and `.eval_results/*.yaml`.

A record is what `unimm evaluate` gives: `{"benchmark", "judge", "rows", "sampling"?, "options"?, "seed"?, "dataset"?}`, and
every row `{"right" or "value", "n", "interval": (low, high)}`. `dataset` is the Hub id of the data, None where it is not on
the Hub; a record without it is of a benchmark that is built into unimm.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from ..errors import ConfigError

Record = Mapping[str, Any]

#: The records of a model's folder.
FILES = "evaluation*.json"
RESULTS_FOLDER = ".eval_results"
_NEEDED = ("benchmark", "judge", "rows")


def read_records(folder: str | Path) -> list[Record]:
    """The records beside a model, from its `evaluation*.json`.

    Raises:
        ConfigError: a file that is no record, or a rate without its n and interval.
    """
    records = []
    for path in sorted(Path(folder).glob(FILES)):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"'{path}' is no valid JSON: {error}") from error
        records.append(check_record(record, str(path)))
    return records


def check_record(record: Any, where: str = "the record") -> Record:
    """The record, when it has all that a reader needs to believe it.

    Raises:
        ConfigError: a missing field, or a rate without its n and interval.
    """
    if not isinstance(record, Mapping) or any(name not in record for name in _NEEDED):
        raise ConfigError(
            f"{where} needs {', '.join(_NEEDED)} (as `unimm evaluate --out FILE` writes them), given "
            f"{sorted(record) if isinstance(record, Mapping) else type(record).__name__}"
        )
    for name, row in record["rows"].items():
        if _value(row) is None or "n" not in row or "interval" not in row:
            raise ConfigError(
                f"{where}: the result '{name}' needs 'right' (a rate) or 'value', 'n' and 'interval', given {sorted(row)}"
            )
    return record


def results_table(record: Record) -> str:
    """A record as Markdown: who judged, and every rate with its 95 % interval and n."""
    lines = ["| what | measured | 95 % interval | n |", "|---|---|---|---|"]
    for name, row in record["rows"].items():
        low, high = row["interval"]
        show = (lambda number: f"{number:.1%}") if "right" in row else number_text
        lines.append(f"| {name} | {show(_value(row))} | {show(low)} to {show(high)} | {row['n']:,} |")
    return f"{_headline(record)}\n\n" + "\n".join(lines)


def model_index(record: Record, task: str) -> list[EvalResult]:
    """A record for the card's header.

    Args:
        record: the record.
        task: the model's pipeline tag.
    """
    return [
        EvalResult(
            task_type=task,
            dataset_type=record.get("dataset") or slug(record["benchmark"]),
            dataset_name=record["benchmark"] + (" (built into unimm)" if "dataset" not in record else ""),
            metric_type="accuracy" if "right" in row else slug(name),
            metric_name=name,
            metric_value=_value(row),
            metric_args={"n": row["n"], "interval": list(row["interval"]), "judge": record["judge"]},
        )
        for name, row in record["rows"].items()
    ]


def results_files(records: Sequence[Record]) -> dict[str, str]:
    """Paths in the repository and YAML texts of the records, one file per benchmark; none for data that is not public.

    The built-in benchmarks are no data sets of the Hub: their id is `unimm/NAME`, and the notes say where they are.
    """
    files: dict[str, str] = {}
    for record in records:
        dataset = record.get("dataset", f"unimm/{slug(record['benchmark'])}")
        if dataset is None:
            continue
        where = "" if "dataset" in record else " The benchmark is built into the package unimm."
        entries = [
            EvalResultEntry(
                dataset_id=dataset,
                task_id=slug(name),
                value=_value(row),
                notes=f"{name}: n = {row['n']}, 95 % interval {number_text(row['interval'][0])} to "
                f"{number_text(row['interval'][1])}. {_headline(record)}{where}",
            )
            for name, row in record["rows"].items()
        ]
        text = yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        path = f"{RESULTS_FOLDER}/{slug(record['benchmark'])}.yaml"
        files[path] = files.get(path, "") + text
    return files


def slug(name: str) -> str:
    """Lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def number_text(value: Any) -> str:
    """Four significant digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _headline(record: Record) -> str:
    """Benchmark, judge and sampling options in one line."""
    parts = [f"Benchmark {record['benchmark']}, judged by {record['judge']}"]
    for name in ("sampling", "options"):
        if record.get(name):
            parts.append(f"{name} " + ", ".join(f"{key} = {value}" for key, value in record[name].items()))
    if "seed" in record:
        parts.append(f"seed {record['seed']}")
    return "; ".join(parts) + "."


def _value(row: Mapping[str, Any]) -> Any:
    return row.get("right", row.get("value"))
