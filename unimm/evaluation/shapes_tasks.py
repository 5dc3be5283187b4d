"""Judging edits, videos, and pictures that follow a layout in the world Shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.shapes.edits import EDIT_TYPES
from ..data.shapes.language import Claims, ObjectClaim, check_claims, parse_caption
from ..data.shapes.rendering import segment
from ..data.shapes.scenes import DIRECTIONS, SHAPES, Scene, SceneObject, relation_between
from ..data.shapes.sequences import MINIMUM_TRAVEL
from ..errors import DataError, ImageError, nearest
from .shapes import ShapesJudge, Verdict

#: How far an object that stays may drift, and how far a moved one may miss its region, as shares of the side.
_DRIFT = 0.06


def _same(item: SceneObject, other: SceneObject, drift: float | None) -> bool:
    alike = (
        item.shape == other.shape
        and item.colour == other.colour
        and item.size_name == other.size_name
        and item.texture == other.texture
    )
    return alike and (
        drift is None or max(abs(item.centre[0] - other.centre[0]), abs(item.centre[1] - other.centre[1])) <= drift
    )


def judge_edit(image, before: Scene, after: Scene, edit_type: str, judge: ShapesJudge | None = None) -> Verdict:
    """Judges whether a picture is what an edit asked for, and nothing else has changed.

    Args:
        image: the edited picture, uint8 `(side, side, 3)` or PIL.
        before: the scene that was edited.
        after: a scene in which the instruction was followed. Where a moved object lies within its region, or
            an added one within its relation, is free.
        edit_type: one of `EDIT_TYPES`.
        judge: reads the picture.

    Returns:
        The checks `count`, `background`, `kept` (every untouched object is as it was, where it was) and,
        unless the edit only removes something or changes the background, `changed`.

    Raises:
        DataError: the type of edit does not exist.
    """
    if edit_type not in EDIT_TYPES:
        raise DataError(f"{edit_type!r} is no type of edit{nearest(edit_type, EDIT_TYPES)}")
    judge = judge or ShapesJudge()
    reading = judge.read(image)
    seen = list(reading.scene.objects)
    kept = [item for item in after.objects if item in before.objects]
    changed = [item for item in after.objects if item not in before.objects]
    checks = {
        "count": len(seen) == len(after.objects) and reading.num_strays == 0 and reading.scene.word is None,
        "background": reading.scene.background == after.background,
    }
    all_kept = True
    for item in kept:
        found = next((other for other in seen if _same(item, other, _DRIFT)), None)
        all_kept = all_kept and found is not None
        if found is not None:
            seen.remove(found)
    checks["kept"] = all_kept
    if changed:
        drift = None if edit_type in ("position", "addition") else _DRIFT
        found = next((other for other in seen if _same(changed[0], other, drift)), None)
        holds = found is not None
        if found is not None and edit_type == "position":
            holds = _in_region(found, changed[0].region, judge.position_tolerance)
        elif found is not None and edit_type == "addition":
            holds = relation_between(found, kept[0]) == relation_between(changed[0], kept[0])
        checks["changed"] = holds
    return Verdict(all(checks.values()), checks)


def _in_region(item: SceneObject, region: str, tolerance: float) -> bool:
    claims = Claims("object", (ObjectClaim(position=region),), 1)
    return check_claims(claims, Scene("white", (item,)), tolerance=tolerance)["position"]


def judge_video(frames: Sequence, caption: str | Claims, judge: ShapesJudge | None = None) -> Verdict:
    """Judges whether a video shows what its caption states in every frame, and moves as it says.

    Args:
        frames: pictures in order of time.
        caption: a caption of kind `video`, or what it claims.
        judge: reads the pictures.

    Returns:
        The checks of `ShapesJudge.judge`, each of which holds when it holds in every frame, and `motion`:
        from the first to the last frame the object travels in the stated direction, half of the world's
        least travel or more.

    Raises:
        DataError: the caption is not of kind `video`.
        ImageError: there are fewer than two frames.
    """
    claims = parse_caption(caption) if isinstance(caption, str) else caption
    if claims.motion is None:
        raise DataError(f"a video is judged against a caption of kind 'video', but got one of kind {claims.kind!r}")
    if len(frames) < 2:
        raise ImageError(f"a video has two frames or more, but got {len(frames)}")
    judge = judge or ShapesJudge()
    readings = [judge.read(frame) for frame in frames]
    checks: dict[str, bool] = {}
    for reading in readings:
        for name, holds in judge.judge_reading(reading, claims).checks.items():
            checks[name] = checks.get(name, True) and holds
    first, last = readings[0].scene.objects, readings[-1].scene.objects
    checks["motion"] = False
    if len(first) == 1 and len(last) == 1:
        step = np.subtract(last[0].centre, first[0].centre)
        along = float(step @ np.asarray(DIRECTIONS[claims.motion]))
        checks["motion"] = along >= MINIMUM_TRAVEL / 2 and along > 2 * float(np.abs(step).min())
    return Verdict(all(checks.values()), checks)


def layout_agreement(image, layout: np.ndarray, judge: ShapesJudge | None = None) -> float:
    """How well a picture follows a layout: the mean intersection over union of the layout's classes.

    Args:
        image: the picture, uint8 `(side, side, 3)` or PIL.
        layout: `segment` of the wanted scene, `(side, side)`.
        judge: reads the picture.

    Returns:
        A number in [0, 1]; the background and words do not count.

    Raises:
        ImageError: the sizes differ.
        DataError: the layout has no object.
    """
    side = np.asarray(image).shape[0]
    if layout.shape != (side, side):
        raise ImageError(f"the layout is {layout.shape}, but the picture is {side} pixels a side; give equal sizes")
    wanted = [number for number in range(1, 1 + len(SHAPES)) if (layout == number).any()]
    if not wanted:
        raise DataError("the layout has no object to compare")
    seen = segment((judge or ShapesJudge()).read(image).scene, side)
    shares = [((seen == n) & (layout == n)).sum() / ((seen == n) | (layout == n)).sum() for n in wanted]
    return float(np.mean(shares))
