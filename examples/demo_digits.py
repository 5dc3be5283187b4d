"""The main job on real pictures: scikit-learn's 1,797 handwritten digits, drawn by name and read.

make demo-digits               or  python examples/demo_digits.py [--out out/demo-digits] [--tiny]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import demo

from unimm.data.digits import DIGIT_NAMES, QUESTION, digit_caption


def main() -> None:
    recipes = Path(__file__).resolve().parent.parent / "recipes" / "demo_digits"
    prompts = [digit_caption(index % len(DIGIT_NAMES)) for index in range(3 * len(DIGIT_NAMES))]
    demo.run(recipes=recipes, out=Path("out/demo-digits"), prompts=prompts, questions=[QUESTION])


if __name__ == "__main__":
    main()
