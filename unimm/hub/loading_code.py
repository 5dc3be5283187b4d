"""The lines of Python in a card: they load the model and use it once, and run as they stand."""

from __future__ import annotations

from typing import Any


def loading_code(model: Any, has_processor: bool, place: str) -> str:
    """Code for a model.

    Args:
        model: the model, which may be on the meta device.
        has_processor: a processor is saved beside it.
        place: folder or Hub id.
    """
    use = _use(model, has_processor, place)
    imports = ["import torch"] if any("torch." in line for line in use) else []
    imports.append("import unimm  # registers the classes")
    names = "AutoModel, AutoProcessor" if has_processor else "AutoModel"
    imports.append(f"from transformers import {names}")
    return "\n".join([*imports, "", f'model = AutoModel.from_pretrained("{place}")', *use]) + "\n"


def _use(model: Any, has_processor: bool, place: str) -> list[str]:
    if hasattr(model, "condition"):
        return _draw(model)
    if hasattr(model, "layout_for"):
        side = 8 * model.stride
        return [
            f"pixel_values = 2 * torch.rand(1, 3, {side}, {side}) - 1  # pictures, in [-1, 1]",
            "tokens = model.encode(pixel_values)",
            "reconstructions = model.decode(tokens)",
        ]
    if has_processor:
        return [
            f'processor = AutoProcessor.from_pretrained("{place}")',
            "prompt = processor.apply_chat_template(",
            '    [{"role": "user", "content": "a red circle"}], tokenize=False, add_generation_prompt=True',
            ")",
            'ids = model.generate(**processor(text=prompt, generation_mode="image"), generation_mode="image")',
            "pixels = model.decode_image_tokens(ids)  # in [-1, 1]",
            'pictures = processor.post_process_multimodal_output(pixels, generation_mode="image")',
        ]
    return []


def _draw(model: Any) -> list[str]:
    result = "pixels = drawn.images  # in [-1, 1]" if model.tokenizer is not None else "ids = drawn.sequences"
    if "labels" in model.condition.input_names:
        return ["drawn = model.generate(labels=[0, 1])", result]
    condition = model.config.condition_config
    if condition.text_encoder is not None:
        return ['drawn = model.generate(prompt=["a red circle"])', result]
    return [
        f"features = torch.randn(1, {condition.length}, {condition.feature_size})  # of the text encoder",
        "drawn = model.generate(text_features=features)",
        result,
    ]
