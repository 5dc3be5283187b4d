"""The main job, end to end: trains a visual tokenizer and a unified model on Shapes, judges, saves and reloads it.

    make demo                      or  python examples/demo.py [--out out/demo] [--tiny]

Started again after an interruption, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from rich.console import Console

from unimm.files import atomic_file, write_json
from unimm.training.recipes import SftRecipe, TokenizerRecipe
from unimm.training.stages import run_sft, run_tokenizer

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = (
    "a red circle",
    "a blue star",
    "a green triangle",
    "a purple square",
    "a yellow cross",
    "a cyan diamond",
    "a pink star",
    "an orange circle",
    "a red circle left of a blue square",
    "a yellow star above a purple circle",
    "a green diamond below a pink square",
    "an orange triangle right of a cyan diamond",
    "a blue cross above a red triangle",
    "a pink circle right of a green star",
    "a purple square left of a yellow diamond",
    "a cyan circle below an orange cross",
)
QUESTIONS = ("what colour is the circle?", "how many circles are there?", "is there a red star?")


def main() -> None:
    run(recipes=ROOT / "recipes" / "demo", out=Path("out/demo"), prompts=PROMPTS, questions=QUESTIONS)


def run(recipes: Path, out: Path, prompts: Sequence[str], questions: Sequence[str]) -> None:
    """Trains the two recipes of a folder, judges, reloads and draws; `--out` and `--tiny` come from the command line."""
    arguments = argparse.ArgumentParser(description="Trains, judges, saves and reloads a unified model.")
    arguments.add_argument("--out", type=Path, default=out, help=f"folder of the results ({out})")
    arguments.add_argument("--tiny", action="store_true", help="two steps at toy sizes, to see that all parts run")
    chosen = arguments.parse_args()
    console, started = Console(), time.perf_counter()
    seconds: dict[str, float] = {}
    flags = ["--tiny"] if chosen.tiny else []

    def timed(name: str, start: float) -> None:
        seconds[name] = round(time.perf_counter() - start, 1)
        console.print(f"[bold]{name}[/]: {seconds[name]} s")

    start = time.perf_counter()
    words = ["--config", str(recipes / "tokenizer.yaml"), "--output_dir", str(chosen.out / "tokenizer"), *flags]
    tokenizer = run_tokenizer(TokenizerRecipe.parse(words))
    timed("tokenizer", start)

    start = time.perf_counter()
    words = ["--config", str(recipes / "unified.yaml"), "--output_dir", str(chosen.out / "unified")]
    words += ["--tokenizer", str(tokenizer.final), *flags]
    unified = run_sft(SftRecipe.parse(words))
    timed("unified model, trained and judged", start)

    start = time.perf_counter()
    sampling = SftRecipe.parse(words).evaluation.sampling
    reload_in_new_process(unified.final, chosen.out, prompts, questions, sampling)
    timed("reloaded in a new process, gallery drawn", start)

    plot_curves(chosen.out)
    seconds["in all"] = round(time.perf_counter() - started, 1)
    record = {"seconds": seconds, "tokenizer": tokenizer.results, "unified": unified.results}
    write_json(chosen.out / "results.json", record)
    with atomic_file(chosen.out / "table.md") as file:
        file.write(markdown_table(unified.results))
    console.print(markdown_table(unified.results))
    console.print(f"{chosen.out}: gallery.png, answers.txt, curves.png, table.md, unified/final (model and card)")
    console.print(f"in all {seconds['in all']:.0f} s")


def reload_in_new_process(
    model: Path, out: Path, prompts: Sequence[str], questions: Sequence[str], sampling: dict[str, float]
) -> None:
    """Loads the saved folder with `from_pretrained` in a fresh interpreter, and draws and answers there."""
    request = {
        "model": str(model),
        "gallery": str(out / "gallery.png"),
        "answers": str(out / "answers.txt"),
        "prompts": list(prompts),
        "questions": list(questions),
        "sampling": sampling,
    }
    subprocess.run([sys.executable, str(Path(__file__).parent / "reload.py"), json.dumps(request)], check=True)


def plot_curves(out: Path) -> None:
    """Learning curves of both stages, from their `metrics.jsonl`."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), constrained_layout=True)
    for axis, stage in zip(axes, ("tokenizer", "unified"), strict=True):
        rows = [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]
        names = sorted({name for row in rows for name in row if name.endswith("loss") or name == "reconstruction"})
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row and "step" in row]
            axis.plot(*zip(*points, strict=True), label=name)
        axis.set(title=stage, xlabel="step", yscale="log")
        axis.legend()
    figure.savefig(out / "curves.png", dpi=120)
    plt.close(figure)


def markdown_table(rows: dict[str, dict]) -> str:
    """The judged rates with their intervals and numbers."""
    lines = ["| what | right | 95 % interval | n |", "|---|---|---|---|"]
    for name, rate in rows.items():
        low, high = rate["interval"]
        lines.append(f"| {name} | {rate['right']:.1%} | {low:.1%} to {high:.1%} | {rate['n']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
