"""Writes docs/systems.md and the table of systems in README.md from what the systems themselves declare.

Run it with `make docs`. What a system was verified to is measured anew, on the cases in tests/parity.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

from unimm.errors import UniMMError
from unimm.files import atomic_file
from unimm.systems import System, get_system, system_names
from unimm.verification import find_cases, verify_case

ROOT = Path(__file__).resolve().parent.parent
AXES = ("tokenizer", "plan", "backbone", "head", "condition")
OPENING, CLOSING = "<!-- systems -->", "<!-- /systems -->"
PAGE = """# Systems

Written by `make docs`; the source is `unimm/systems/`. *Verified* counts the rows of
`unimm verify tests/parity/SYSTEM` that pass (numbers of the reference implementation, reproduced by converted
weights), with the power of ten above the largest relative error. *Trains* names the recipes in `recipes/`.

{overview}
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def paper_link(system: System) -> str:
    return f"[{system.title}](https://huggingface.co/papers/{system.paper})"


def axes_of(system: System) -> list[str]:
    """The system's choice on every axis of the tables.

    Raises:
        UniMMError: the system does not name its choice on one of them.
    """
    if missing := [axis for axis in AXES if axis not in system.axes]:
        raise UniMMError(
            f"unimm/systems/{system.name}.py: SYSTEM.axes lacks {', '.join(missing)}, which the tables show"
        )
    return [system.axes[axis] for axis in AXES]


def systems_table() -> str:
    """The table of README.md."""
    systems = [get_system(name) for name in system_names()]
    header = ["system", *AXES, "presets", "licence of code / weights"]
    rows = [
        [
            paper_link(system),
            *axes_of(system),
            ", ".join(f"`{preset}`" for preset in system.presets),
            f"{system.code_license} / {system.weights_license}",
        ]
        for system in systems
    ]
    return table(header, rows)


def with_table(readme: str, generated: str) -> str:
    """README.md with the text between its two markers replaced.

    Raises:
        UniMMError: the markers are not there, once each and in order.
    """
    before, opening, rest = readme.partition(OPENING)
    _, closing, after = rest.partition(CLOSING)
    if not opening or not closing or OPENING in rest or CLOSING in after:
        raise UniMMError(f"README.md needs {OPENING} and, after it, {CLOSING}, once each: the table goes between them")
    return f"{before}{OPENING}\n{generated}\n{CLOSING}{after}"


def verified(system: System, parity: Path) -> str:
    """How many reference numbers the system reproduces, and how closely."""
    folder = parity / system.name
    if not folder.is_dir():
        return "no numbers here"
    rows = [row for found, path in find_cases([folder]) for row in verify_case(found, path)]
    worst = max(row.error for row in rows)
    error = "exact" if worst == 0 else f"within 1e{math.ceil(math.log10(worst))}" if math.isfinite(worst) else "FAILS"
    return f"{sum(row.ok for row in rows)} of {len(rows)}, {error}"


def systems_page(parity: Path) -> str:
    """The text of docs/systems.md."""
    systems = [get_system(name) for name in system_names()]
    overview = table(
        ["system", "verified", "trains", "licence of code", "licence of weights"],
        [
            [
                paper_link(system),
                verified(system, parity),
                ", ".join(f"`{recipe.stem}`" for recipe in sorted((ROOT / "recipes" / system.name).glob("*.yaml"))),
                system.code_license,
                system.weights_license,
            ]
            for system in systems
        ],
    )
    return "\n".join([PAGE.format(overview=overview), *map(system_section, systems)])


def system_section(system: System) -> str:
    """One system: its choice on each axis, and every preset with what it loads."""
    choices = "\n".join(f"- {axis}: {choice}" for axis, choice in zip(AXES, axes_of(system), strict=True))
    presets = table(
        ["preset", "parameters", "released file", "repository"],
        [
            [
                f"`{name}`",
                f"{preset.parameters:,.0f}M",
                f"`{preset.released_file}`" if preset.released_file else "",
                f"[{preset.hub_id}](https://huggingface.co/{preset.hub_id})" if preset.hub_id else "",
            ]
            for name, preset in system.presets.items()
        ],
    )
    return f"## {system.title} (`{system.name}`)\n\n{choices}\n\n{presets}\n"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parity",
        type=Path,
        default=ROOT / "tests" / "parity",
        help="folder with one folder of cases per system",
    )
    parity = parser.parse_args().parity
    readme = ROOT / "README.md"
    pages = {
        readme: with_table(readme.read_text(), systems_table()),
        ROOT / "docs" / "systems.md": systems_page(parity),
    }
    for path, text in pages.items():
        with atomic_file(path) as file:
            file.write(text)
        logging.info("wrote %s", path.relative_to(ROOT))


if __name__ == "__main__":
    main()
