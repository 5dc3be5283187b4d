"""Pictures to pixels and back, without torchvision; and picture grids with captions."""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..checks import described, require_tensor
from ..errors import ConfigError, ImageError
from ..files import atomic_file
from .images import decode_image

Crop = Literal["center", "random", "none"]


def to_pixel_values(
    images: Sequence[Image.Image | np.ndarray],
    height: int,
    width: int,
    *,
    crop: Crop = "center",
    min_crop: float = 1.0,
    flip: bool = False,
    generator: torch.Generator | None = None,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> torch.Tensor:
    """Pixels of one size: crop to the wanted proportions, resize, mirror, scale to [-1, 1].

    The crop is cut out of the original and resized in one go, which is the same as resizing the shorter side first. A
    picture that already has the size is not resampled.

    Args:
        images: PIL pictures, or uint8 arrays `(height, width, 3)`, of any sizes.
        height: of the pixels.
        width: of the pixels.
        crop: `center` or `random` cuts the largest window with the proportions of `height` and `width`; `none` keeps
            everything and stretches it.
        min_crop: with `random`, the window's side is drawn uniformly from `[min_crop, 1]` times the largest one's.
        flip: mirror left and right with probability 1/2.
        generator: of the random choices; needed with `random` and `flip`.
        resample: PIL's filter; it anti-aliases when it shrinks.

    Returns:
        float32 `(pictures, 3, height, width)` in [-1, 1].

    Raises:
        ConfigError: an unknown crop, a share outside of (0, 1], random choices without a generator, or no pictures.
    """
    if crop not in ("center", "random", "none"):
        raise ConfigError(f"crop must be 'center', 'random' or 'none', given {crop!r}")
    if not 0 < min_crop <= 1 or (min_crop < 1 and crop != "random"):
        raise ConfigError(
            f"min_crop must lie in (0, 1], and be 1 unless crop is 'random'; given {min_crop} with {crop!r}"
        )
    if not isinstance(height, int) or not isinstance(width, int) or height < 1 or width < 1:
        raise ConfigError(f"height and width must be 1 or more, given {height!r} and {width!r}")
    if generator is None and (crop == "random" or flip):
        raise ConfigError("a random crop or flip needs generator=torch.Generator()")
    if not isinstance(images, Sequence | np.ndarray) or isinstance(images, str):
        raise ImageError(f"expected a list of pictures, given {described(images)}")
    if len(images) == 0:
        raise ConfigError("expected at least one picture, given none")
    arrays = []
    for image in images:
        picture = _as_picture(image)
        box = _crop_box(picture.width, picture.height, height, width, crop, min_crop, generator)
        if box != (0, 0, width, height) or picture.size != (width, height):
            picture = picture.resize((width, height), resample, box=box)
        if flip and torch.rand((), generator=generator) < 0.5:
            picture = ImageOps.mirror(picture)
        arrays.append(np.asarray(picture))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1.0)


def to_pil(pixel_values: torch.Tensor) -> list[Image.Image]:
    """PIL pictures of pixels in [-1, 1]; values beyond are cut off.

    Args:
        pixel_values: `(pictures, 3, height, width)`, or `(3, height, width)` for one.

    Raises:
        ImageError: no floating point tensor of that shape, or values that are not finite.
    """
    if not isinstance(pixel_values, torch.Tensor) or not pixel_values.is_floating_point():
        raise ImageError(f"expected floating point pixels in [-1, 1], given {described(pixel_values)}")
    if pixel_values.ndim == 3:
        pixel_values = pixel_values[None]
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
        raise ImageError(f"expected pixels (pictures, 3, height, width), given {tuple(pixel_values.shape)}")
    pixels = pixel_values.detach().float()
    if not torch.isfinite(pixels).all():
        raise ImageError(f"{int((~torch.isfinite(pixels)).sum()):,} of {pixels.numel():,} pixel values are not finite")
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]


def as_output_type(
    pixel_values: torch.Tensor, output_type: str | None
) -> torch.Tensor | np.ndarray | list[Image.Image]:
    """Pixels in the form that diffusers gives under that name.

    Args:
        pixel_values: `(pictures, 3, height, width)` in [-1, 1].
        output_type: `pt` for a tensor of that shape in [0, 1], `np` for an array `(pictures, height, width, 3)` in [0, 1],
            `pil` for PIL pictures, None to leave the pixels as they are.

    Raises:
        ConfigError: another type.
    """
    if output_type is None:
        return pixel_values
    if output_type == "pil":
        return to_pil(pixel_values)
    if output_type not in ("pt", "np"):
        raise ConfigError(f"output_type of pictures must be 'pt', 'np' or 'pil', given {output_type!r}")
    require_tensor(pixel_values, "pixels", "(pictures, 3, height, width)", 4, error=ImageError)
    pixels = (pixel_values * 0.5 + 0.5).clamp(0, 1)
    return pixels if output_type == "pt" else pixels.float().permute(0, 2, 3, 1).cpu().numpy()


def make_grid(
    images: Sequence[Image.Image | np.ndarray],
    captions: Sequence[str] | None = None,
    *,
    num_columns: int | None = None,
    min_side: int = 128,
    font_size: int = 13,
) -> Image.Image:
    """One picture of many, with a caption under each.

    Args:
        images: pictures, of any sizes.
        captions: one text per picture, wrapped to its width; None for no texts.
        num_columns: pictures per row; by default about as many as rows.
        min_side: smaller pictures are enlarged by a whole factor, pixels staying sharp squares.
        font_size: of the captions, in pixels.

    Raises:
        ConfigError: no pictures, another number of captions than of pictures, or a number below 1.
    """
    if not isinstance(images, Sequence | np.ndarray) or isinstance(images, str):
        raise ImageError(f"expected a list of pictures, given {described(images)}")
    if len(images) == 0:
        raise ConfigError("a grid needs at least one picture, given none")
    if captions is not None and len(captions) != len(images):
        raise ConfigError(
            f"expected one caption per picture, given {len(captions)} captions for {len(images)} pictures"
        )
    num_columns = math.ceil(math.sqrt(len(images))) if num_columns is None else min(num_columns, len(images))
    if num_columns < 1 or min_side < 1 or font_size < 1:
        raise ConfigError(
            f"num_columns, min_side and font_size must be 1 or more, given {num_columns}, {min_side} and {font_size}"
        )
    pictures = [_enlarged(_as_picture(image), min_side) for image in images]
    cell_width = max(picture.width for picture in pictures)
    cell_height = max(picture.height for picture in pictures)
    font = ImageFont.load_default(font_size)
    letters = max(1, int(cell_width / font.getlength("n")))
    texts = [textwrap.fill(caption, letters) for caption in captions] if captions is not None else [""] * len(pictures)
    gap, line_height = 8, math.ceil(font_size * 1.3)
    text_height = max(text.count("\n") + 1 for text in texts) * line_height + gap if any(texts) else 0
    num_rows = math.ceil(len(pictures) / num_columns)
    step_x, step_y = cell_width + gap, cell_height + text_height + gap
    grid = Image.new("RGB", (num_columns * step_x + gap, num_rows * step_y + gap), "white")
    pen = ImageDraw.Draw(grid)
    for number, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left, top = gap + number % num_columns * step_x, gap + number // num_columns * step_y
        grid.paste(picture, (left, top))
        pen.multiline_text(
            (left, top + cell_height + gap // 2), text, fill="black", font=font, spacing=line_height - font_size
        )
    return grid


def save_grid(
    images: Sequence[Image.Image | np.ndarray],
    captions: Sequence[str] | None,
    path: str | os.PathLike,
    *,
    num_columns: int | None = None,
    min_side: int = 128,
    font_size: int = 13,
) -> None:
    """Writes the picture of `make_grid`, as PNG, atomically.

    Raises:
        ConfigError: as in `make_grid`.
        OutputError: the file cannot be written.
    """
    grid = make_grid(images, captions, num_columns=num_columns, min_side=min_side, font_size=font_size)
    with atomic_file(path, "wb") as file:
        file.write(encode_png(grid))


def encode_png(image: Image.Image | np.ndarray, compress_level: int = 6) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    _as_picture(image).save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def _as_picture(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(f"expected a uint8 array (height, width, 3), given {image.dtype} {image.shape}")
        return Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ImageError(f"expected a PIL picture or a uint8 array (height, width, 3), given {described(image)}")
    return image if image.mode == "RGB" else decode_image(image)


def _crop_box(
    given_width: int,
    given_height: int,
    height: int,
    width: int,
    crop: Crop,
    min_crop: float,
    generator: torch.Generator | None,
) -> tuple[float, float, float, float]:
    if crop == "none":
        return 0, 0, given_width, given_height
    scale = min(given_width / width, given_height / height)
    if crop == "random":
        draws = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        scale *= min_crop + (1 - min_crop) * draws[0]
    else:
        draws = [0.0, 0.5, 0.5]
    window_width, window_height = min(scale * width, given_width), min(scale * height, given_height)
    left = draws[1] * (given_width - window_width)
    top = draws[2] * (given_height - window_height)
    return left, top, left + window_width, top + window_height


def _enlarged(picture: Image.Image, min_side: int) -> Image.Image:
    factor = math.ceil(min_side / min(picture.size))
    if factor <= 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
