"""Speed of the world Shapes and of its judge, and how right the judge is.

    OMP_NUM_THREADS=1 python benchmarks/shapes_rendering.py [--num_pictures N] [--accuracy] [--json FILE]

Scenes per second count everything: the scene, its caption and the picture, on one core. Medians of five runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from unimm.data.shapes import ShapesSampler
from unimm.evaluation.shapes import ShapesJudge
from unimm.evaluation.shapes_accuracy import measure_judge
from unimm.files import write_json

PLAIN = ("colour", "shape")
RICH = ("colour", "shape", "size", "position", "background")
WORLDS: dict[str, dict[str, Any]] = {
    "object": {"kinds": ("object",), "attributes": PLAIN},
    "pair": {"kinds": ("pair",), "attributes": PLAIN},
    "count": {"kinds": ("count",), "attributes": PLAIN},
    "group": {"kinds": ("group",), "attributes": PLAIN},
    "all, rich": {"kinds": ("object", "pair", "count", "group"), "attributes": RICH},
    "textures": {"kinds": ("object", "pair", "count", "group"), "attributes": (*PLAIN, "texture")},
    "words": {"kinds": ("word",), "attributes": PLAIN},
}
MEASURED = ("object", "pair", "all, rich", "textures", "words")


def per_second(work: Callable[[], int]) -> float:
    """Median number of items per second of five runs; `work` returns how many it did."""
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - start))
    return statistics.median(rates)


def measure_speed(name: str, resolution: int, num_pictures: int) -> dict[str, Any]:
    """Rows per second of the sampler, and pictures per second of the judge."""
    sampler = ShapesSampler("train", resolution=resolution, num_questions=0, **WORLDS[name])
    judge = ShapesJudge()
    samples = [sampler.sample(index) for index in range(num_pictures)]

    def draw() -> int:
        for index in range(num_pictures):
            sampler.sample(index)
        return num_pictures

    def read() -> int:
        judge.judge_many([sample.image for sample in samples], [sample.caption for sample in samples])
        return num_pictures

    return {
        "world": name,
        "resolution": resolution,
        "n": num_pictures,
        "scenes_per_second": per_second(draw),
        "judged_per_second": per_second(read),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_pictures", type=int, default=500)
    parser.add_argument("--accuracy", action="store_true", help="also measure how right the judge is")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to FILE")
    arguments = parser.parse_args()
    write = sys.stdout.write

    write(f"{'world':12} {'pixels':>6} {'scenes/s':>9} {'judged/s':>9}   n = {arguments.num_pictures}\n")
    speed, accuracy = [], []
    settings = [(name, side) for side in (32, 64) for name in WORLDS if side >= 64 or name != "words"]
    for name, side in settings:
        row = measure_speed(name, side, arguments.num_pictures)
        speed.append(row)
        write(f"{name:12} {side:6} {row['scenes_per_second']:9.0f} {row['judged_per_second']:9.0f}\n")
    if arguments.accuracy:
        write(f"\n{'world':12} {'pixels':>6} {'pictures':28} {'n':>6} {'judged right':>12}   95 %\n")
        for name, side in settings:
            if name not in MEASURED:
                continue
            for row_name, row in measure_judge(arguments.num_pictures, side, **WORLDS[name]).items():
                accuracy.append({"world": name, "resolution": side, "pictures": row_name, **row})
                low, high = row["interval"]
                write(f"{name:12} {side:6} {row_name:28} {row['n']:6} {row['right']:12.2%}   {low:.2%} - {high:.2%}\n")
    if arguments.json:
        write_json(arguments.json, {"speed": speed, "accuracy": accuracy})


if __name__ == "__main__":
    main()
