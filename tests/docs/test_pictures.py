"""The pictures of docs/axes are those that `make docs` draws today."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unimm.errors import LayoutError, UniMMError

ROOT = Path(__file__).resolve().parents[2]
AXES = ROOT / "docs" / "axes"


def load_script():
    specification = importlib.util.spec_from_file_location("docs_pictures", ROOT / "docs" / "pictures.py")
    assert specification is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script


pictures = load_script()


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_is_what_the_package_draws_today_and_small(name, tmp_path):
    path = AXES / f"{name}.png"
    assert path.stat().st_size < 150_000
    pictures.draw(name, tmp_path / "again.png")
    kept, drawn = (np.asarray(Image.open(file).convert("RGB"), dtype=float) for file in (path, tmp_path / "again.png"))
    assert kept.shape == drawn.shape, "run `make docs`"
    # Another processor may round a colour differently; a changed mask or order moves far more.
    assert np.abs(kept - drawn).mean() < 0.5, "run `make docs`"


def test_a_picture_is_the_same_file_every_time(tmp_path):
    pictures.draw("objectives", tmp_path / "first.png")
    pictures.draw("objectives", tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_every_axis_has_a_page_that_shows_its_picture():
    assert {path.stem for path in AXES.glob("*.md")} == set(pictures.PICTURES)
    for name in pictures.PICTURES:
        assert re.search(rf"!\[[^]]+\]\({name}\.png\)", (AXES / f"{name}.md").read_text()), name


def test_the_page_on_plans_speaks_of_every_registered_plan():
    text = (AXES / "plans.md").read_text()
    assert len(pictures.registered_plans()) >= 2
    for name in pictures.registered_plans():
        assert f"`{name}`" in text, f"docs/axes/plans.md does not speak of the plan '{name}'"


def test_a_plan_that_fits_no_layout_is_named():
    class Picky:
        def build(self, hidden_size, layout, codebook_size, latent_channels):
            raise LayoutError("none will do")

    with pytest.raises(UniMMError, match="Picky takes none of the layouts 4x4"):
        pictures.small_plan(Picky())
