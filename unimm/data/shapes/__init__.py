"""Shapes, the built-in world: scenes of coloured shapes, rendered and described deterministically from a seed."""

from .language import Claims, ObjectClaim, check_claims, claims_of, describe, parse_caption, tokens_of
from .questions import Question, answer_question, ask, majority_baseline
from .rendering import render, segment
from .sampler import ShapesSample, ShapesSampler, vocabulary
from .sampling import WorldConfig
from .scenes import Scene, SceneObject, SceneWord, relation_between
from .splits import held_out_combinations

__all__ = [
    "Claims",
    "ObjectClaim",
    "Question",
    "Scene",
    "SceneObject",
    "SceneWord",
    "ShapesSample",
    "ShapesSampler",
    "WorldConfig",
    "answer_question",
    "ask",
    "check_claims",
    "claims_of",
    "describe",
    "held_out_combinations",
    "majority_baseline",
    "parse_caption",
    "relation_between",
    "render",
    "segment",
    "tokens_of",
    "vocabulary",
]
