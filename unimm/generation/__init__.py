"""Sampling: the one loop, guidance schedules, token filters, caches and the source of randomness."""

from .caches import ExactStaticCache, ExactStaticLayer, make_cache
from .filters import SoftCodes, token_filters
from .guidance import (
    ConstantGuidance,
    GuidanceSchedule,
    Guide,
    IntervalGuidance,
    LinearGuidance,
    ListedGuidance,
    PhaseGuidance,
    Progress,
    as_schedule,
)
from .randomness import GeneratorRandomness, Randomness, RecordedRandomness
from .streaming import ImageIteratorStreamer, ImageProgress, ImageStreamer

__all__ = [
    "ConstantGuidance",
    "ExactStaticCache",
    "ExactStaticLayer",
    "GeneratorRandomness",
    "GuidanceSchedule",
    "Guide",
    "ImageIteratorStreamer",
    "ImageProgress",
    "ImageStreamer",
    "IntervalGuidance",
    "LinearGuidance",
    "ListedGuidance",
    "PhaseGuidance",
    "Progress",
    "Randomness",
    "RecordedRandomness",
    "SoftCodes",
    "as_schedule",
    "make_cache",
    "token_filters",
]
