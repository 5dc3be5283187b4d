"""Your own pictures: trains a visual tokenizer and a model on an image folder, then draws.

    python examples/train_on_your_folder.py my/pictures [--out out/my-pictures] [--steps 2000]

With captions (`metadata.jsonl` with `file_name` and `text`) it trains a unified model that draws from captions; with one
folder per class (`cat/1.png`, `dog/2.jpg`, …) a class-conditional one. Recipes: recipes/image_folder/. Started again after
an interruption, it goes on where it was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers.pre_tokenizers import Whitespace

from unimm import ImageGenerationPipeline
from unimm.data.loading import load_rows
from unimm.data.transforms import save_grid
from unimm.files import atomic_file
from unimm.training.stages import run_stage

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "image_folder"


def main(
    folder: Annotated[Path, typer.Argument(help="Pictures with captions, or one folder per class.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/my-pictures"),
    steps: Annotated[int | None, typer.Option(min=1, help="Of each of the two trainings; the recipes' own.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Two steps at toy sizes, to see that all parts run.")] = False,
) -> None:
    """Trains two recipes on a folder and draws what the second one learned."""
    out.mkdir(parents=True, exist_ok=True)
    rows = load_rows("image_folder", path=str(folder))
    first = rows[0]["messages"][0]
    has_captions = first["role"] == "user"
    if not has_captions and "label" not in rows.column_names:
        raise typer.BadParameter(f"{folder} has neither captions (metadata.jsonl) nor one folder per class")

    def train(stage: str, recipe: str, task: str, *words: str) -> Path:
        data = {"card": "image_folder", "options": {"path": str(folder), "task": task}}
        words = ("--config", str(RECIPES / f"{recipe}.yaml"), "--data", json.dumps(data), *words)
        words += ("--output_dir", str(out / recipe), *(["--tiny"] if tiny else []))
        return run_stage(stage, [*words, *(["--max_steps", str(steps)] if steps else [])]).final

    tokenizer = train("tokenizer", "tokenizer", "image")
    if has_captions:
        captions = [row["messages"][0]["content"][0]["text"] for row in rows.remove_columns("images")]
        vocabulary = {word for caption in captions for word, _ in Whitespace().pre_tokenize_str(caption)}
        with atomic_file(out / "words.txt") as file:
            file.write("\n".join(sorted(vocabulary)) + "\n")
        wanted = list(dict.fromkeys(captions))[:8]
        options = [
            "--processor",
            json.dumps({"words": str(out / "words.txt")}),
            "--samples.prompts",
            json.dumps(wanted),
        ]
        model = train("sft", "unified", "caption", "--tokenizer", str(tokenizer), *options)
        asked, names = {"prompt": wanted}, wanted
    else:
        names = rows.features["label"].names
        classes = ["--model.condition_config.num_classes", str(len(names))]
        model = train("pretrain", "classes", "class", "--tokenizer", str(tokenizer), *classes)
        asked = {"labels": list(range(len(names)))}
    generator = torch.Generator().manual_seed(0)
    drawn = ImageGenerationPipeline.from_pretrained(model)(**asked, guidance_scale=2.0, generator=generator)
    save_grid(drawn.images, names, out / "drawn.png")
    print(f"{len(names)} pictures in {out / 'drawn.png'}, the model in {model}")


if __name__ == "__main__":
    typer.run(main)
