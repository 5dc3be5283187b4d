from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unimm.data.transforms import encode_png, make_grid, save_grid, to_pil, to_pixel_values
from unimm.errors import ConfigError, ImageError, OutputError


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def halves(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def test_a_picture_of_the_right_size_goes_through_unchanged_and_back():
    image = noise(12, 8)
    for crop in ("center", "none"):
        pixels = to_pixel_values([image, np.asarray(image)], 8, 12, crop=crop)
        assert pixels.shape == (2, 3, 8, 12)
        assert pixels.dtype == torch.float32
        assert pixels.min() >= -1
        assert pixels.max() <= 1
        assert all(np.array_equal(np.asarray(back), np.asarray(image)) for back in to_pil(pixels))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from(["center", "random", "none"]),
    st.floats(0.1, 1.0),
)
def test_any_size_becomes_the_wanted_size(given_width, given_height, height, width, crop, min_crop):
    pixels = to_pixel_values(
        [noise(given_width, given_height)],
        height,
        width,
        crop=crop,
        min_crop=min_crop if crop == "random" else 1.0,
        generator=torch.Generator().manual_seed(0),
    )
    assert pixels.shape == (1, 3, height, width)
    assert pixels.abs().max() <= 1


def test_a_centre_crop_keeps_the_middle_and_stretching_keeps_everything():
    wide = halves(40, 10)
    wide.paste("lime", (0, 0, 5, 10))
    cropped = to_pixel_values([wide], 10, 10)[0]
    assert not (cropped[1] > 0).any()
    assert (cropped[0, :, 1] > 0.9).all()
    assert (cropped[2, :, -2] > 0.9).all()
    stretched = to_pixel_values([wide], 10, 10, crop="none")[0]
    assert (stretched[1, :, 0] > 0.5).all()


def test_random_crops_and_flips_follow_from_the_generator():
    images = [noise(50, 30, seed) for seed in range(4)]

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return to_pixel_values(images, 16, 16, crop="random", min_crop=0.5, flip=True, generator=generator)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_about_half_of_the_pictures_are_mirrored():
    pixels = to_pixel_values([halves(8, 8)] * 200, 8, 8, flip=True, generator=torch.Generator().manual_seed(0))
    num_mirrored = int((pixels[:, 0, 0, 0] < 0).sum())
    assert 70 < num_mirrored < 130
    assert torch.equal(pixels.abs(), torch.ones_like(pixels))


def test_a_random_crop_reaches_both_ends():
    generator = torch.Generator().manual_seed(0)
    pixels = to_pixel_values([halves(80, 8)] * 60, 8, 8, crop="random", generator=generator)
    reds = (pixels[:, 0] > 0).float().mean(dim=(1, 2))
    assert (reds == 1).any()
    assert (reds == 0).any()


def test_shrinking_is_anti_aliased():
    stripes = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    pixels = to_pixel_values([stripes], 8, 8)
    assert pixels.abs().max() < 0.1


def test_pictures_with_transparency_or_a_palette_are_accepted():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert to_pixel_values([clear, halves(4, 4).convert("P")], 4, 4)[0].min() == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"crop": "centre"}, "crop must be 'center', 'random' or 'none', given 'centre'"),
        ({"crop": "random"}, "needs generator"),
        ({"flip": True}, "needs generator"),
        ({"min_crop": 0.5}, "min_crop must lie in"),
        ({"crop": "random", "min_crop": 0.0}, "min_crop must lie in"),
        ({"height": 0}, "height and width must be 1 or more, given 0 and 8"),
    ],
)
def test_wrong_arguments_are_refused(options, problem):
    with pytest.raises(ConfigError, match=problem):
        to_pixel_values([noise(8, 8)], **{"height": 8, "width": 8, **options})


def test_wrong_pictures_and_pixels_are_refused():
    with pytest.raises(ConfigError, match="at least one picture"):
        to_pixel_values([], 8, 8)
    with pytest.raises(ImageError, match=r"expected a uint8 array \(height, width, 3\), given float64 \(8, 8\)"):
        to_pixel_values([np.zeros((8, 8))], 8, 8)
    with pytest.raises(ImageError, match=r"expected pixels \(pictures, 3, height, width\), given \(2, 1, 8, 8\)"):
        to_pil(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ImageError, match="1 of 192 pixel values are not finite"):
        to_pil(
            torch.zeros(3, 8, 8).index_fill(1, torch.tensor([0]), 0.0).put_(torch.tensor(5), torch.tensor(torch.nan))
        )


def test_pixels_beyond_the_range_are_cut_off():
    (image,) = to_pil(torch.tensor([-3.0, 0.0, 3.0]).reshape(3, 1, 1))
    assert image.getpixel((0, 0)) == (0, 128, 255)


def test_a_grid_shows_every_picture_enlarged_with_its_caption_below(tmp_path):
    colours = ["red", "lime", "blue", "yellow", "black"]
    images = [Image.new("RGB", (32, 32), colour) for colour in colours]
    captions = ["a red square", "lime", "a caption that is far too long to fit under one picture", "", "black"]
    save_grid(images, captions, tmp_path / "new" / "grid.png", num_columns=3)
    grid = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    assert grid.shape[1] == 3 * 136 + 8
    for colour, (row, column) in zip(colours, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)], strict=True):
        step = (grid.shape[0] - 8) // 2
        square = grid[8 + row * step : 136 + row * step, 8 + column * 136 : 136 + column * 136]
        expected = Image.new("RGB", (128, 128), colour)
        assert np.array_equal(square, np.asarray(expected))
    below = grid[136 : (grid.shape[0] - 8) // 2]
    assert (below[:, 8:136] < 128).any()
    assert (below[:, 280:408] < 128).sum() > (below[:, 144:272] < 128).sum()
    untold = make_grid(images, None, num_columns=3)
    assert untold.height == 2 * 136 + 8
    assert (untold.height, untold.width) < grid.shape[:2]


def test_a_grid_with_wrong_arguments_leaves_no_file(tmp_path):
    with pytest.raises(ConfigError, match="1 captions for 2 pictures"):
        save_grid([noise(4, 4)] * 2, ["one"], tmp_path / "grid.png")
    with pytest.raises(ConfigError, match="at least one picture"):
        save_grid([], [], tmp_path / "grid.png")
    with pytest.raises(ConfigError, match="must be 1 or more, given 0"):
        save_grid([noise(4, 4)], ["one"], tmp_path / "grid.png", num_columns=0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        save_grid([noise(4, 4)], ["one"], tmp_path / "file" / "grid.png")


def test_png_bytes_hold_the_picture():
    import io

    image = noise(5, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(image)))), np.asarray(image))
