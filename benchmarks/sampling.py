"""What caches and the plan are worth in sampling: seconds per batch of pictures, medians, in one process.

    python benchmarks/sampling.py [--batch 8] [--repeats 5] [--json FILE]

The baseline of each row is named in it; ratios above 1 mean faster than the baseline.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModel

from unimm.files import write_json
from unimm.models.building import override_config
from unimm.systems import get_system


def median_seconds(model: torch.nn.Module, repeats: int, batch: int, **options: object) -> float:
    labels, times = list(range(batch)), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model.generate(labels=labels, guidance_scale=2.0, generator=torch.Generator().manual_seed(0), **options)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()

    small = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    raster = get_system("llamagen").preset("c2i-B-256").config()
    raster = override_config(raster, {"backbone_config": {**small, "num_key_value_heads": 4, "intermediate_size": 768}})
    scale = get_system("var").preset("d16").config()
    scale = override_config(scale, {"backbone_config": {**small, "intermediate_size": 1024}})
    rows = []
    for name, config in (("raster, 256 tokens", raster), ("scale, 680 tokens", scale)):
        model = AutoModel.from_config(config).eval()
        if model.tokenizer is not None:
            # The same decoder would hide what is measured here.
            model.tokenizer.decode_canvas = lambda canvas: canvas
        seconds = {
            "no cache": median_seconds(model, max(1, chosen.repeats // 3), chosen.batch, use_cache=False),
            "dynamic cache": median_seconds(model, chosen.repeats, chosen.batch, cache_implementation="dynamic"),
            "exact static cache": median_seconds(model, chosen.repeats, chosen.batch),
        }
        for kind, value in seconds.items():
            rows.append({"model": name, "kind": kind, "seconds": value, "ratio": seconds["dynamic cache"] / value})

    table = Table("model", "kind", "seconds", "times as fast as the dynamic cache")
    for row in rows:
        table.add_row(row["model"], row["kind"], f"{row['seconds']:.3f}", f"{row['ratio']:.2f}")
    Console().print(table)
    if chosen.json is not None:
        machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        write_json(chosen.json, {"batch": chosen.batch, "rows": rows, **machine, **versions})


if __name__ == "__main__":
    main()
