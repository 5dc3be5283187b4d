"""The built-in benchmarks: what a conditional model draws and answers, judged; every rate with its n and interval."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from rich.table import Table

from ..data.digits import DIGIT_NAMES, digit_caption, digits_dataset
from ..data.rows import question_row
from ..data.shapes import ShapesSampler, held_out_combinations
from ..data.transforms import to_pil, to_pixel_values
from ..errors import ConfigError, nearest
from .answers import answer_questions, expected_answers, rate_record, score_answers
from .classifier import DigitsJudge
from .pictures import draw_pictures
from .shapes import evaluate_generations

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def run_benchmark(
    name: str,
    model: Any,
    processor: Any,
    *,
    num: int = 1000,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Record:
    """Runs a benchmark on a conditional model.

    Args:
        name: `shapes` or `digits`.
        num: pictures and questions per row of the table; one picture per prompt.
        seed: of the draws.
        sampling: arguments of `generate_image`.
        options: of the data set (for Shapes: backgrounds, sizes, …), as in training.

    Returns:
        The record: the benchmark, the judge, every sampling option, and `rows`, each with `n`, `right` and `interval`.

    Raises:
        ConfigError: an unknown benchmark, options that it does not have, or a model that is no conditional one.
    """
    for title, given in (("sampling", sampling), ("options", options)):
        if not isinstance(given, Mapping | None):
            raise ConfigError(f"{title} must be a mapping of names to values, given {given!r}")
    if not isinstance(num, int) or num < 1:
        raise ConfigError(f"num must be a whole number of at least 1, given {num!r}")
    if name not in _BENCHMARKS:
        raise ConfigError(f"there is no benchmark '{name}'{nearest(name, _BENCHMARKS)}")
    if not hasattr(model, "decode_image_tokens") or processor is None:
        raise ConfigError(
            f"benchmarks judge a UniMMForConditionalGeneration with its processor, given a {type(model).__name__} "
            f"{'without' if processor is None else 'with'} one"
        )
    started = time.perf_counter()
    was_training = model.training
    model.eval()
    try:
        record = _BENCHMARKS[name](model, processor, num, seed, dict(sampling or {}), dict(options or {}))
    finally:
        model.train(was_training)
    head = {"benchmark": name, "sampling": dict(sampling or {}), "options": dict(options or {}), "seed": seed}
    return {**head, **record, "seconds": round(time.perf_counter() - started, 1)}


def reconstruct(model: Any, images: np.ndarray, batch_size: int = 128) -> np.ndarray:
    """Pictures after one pass through a model's visual tokenizer, uint8 `(pictures, height, width, 3)`."""
    height, width = model.config.height_and_width
    pictures = []
    for start in range(0, len(images), batch_size):
        pixels = to_pixel_values(list(images[start : start + batch_size]), height, width, crop="none").to(model.device)
        pictures += [np.asarray(one) for one in to_pil(model.decode_image_tokens(model.encode_images(pixels).values))]
    return np.stack(pictures)


def _shapes(
    model: Any, processor: Any, num: int, seed: int, sampling: dict[str, Any], options: dict[str, Any]
) -> Record:
    resolution = model.config.height_and_width[0]
    rows: dict[str, Any] = {}
    for kind, title in (("object", "one object"), ("pair", "two objects with a relation")):
        world = {**options, "kinds": (kind,)}
        sampler = ShapesSampler("test", seed=seed, resolution=resolution, num_rows=num, **world)
        samples = [sampler[index] for index in range(num)]
        captions = [sample.caption for sample in samples]
        pictures = draw_pictures(model, processor, captions, seed=seed, **sampling)
        result = evaluate_generations(list(pictures), captions)
        logger.info("%s: %s", title, result["by_attribute"])
        rows[f"drawn: {title}"] = _rate(result)
        unseen = [index for index, sample in enumerate(samples) if held_out_combinations().has_scene(sample.scene)]
        for part, chosen in (
            ("never seen in training", unseen),
            ("seen in training", sorted(set(range(num)) - set(unseen))),
        ):
            if chosen:
                judged = evaluate_generations([pictures[one] for one in chosen], [captions[one] for one in chosen])
                rows[f"drawn: {title}, combination {part}"] = _rate(judged)
        truth = reconstruct(model, np.stack([sample.image for sample in samples]))
        rows[f"tokenizer's reconstruction: {title}"] = _rate(evaluate_generations(list(truth), captions))
    asked = ShapesSampler("test", task="questions", seed=seed, resolution=resolution, num_rows=num, **options)
    samples = [asked[index] for index in range(num)]
    questions = [sample.questions[0] for sample in samples]
    conversations = [
        question_row(sample.image, question.text, question.answer)
        for sample, question in zip(samples, questions, strict=True)
    ]
    answers = answer_questions(model, processor, conversations)
    scores = score_answers(
        answers, [question.answer for question in questions], [question.type for question in questions]
    )
    rows["questions answered"] = scores["accuracy"]
    rows["questions: always the commonest answer of the kind"] = scores["majority_baseline"]
    rows |= {f"questions about {kind}": rate for kind, rate in scores["by_kind"].items()}
    return {"judge": "unimm.evaluation.shapes.ShapesJudge", "rows": rows}


def _digits(
    model: Any, processor: Any, num: int, seed: int, sampling: dict[str, Any], options: dict[str, Any]
) -> Record:
    if options:
        raise ConfigError(f"the benchmark 'digits' has no options, given {', '.join(sorted(options))}")
    judge = DigitsJudge.fit(seed=0)
    labels = [index % 10 for index in range(num)]
    pictures = draw_pictures(model, processor, [digit_caption(label) for label in labels], seed=seed, **sampling)
    recognised = judge.predict(pictures)
    held_out = digits_dataset("question", "test", resolution=model.config.height_and_width[0])
    conversations = [held_out[index] for index in range(min(num, len(held_out)))]
    answers, expected = answer_questions(model, processor, conversations), expected_answers(conversations)
    scores = score_answers(answers, expected, ["digit"] * len(expected))
    rows = {
        "drawn digits that the classifier recognises": rate_record(int((recognised == np.array(labels)).sum()), num),
        "questions answered on held-out digits": scores["accuracy"],
        "questions: always the commonest answer": scores["majority_baseline"],
        "classifier's own accuracy on held-out digits": judge.accuracy,
    }
    for label, name in enumerate(DIGIT_NAMES):
        mine = [int(one) for one, wanted in zip(recognised, labels, strict=True) if wanted == label]
        if mine:
            rows[f"drawn: {name}"] = rate_record(mine.count(label), len(mine))
    return {"judge": "unimm.evaluation.classifier.DigitsJudge", "rows": rows}


def _rate(result: Mapping[str, Any]) -> Record:
    return {key: result[key] for key in ("n", "right", "interval")}


def table_of(record: Record) -> Table:
    """A record as a rich table."""
    table = Table("what", "right", "95 % interval", "n", title=f"{record['benchmark']} ({record['judge']})")
    for name, rate in record["rows"].items():
        low, high = rate["interval"]
        table.add_row(name, f"{rate['right']:.1%}", f"{low:.1%} to {high:.1%}", str(rate["n"]))
    return table


_BENCHMARKS: dict[str, Callable[..., Record]] = {"shapes": _shapes, "digits": _digits}
