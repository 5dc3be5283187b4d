"""What every preset takes in memory: weights, cache and activations, told from its config; and measured for small ones.

    python benchmarks/memory.py [--measure] [--tiles] [--json FILE] [--docs]

`--measure` draws one guided picture in float32 with random weights and reads the process's peak, in a process of its own
for each preset of at most `--largest` million parameters. `--tiles` does the same for a picture of 1024 pixels decoded
whole, in tiles and in exact tiles. `--docs` writes the tables of a JSON file into docs/memory.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from unimm.files import atomic_file, write_json
from unimm.memory import IMAGE_SIZE, describe_generation, measure_peak, megabytes
from unimm.models.building import override_config
from unimm.systems import get_system, system_names
from unimm.tokens import VisualTokens

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "memory.md"
LARGE = 1024
TILINGS: dict[str, dict[str, Any] | None] = {"whole": None, "tiles": {}, "exact tiles": {"exact": True}}
VERSIONS = ("torch", "transformers", "diffusers", "bitsandbytes")


def told(system: str, preset: str) -> dict[str, Any]:
    """The figures of a preset, in bytes."""
    config = get_system(system).preset(preset).config()
    half, full = describe_generation(config), describe_generation(config, torch.float32)
    return {
        "system": system,
        "preset": preset,
        "parameters": half.num_parameters,
        "quantized": half.num_quantized,
        "weights": dict(half.weights),
        "cache": half.cache,
        "step": half.step,
        "decoding": half.decoding,
        "total_float32": full.total("float32"),
    }


def resident_peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def large_tokenizer(base_channels: int) -> PreTrainedConfig:
    """LlamaGen's VQ-16, narrower where a run would take too long."""
    config = get_system("llamagen").preset("vq-16").config()
    return override_config(config, {"base_channels": base_channels})


def draw(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """One guided picture, or one picture decoded by a tokenizer."""
    if hasattr(model, "condition"):
        inputs: dict[str, Any] = {"labels": [0]}
        if model.condition.input_names[0] != "labels":
            settings = config.condition_config
            inputs = {"text_features": torch.zeros(1, settings.length, settings.feature_size)}
        model.generate(**inputs, guidance_scale=2.0, generator=torch.Generator().manual_seed(0))
        return
    layout = model.layout_for(IMAGE_SIZE, IMAGE_SIZE)
    model.decode(VisualTokens(layout, ids=torch.zeros(1, layout.length, dtype=torch.long)))


def run_preset(name: str) -> dict[str, Any]:
    """Peaks of this process: before the model, with it, and after a picture."""
    system, preset = name.split(":")
    config = get_system(system).preset(preset).config()
    before = resident_peak()
    model = AutoModel.from_config(config).eval()
    built = resident_peak()
    with torch.no_grad():
        draw(model, config)
    return {"before": before, "built": built, "drawn": resident_peak()}


def run_large(kind: str, base_channels: int, output: str) -> dict[str, Any]:
    """Peaks and seconds of decoding a large picture; the picture is written to `output`."""
    torch.manual_seed(0)
    model = AutoModel.from_config(large_tokenizer(base_channels)).eval()
    options = TILINGS[kind]
    if options is not None:
        model.enable_tiling(**options)
    side = LARGE // model.stride
    features = torch.randn(1, model.latent_channels, side // 8, side // 8)
    features = torch.nn.functional.interpolate(features, size=(side, side), mode="bicubic")
    before = resident_peak()
    start = time.perf_counter()
    with torch.no_grad():
        pixels = model.decode_features(features)
    seconds = time.perf_counter() - start
    torch.save(pixels, output)
    return {"before": before, "decoded": resident_peak(), "seconds": seconds}


def in_own_process(*words: str) -> dict[str, Any]:
    """The answer of this script, run with other words on one thread."""
    command = [sys.executable, __file__, *words]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return json.loads(ran.stdout.splitlines()[-1])


def measure_tiles(base_channels: int) -> list[dict[str, Any]]:
    """A row per way of decoding a large picture: told and measured peaks, seconds, and the difference from the whole."""
    rows: list[dict[str, Any]] = []
    whole: torch.Tensor | None = None
    for kind, options in TILINGS.items():
        row: dict[str, Any] = {"kind": kind, "base_channels": base_channels}
        for name, channels in (("told", base_channels), ("told_full_width", 128)):
            with torch.device("meta"):
                model = AutoModel.from_config(large_tokenizer(channels)).eval()
            # The runs that collect statistics hold no more than the one after them.
            if options is not None:
                model.enable_tiling()
            side = LARGE // model.stride
            features = torch.empty(1, model.latent_channels, side, side, device="meta")
            row[name] = measure_peak(lambda model=model, features=features: model.decode_features(features))
        with tempfile.TemporaryDirectory() as folder:
            output = str(Path(folder) / "pixels.pt")
            ran = in_own_process("--run_large", kind, str(base_channels), output)
            pixels = torch.load(output, weights_only=True)
        whole = pixels if whole is None else whole
        difference = (pixels - whole).abs() / whole.std()
        row |= {"measured": ran["decoded"] - ran["before"], "seconds": ran["seconds"]}
        row |= {"mean_difference": float(difference.mean()), "largest_difference": float(difference.max())}
        rows.append(row)
    return rows


def machine() -> dict[str, Any]:
    """Where and with what the figures were made."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if (cpuinfo.is_file())
        else []
    )
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/memory.py", *sys.argv[1:]]),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "threads": 1,
        "versions": {name: version(name) for name in VERSIONS},
    }


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with numbers aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def presets_table(record: dict[str, Any]) -> str:
    """Figures of all presets, in MB."""
    rows = []
    for row in record["presets"]:
        weights = [megabytes(row["weights"][kind]) for kind in ("float32", "bfloat16", "int8", "nf4")]
        if not row["quantized"]:
            weights[2:] = ["–", "–"]
        peak = row.get("measured")
        rows.append(
            [
                f"{row['system']} `{row['preset']}`",
                f"{row['parameters'] / 1e6:,.0f}M",
                *weights,
                *(megabytes(row[name]) if row[name] else "–" for name in ("cache", "step", "decoding")),
                megabytes(row["total_float32"]),
                "–" if peak is None else megabytes(peak["drawn"] - peak["before"]),
            ]
        )
    header = [
        "preset",
        "parameters",
        "fp32",
        "bf16",
        "int8",
        "nf4",
        "cache",
        "step",
        "decoding",
        "fp32 told",
        "measured",
    ]
    return markdown(header, rows)


def tiles_table(record: dict[str, Any]) -> str:
    """The large picture, in MB."""
    rows = [
        [
            row["kind"],
            megabytes(row["told_full_width"]),
            megabytes(row["told"]),
            megabytes(row["measured"]),
            f"{row['seconds']:.0f} s",
            f"{row['mean_difference']:.1e}",
            f"{row['largest_difference']:.1e}",
        ]
        for row in record["tiles"]
    ]
    width = record["tiles"][0]["base_channels"]
    header = ["decoded", "told, width 128", f"told, width {width}", f"measured, width {width}", "time"]
    return markdown([*header, "mean difference", "largest difference"], rows)


def write_docs(record: dict[str, Any], page: Path = PAGE) -> None:
    """Puts the tables between the page's markers."""
    text = page.read_text()
    made = f"{record['date']}, {record['processor']}, one thread; " + ", ".join(
        f"{name} {number}" for name, number in record["versions"].items()
    )
    tables = {"presets": f"{presets_table(record)}\n\n{made}."}
    if "tiles" in record:
        tables["tiles"] = tiles_table(record)
    for name, table in tables.items():
        before, opening, rest = text.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        if not opening or not closing:
            raise SystemExit(f"{page} needs <!-- {name} --> and <!-- /{name} -->, each on a line of its own")
        text = f"{before}{opening}{table}\n{closing}{after}"
    with atomic_file(page) as file:
        file.write(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="also measure the small presets")
    parser.add_argument("--largest", type=float, default=400, help="millions of parameters of the largest one measured")
    parser.add_argument("--tiles", action="store_true", help="also decode a large picture whole and in tiles")
    parser.add_argument("--width", type=int, default=32, help="base channels of the tokenizer that decodes it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--docs", action="store_true", help="write the tables of --json, as it is, into docs/memory.md")
    parser.add_argument("--run_preset", help=argparse.SUPPRESS)
    parser.add_argument("--run_large", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    write = sys.stdout.write
    if chosen.run_preset:
        write(json.dumps(run_preset(chosen.run_preset)) + "\n")
        return
    if chosen.run_large:
        kind, channels, output = chosen.run_large
        write(json.dumps(run_large(kind, int(channels), output)) + "\n")
        return
    if chosen.docs:
        if chosen.json is None:
            parser.error("--docs needs the --json FILE whose figures it writes")
        write_docs(json.loads(chosen.json.read_text()))
        return

    record: dict[str, Any] = {**machine(), "presets": []}
    for system in system_names():
        for preset in get_system(system).presets:
            row = told(system, preset)
            if chosen.measure and row["parameters"] <= chosen.largest * 1e6:
                row["measured"] = in_own_process("--run_preset", f"{system}:{preset}")
            record["presets"].append(row)
    write(presets_table(record) + "\n")
    if chosen.tiles:
        record["tiles"] = measure_tiles(chosen.width)
        write("\n" + tiles_table(record) + "\n")
    if chosen.json is not None:
        write_json(chosen.json, record)


if __name__ == "__main__":
    main()
