"""Shapes, the built-in world: coloured shapes, drawn and described deterministically from a seed."""

from .alterations import alter_claims, alter_scene
from .datasets import shapes_dataset
from .degradations import degrade
from .edits import Edit, sample_edit
from .language import Claims, ObjectClaim, check_claims, claims_of, describe, parse_caption, tokens_of
from .questions import Question, answer_question, ask, majority_baseline
from .rendering import render, segment
from .rows import ShapesRows
from .sampler import ShapesSample, ShapesSampler, vocabulary
from .sampling import WorldConfig
from .scenes import Scene, SceneObject, SceneWord, relation_between
from .sequences import SubjectSet, sample_subject, sample_video
from .splits import held_out_combinations

__all__ = [
    "Claims",
    "Edit",
    "ObjectClaim",
    "Question",
    "Scene",
    "SceneObject",
    "SceneWord",
    "ShapesRows",
    "ShapesSample",
    "ShapesSampler",
    "SubjectSet",
    "WorldConfig",
    "alter_claims",
    "alter_scene",
    "answer_question",
    "ask",
    "check_claims",
    "claims_of",
    "degrade",
    "describe",
    "held_out_combinations",
    "majority_baseline",
    "parse_caption",
    "relation_between",
    "render",
    "sample_edit",
    "sample_subject",
    "sample_video",
    "segment",
    "shapes_dataset",
    "tokens_of",
    "vocabulary",
]
