"""Pictures in every form and of every kind, through the processor."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from factories import build_with_processor
from PIL import Image

from unimm.data.images import decode_image
from unimm.errors import ImageError, LayoutError

PROMPT = "what is it <|image|>"


@pytest.fixture(scope="module")
def processor():
    return build_with_processor()[1]


def scene() -> Image.Image:
    """Another colour in every corner."""
    picture = Image.new("RGB", (24, 16), (250, 20, 20))
    picture.paste((20, 200, 20), (12, 0, 24, 8))
    picture.paste((20, 20, 230), (0, 8, 12, 16))
    picture.paste((240, 240, 30), (12, 8, 24, 16))
    return picture


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(scene(), exif=exif)


def transparent() -> Image.Image:
    picture = scene().convert("RGBA")
    picture.putalpha(100)
    return picture


KINDS = {
    "png": lambda: encoded(scene()),
    "jpeg": lambda: encoded(scene(), "JPEG", quality=95),
    "webp": lambda: encoded(scene(), "WEBP", lossless=True),
    "tiff": lambda: encoded(scene(), "TIFF"),
    "grey": lambda: encoded(scene().convert("L")),
    "sixteen bits": lambda: encoded(Image.fromarray(np.linspace(0, 65535, 384).astype(np.uint16).reshape(16, 24))),
    "floats": lambda: encoded(Image.fromarray(np.linspace(0, 1, 384, dtype=np.float32).reshape(16, 24)), "TIFF"),
    "palette": lambda: encoded(scene().convert("P")),
    "cmyk": lambda: encoded(scene().convert("CMYK"), "JPEG", quality=95),
    "alpha": lambda: encoded(transparent()),
    "turned": turned,
    "animation": lambda: encoded(scene(), "GIF", save_all=True, append_images=[Image.new("RGB", (24, 16), "blue")]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_processor_reads_every_kind_as_decode_image_does(kind, processor, tmp_path):
    content = KINDS[kind]()
    (tmp_path / "picture").write_bytes(content)
    text = base64.b64encode(content).decode()
    expected = processor(text=PROMPT, images=decode_image(content))["pixel_values"]
    assert expected.std() > 0.1
    forms = {
        "bytes": content,
        "path": str(tmp_path / "picture"),
        "path object": tmp_path / "picture",
        "address": f"file://{tmp_path}/picture",
        "base64": text,
        "data address": f"data:image/png;base64,{text}",
        "PIL": Image.open(io.BytesIO(content)),
    }
    for form, given in forms.items():
        assert torch.equal(processor(text=PROMPT, images=given)["pixel_values"], expected), form
    chat = [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / "picture")}]}]
    told = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    assert torch.equal(told["pixel_values"], expected)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["array", "tensor"])
@pytest.mark.parametrize("scale", [None, 1.0, 1 / 255])
def test_arrays_and_tensors_are_bytes_or_floats_with_channels_at_either_end(make, first, scale, processor):
    values = np.asarray(scene())
    expected = processor(text=PROMPT, images=scene())["pixel_values"]
    values = values.transpose(2, 0, 1) if first else values
    given = make(values if scale is None else (values * scale).astype(np.float32))
    assert torch.equal(processor(text=PROMPT, images=given)["pixel_values"], expected)


def test_half_precision_tensors_are_read_too(processor):
    expected = processor(text=PROMPT, images=scene())["pixel_values"]
    given = torch.tensor(np.asarray(scene())).to(torch.bfloat16)
    assert torch.allclose(processor(text=PROMPT, images=given)["pixel_values"], expected, atol=2 / 127.5)


def huge() -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (huge, r"claims"),
        (lambda: encoded(scene())[:60], r"does not decode"),
        (lambda: b"not a picture", r"does not decode"),
        (lambda: base64.b64encode(b"not a picture" * 9).decode(), r"the picture in base64 does not decode"),
        (lambda: "!" * 80, r"80 characters is no file and no base64"),
        (lambda: "text/plain;base64,AAAA", r"expected data:image"),
        (lambda: "gone.png", r"'gone.png' cannot be read: No such file"),
        (lambda: "file:///gone/away.png", r"away.png.* cannot be read"),
        (lambda: np.full((4, 4, 3), -0.5, dtype=np.float32), r"float32 \(4, 4, 3\) has values from -0.5 to -0.5"),
        (lambda: torch.full((3, 4, 4), 300.0), r"values from 300 to 300; expected floats in \[0, 1\] or \[0, 255\]"),
        (lambda: torch.full((3, 4, 4), float("nan")), r"values that are not finite"),
        (lambda: np.full((4, 4), 7, dtype=np.uint8), r"given as ndarray cannot be read"),
        (lambda: np.full((4, 4, 3), 20_000, dtype=np.uint16), r"outside the range \[0, 255\]"),
        (lambda: Image.new("RGB", (0, 4)), r"0 x 4 pixels"),
        (lambda: 3, r"given as int cannot be read"),
    ],
)
def test_the_processor_refuses_what_is_no_picture(make, message, processor):
    with pytest.raises(ImageError, match=message):
        processor(text=PROMPT, images=make())


def test_every_picture_needs_its_mark_in_the_text(processor):
    with pytest.raises(LayoutError, match=r"have 1 .* but 2 pictures"):
        processor(text=PROMPT, images=[scene(), scene()])


def test_the_processor_brings_any_proportions_to_the_models_size(processor):
    for size in ((3, 50), (50, 3), (1, 1), (16, 16)):
        batch = processor(text=PROMPT, images=Image.new("RGB", size, "white"))
        assert batch["pixel_values"].shape == (1, 3, 16, 16)
        assert torch.equal(batch["pixel_values"], torch.ones(1, 3, 16, 16))
