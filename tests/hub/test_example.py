"""`examples/push_and_load.py` against the small Hub."""

from __future__ import annotations

import runpy
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_example_pushes_a_model_and_draws_with_what_it_loads_by_id(client, hub, tmp_path):
    runpy.run_path(str(EXAMPLES / "stand_in.py"))["main"](tmp_path / "model")
    script, words = str(EXAMPLES / "push_and_load.py"), ["push_and_load", "writer/example", "--license", "mit"]
    words += ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "drawn.png")]
    program = f"import runpy, sys; sys.argv = {words!r}; runpy.run_path({script!r}, run_name='__main__')"
    result = client.python(program)
    assert result.code == 0, result.err
    assert "weights are equal: True" in result.out
    repository = hub.repositories["writer/example"]
    assert repository.private
    assert b"license: mit" in repository.files["README.md"]
    assert any(request.startswith("GET /lfs/") for request in hub.requests), "the weights come from the Hub"
    assert Image.open(tmp_path / "drawn.png").size == (32, 32)
