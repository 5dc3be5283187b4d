"""Loads a trained model with `from_pretrained` and uses it: draws a gallery, asks about the first picture.

python examples/reload.py '{"model": "out/demo/unified/final", "prompts": ["a red circle"], …}'
"""

from __future__ import annotations

import json
import sys

import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

import unimm  # noqa: F401  (registers the models)
from unimm.data.transforms import save_grid
from unimm.files import atomic_file


def main() -> None:
    request = json.loads(sys.argv[1])
    model = AutoModelForMultimodalLM.from_pretrained(request["model"]).eval()
    processor = AutoProcessor.from_pretrained(request["model"])

    texts = [
        processor.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in request["prompts"]
    ]
    inputs = processor(text=texts, generation_mode="image")
    generator = torch.Generator().manual_seed(0)
    ids = model.generate(**inputs, generation_mode="image", generator=generator, **request["sampling"])
    pictures = processor.post_process_multimodal_output(model.decode_image_tokens(ids), generation_mode="image")
    save_grid(pictures, request["prompts"], request["gallery"])

    lines = [f"the picture drawn for '{request['prompts'][0]}'"]
    for question in request["questions"]:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = processor(text=text, images=[pictures[0]])
        eos = processor.tokenizer.eos_token_id
        answer = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=eos, pad_token_id=eos)
        new = answer[0, inputs["input_ids"].shape[1] :]
        lines.append(f"{question} {processor.tokenizer.decode(new, skip_special_tokens=True).strip()}")
    with atomic_file(request["answers"]) as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
