from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from unimm.data.images import decode_image
from unimm.errors import ImageError


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(mode: str = "RGB") -> Image.Image:
    across, down = np.meshgrid(np.arange(0, 240, 10), np.arange(0, 160, 10))
    pixels = np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def error(image: Image.Image, expected: Image.Image) -> float:
    return float(np.abs(np.asarray(image, dtype=float) - np.asarray(expected, dtype=float)).max())


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("TIFF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("BMP", {}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 8),
        ("GIF", {}, 60),
    ],
)
def test_every_kind_of_file_decodes_to_its_picture(kind, options, tolerance):
    picture = decode_image(encoded(ramp(), kind, **options))
    assert picture.mode == "RGB"
    assert error(picture, ramp()) <= tolerance


def test_bytes_paths_and_pictures_give_the_same(tmp_path):
    content = encoded(ramp(), "PNG")
    (tmp_path / "ramp.png").write_bytes(content)
    for source in (content, bytearray(content), tmp_path / "ramp.png", str(tmp_path / "ramp.png"), ramp()):
        assert error(decode_image(source), ramp()) == 0


def test_the_callers_picture_is_not_handed_out():
    source = ramp()
    decode_image(source).putpixel((0, 0), (1, 2, 3))
    assert source.getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_other_colour_modes_become_rgb(mode):
    assert error(decode_image(ramp(mode)), ramp(mode).convert("RGB")) == 0


def test_a_cmyk_jpeg_keeps_its_colours():
    picture = decode_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert error(picture, Image.new("RGB", (8, 8), "red")) <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_cut_off(kind):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    picture = decode_image(encoded(Image.fromarray(values), kind))
    assert np.array_equal(np.asarray(picture)[..., 0], np.rint(values / 257).astype(np.uint8))


def png_of(values: np.ndarray) -> bytes:
    """A PNG of 16-bit RGB values `(height, width, 3)`, which PIL cannot write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return png_file(header, zlib.compress(rows))


def test_sixteen_bit_colour_keeps_its_upper_eight_bits():
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    assert np.array_equal(np.asarray(decode_image(png_of(values))), values >> 8)


def test_a_colour_profile_is_not_applied():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert error(decode_image(encoded(ramp(), "PNG", icc_profile=profile)), ramp()) == 0


def test_floats_are_read_from_zero_to_one_or_to_255():
    unit = Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4))
    assert np.asarray(decode_image(encoded(unit, "TIFF")))[..., 0].max() == 255
    wide = Image.fromarray(np.full((4, 4), 200, dtype=np.float32))
    assert np.asarray(decode_image(encoded(wide, "TIFF"))).min() == 200
    with pytest.raises(ImageError, match=r"values from -3 to 1000; expected floats in \[0, 1\] or \[0, 255\]"):
        decode_image(Image.fromarray(np.array([[-3, 1000]], dtype=np.float32)))
    with pytest.raises(ImageError, match="not finite"):
        decode_image(Image.fromarray(np.array([[np.nan, 1]], dtype=np.float32)))
    with pytest.raises(ImageError, match="expected integers of 16 bits"):
        decode_image(Image.fromarray(np.array([[0, 100_000]], dtype=np.int32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparency_is_composited_on_white(mode):
    for opacity, expected in ((0, 255), (128, 127), (255, 0)):
        picture = decode_image(Image.new("RGBA", (4, 4), (0, 0, 0, opacity)).convert(mode))
        assert picture.mode == "RGB"
        assert all(abs(value - expected) <= 1 for value in picture.getpixel((0, 0)))


def test_a_transparent_palette_colour_is_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 1), 1)
    picture = decode_image(encoded(image, "PNG", transparency=0))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((1, 1)) == (0, 200, 0)


def test_a_transparent_colour_of_an_rgb_picture_is_white():
    image = Image.new("RGB", (4, 4), (200, 0, 0))
    image.putpixel((1, 1), (0, 200, 0))
    picture = decode_image(encoded(image, "PNG", transparency=(200, 0, 0)))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((1, 1)) == (0, 200, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation):
    upright = Image.new("RGB", (16, 8), "black")
    upright.paste("white", (0, 0, 4, 4))
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if undo is None else upright.transpose(undo)
    assert error(decode_image(encoded(stored, "PNG", exif=exif)), upright) == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert error(decode_image(content), frames[0]) == 0


def png_file(header: bytes, content: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def header_of(width: int, height: int) -> bytes:
    return png_file(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), zlib.compress(b"\0"))


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_header_that_claims_a_huge_picture_is_refused_before_decoding(width, height):
    with pytest.raises(ImageError, match="claims"):
        decode_image(header_of(width, height))


def test_the_largest_size_is_the_callers_choice():
    with pytest.raises(ImageError, match="claims 24 x 16 pixels, more than the 100 that are allowed"):
        decode_image(encoded(ramp(), "PNG"), max_pixels=100)
    assert decode_image(encoded(ramp(), "PNG"), max_pixels=24 * 16).size == (24, 16)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_an_error(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = encoded(noise, kind)
    with pytest.raises(ImageError, match="does not decode"):
        decode_image(content[: int(len(content) * share)])


@pytest.mark.parametrize("content", [b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"\0" * 40])
def test_what_is_no_picture_is_an_error(content):
    with pytest.raises(ImageError, match="the row's picture does not decode"):
        decode_image(content, name="the row's picture")


def test_an_empty_or_missing_file_is_named(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"'.*empty.png' is empty"):
        decode_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match=r"'.*gone.png' cannot be read: No such file"):
        decode_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="is 0 x 3 pixels"):
        decode_image(Image.new("RGB", (0, 3)))


@pytest.mark.filterwarnings("ignore")
def test_bit_flips_give_a_picture_or_an_image_error():
    draws = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF"):
        content = np.frombuffer(encoded(ramp(), kind), dtype=np.uint8)
        for _ in range(40):
            damaged = content.copy()
            damaged[draws.integers(0, len(damaged), 5)] = draws.integers(0, 256, 5)
            try:
                assert decode_image(damaged.tobytes()).mode == "RGB"
            except ImageError:
                continue
