"""Draws a picture from a caption, then talks about it.

    python examples/generate_and_chat.py [MODEL] [--caption "a red circle left of a blue square"] [--out drawn.png]

MODEL is a folder or Hub id of a UniMMForConditionalGeneration; without one, it is what `make demo` writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoProcessor

from unimm import UniMMForConditionalGeneration

DEMO = "out/demo/unified/final"


def main(
    model: Annotated[str, typer.Argument(help="Folder or Hub id.")] = DEMO,
    caption: Annotated[str, typer.Option(help="What to draw.")] = "a red circle",
    question: Annotated[list[str], typer.Option(help="What to ask; repeat for further turns.")] = [  # noqa: B006
        "what colour is the circle?",
        "how many circles are there?",
    ],
    out: Annotated[Path, typer.Option(help="PNG file of the picture.")] = Path("drawn.png"),
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Draws a caption and asks about the picture, turn after turn."""
    if model == DEMO and not Path(DEMO).is_dir():
        raise typer.BadParameter(f"there is no model in {DEMO} yet: run `make demo` first, or name a model")
    unified = UniMMForConditionalGeneration.from_pretrained(model).eval()
    processor = AutoProcessor.from_pretrained(model)

    def prompt(chat: list[dict]) -> str:
        return processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    inputs = processor(text=prompt([{"role": "user", "content": caption}]), generation_mode="image")
    generator = torch.Generator().manual_seed(seed)
    ids = unified.generate(**inputs, generation_mode="image", guidance_scale=1.75, temperature=0.7, generator=generator)
    picture = processor.post_process_multimodal_output(unified.decode_image_tokens(ids), generation_mode="image")[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    print(f"'{caption}' drawn in {out}")

    chat: list[dict] = []
    for turn, words in enumerate(question):
        content = [{"type": "text", "text": words}]
        chat.append({"role": "user", "content": [{"type": "image"}, *content] if turn == 0 else content})
        inputs = processor(text=prompt(chat), images=[picture])
        said = unified.generate(
            **inputs,
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=processor.tokenizer.eos_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
        )[:, inputs["input_ids"].shape[1] :]
        answer = processor.post_process_multimodal_output(said, generation_mode="text")[0].strip()
        chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        print(f"user: {words}\nassistant: {answer}")


if __name__ == "__main__":
    typer.run(main)
