"""Speed and memory for a card: measured here and now, or not told."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from .cards import Measurement, size_text


def measure_use(model: Any, processor: Any = None, *, repeats: int = 3) -> list[Measurement]:
    """Seconds for one picture (median after a warm-up), and on a CUDA device the peak of allocated memory.

    Generators draw one picture without guidance; visual tokenizers reconstruct one of 256 pixels.

    Args:
        model: on the device to measure.
        processor: of a conditional model.
        repeats: timed repetitions.

    Raises:
        ConfigError: a model that does neither, or a conditional model without its processor.
    """
    what, run = _use_of(model, processor)
    device = model.device
    run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    dtype = str(model.dtype).removeprefix("torch.")
    where = machine_text(device)
    measured = [Measurement(f"{what}, {dtype}", f"{statistics.median(seconds):.3g} s (median of {repeats})", where)]
    peak = peak_memory(device)
    return measured + ([Measurement(f"peak memory of {what}, {dtype}", peak, where)] if peak else [])


def peak_memory(device: torch.device) -> str | None:
    """The peak of memory that torch has allocated on a CUDA device; None elsewhere, where it keeps no account."""
    return size_text(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def machine_text(device: torch.device) -> str:
    """The device and the version of torch, in words."""
    cpu = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu}, torch {torch.__version__}"


def _use_of(model: Any, processor: Any) -> tuple[str, Callable[[], Any]]:
    generator = torch.Generator().manual_seed(0)
    if hasattr(model, "condition"):
        if "labels" not in model.condition.input_names:
            raise ConfigError("only class-conditional generators can be measured without a text encoder")
        return "drawing one picture", lambda: model.generate(labels=[0], generator=generator)
    if hasattr(model, "layout_for"):
        pixels = torch.zeros(1, 3, 256, 256, device=model.device, dtype=model.dtype)

        def reconstruct() -> Any:
            with torch.no_grad():
                return model.decode(model.encode(pixels))

        return "reconstructing one picture of 256x256 pixels", reconstruct
    if not hasattr(model, "decode_image_tokens"):
        raise ConfigError(f"a {type(model).__name__} alone draws nothing that could be measured")
    if processor is None:
        raise ConfigError("a conditional model is measured with its processor, which is not beside it")
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": "a red circle"}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=prompt, generation_mode="image").to(model.device)
    return "drawing one picture", lambda: model.decode_image_tokens(
        model.generate(**inputs, generation_mode="image", generator=generator)
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
