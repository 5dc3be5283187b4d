"""Decoding pictures of any kind and any source to RGB, or saying why not."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageError

#: Largest picture that is decoded by default, in pixels; PIL warns of a decompression bomb from here on.
MAX_PIXELS = 89_478_485

ImageSource = bytes | bytearray | memoryview | str | os.PathLike | Image.Image


def decode_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> Image.Image:
    """An upright RGB picture of 8 bits per channel.

    What the file's kind leaves open is decided so: the EXIF orientation is applied; transparency is composited on
    white; 16-bit values are scaled to 8 bits, floats from [0, 1] or [0, 255]; of an animation or a multi-page file the
    first frame counts.

    Args:
        source: an encoded picture (PNG, JPEG, WebP, GIF, TIFF or what else PIL reads), its path, or a PIL picture.
        max_pixels: larger pictures are refused before they are decoded.
        name: what the picture is called in messages; by default its path.

    Raises:
        ImageError: no such file, no picture, a truncated one, one above `max_pixels`, or values without a known range.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, max_pixels, name or "the picture")
    if isinstance(source, bytes | bytearray | memoryview):
        content, name = bytes(source), name or f"the picture of {len(source):,} bytes"
    else:
        name = f"{name} ('{os.fspath(source)}')" if name else f"'{os.fspath(source)}'"
        try:
            content = Path(source).read_bytes()
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror or error}") from error
    if not content:
        raise ImageError(f"{name} is empty; expected an encoded picture")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return _to_rgb(picture, max_pixels, name)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} claims a size that is refused, {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} does not decode: no known kind of picture begins as it does; it is truncated, damaged or no picture"
        ) from error
    except Exception as error:  # decoders raise whatever their C library or parser does
        raise ImageError(
            f"{name} does not decode ({type(error).__name__}: {error}); it is truncated, damaged or no picture"
        ) from error


def as_picture(given: Any) -> Any:
    """A picture as callers of a processor give it, read by the rules of `decode_image`.

    Args:
        given: a PIL picture; encoded bytes; a path, an address (`https://…` or what else fsspec opens) or a base64 text,
            with or without `data:image/…;base64,`; an array or a tensor.

    Returns:
        An upright RGB picture of 8 bits. Arrays and tensors keep their shape, floating-point ones come back as 8 bits
        per value; anything else comes back as it is.

    Raises:
        ImageError: as `decode_image`; or floating-point values that lie neither in [0, 1] nor in [0, 255].
    """
    if isinstance(given, str):
        return _from_text(given)
    if isinstance(given, bytes | bytearray | memoryview | os.PathLike | Image.Image):
        return decode_image(given)
    if hasattr(given, "is_floating_point"):
        if not given.is_floating_point():
            return given
        # NumPy has no bfloat16.
        given = given.detach().float().cpu().numpy()
    if isinstance(given, np.ndarray) and given.size and np.issubdtype(given.dtype, np.floating):
        return _eight_bits(given.astype(np.float64), "floats", f"a picture given as {given.dtype} {given.shape}")
    return given


def _from_text(given: str) -> Image.Image:
    if "://" in given:
        return decode_image(read_encoded({"path": given}), name=f"the picture '{given}'")
    header, separator, content = given.partition(";base64,")
    if not separator:
        if os.path.exists(given) or "." in given or len(given) < 64:
            return decode_image(given)
        content = given
    elif not header.startswith("data:"):
        raise ImageError(
            f"a picture given as '{header[:40]};base64,…' cannot be read: expected data:image/KIND;base64,…"
        )
    try:
        encoded = base64.b64decode("".join(content.split()), validate=True)
    except ValueError as error:
        raise ImageError(f"a picture given as {len(given):,} characters is no file and no base64: {error}") from error
    return decode_image(encoded, name="the picture in base64")


def _to_rgb(picture: Image.Image, max_pixels: int, name: str) -> Image.Image:
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name} claims {width} x {height} pixels, more than the {max_pixels:,} that are allowed; "
            "shrink it, or raise max_pixels"
        )
    if width == 0 or height == 0:
        raise ImageError(f"{name} is {width} x {height} pixels; expected at least one")
    try:
        picture.load()
    except Exception as error:
        raise ImageError(
            f"{name} does not decode ({type(error).__name__}: {error}); it is truncated or damaged"
        ) from error
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("F", "I") or picture.mode.startswith("I;"):
        return _from_wide_values(picture, name)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    # `convert` would hand out the caller's own picture or one tied to an open file.
    return picture.copy() if picture.mode == "RGB" else picture.convert("RGB")


def _from_wide_values(picture: Image.Image, name: str) -> Image.Image:
    kind = "floats" if picture.mode == "F" else "integers"
    values = _eight_bits(np.asarray(picture).astype(np.float64), kind, f"{name} of mode '{picture.mode}'")
    return Image.fromarray(values).convert("RGB")


def _eight_bits(values: np.ndarray, kind: str, name: str) -> np.ndarray:
    low, high = values.min(), values.max()
    if not np.isfinite((low, high)).all():
        raise ImageError(f"{name} has values that are not finite")
    if kind == "floats":
        scale = 255.0 if high <= 1.0 else 1.0
        expected = "floats in [0, 1] or [0, 255]"
    else:
        scale = 255.0 / 65535.0
        expected = "integers of 16 bits"
    if low < 0 or high * scale > 255.0:
        raise ImageError(f"{name} has values from {low:g} to {high:g}; expected {expected}")
    return np.rint(values * scale).astype(np.uint8)


def picture_name(image: Mapping[str, Any]) -> str:
    """What a stored picture is called in messages."""
    return f"the picture '{image['path']}'" if image.get("path") else "a picture without name"


def read_encoded(image: Mapping[str, Any]) -> bytes:
    """The bytes of a stored picture, `{"bytes", "path"}`, from memory, a local file or an address.

    Raises:
        ImageError: the file cannot be read.
    """
    if image.get("bytes"):
        return image["bytes"]
    import fsspec

    try:
        with fsspec.open(image["path"], "rb") as file:
            return file.read()
    except Exception as error:  # each kind of storage has errors of its own
        raise ImageError(f"{picture_name(image)} cannot be read: {error}") from error
