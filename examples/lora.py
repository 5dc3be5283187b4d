"""LoRA through peft: fine-tunes a unified model on a handful of pictures, saves the adapter alone, and loads it back.

    python examples/lora.py [MODEL] [--steps 30] [--out out/lora]

MODEL is a folder or Hub id of a UniMMForConditionalGeneration; without one, it is what `make demo` writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import LoraConfig
from transformers import AutoModelForMultimodalLM, AutoProcessor

import unimm  # noqa: F401  (registers the models)
from unimm.data.collators import collator_for
from unimm.data.loading import load_rows

DEMO = "out/demo/unified/final"


def main(
    model: Annotated[str, typer.Argument(help="Folder or Hub id.")] = DEMO,
    steps: Annotated[int, typer.Option(min=1, help="Training steps, each on all rows.")] = 30,
    rows: Annotated[int, typer.Option(min=1, help="Captioned pictures of Shapes.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder of the adapter.")] = Path("out/lora"),
) -> None:
    """Trains, saves and reloads an adapter, and checks that the reloaded model says the same."""
    if model == DEMO and not Path(DEMO).is_dir():
        raise typer.BadParameter(f"there is no model in {DEMO} yet: run `make demo` first, or name a model")
    torch.manual_seed(0)
    base = AutoModelForMultimodalLM.from_pretrained(model)
    processor = AutoProcessor.from_pretrained(model)
    height, _ = base.config.height_and_width
    data = load_rows(
        "shapes", task="captions", kinds=["pair"], backgrounds=["white"], resolution=height, num_rows=rows, seed=1
    )
    batch = collator_for(base, processor)(list(data))

    base.add_adapter(LoraConfig(r=8))  # on the language model's attention and feed-forward layers
    adapted = [parameter for parameter in base.parameters() if parameter.requires_grad]
    trained, everything = sum(one.numel() for one in adapted), base.num_parameters()
    print(f"{trained:,} of {everything:,} parameters are trained")
    optimizer = torch.optim.AdamW(adapted, lr=2e-3)
    base.train()
    for step in range(1, steps + 1):
        loss = base(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (1, steps) or step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    base.eval().save_pretrained(out)  # the adapter alone: the base stays where it is
    again = AutoModelForMultimodalLM.from_pretrained(model).eval()
    again.load_adapter(str(out))
    with torch.no_grad():
        expected, found = base(**batch).loss, again(**batch).loss
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"adapter in {out}, {size / 1000:.0f} kB; reloaded, outputs are equal: {torch.equal(found, expected)}")


if __name__ == "__main__":
    typer.run(main)
