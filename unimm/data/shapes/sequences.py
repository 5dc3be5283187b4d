"""Several pictures that belong together: views of one novel object, and short videos."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...errors import ConfigError
from .language import Claims, claims_of, describe
from .sampling import SceneSampler, centre_in_region, centre_range, common_pair, held_out_pair
from .scenes import DIRECTIONS, REGIONS, SIZES, Scene, SceneObject
from .splits import Draws

#: Invented names of novel objects.
SUBJECT_NAMES = ("zorb", "wug", "blick", "dax", "fep", "tulver")

#: Shapes of novel objects; the others have no room for a legible figure inside.
SUBJECT_SHAPES = ("circle", "square")

#: How far a moving object travels at least, as a share of the picture's side.
MINIMUM_TRAVEL = 0.2


@dataclass(frozen=True, slots=True)
class SubjectSet:
    """A novel object with an invented name, in several places and on several backgrounds.

    Args:
        name: one of `SUBJECT_NAMES`.
        views: scenes that show the object alone.
        claims: per view, what a caption that describes the object (instead of naming it) states.
    """

    name: str
    views: tuple[Scene, ...]
    claims: tuple[Claims, ...]

    def caption(self, view: int) -> str:
        """The view's caption with the invented name, such as `a zorb at the top on a grey background`."""
        claims = self.claims[view]
        described = describe(claims)
        plain = describe(replace(claims, objects=(replace(claims.objects[0], position=None),), background=None))
        return f"a {self.name}{described.removeprefix(plain)}"


def sample_subject(sampler: SceneSampler, draws: Draws, num_views: int = 4) -> SubjectSet:
    """A random novel object: a large figure with a smaller one of another colour inside.

    Args:
        sampler: draws scenes of one split.
        draws: random decisions.
        num_views: number of pictures, at least one.

    Raises:
        ConfigError: `num_views` is not positive.
    """
    if num_views < 1:
        raise ConfigError(f"a subject set needs at least one view, but num_views is {num_views}")
    held_out = sampler.config.held_out_share > 0 and draws.uniform() < sampler.config.held_out_share
    while True:
        colour, shape = held_out_pair(draws) if held_out else common_pair(draws)
        if shape in SUBJECT_SHAPES:
            break
    while True:
        emblem_colour, emblem_shape = common_pair(draws)
        if emblem_colour != colour and emblem_shape != shape:
            break
    emblem = (emblem_shape, emblem_colour)
    regions = draws.shuffled(REGIONS)
    size = SIZES["large"]
    views = tuple(
        Scene(
            draws.choice(sampler.config.backgrounds),
            (SceneObject(shape, colour, size, centre_in_region(draws, size, regions[n % 9]), emblem=emblem),),
        )
        for n in range(num_views)
    )
    attributes = ("colour", "shape", "position", "background")
    claims = tuple(claims_of(view, "object", attributes) for view in views)
    return SubjectSet(draws.choice(SUBJECT_NAMES), views, claims)


def sample_video(
    sampler: SceneSampler, draws: Draws, attributes: tuple[str, ...], num_frames: int = 8
) -> tuple[tuple[Scene, ...], Claims]:
    """One object that moves steadily in one direction.

    Args:
        sampler: draws scenes of one split.
        draws: random decisions.
        attributes: what the caption states, some of `ATTRIBUTES`.
        num_frames: number of pictures, at least two.

    Returns:
        The scenes of the frames, and what the caption claims.

    Raises:
        ConfigError: fewer than two frames.
    """
    if num_frames < 2:
        raise ConfigError(f"a video needs at least two frames, but num_frames is {num_frames}")
    scene = sampler.sample(draws, "video")
    item = scene.objects[0]
    direction = draws.choice(tuple(DIRECTIONS))
    step_x, step_y = DIRECTIONS[direction]
    low, high = centre_range(item.size)
    travel = draws.uniform(MINIMUM_TRAVEL, high - low)
    start = draws.uniform(low, high - travel)
    across = draws.uniform(low, high)
    first = start if step_x + step_y > 0 else start + travel
    frames = []
    for n in range(num_frames):
        along = first + (step_x + step_y) * travel * n / (num_frames - 1)
        centre = (along, across) if step_x else (across, along)
        frames.append(scene.replace_object(0, centre=centre))
    return tuple(frames), claims_of(frames[0], "video", attributes, direction)
