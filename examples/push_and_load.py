"""To the Hub and back: pushes a saved model with its card as one commit, and loads it by its id.

    hf auth login
    python examples/push_and_load.py me/shapes-unified --license apache-2.0 [--model out/demo/unified/final]

The licence is that of the weights, and yours to state. A new repository is private unless you say `--public`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from unimm import ImageGenerationPipeline
from unimm.hub.licenses import License
from unimm.hub.push import Push

DEMO = Path("out/demo/unified/final")


def main(
    repo_id: Annotated[str, typer.Argument(help="owner/name, or a name in your own namespace.")],
    license: Annotated[str, typer.Option(help="Of the weights, as the Hub spells it.")],
    model: Annotated[Path, typer.Option(help="Folder of a saved unified model.")] = DEMO,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    prompt: Annotated[str, typer.Option(help="What the loaded model draws.")] = "a red circle",
    out: Annotated[Path, typer.Option(help="PNG file of the picture.")] = Path("drawn.png"),
) -> None:
    """Pushes a folder, loads it by id and compares the weights."""
    if not model.is_dir():
        raise typer.BadParameter(f"there is no model in {model} yet: run `make demo` first, or name a folder")
    ready = Push.prepare(model, repo_id, license=License.stated(license))  # checks all, sends nothing
    print(f"{len(ready.files)} files, {sum(size for _, size in ready.files):,} bytes")
    commit = ready.send(private=None if public else True)
    print(commit.commit_url)

    here = ImageGenerationPipeline.from_pretrained(model)
    there = ImageGenerationPipeline.from_pretrained(commit.repo_url.repo_id)  # downloads into the Hub's cache
    weights = there.model.state_dict()
    same = all(torch.equal(weights.pop(name), tensor) for name, tensor in here.model.state_dict().items())
    print(f"loaded by its id, weights are equal: {same and not weights}")
    generator = torch.Generator().manual_seed(0)
    picture = there(prompt=prompt, guidance_scale=1.75, temperature=0.7, generator=generator).images[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    print(f"'{prompt}' drawn in {out}")


if __name__ == "__main__":
    typer.run(main)
