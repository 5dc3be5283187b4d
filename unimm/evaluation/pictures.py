"""Pictures drawn from prompts, one per prompt, for judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.transforms import to_pil


@torch.no_grad()
def draw_pictures(
    model: Any, processor: Any, prompts: Sequence[str], *, batch_size: int = 128, seed: int = 0, **sampling: Any
) -> np.ndarray:
    """One picture per prompt of a conditional model.

    Args:
        prompts: what the user asks for.
        batch_size: prompts drawn together.
        seed: of the draws; batch `b` uses `seed + b`.
        sampling: arguments of `generate_image` (guidance_scale, temperature, top_k, top_p).

    Returns:
        uint8 `(prompts, height, width, 3)`.
    """
    pictures: list[np.ndarray] = []
    for start in tqdm(range(0, len(prompts), batch_size), desc="pictures"):
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for prompt in prompts[start : start + batch_size]
        ]
        inputs = processor(text=texts, generation_mode="image").to(model.device)
        generator = torch.Generator(model.device).manual_seed(seed + start // batch_size)
        ids = model.generate(**inputs, generation_mode="image", generator=generator, **sampling)
        pictures += [np.asarray(picture) for picture in to_pil(model.decode_image_tokens(ids))]
    return np.stack(pictures)
