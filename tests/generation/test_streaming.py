"""Previews while a picture is drawn."""

import threading

import pytest
import torch
from factories import GENERATORS, build, build_with_processor, condition_inputs, generators, prompts, raster_config
from transformers import AutoModel

from unimm import ImageIteratorStreamer, ImageStreamer
from unimm.errors import ConfigError, LayoutError
from unimm.plans.base import Canvas, PredictionPlan
from unimm.tokens import TokenLayout


class Recorder(ImageStreamer):
    def __init__(self):
        self.steps, self.num_ends = [], 0

    def put(self, progress):
        self.steps.append(progress)

    def end(self):
        self.num_ends += 1


@pytest.mark.parametrize("name", GENERATORS)
def test_the_last_preview_is_the_picture_and_watching_changes_nothing(name):
    model = build(name)
    inputs, recorder = condition_inputs(model, 2), Recorder()
    drawn = model.generate(**inputs, guidance_scale=2.0, generator=generators(1, 2), streamer=recorder)
    plain = model.generate(**inputs, guidance_scale=2.0, generator=generators(1, 2))
    assert torch.equal(drawn.images, plain.images)
    assert [one.step for one in recorder.steps] == list(range(drawn.num_backbone_calls))
    assert {one.num_steps for one in recorder.steps} == {drawn.num_backbone_calls}
    assert recorder.steps[-1].is_last
    assert recorder.num_ends == 1
    assert torch.equal(recorder.steps[-1].preview, drawn.images)


def test_the_scale_plan_shows_its_running_reconstruction_even_when_asked_later():
    model, recorder = build("scale"), Recorder()
    drawn = model.generate(labels=[1], streamer=recorder)
    tokens = model.as_tokens(drawn.sequences)
    for level, progress in enumerate(recorder.steps, start=1):
        assert torch.equal(progress.ids, drawn.sequences[:, : progress.num_tokens])
        expected = model.tokenizer.decode(tokens.first_levels(level))
        assert torch.allclose(progress.preview, expected, atol=1e-5)


def test_the_raster_plan_shows_what_is_placed_on_grey():
    model, recorder = build("raster"), Recorder()
    model.generate(labels=[1], streamer=recorder)
    preview = recorder.steps[5].preview
    side = 16 // model.layout.final[0]
    assert (preview[..., 2 * side :, :] == 0).all()
    assert (preview[..., side : 2 * side, 2 * side :] == 0).all()
    assert (preview[..., :side, :] != 0).any()


def test_a_conditional_model_streams_pictures_too():
    model, processor = build_with_processor()
    recorder = Recorder()
    ids = model.generate(**prompts(processor, "a red circle"), generation_mode="image", streamer=recorder)
    assert torch.equal(recorder.steps[-1].preview, model.decode_image_tokens(ids))


def test_previews_can_be_read_in_another_thread():
    model = build("raster")
    streamer = ImageIteratorStreamer(every=5, timeout=60)
    drawn = []
    thread = threading.Thread(target=lambda: drawn.append(model.generate(labels=[1, 2], streamer=streamer)))
    thread.start()
    seen = list(streamer)
    thread.join()
    assert [one.step for one in seen] == [4, 9, 14, 15]
    assert torch.equal(seen[-1].preview, drawn[0].images)


def test_a_streamer_hears_the_end_of_a_drawing_that_fails():
    class Failing(Recorder):
        def put(self, progress):
            raise RuntimeError("the screen is gone")

    streamer = Failing()
    with pytest.raises(RuntimeError, match=r"the screen is gone"):
        build("raster").generate(labels=[1], streamer=streamer)
    assert streamer.num_ends == 1


def test_previews_that_cannot_be_made_say_why():
    model = AutoModel.from_config(raster_config(tokenizer_config=None, token_layout=((4, 4),), codebook_size=32)).eval()
    recorder = Recorder()
    model.generate(labels=[1], streamer=recorder)
    with pytest.raises(ConfigError, match=r"without a visual tokenizer"):
        _ = recorder.steps[0].preview
    plan = build("raster").plan
    canvas = Canvas(TokenLayout.sequence(4), torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(LayoutError, match=r"2 of 4 tokens"):
        PredictionPlan.preview(plan, canvas, plan.steps(canvas.layout, 1)[1], model.tokenizer)
    with pytest.raises(ConfigError, match=r"at least 1"):
        ImageIteratorStreamer(every=0)
